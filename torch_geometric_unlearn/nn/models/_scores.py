r"""What ranks items, from whole embeddings or from the columns of several processes."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from torch_geometric_unlearn.distributed import Columns
from torch_geometric_unlearn.distributed.scores import ColumnScores
from torch_geometric_unlearn.utils.finite import NotFiniteError
from torch_geometric_unlearn.utils.mode import evaluating
from torch_geometric_unlearn.utils.topk import Scores

from ._checks import read_embeddings


@runtime_checkable
class HasColumns(Protocol):
    r"""A model that shows the columns of its embeddings that this process holds,
    :math:`(N_{user}, H / P)` and :math:`(N_{item}, H / P)`.
    """

    columns: Columns

    def column_embeddings(self, graph: Any) -> tuple[Tensor, Tensor]: ...


def is_shared(model: Any) -> bool:
    r"""Tells whether several processes hold the columns of a model's embeddings."""
    return isinstance(model, HasColumns) and model.columns.num_processes > 1


@torch.no_grad()
def scores_of(model: Any, graph: Any, name: str = 'model') -> Scores:
    r"""Returns the scores of a model, in evaluation mode.

    Raises:
        ValueError: If its embeddings are not finite, on any process that holds some of
            their columns.
    """
    with evaluating(model):
        shared = is_shared(model)
        sides = model.column_embeddings(graph) if shared else model(graph)
    out, reason = [], ''
    for side, kind in enumerate(('user', 'item')):
        x, what = sides[side].detach(), f'{kind} embeddings'
        try:
            out.append(read_embeddings(model, x, what, side, graph, name))
        except NotFiniteError as error:
            if not shared:
                raise
            reason = reason or str(error)
    if not shared:
        return Scores(out[0], out[1])
    if reason := next(filter(None, model.columns.share(reason)), ''):
        raise NotFiniteError(reason)
    return ColumnScores(out[0], out[1], model.columns)
