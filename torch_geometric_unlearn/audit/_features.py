r"""What an attacker reads off a model about single pairs and whole histories.

Everything comes from the audited model on the graph it serves with. The original model,
degrees and ids are out of reach.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.nn.models.served import Served
from torch_geometric_unlearn.utils.topk import PairIndex, topk_items

#: Features where a remembered pair lies lower, not higher.
DESCENDING = 'log_rank'
#: Features that say nothing about the sign of a preference.
NEUTRAL = ('user_norm', 'item_norm')
#: The feature that tells remembered from over-forgotten pairs, and is plotted.
MAIN = 'score_row'

LIST_SIZE = 20
HISTORY_LIST_SIZE = 100
_TINY = 1e-12


class PairFeatures:
    r"""Features of (user, item) pairs under one model.

    ==================  ========================================================
    ``score``           :math:`s_{ui}`
    ``score_row``       standardised over all items of the user
    ``score_column``    standardised over all users of the item
    ``log_rank``        logarithm of the rank among the items that are neither
                        retained positives of the user nor the pair itself; a
                        tie counts half a place, so that no id enters
    ``margin``          distance to the 20th best score of the same items
    ``cosine``          cosine of both vectors
    ``user_norm``       length of the user vector
    ``item_norm``       length of the item vector
    ``neighbor_score``  mean score of the ten content neighbours of the item
    ``<branch>_score``  :math:`s_{ui}` in one branch, and its ``_log_rank``
    ==================  ========================================================

    Args:
        served (Served): The audited model.
        data (HeteroData): The data with the request still marked.
        neighbors (torch.Tensor, optional): Content neighbours of every item,
            int64 :math:`(N_{item}, k)`.
            (default: :obj:`None`)
        batch_size (int, optional): Pairs per block of scores. (default: :obj:`2048`)
    """

    @torch.no_grad()
    def __init__(
        self,
        served: Served,
        data: HeteroData,
        neighbors: Tensor | None = None,
        batch_size: int = 2048,
    ) -> None:
        self.user_emb, self.item_emb = served.embeddings
        self.branches = served.branches
        self.device = self.user_emb.device
        self.batch_size = batch_size
        sizes = [self.user_emb.size(0), self.item_emb.size(0)]
        self.retained = schema.retained_edge_index(data).to(self.device)
        self.index = PairIndex(self.retained, sizes[0])
        self.near_emb = None
        if neighbors is not None:
            self.near_emb = self.item_emb[neighbors.to(self.device)].mean(dim=1)

    @property
    def names(self) -> list[str]:
        r"""The names of the features, in the order of the columns."""
        out = ['score', MAIN, 'score_column', 'log_rank', 'margin', 'cosine', *NEUTRAL]
        out += ['neighbor_score'] if self.near_emb is not None else []
        for name in self.branches:
            out += [f'{name}_score', f'{name}_log_rank']
        return out

    @torch.no_grad()
    def __call__(self, pairs: Tensor) -> Tensor:
        r"""Returns the features of :obj:`pairs` int64 :obj:`[2, n]`, float64
        :obj:`[n, F]`, on the CPU.
        """
        pairs = pairs.to(self.device)
        user, item = self.user_emb[pairs[0]], self.item_emb[pairs[1]]
        emb = self.user_emb, self.item_emb
        score, log_rank, margin = self._ranked(*emb, pairs, True)
        norms = user.norm(dim=1), item.norm(dim=1)
        columns = [
            score,
            _standardise(score, user, self.item_emb),
            _standardise(score, item, self.user_emb),
            log_rank,
            margin,
            score / (norms[0] * norms[1]).clamp(min=_TINY),
            *norms,
        ]
        if self.near_emb is not None:
            columns.append((user * self.near_emb[pairs[1]]).sum(dim=1))
        for user_emb, item_emb in self.branches.values():
            columns += self._ranked(user_emb, item_emb, pairs, False)[:2]
        return torch.stack([column.double() for column in columns], dim=1).cpu()

    @torch.no_grad()
    def of_histories(self, pairs: Tensor, users: Tensor) -> tuple[Tensor, list[str]]:
        r"""Returns features of the histories of :obj:`users` int64 :obj:`[B]`, each
        with a pair in :obj:`pairs`, float64 :obj:`[B, F]` on the CPU, and their names.

        Mean, minimum, maximum and spread of the pair features, and distance and cosine
        between the mean item vector of the history and the rank-weighted mean item
        vector of the user's list.
        """
        pairs, users = pairs.to(self.device), users.to(self.device)
        pairs = pairs[:, torch.isin(pairs[0], users)]
        _, place = pairs[0].unique(return_inverse=True)
        order = users.argsort()  # Groups come in ascending order of the user.
        x, place = self(pairs), place.cpu()
        shape = users.numel(), x.size(1)
        index = place.unsqueeze(1).expand_as(x)
        count = place.bincount(minlength=shape[0]).unsqueeze(1)
        empty = x.new_zeros(shape)
        mean = empty.scatter_add(0, index, x) / count
        low = empty.scatter_reduce(0, index, x, 'amin', include_self=False)
        high = empty.scatter_reduce(0, index, x, 'amax', include_self=False)
        square = empty.scatter_add(0, index, (x - mean[place]).pow(2)) / count
        distance = self.list_distance(pairs, users[order]).double().cpu()
        out = torch.cat([mean, low, high, square.sqrt(), distance], dim=1)
        kinds = ('mean', 'min', 'max', 'spread')
        names = [f'{kind}_{name}' for kind in kinds for name in self.names]
        back = torch.empty_like(order)
        back[order] = torch.arange(order.numel(), device=order.device)
        return out[back.cpu()], [*names, 'list_distance', 'list_cosine']

    def list_distance(self, pairs: Tensor, users: Tensor) -> Tensor:
        r"""Returns distance and cosine between mean history and list, :obj:`[B, 2]`."""
        history = mean_items(pairs, users, self.item_emb, self.user_emb.size(0))
        k = min(HISTORY_LIST_SIZE, self.item_emb.size(0))
        lists, _ = topk_items(self.user_emb, self.item_emb, users, k, self.retained)
        shown = weighted_list(lists, self.item_emb)
        cosine = torch.nn.functional.cosine_similarity(history, shown, eps=_TINY)
        return torch.stack([(history - shown).norm(dim=1), cosine], dim=1)

    def _ranked(
        self, user_emb: Tensor, item_emb: Tensor, pairs: Tensor, with_margin: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        scores, ranks, margins = [], [], []
        k = min(LIST_SIZE, item_emb.size(0) - 1)
        for block in pairs.split(self.batch_size, dim=1):
            row = user_emb[block[0]] @ item_emb.t()
            own = row.gather(1, block[1].unsqueeze(1))
            row[self.index.lookup(block[0])] = -torch.inf
            row.scatter_(1, block[1].unsqueeze(1), -torch.inf)  # Compare with others.
            above, tied = (row > own).sum(dim=1), (row == own).sum(dim=1)
            ranks.append((1 + above + 0.5 * tied).log())
            scores.append(own.squeeze(1))
            if with_margin:
                last = row.topk(k, dim=1)[0][:, -1] if k > 0 else own.squeeze(1)
                # A user who knows nearly all items has no such list.
                margin = own.squeeze(1) - last
                margins.append(torch.where(margin.isfinite(), margin, 0.0))
        margin = torch.cat(margins) if margins else user_emb.new_empty(0)
        if not scores:
            return user_emb.new_empty(0), user_emb.new_empty(0), margin
        return torch.cat(scores), torch.cat(ranks), margin


def mean_items(
    pairs: Tensor, users: Tensor, item_emb: Tensor, num_users: int
) -> Tensor:
    r"""Returns the mean item vector over the pairs of every user, :obj:`[B, H]`; zeros
    for a user without one.
    """
    row, item = PairIndex(pairs, num_users).lookup(users)
    out = item_emb.new_zeros(users.numel(), item_emb.size(1))
    out.index_add_(0, row, item_emb[item])
    count = row.bincount(minlength=users.numel()).clamp(min=1)
    return out / count.unsqueeze(1)


def weighted_list(lists: Tensor, item_emb: Tensor) -> Tensor:
    r"""Returns the mean item vector of lists int64 :obj:`[B, k]`, where place
    :math:`r` weighs :math:`2 (k + 1 - r) / (k (k + 1))`; :obj:`[B, H]`.
    """
    k = lists.size(1)
    weight = torch.arange(k, 0, -1, device=lists.device, dtype=item_emb.dtype)
    weight = weight / weight.sum()
    out = item_emb.new_zeros(lists.size(0), item_emb.size(1))
    for place in range(k):  # One place at a time: never all the vectors at once.
        item = lists[:, place]
        vector = item_emb[item.clamp(min=0)] * (item >= 0).unsqueeze(1)
        out += weight[place] * vector
    return out


def _standardise(score: Tensor, emb: Tensor, others: Tensor) -> Tensor:
    r"""Standardises scores over all :obj:`others` without computing those scores."""
    others, emb = others.double(), emb.double()
    mean = others.mean(dim=0)
    centred = others - mean
    covariance = centred.t() @ centred / max(1, others.size(0) - 1)
    variance = ((emb @ covariance) * emb).sum(dim=1)
    spread = variance.clamp(min=0).sqrt()
    out = (score.double() - emb @ mean) / spread.clamp(min=_TINY)
    # Where all scores agree, what is left is rounding.
    return torch.where(spread > 1e-6 * score.abs(), out, 0.0)
