r"""Models of one request side by side, measured alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from torch_geometric_unlearn.audit.completion import completion
from torch_geometric_unlearn.audit.membership import membership
from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.data.request import Request
from torch_geometric_unlearn.metrics import evaluate_request, exposure, trade_off
from torch_geometric_unlearn.metrics.exposure import listed_pairs
from torch_geometric_unlearn.metrics.ranking import retained_ndcg
from torch_geometric_unlearn.nn.models import (
    DeletionOperators,
    EmbeddingTable,
    Served,
    ShardEnsemble,
)
from torch_geometric_unlearn.utils.check import check_choice, check_int

__all__ = ['Comparison']

#: The names of the model before the request, and of the one to compare with.
ORIGINAL, RETRAINED = 'original', 'retrained'
#: The names of another one that differs from it by its seed, and of a method's result.
SECOND, UNLEARNED = 'retrained again', 'unlearned'


class Comparison:
    r"""Models of one request side by side: each is run once, over the interactions that
    it serves, and measured alike [ours].

    Args:
        models (dict): Models by name, or results of unlearners, whose seconds and peak
            memory join their row. :obj:`'original'` is served over all interactions, as
            it was before the request, every other one over the retained ones;
            :obj:`'retrained'` is what the others are compared with.
        data (HeteroData): The data with the request still marked.

    Raises:
        ValueError: If there is no model, or a retrained or unlearned one is of another
            class or other sizes than the original, so that there is nothing to compare.
            A method may make a model of another class, and plain models under further
            names may be of any.

    Example:
        >>> marked = ForgetUsers([3])(data)
        >>> models = {'original': model, 'edge drop': EdgeDrop()(model, marked)}
        >>> rows = Comparison(models, marked).measure()
        >>> [row['method'] for row in rows], 'retain_ndcg@20' in rows[0]
        (['original', 'edge drop'], True)
    """

    #: What :meth:`measure` knows, by name.
    MEASURES = ('ranking', 'exposure', 'completion', 'membership')

    def __init__(self, models: Mapping[str, Any], data: HeteroData) -> None:
        if not models:
            raise ValueError(
                "'models' must hold at least one model by name (got none), such as "
                "{'original': model, 'unlearned': result}"
            )
        _check_kinds(models)
        self.models, self.data = dict(models), data
        self._served: dict[str, Served] = {}

    def serve(self, name: str) -> Served:
        r"""Returns a model over the interactions that it serves, the same in every
        call, which metrics and audits take in place of a model.

        Raises:
            ValueError: If the name is unknown, or the model's graph holds a forgotten
                pair.
        """
        check_choice(name, 'name', tuple(self.models))
        if name not in self._served:
            build = Served.before if name == ORIGINAL else Served.of
            model = model_of(self.models[name])
            self._served[name] = build(model, self.data, name=name)
        return self._served[name]

    def measure(
        self,
        measures: Sequence[str] = ('ranking', 'exposure'),
        k: int = 20,
        seed: int = 0,
        errors: list[tuple[str, str, str]] | None = None,
    ) -> list[dict[str, Any]]:
        r"""Returns a row per model.

        Args:
            measures (sequence, optional): Some of :obj:`'ranking'`
                (:meth:`~torch_geometric_unlearn.metrics.evaluate_request`),
                :obj:`'exposure'`
                (:meth:`~torch_geometric_unlearn.metrics.exposure`),
                :obj:`'completion'` (AUC of
                :meth:`~torch_geometric_unlearn.audit.completion`) and
                :obj:`'membership'` (balanced accuracy of
                :meth:`~torch_geometric_unlearn.audit.membership`).
                (default: :obj:`('ranking', 'exposure')`)
            k (int, optional): Length of all lists. (default: :obj:`20`)
            seed (int, optional): Seed of samples and attacks. (default: :obj:`0`)
            errors (list, optional): Where to note a measure that raises, as name of the
                model, measure and reason; its figures are left out then. If
                :obj:`None`, it raises. (default: :obj:`None`)

        Returns:
            list: Dictionaries with :obj:`method`, the name of the model, the figures,
            :obj:`seconds` and :obj:`peak_memory` in bytes (NaN where a model was
            given rather than a result), and
            :meth:`~torch_geometric_unlearn.metrics.trade_off` where there are an
            original and a retrained model.

        Raises:
            ValueError: If an argument is out of range.
        """
        check_int(k, 'k', 1)
        for name in measures:
            check_choice(name, 'measures', self.MEASURES)
        rows = []
        for name, value in self.models.items():
            row: dict[str, Any] = {'method': name}
            for measure in measures:
                try:
                    row |= self._figures(name, measure, k, seed)
                except Exception as error:
                    if errors is None:
                        raise
                    reason = f'{type(error).__name__}: {error}'
                    errors.append((name, measure, reason))
            rows.append(row | cost_of(value))
        by_name = {row['method']: row for row in rows}
        first, goal = by_name.get(ORIGINAL), by_name.get(RETRAINED)
        keys = (f'retain_ndcg@{k}', f'forget_recall@{k}')
        if first and goal:
            for row in rows:
                if all(key in x for key in keys for x in (first, goal, row)):
                    row['trade_off'] = trade_off(first, goal, row, k)
        return rows

    def difference(self, name: str, k: int = 20) -> dict[str, Difference]:
        r"""Returns how far a model is from the retrained one, with what chance does to
        it.

        Args:
            name (str): The model.
            k (int, optional): Length of all lists. (default: :obj:`20`)

        Returns:
            dict: :obj:`pair@K`, the difference in the share of forgotten pairs that
            their users' lists hold, and :obj:`retain_ndcg@K`, that of the retained test
            NDCG as share of the retrained model's. Without pairs, or where that model's
            is zero, there is none.

        Raises:
            ValueError: If a name is unknown, or embeddings are not finite.
        """
        check_int(k, 'k', 1)
        served, goal, data = self.serve(name), self.serve(RETRAINED), self.data
        out = {}
        pairs = schema.forgotten_edge_index(data).cpu()
        if pairs.size(1) > 0:
            # What one user (item) has is right or wrong together.
            row = int(Request.of(data).level == 'item')
            hits = [listed_pairs(x, data, k).double().cpu() for x in (served, goal)]
            change = hits[0] - hits[1]
            out[f'pair@{k}'] = Difference.of(change, pairs[row])
        users, ours = retained_ndcg(served, data, k)
        theirs = retained_ndcg(goal, data, k)[1]
        if users.numel() > 0 and float(theirs.mean()) > 0:
            change = (ours - theirs) / theirs.mean()
            out[f'retain_ndcg@{k}'] = Difference.of(change, users)
        return out

    def _figures(self, name: str, measure: str, k: int, seed: int) -> dict[str, float]:
        served, data = self.serve(name), self.data
        run: dict[str, Callable[[], dict[str, float]]] = {
            'ranking': lambda: evaluate_request(served, data, ks=(k,), seed=seed),
            'exposure': lambda: exposure(served, data, k),
            'completion': lambda: {
                'completion': completion(served, data, seed=seed).auc
            },
            'membership': lambda: {
                'membership': membership(served, data, seed=seed).balanced_accuracy
            },
        }
        return run[measure]()

    def __repr__(self) -> str:
        return f'{self.__class__.__name__}({list(self.models)})'


@dataclass(frozen=True)
class Difference:
    r"""A mean difference between two models and its 95% interval [ours].

    Examples of one group rise and fall together, so that groups count, by Student's
    distribution. As many equal figures may still be chance, an example that differs is
    taken to have been missed, after the `"Simple Improved Confidence Intervals for
    Comparing Matched Proportions" <https://doi.org/10.1002/sim.1781>`_ paper.

    Attributes:
        value (float): The mean.
        low (float): Lower end of the interval; minus infinity with a single group.
        high (float): Upper end.
        num_examples (int): What the mean is over.
        num_groups (int): Their groups, users or items.
    """

    value: float
    low: float
    high: float
    num_examples: int
    num_groups: int

    @classmethod
    def of(cls, change: Tensor, group: Tensor) -> Difference:
        r"""Returns the mean of :obj:`change` float64 :obj:`[n]`, a difference of about
        1 being what an example can contribute, with groups int64 :obj:`[n]`.
        """
        num, value = change.numel(), float(change.mean())
        _, index = group.unique(return_inverse=True)
        groups = int(index.max()) + 1
        half = math.inf
        if groups > 1:
            rest = torch.zeros(groups, dtype=torch.double)
            rest.index_add_(0, index, change - value)
            by_group = groups / (groups - 1) * float(rest.square().sum()) / num**2
            total = float(change.square().sum()) + 1
            single = (total - float(change.sum()) ** 2 / (num + 2)) / (num + 2) ** 2
            half = student(groups - 1) * max(by_group, single) ** 0.5
        return cls(value, value - half, value + half, num, groups)


def student(freedom: int) -> float:
    r"""Returns the 97.5% quantile of Student's distribution."""
    if freedom <= len(_STUDENT):
        return _STUDENT[freedom - 1]
    z, n = 1.959964, freedom  # The expansion in 1 / n, right to three decimals.
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / n + second / n**2 + third / n**3


