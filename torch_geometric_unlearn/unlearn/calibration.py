from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.data import HeteroData

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.nn.models import Triplets
from torch_geometric_unlearn.ops import SparseOperator, spmm
from torch_geometric_unlearn.utils.knn import cosine_knn_graph
from torch_geometric_unlearn.utils.seed import generator

NUM_NEIGHBORS = 10


class NeverSeen:
    r"""Draws forgotten pairs to where pairs lie that were never trained on [ours].

    Scores are standardised over all items of the user. Those of a batch of forgotten
    pairs, sorted, are drawn by a smooth L1 loss to the sorted ones of as many reference
    pairs under the present model, which is one-dimensional optimal transport between
    both distributions; the same for the mean score of an item's content neighbours,
    where an item still gives away what its user has forgotten. Retained pairs of the
    same users and items are held at their standardised scores, so that rows which also
    hold what is retained keep it.

    Form and weights were chosen on one request of Amazon Baby, by the figures of the
    audit itself.

    Args:
        data (HeteroData): The data with the request still marked.
        reference (torch.Tensor): True preferences that were never trained on, int64
            :obj:`[2, n]`.
        anchor (float): Weight of holding retained pairs.
        batch_size (int): Retained pairs per step.
        seed (int): Seed of all draws.
    """

    def __init__(
        self,
        data: HeteroData,
        reference: Tensor,
        anchor: float,
        batch_size: int,
        seed: int,
    ) -> None:
        self.reference = reference
        self.anchor = anchor
        self.batch_size = batch_size
        self.generator = generator(seed)
        retained = schema.retained_edge_index(data)
        forgotten = schema.forgotten_edge_index(data)
        near = torch.isin(retained[0], forgotten[0])
        near |= torch.isin(retained[1], forgotten[1])
        self.retained = retained[:, near]
        self.held: Tensor | None = None
        self.neighbors = _content_mean(data)

    @torch.no_grad()
    def start(self, embeddings: tuple[Tensor, Tensor]) -> None:
        r"""Takes the scores at which retained pairs are held."""
        self.held = standard_scores(*embeddings, self.retained)

    def __call__(
        self, batch: Triplets, embeddings: tuple[Tensor, Tensor]
    ) -> Tensor:
        r"""Returns the loss of a batch of forgotten pairs.

        Args:
            batch (Triplets): The batch.
            embeddings (tuple): All user and item embeddings.
        """
        user_emb, item_emb = embeddings
        pairs = torch.stack([batch.user, batch.pos_item])
        reference = self._draw(self.reference, pairs.size(1)).to(pairs.device)
        views = [item_emb]
        if self.neighbors is not None:
            self.neighbors = self.neighbors.to(item_emb.device)
            views.append(spmm(self.neighbors, item_emb))
        loss = item_emb.new_zeros(())
        for view in views:
            score = standard_scores(user_emb, view, pairs)
            goal = standard_scores(user_emb, view, reference).detach()
            loss = loss + F.smooth_l1_loss(score.sort()[0], goal.sort()[0])
        if self.anchor > 0 and self.retained.size(1) > 0:
            assert self.held is not None
            index = self._index(self.retained.size(1), self.batch_size)
            index = index.to(self.held.device)
            kept = standard_scores(user_emb, item_emb, self.retained[:, index])
            loss = loss + self.anchor * F.smooth_l1_loss(kept, self.held[index])
        return loss

    def _draw(self, pairs: Tensor, size: int) -> Tensor:
        return pairs[:, self._index(pairs.size(1), size).to(pairs.device)]

    def _index(self, total: int, size: int) -> Tensor:
        return torch.randint(total, (size,), generator=self.generator)


def standard_scores(user_emb: Tensor, item_emb: Tensor, pairs: Tensor) -> Tensor:
    r"""Returns the scores of pairs, standardised over all items of their user, without
    computing all of these.

    Args:
        user_emb (torch.Tensor): User embeddings :math:`(N_{user}, H)`.
        item_emb (torch.Tensor): Item embeddings :math:`(N_{item}, H)`.
        pairs (torch.Tensor): Pairs, int64 :obj:`[2, n]`.

    Returns:
        torch.Tensor: Scores :obj:`[n]` with mean 0 and variance 1 over all items; 0 for
        a user who scores all items alike.
    """
    centred = item_emb - item_emb.mean(dim=0)
    covariance = centred.t() @ centred / item_emb.size(0)
    # `index_select`, as the gradient of indexing depends on the order of threads.
    user = user_emb.index_select(0, pairs[0].to(user_emb.device))
    item = centred.index_select(0, pairs[1].to(user_emb.device))
    score = (user * item).sum(dim=-1)
    variance = ((user @ covariance) * user).sum(dim=-1)
    return score / variance.clamp(min=1e-12).sqrt()


def _content_mean(data: HeteroData) -> SparseOperator | None:
    r"""Returns the mean over the content neighbours of every item, by any modality."""
    num_items = schema.num_items(data)
    k = min(NUM_NEIGHBORS + 1, num_items)
    graphs = [cosine_knn_graph(x, k)[0] for x in schema.features(data).values()]
    if not graphs or k < 2:
        return None
    edge_index = torch.cat(graphs, dim=1).unique(dim=1)
    edge_index = edge_index[:, edge_index[0] != edge_index[1]]
    degree = edge_index[1].bincount(minlength=num_items).clamp(min=1)
    return SparseOperator(edge_index, 1 / degree[edge_index[1]], (num_items, num_items))
