from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.data import HeteroData

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.ops import SparseOperator, spmm
from torch_geometric_unlearn.utils.knn import content_neighbors
from torch_geometric_unlearn.utils.seed import generator

from ._strata import Strata

#: Retained pairs that a step looks at.
NUM_HELD = 4096
#: How far from 0.5 an AUC may be for both kinds of pairs to count as alike, unless its
#: error is larger.
TOLERANCE = 0.01


class NeverSeen:
    r"""Draws forgotten pairs to where pairs lie that were never trained on [ours].

    Looks at a pair in several *views* (:meth:`views`). In each, the sorted values of
    the forgotten pairs are drawn by a smooth L1 loss to the same quantiles of the
    reference pairs under the present model, which is one-dimensional optimal transport
    between both distributions, among pairs of items as popular and users as active
    (up to 4 times 4 strata, one in an item-level request). Retained pairs of the same
    users and items are held at their standardised scores, so that rows which also hold
    what is retained keep it.

    Views and weights were chosen by the membership attack on validation pairs: one half
    of them was the reference, the other what the attacker compares with.

    Args:
        model (torch.nn.Module): The model, before the first step.
        graph (Any): What it propagates over.
        data (HeteroData): The data with the request still marked.
        reference (torch.Tensor): True preferences that were never trained on, int64
            :obj:`[2, n]`.
        anchor (float): Weight of holding retained pairs.
        seed (int): Seed of the draws of retained pairs, 4,096 per step.

    Raises:
        ValueError: If there is no reference pair.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        graph: Any,
        data: HeteroData,
        reference: Tensor,
        anchor: float,
        seed: int,
    ) -> None:
        self.model = model
        self.graph = graph
        device = next(model.parameters()).device
        if reference.size(1) == 0:
            raise ValueError(
                "There is no never-seen pair to aim at (got 'reference' with shape "
                f'{list(reference.shape)}): no validation pair, and no item that a '
                "user of the request hasn't met. Use TRU('lowest') instead."
            )
        self.reference = reference.to(device)
        self.anchor = anchor
        self.generator = generator(seed)
        self.forgotten = schema.forgotten_edge_index(data).to(device)
        # Item-level requests have fewer pairs to aim at; strata didn't help there.
        item_level = 'forget_level' in data and data.forget_level == 'item'
        num_strata = (1, 1) if item_level else None
        self.strata = Strata(self.forgotten, self.reference, data, num_strata)
        retained = schema.retained_edge_index(data).to(device)
        near = torch.isin(retained[0], self.forgotten[0])
        near |= torch.isin(retained[1], self.forgotten[1])
        self.retained = retained[:, near]
        self.neighbors = _content_mean(data)
        if self.neighbors is not None:
            self.neighbors = self.neighbors.to(device)
        with torch.no_grad():
            embeddings, _ = self._embed()
            self.held = standard_scores(*embeddings, self.retained)

    def __call__(self) -> Tensor:
        r"""Returns the loss of all forgotten pairs, a scalar."""
        embeddings, branches = self._embed()
        sizes = [self.forgotten.size(1), self.reference.size(1)]
        pairs = torch.cat([self.forgotten, self.reference], dim=1)
        losses = []
        for name, both in self.views(pairs, embeddings, branches).items():
            value, goal = both.split(sizes)
            goal = goal.detach()
            if name == 'cosine':  # The only view that isn't standardised.
                scale = goal.std(correction=0).clamp(min=1e-12)
                value, goal = value / scale, goal / scale
            value, goal = self.strata.sort(value), self.strata.goals(goal)
            losses.append(F.smooth_l1_loss(value, goal))
        loss = torch.stack(losses).mean()
        if self.anchor > 0 and self.retained.size(1) > 0:
            size = self.retained.size(1), (NUM_HELD,)
            index = torch.randint(*size, generator=self.generator)
            index = index.to(self.held.device)
            kept = standard_scores(*embeddings, self.retained[:, index])
            loss = loss + self.anchor * F.smooth_l1_loss(kept, self.held[index])
        return loss

    def views(
        self,
        pairs: Tensor,
        embeddings: tuple[Tensor, Tensor],
        branches: dict[str, tuple[Tensor, Tensor]],
    ) -> dict[str, Tensor]:
        r"""Returns what is looked at, each :obj:`[n]`.

        =============  ========================================================
        ``row``        the score, standardised over all items of the user
        ``column``     the score, standardised over all users of the item
        ``cosine``     the cosine of both embeddings
        ``neighbors``  the mean score of the item's content neighbours, which
                       still tell of an item that its user has forgotten,
                       standardised as in ``row``; with features only
        ``<branch>``   as ``row`` in every branch, if the model tells them
        =============  ========================================================

        Args:
            pairs (torch.Tensor): Pairs, int64 :obj:`[2, n]`.
            embeddings (tuple): All user and item embeddings.
            branches (dict): The same of every branch.
        """
        user_emb, item_emb = embeddings
        user = F.normalize(user_emb.index_select(0, pairs[0]), dim=-1)
        item = F.normalize(item_emb.index_select(0, pairs[1]), dim=-1)
        out = {
            'row': standard_scores(user_emb, item_emb, pairs),
            'column': standard_scores(item_emb, user_emb, pairs.flip(0)),
            'cosine': (user * item).sum(dim=-1),
        }
        if self.neighbors is not None:
            near_emb = spmm(self.neighbors, item_emb)
            out['neighbors'] = standard_scores(user_emb, near_emb, pairs)
        for name, branch in branches.items():
            out[name] = standard_scores(*branch, pairs)
        return out

    @torch.no_grad()
    def measure(self) -> dict[str, Any]:
        r"""Returns :obj:`auc`, by view how often a forgotten pair is above a reference
        pair of its stratum; :obj:`miss`, the largest distance of these from 0.5; and
        :obj:`target_met`, whether it is at most 0.01 or two standard errors of an AUC
        of 0.5.
        """
        sizes = [self.forgotten.size(1), self.reference.size(1)]
        pairs = torch.cat([self.forgotten, self.reference], dim=1)
        views = self.views(pairs, *self._embed())
        aucs = {
            name: self.strata.auc(*value.split(sizes)) for name, value in views.items()
        }
        miss = max(abs(value - 0.5) for value in aucs.values())
        error = ((1 / sizes[0] + 1 / sizes[1]) / 12) ** 0.5
        met = miss <= max(TOLERANCE, 2 * error)
        return {'auc': aucs, 'miss': miss, 'target_met': float(met)}

    def level_error(self, row: dict[str, Any]) -> float:
        r"""Returns the standard error of the difference of :obj:`forget_level` and
        :obj:`reference_level`, both shares of hits.
        """
        sizes = self.forgotten.size(1), self.reference.size(1)
        level = (row['forget_level'] + row['reference_level']) / 2
        return (level * (1 - level) * (1 / sizes[0] + 1 / sizes[1])) ** 0.5

    def _embed(
        self,
    ) -> tuple[tuple[Tensor, Tensor], dict[str, tuple[Tensor, Tensor]]]:
        r"""Returns user and item embeddings, final and by branch, as served."""
        model: Any = self.model
        model.eval()
        if not (hasattr(model, 'branch_embeddings') and hasattr(model, 'fuse')):
            return model(self.graph), {}
        branches = model.branch_embeddings(self.graph)
        user_emb, item_emb = model.fuse(self.graph, branches)
        sizes = [user_emb.size(0), item_emb.size(0)]
        return (user_emb, item_emb), {n: x.split(sizes) for n, x in branches.items()}


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
    r"""Returns the mean over the content neighbours of every item."""
    near = content_neighbors(schema.features(data).values())
    if near is None:
        return None
    num_items, k = near.shape
    item = torch.arange(num_items, device=near.device).repeat_interleave(k)
    edge_index = torch.stack([near.view(-1), item])
    weight = torch.full((item.numel(),), 1 / k, device=near.device)
    return SparseOperator(edge_index, weight, (num_items, num_items))
