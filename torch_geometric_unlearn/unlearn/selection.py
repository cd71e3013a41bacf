r"""When a request counts as met, and which checkpoint to return: one rule for all
approximate methods, which sees neither the test split nor a retrained model.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.data.request import Request
from torch_geometric_unlearn.metrics import embed, ranking_metrics
from torch_geometric_unlearn.nn.models.base import RecommenderLike
from torch_geometric_unlearn.nn.models.served import Served
from torch_geometric_unlearn.utils.finite import all_finite
from torch_geometric_unlearn.utils.topk import pair_hits

#: With fewer reference pairs of the same users (items), all validation pairs are the
#: reference; with fewer of these, nothing can be said of the forget hit rate.
MIN_PAIRS = 20


class ForgetTarget:
    r"""Compares forgotten pairs with true preferences that were never trained on.

    The *forget hit rate* is the share of forgotten pairs with rank at most :math:`K`
    when all other known positives of the user are masked; the *reference hit rate* is
    the same share over the validation pairs of the same users (of the same items in an
    item-level request), or, with fewer than 20 of these, over all validation pairs.
    The target is met if the forget hit rate is at most the reference hit rate plus
    :obj:`tolerance` [ours: the papers name validation sets but no rule].

    Args:
        data (HeteroData): The data with the request still marked.
        retained (HeteroData): The data after the deletion.
        k (int, optional): Length of the list. (default: :obj:`20`)
        tolerance (float, optional): Slack above the reference hit rate.
            (default: :obj:`0.005`)
    """

    def __init__(
        self,
        data: HeteroData,
        retained: HeteroData,
        k: int = 20,
        tolerance: float = 0.005,
    ) -> None:
        self.k = k
        self.tolerance = tolerance
        self.forgotten = schema.forgotten_edge_index(data)
        train = data[schema.EDGE_TYPE].edge_index
        validation = schema.held_out(data, 'val')
        self.known = torch.cat([train, validation], dim=1)
        self.reference = self._reference_pairs(data, validation)
        self.validation = schema.held_out(retained, 'val')
        self.exclude = schema.retained_edge_index(retained)
        self.exclude_items = Request.of(data).items

    def measure(self, model: RecommenderLike, graph: Any) -> dict[str, float]:
        r"""Returns :obj:`forget_hit_rate`, :obj:`reference_hit_rate`,
        :obj:`target_met`, :obj:`miss` (what the target wants to be low, here the
        forget hit rate),
        :obj:`retain_val_ndcg@20` (NaN without validation pairs), and :obj:`gap`, the
        mean standardised score of the forgotten minus the reference pairs, below
        :math:`-0.5` where the pairs have been over-forgotten. Everything is NaN, and
        the target not met, where the model is not finite.
        """
        served = Served(model, graph)
        ndcg_key = f'retain_val_ndcg@{self.k}'
        if not served.is_finite:
            names = ('forget_hit_rate', 'reference_hit_rate', 'miss', 'gap', ndcg_key)
            return dict.fromkeys(names, float('nan')) | {'target_met': 0.0}
        user_emb, item_emb = served.embeddings
        device = user_emb.device
        known = self.known.to(device)
        pairs = torch.cat([self.forgotten, self.reference], dim=1).to(device)
        hits, scores = pair_hits(user_emb, item_emb, pairs, known, self.k)
        sizes = [self.forgotten.size(1), self.reference.size(1)]
        (hit, ref_hit), (score, ref_score) = hits.split(sizes), scores.split(sizes)
        level, reference = float(hit.float().mean()), float(ref_hit.float().mean())
        return {
            'forget_hit_rate': level,
            'reference_hit_rate': reference,
            'target_met': float(level <= reference + self.tolerance),
            'miss': level,
            'gap': float(score.mean() - ref_score.mean()),
            ndcg_key: self._retain_ndcg(user_emb, item_emb),
        }

    def retain_ndcg(self, model: RecommenderLike, graph: Any) -> float:
        r"""Returns the NDCG on retained validation pairs (NaN without any).

        Raises:
            ValueError: If the model's embeddings are not finite.
        """
        return self._retain_ndcg(*embed(model, graph))

    def _retain_ndcg(self, user_emb: Tensor, item_emb: Tensor) -> float:
        if self.validation.size(1) == 0:
            return float('nan')
        banned, device = self.exclude_items, user_emb.device
        metrics = ranking_metrics(
            user_emb,
            item_emb,
            self.validation.to(device),
            self.exclude.to(device),
            banned.to(device),
            ks=(self.k,),
        )
        return metrics[f'ndcg@{self.k}']

    def _reference_pairs(self, data: HeteroData, validation: Tensor) -> Tensor:
        row = 1 if Request.of(data).level == 'item' else 0
        same = torch.isin(validation[row], self.forgotten[row])
        return validation[:, same] if int(same.sum()) >= MIN_PAIRS else validation


class Selector:
    r"""Keeps the checkpoint that the rule prefers.

    Among the checkpoints that meet the forget target, the one with the best retained
    validation NDCG; if none meets it, the one that misses it least. A checkpoint that
    is not finite is never taken.
    """

    def __init__(self, ndcg_key: str) -> None:
        self.ndcg_key = ndcg_key
        self.state: dict[str, Tensor] | None = None
        self.index = -1
        self._key: tuple[float, float] = (-1.0, 0.0)

    def update(self, model: RecommenderLike, row: dict[str, Any], index: int) -> bool:
        r"""Offers the current parameters; tells whether they are now the choice."""
        if not math.isfinite(row['miss']) or not is_finite(model):
            return False
        if row['target_met']:
            ndcg = row[self.ndcg_key]
            key = (1.0, ndcg if ndcg == ndcg else 0.0)
        else:
            key = (0.0, -row['miss'])
        if self.state is not None and key <= self._key:
            return False
        self._key, self.index = key, index
        self.state = {k: v.detach().clone() for k, v in model.state_dict().items()}
        return True


def is_finite(model: RecommenderLike) -> bool:
    r"""Tells whether all parameters are finite."""
    return all_finite(model.parameters())
