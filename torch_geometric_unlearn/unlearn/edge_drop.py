from __future__ import annotations

from typing import Any

from torch_geometric.data import HeteroData

from torch_geometric_unlearn.nn.models.base import RecommenderLike

from .base import Unlearner


class EdgeDrop(Unlearner):
    r"""Deletes the edges and trains nothing, the first control of every comparison,
    known for general graphs from the `"Unlink to Unlearn: Simplifying Edge Unlearning
    in GNNs" <https://arxiv.org/abs/2402.10695>`_ paper.

    A method that doesn't beat it has shown nothing: the rows of deleted users and items
    are all still there.

    Example:
        >>> result = EdgeDrop()(model, ForgetUsers([3])(data))
        >>> max(result.touched.values())
        0.0
    """

    serves_half = True
    serves_columns = True

    def _unlearn(
        self, model: RecommenderLike, data: HeteroData, retained: HeteroData
    ) -> tuple[RecommenderLike, list[dict[str, Any]]]:
        return model, []
