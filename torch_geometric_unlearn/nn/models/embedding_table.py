from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn import Embedding
from torch_geometric.data import HeteroData

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.nn.functional import bpr_loss

from ._checks import check_sizes
from .base import Recommender, Table, Triplets
from .interaction_graph import InteractionGraph


class EmbeddingTable(Recommender):
    r"""User and item vectors and nothing else: matrix factorisation, trained by BPR.

    Holds the result of methods that compute new vectors in closed form. Nothing is
    propagated, and every parameter belongs to the branch :obj:`'id'`.

    Args:
        user_emb (torch.Tensor): User embeddings :math:`(N_{user}, H)`, copied.
        item_emb (torch.Tensor): Item embeddings :math:`(N_{item}, H)`, copied.

    Shapes:
        - **output:** user embeddings :math:`(N_{user}, H)`, item embeddings
          :math:`(N_{item}, H)`

    Raises:
        ValueError: If the embeddings are no matrices of the same width.

    Example:
        >>> table = EmbeddingTable(torch.randn(100, 8), torch.randn(60, 8))
        >>> result = fit(table, data, num_epochs=2)
    """

    def __init__(self, user_emb: Tensor, item_emb: Tensor) -> None:
        super().__init__()
        shapes = list(user_emb.shape), list(item_emb.shape)
        if len(shapes[0]) != 2 or shapes[0][1:] != shapes[1][1:]:
            raise ValueError(
                f"'user_emb' and 'item_emb' must have shapes [N, H] and [M, H] (got "
                f'{shapes[0]} and {shapes[1]}). Bring both to the same width.'
            )
        self.num_users, self.num_items = user_emb.size(0), item_emb.size(0)
        self.user_embedding = Embedding.from_pretrained(
            user_emb.detach().clone(), freeze=False
        )
        self.item_embedding = Embedding.from_pretrained(
            item_emb.detach().clone(), freeze=False
        )

    @classmethod
    def from_saved(
        cls, arguments: dict[str, Any], state: Mapping[str, Tensor]
    ) -> EmbeddingTable:
        r"""Returns a table with the saved vectors."""
        return cls(state['user_embedding.weight'], state['item_embedding.weight'])

    def build_graph(self, data: HeteroData) -> InteractionGraph:
        r"""Returns the interactions not marked as forgotten, which are only looked up.

        Raises:
            ValueError: If model and data differ in users or items.
        """
        data = schema.validate(data)
        check_sizes(data, self.num_users, self.num_items, {})
        edge_index = schema.retained_edge_index(data)
        graph = InteractionGraph(edge_index, self.num_users, self.num_items)
        return graph.to(self.user_embedding.weight.device)

    def forward(self, graph: InteractionGraph) -> tuple[Tensor, Tensor]:
        return self.user_embedding.weight, self.item_embedding.weight

    def loss(self, graph: InteractionGraph, batch: Triplets) -> Tensor:
        r"""Returns BPR."""
        user = self.user_embedding(batch.user)
        pos_score = (user * self.item_embedding(batch.pos_item)).sum(dim=-1)
        neg_score = (user * self.item_embedding(batch.neg_item)).sum(dim=-1)
        return bpr_loss(pos_score, neg_score)

    def branches(self) -> dict[str, list[Tensor]]:
        r"""Returns both tables as :obj:`'id'`."""
        return {'id': [self.user_embedding.weight, self.item_embedding.weight]}

    def tables(self) -> list[Table]:
        r"""Returns both tables."""
        return [
            Table(self.user_embedding.weight, schema.USER),
            Table(self.item_embedding.weight, schema.ITEM),
        ]

    def __repr__(self) -> str:
        return (
            f'{self.__class__.__name__}({self.num_users}, {self.num_items}, '
            f'hidden_channels={self.user_embedding.embedding_dim})'
        )
