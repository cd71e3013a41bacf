from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.data.request import Request
from torch_geometric_unlearn.nn.models.base import RecommenderLike

from .base import Unlearner


class RowReset(Unlearner):
    r"""Deletes the edges and draws the ID rows of deleted users and items anew from
    their initial distribution, the second control of every comparison.

    A deleted user of a transductive model is a row that can be thrown away, so this
    removes direct memory at no cost. It leaves what other rows and shared weights have
    learned, and does nothing for single interactions.

    Args:
        seed (int, optional): Seed of the draw. (default: :obj:`0`)
        init (callable, optional): Fills a fresh table of the same shape in place; if
            :obj:`None`, what the model's :obj:`tables()` name.
            (default: :obj:`None`)

    Example:
        >>> result = RowReset()(model, ForgetUsers([3])(data))
        >>> result.touched['item_embedding.weight']
        0.0
    """

    def __init__(
        self,
        seed: int = 0,
        init: Callable[[Tensor], Any] | None = None,
    ) -> None:
        super().__init__(seed)
        self.init = init

    serves_nodes = True
    serves_half = True
    serves_columns = True

    def supports(self, model: RecommenderLike, data: HeteroData) -> tuple[bool, str]:
        ok, reason = super().supports(model, data)
        reason = lacks_id_table(model) if ok else reason
        return not reason, reason

    def _unlearn(
        self, model: RecommenderLike, data: HeteroData, retained: HeteroData
    ) -> tuple[RecommenderLike, list[dict[str, Any]]]:
        reset_rows(model, data, self.init)
        return model, []


def lacks_id_table(model: RecommenderLike) -> str:
    r"""Returns why the model has no row to draw anew, or an empty string."""
    if all(table.is_raw for table in model.tables()):
        return f"'{type(model).__name__}' has no ID table"
    return ''


def reset_rows(
    model: RecommenderLike,
    data: HeteroData,
    init: Callable[[Tensor], Any] | None = None,
) -> None:
    r"""Draws the ID rows of the users and items that :obj:`data` deletes anew, in
    place, from torch's global generator.
    """
    request = Request.of(data)
    draw_rows(model, request.users, request.items, schema.num_users(data), init)


@torch.no_grad()
def draw_rows(
    model: Any,
    users: Tensor,
    items: Tensor,
    num_users: int,
    init: Callable[[Tensor], Any] | None = None,
) -> None:
    r"""Draws the ID rows of some users int64 :obj:`[n]` and items int64 :obj:`[m]`
    anew, in place, from torch's global generator.
    """
    nodes = torch.cat([users, items + num_users])
    for table in model.tables():
        if table.is_raw:
            continue
        _, rows = table.locate(nodes, num_users)
        # The same draw in every precision.
        fresh = torch.empty_like(table.parameter, dtype=torch.float32)
        (init or table.init)(fresh)
        rows = rows.to(fresh.device)
        table.parameter[rows] = fresh[rows].to(table.parameter.dtype)

