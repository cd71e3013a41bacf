from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.data.request import without_request
from torch_geometric_unlearn.utils.finite import all_finite
from torch_geometric_unlearn.utils.mode import evaluating
from torch_geometric_unlearn.utils.topk import Scores

from ._checks import read_embeddings
from ._scores import is_shared, scores_of
from .base import HasBranches, HasContent, RecommenderLike, check_graph

T = TypeVar('T')


class Served:
    r"""A model together with what it propagates over, as it serves users: everything
    that metrics and audits look at, computed once, in evaluation mode, when it is first
    asked for.

    All of them take it in place of a model, so that several measures of one model cost
    one forward pass. It is a view of the model as it was then: after its parameters
    have changed, make another.

    Everything is finite, or raises. Half precision is read as float32, since no score
    can be summed or compared in it.

    Args:
        model (torch.nn.Module): The model.
        graph (Any): The result of :obj:`model.build_graph`.
        name (str, optional): What errors call the model. (default: :obj:`'model'`)

    Raises:
        TypeError: If :obj:`graph` is the data that it is to be built from.

    Example:
        >>> served = Served.of(model, ForgetUsers([3])(data))
        >>> [tuple(emb.size()) for emb in served.embeddings]
        [(100, 64), (60, 64)]
    """

    def __init__(
        self, model: RecommenderLike, graph: Any, name: str = 'model'
    ) -> None:
        check_graph(graph)
        self.model, self.graph, self.name = model, graph, name
        self._known: dict[str, Any] = {}

    @classmethod
    def of(
        cls,
        model: RecommenderLike | Served,
        data: HeteroData,
        graph: Any = None,
        name: str = 'model',
    ) -> Served:
        r"""Returns a model over the interactions of :obj:`data` that are not marked as
        forgotten, or over :obj:`graph`; what is served already stays as it is.

        Raises:
            ValueError: If the graph that the model builds holds a forgotten pair, or
                :obj:`graph` is given although the model is served already.
        """
        if isinstance(model, Served):
            if graph is not None:
                raise ValueError(
                    "'graph' must be left out for a served model, which has its own. "
                    'Pass the model itself to look at it over another graph.'
                )
            return model
        if graph is not None:
            return cls(model, graph, name)
        out = cls(model, model.build_graph(data), name)
        out._check(data)
        return out

    @classmethod
    def before(
        cls, model: RecommenderLike | Served, data: HeteroData, name: str = 'original'
    ) -> Served:
        r"""Returns the original model as it was in service before the request that
        :obj:`data` marks, over all interactions; what is served already stays.
        """
        if isinstance(model, Served):
            return model
        return cls(model, model.build_graph(without_request(data)), name)

    @property
    def embeddings(self) -> tuple[Tensor, Tensor]:
        r"""User and item embeddings, :math:`(N_{user}, H)` and :math:`(N_{item}, H)`,
        without gradients.

        Raises:
            ValueError: If they are not finite; says of which model, and whether it is
                an empty history, whose mean is NaN.
        """
        return self._once('embeddings', self._embeddings)

    @property
    def scores(self) -> Scores:
        r"""What ranks items for users. Of a model that is divided by columns, no
        process needs whole embeddings for it.
        """
        return self._once('scores', self._scores)

    @property
    def is_finite(self) -> bool:
        r"""Whether user and item embeddings are finite; raises nothing."""
        return all_finite(self._once('forward', self._forward))

    @property
    def branches(self) -> dict[str, tuple[Tensor, Tensor]]:
        r"""The same by branch, before the fusion; empty if the model shows none."""
        return self._once('branches', self._branches)

    @property
    def content(self) -> dict[str, Tensor]:
        r"""Item content :math:`(N_{item}, H)` by modality; empty if the model shows
        none.
        """
        return self._once('content', self._content)

    def _once(self, name: str, compute: Callable[[], T]) -> T:
        # 'cached_property' holds a lock for all models up to Python 3.11, in which one
        # thread would wait for another that waits for it in the forward pass.
        if name not in self._known:
            self._known[name] = compute()
        out: T = self._known[name]
        return out

    def _embeddings(self) -> tuple[Tensor, Tensor]:
        user_emb, item_emb = self._once('forward', self._forward)
        user_emb = self._read('user embeddings', user_emb, 0)
        return user_emb, self._read('item embeddings', item_emb, 1)

    def _scores(self) -> Scores:
        if is_shared(self.model):
            return scores_of(self.model, self.graph, self.name)
        return Scores(*self.embeddings)

    def _forward(self) -> tuple[Tensor, Tensor]:
        with evaluating(self.model), torch.no_grad():
            user_emb, item_emb = self.model(self.graph)
        return user_emb.detach(), item_emb.detach()

    def _branches(self) -> dict[str, tuple[Tensor, Tensor]]:
        if not isinstance(self.model, HasBranches):
            return {}
        size = self.embeddings[0].size(0)
        with evaluating(self.model), torch.no_grad():
            branches = self.model.branch_embeddings(self.graph)
        out = {}
        for name, x in branches.items():
            users, items = x[:size].detach(), x[size:].detach()
            out[name] = (
                self._read(f"user embeddings of the branch '{name}'", users, 0),
                self._read(f"item embeddings of the branch '{name}'", items, 1),
            )
        return out

    def _content(self) -> dict[str, Tensor]:
        if not isinstance(self.model, HasContent):
            return {}
        with evaluating(self.model), torch.no_grad():
            content = self.model.content_embeddings(self.graph)
        return {
            name: self._read(f"content embeddings of '{name}'", x.detach(), 1)
            for name, x in content.items()
        }

    def _read(self, what: str, x: Tensor, side: int) -> Tensor:
        return read_embeddings(self.model, x, what, side, self.graph, self.name)

    def _check(self, data: HeteroData) -> None:
        forgotten = schema.forgotten_edge_index(data).cpu()
        if forgotten.size(1) == 0:
            return
        size = schema.num_items(data)
        known = schema.pair_codes(self.graph.edge_index.cpu(), size)
        left = int(torch.isin(schema.pair_codes(forgotten, size), known).sum())
        if left:
            raise ValueError(
                f"'build_graph' must leave out the forgotten pairs (got {left} of "
                f'{forgotten.size(1)} in the graph). Build it from '
                f"'schema.retained_edge_index(data)'."
            )

    def __repr__(self) -> str:
        return f'{self.__class__.__name__}({type(self.model).__name__})'
