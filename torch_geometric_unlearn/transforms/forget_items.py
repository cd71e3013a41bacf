from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch_geometric.data.datapipes import functional_transform

from torch_geometric_unlearn.data import schema

from ._request import ForgetNodes


@functional_transform('forget_items')
class ForgetItems(ForgetNodes):
    r"""Marks every training interaction of some items as to be forgotten, the
    item-level request (functional name: :obj:`forget_items`).

    Sets :obj:`forget_mask` on the interactions, :obj:`data.forget_items` and
    :obj:`data.forget_level`. Nothing is deleted yet; see :class:`DropForgotten`.
    Requests combine: marks are added to marks that are already there. An id named
    twice counts once, and an item without training interactions marks none, but
    loses its held-out pairs on deletion. Its content features stay: they hold no
    interactions.

    Args:
        items (sequence or torch.Tensor, optional): Internal item ids.
        raw_items (sequence, optional): The caller's own item ids, looked up in the
            id map that :meth:`from_frame` keeps.
        ratio (float, optional): Share of the items with training interactions to
            draw, in :math:`(0, 1)`, at least one.
        seed (int, optional): Seed of that draw. (default: :obj:`0`)

    Raises:
        ValueError: If not exactly one of :obj:`items`, :obj:`raw_items` and
            :obj:`ratio` is given, the request is empty, an id is unknown, or the
            request would delete every training interaction.

    Example:
        >>> data = SyntheticMultimodal('tiny')[0]
        >>> data = ForgetItems([3, 17])(data)
        >>> data.forget_level
        'item'
    """

    node_type = schema.ITEM

    def __init__(
        self,
        items: Sequence[int] | Tensor | None = None,
        *,
        raw_items: Sequence[Any] | None = None,
        ratio: float | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(items, raw_items, ratio, seed)
