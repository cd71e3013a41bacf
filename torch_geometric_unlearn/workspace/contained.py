from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torch_geometric_unlearn.nn.models.base import Recommender, RecommenderLike


class Contained(torch.nn.Module):
    r"""A model as it is served: it never recommends some items.

    Everything but :meth:`recommend` is the model's.

    Args:
        model (torch.nn.Module): The model.
        items (torch.Tensor): Items that nobody gets, int64 :obj:`[m]`.
    """

    def __init__(self, model: RecommenderLike, items: Tensor) -> None:
        super().__init__()
        self.model: Any = model
        self.register_buffer('items', items, persistent=False)

    def forward(self, graph: Any) -> tuple[Tensor, Tensor]:
        return self.model(graph)

    def recommend(self, graph: Any, users: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        r"""Returns the best items of every user that may be served, with the arguments
        of :meth:`Recommender.recommend
        <torch_geometric_unlearn.nn.models.base.Recommender.recommend>`.
        """
        more = kwargs.pop('exclude_items', None)
        items: Any = self.items
        if more is not None:
            more = torch.as_tensor(more, dtype=torch.int64, device=items.device)
            items = torch.cat([items, more])
        # Also for a model that does not inherit from the base class.
        function: Any = Recommender.recommend
        return function(self.model, graph, users, exclude_items=items, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__('model'), name)
