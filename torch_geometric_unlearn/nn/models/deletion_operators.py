from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Linear, ModuleDict
from torch_geometric.data import HeteroData

from torch_geometric_unlearn.nn.functional import bpr_loss

from .base import HasContent, Recommender, RecommenderLike, Table, Triplets

#: Name of the operator that acts on the fused embeddings.
OUT = 'out'


class DeletionOperators(Recommender):
    r"""A recommender with the deletion operators from the `"GNNDelete: A General
    Strategy for Unlearning in Graph Neural Networks"
    <https://arxiv.org/abs/2302.13406>`_ paper: linear maps after the propagation of
    every branch and after the fusion, which act on chosen nodes only.

    They start from the identity [ours: the released code starts from a constant that
    erases the representation]. A model without :obj:`branch_embeddings` and
    :obj:`fuse` has the one after the fusion only.

    Args:
        model (torch.nn.Module): A model that meets the model contract.
        nodes (torch.Tensor): Nodes that the operators act on, users first, bool
            :obj:`[N_user + N_item]`.
        channels (dict): Size of the embeddings by branch, and of the fused ones by
            :obj:`'out'`.
    """

    def __init__(
        self, model: RecommenderLike, nodes: Tensor, channels: Mapping[str, int]
    ) -> None:
        super().__init__()
        self.model: Any = model
        self.nodes: Tensor
        self.register_buffer('nodes', nodes)
        self.operators = ModuleDict()
        for name, size in channels.items():
            operator = Linear(size, size, bias=False)
            torch.nn.init.eye_(operator.weight)
            self.operators[name] = operator
        self.operators.to(nodes.device, next(model.parameters()).dtype)

    def build_graph(self, data: HeteroData) -> Any:
        return self.model.build_graph(data)

    def forward(self, graph: Any) -> tuple[Tensor, Tensor]:
        return self.fuse(graph, self.branch_embeddings(graph))

    def branch_embeddings(self, graph: Any) -> dict[str, Tensor]:
        r"""Returns the model's branches with their operators applied; none if the
        model does not tell them.
        """
        if len(self.operators) == 1:
            return {}
        branches = self.model.branch_embeddings(graph)
        return {name: self._apply_to(name, x) for name, x in branches.items()}

    def content_embeddings(self, graph: Any) -> dict[str, Tensor]:
        r"""Returns the model's content representations; none if it does not tell."""
        is_told = isinstance(self.model, HasContent)
        return self.model.content_embeddings(graph) if is_told else {}

    def fuse(
        self, graph: Any, branch_embeddings: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        r"""Returns user and item embeddings from the result of
        :meth:`branch_embeddings`.
        """
        if len(self.operators) == 1:
            return self._apply_out(*self.model(graph))
        return self._apply_out(*self.model.fuse(graph, branch_embeddings))

    def loss(self, graph: Any, batch: Triplets) -> Tensor:
        r"""Returns BPR."""
        user_emb, item_emb = self(graph)
        return bpr_loss(*batch.scores(user_emb, item_emb))

    def branches(self) -> dict[str, list[Tensor]]:
        r"""Returns the model's branches, each with its operator; the one after the
        fusion belongs to :obj:`'fusion'`.
        """
        out: dict[str, list[Tensor]] = {
            name: list(members)
            for name, members in self.model.branches().items()
        }
        for name, operator in self.operators.items():
            key = 'fusion' if name == OUT else name
            out.setdefault(key, []).extend(operator.parameters())
        return out

    def tables(self) -> list[Table]:
        r"""Returns the model's tables."""
        return self.model.tables()

    def _apply_out(self, user_emb: Tensor, item_emb: Tensor) -> tuple[Tensor, Tensor]:
        out = self._apply_to(OUT, torch.cat([user_emb, item_emb]))
        user_emb, item_emb = out.split([user_emb.size(0), item_emb.size(0)])
        return user_emb, item_emb

    def _apply_to(self, name: str, x: Tensor) -> Tensor:
        return torch.where(self.nodes.unsqueeze(1), self.operators[name](x), x)
