from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch_geometric.data.datapipes import functional_transform

from torch_geometric_unlearn.data import schema

from ._request import ForgetNodes


@functional_transform('forget_users')
class ForgetUsers(ForgetNodes):
    r"""Marks every training interaction of some users as to be forgotten, the
    user-level request (functional name: :obj:`forget_users`).

    Sets :obj:`forget_mask` on the interactions, :obj:`data.forget_users` and
    :obj:`data.forget_level`. Nothing is deleted yet; see :class:`DropForgotten`.
    Requests combine: marks are added to marks that are already there. An id named
    twice counts once, and a user without training interactions marks none, but
    loses its held-out pairs on deletion.

    Args:
        users (sequence or torch.Tensor, optional): Internal user ids.
        raw_users (sequence, optional): The caller's own user ids, looked up in the
            id map that :meth:`from_frame` keeps.
        ratio (float, optional): Share of the users with training interactions to
            draw, in :math:`(0, 1)`, at least one.
        seed (int, optional): Seed of that draw. (default: :obj:`0`)

    Raises:
        ValueError: If not exactly one of :obj:`users`, :obj:`raw_users` and
            :obj:`ratio` is given, the request is empty, an id is unknown, or the
            request would delete every training interaction.

    Example:
        >>> data = SyntheticMultimodal('tiny')[0]
        >>> data = ForgetUsers([3, 17])(data)
        >>> data.forget_level
        'user'
    """

    node_type = schema.USER

    def __init__(
        self,
        users: Sequence[int] | Tensor | None = None,
        *,
        raw_users: Sequence[Any] | None = None,
        ratio: float | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(users, raw_users, ratio, seed)