_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


def _check_kinds(models: Mapping[str, Any]) -> None:
    r"""Refuses models that can't have come from one another."""
    first = next((name for name in (ORIGINAL, RETRAINED) if name in models), None)
    if first is None:
        return
    base = _plain_model(models[first])
    shapes = _shapes(base)
    for name, value in models.items():
        model = _plain_model(value)
        if isinstance(base, _DERIVED) or isinstance(model, _DERIVED):
            continue
        shares = value.touched.values() if _is_result(value) else []
        if any(math.isnan(share) for share in shares):
            continue  # The method has made another kind of model.
        if name not in (RETRAINED, SECOND, UNLEARNED) and not _is_result(value):
            continue
        what = ''
        if type(model) is not type(base):
            what = f'is a {type(model).__name__}, not a {type(base).__name__}'
        elif (own := _shapes(model)) != shapes:
            key = next(k for k in {**shapes, **own} if own.get(k) != shapes.get(k))
            what = f"has '{key}' of shape {own.get(key)}, not {shapes.get(key)}"
        if what:
            raise ValueError(
                f"'{name}' must be a model like '{first}' to be compared with it (got "
                f'one that {what}). Train both by the same function.'
            )


#: Kinds of models that methods make of any other.
_DERIVED = (DeletionOperators, EmbeddingTable, ShardEnsemble)


def _plain_model(value: Any) -> Any:
    model = model_of(value)
    return model.model if isinstance(model, Served) else model


def _shapes(model: Any) -> dict[str, list[int]]:
    return {name: list(p.shape) for name, p in model.named_parameters()}


def model_of(value: Any) -> Any:
    r"""Returns the model of a result of an unlearner, and a model as it is."""
    return value.model if _is_result(value) else value


def _is_result(value: Any) -> bool:
    return hasattr(value, 'peak_memory')


def cost_of(value: Any) -> dict[str, float]:
    r"""Returns seconds and peak memory in bytes of a result, NaN for a model."""
    names = ('seconds', 'peak_memory')
    known = _is_result(value)
    return {name: float(getattr(value, name)) if known else math.nan for name in names}
