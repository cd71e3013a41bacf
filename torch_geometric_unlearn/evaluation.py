r"""Models of one request side by side, measured alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch_geometric.data import HeteroData

from torch_geometric_unlearn.audit.completion import completion
from torch_geometric_unlearn.audit.membership import membership
from torch_geometric_unlearn.metrics import evaluate_request, exposure, trade_off
from torch_geometric_unlearn.nn import Served
from torch_geometric_unlearn.utils.check import check_choice, check_int

__all__ = ['Comparison']

#: The names of the model before the request, and of the one to compare with.
ORIGINAL, RETRAINED = 'original', 'retrained'


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
        ValueError: If there is no model.

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


def model_of(value: Any) -> Any:
    r"""Returns the model of a result of an unlearner, and a model as it is."""
    return value.model if hasattr(value, 'peak_memory') else value


def cost_of(value: Any) -> dict[str, float]:
    r"""Returns seconds and peak memory in bytes of a result, NaN for a model."""
    names = ('seconds', 'peak_memory')
    known = hasattr(value, 'peak_memory')
    return {name: float(getattr(value, name)) if known else math.nan for name in names}
