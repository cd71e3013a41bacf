r"""One number for how much is kept and how much is forgotten."""

from __future__ import annotations

import math
from collections.abc import Mapping


def trade_off(
    original: Mapping[str, float],
    retrained: Mapping[str, float],
    unlearned: Mapping[str, float],
    k: int = 20,
) -> float:
    r"""Returns the harmonic mean of what is kept and what is forgotten, both compared
    with the retrained model and clipped to :math:`[0, 1]`

    .. math::
        A = \frac{\textrm{NDCG}_{retain}(\theta)}{\textrm{NDCG}_{retain}(\theta_R)},
        \quad
        B = 1 - \frac{|F(\theta) - F(\theta_R)|}
        {\max(|F(\theta_o) - F(\theta_R)|, 10^{-4})}, \quad
        H = \frac{2AB}{A + B}

    with :math:`F` the forget recall. Only to be shown beside the raw values [ours].

    Args:
        original (dict): Result of
            :meth:`~torch_geometric_unlearn.metrics.evaluate_request` for the original
            model.
        retrained (dict): The same for the retrained model.
        unlearned (dict): The same for the model in question.
        k (int, optional): Length of the list. (default: :obj:`20`)

    Returns:
        float: The trade-off; NaN if one of the values is, as nothing is defined then.

    Raises:
        ValueError: If a value is infinite.

    Example:
        >>> kept = {'retain_ndcg@20': 0.04, 'forget_recall@20': 0.5}
        >>> goal = {'retain_ndcg@20': 0.04, 'forget_recall@20': 0.0}
        >>> trade_off(kept, goal, kept), trade_off(kept, goal, goal)
        (0.0, 1.0)
    """
    retain, forget = f'retain_ndcg@{k}', f'forget_recall@{k}'
    rows = {'original': original, 'retrained': retrained, 'unlearned': unlearned}
    for name, row in rows.items():
        for key in (retain, forget):
            if math.isinf(row[key]):
                raise ValueError(
                    f"'{name}' must have a finite '{key}' (got {row[key]}). Measure it "
                    f"with 'evaluate_request'."
                )
    if any(math.isnan(row[key]) for row in rows.values() for key in (retain, forget)):
        return math.nan
    kept = unlearned[retain] / retrained[retain] if retrained[retain] > 0 else 1.0
    way = max(abs(original[forget] - retrained[forget]), 1e-4)
    forgotten = 1 - abs(unlearned[forget] - retrained[forget]) / way
    kept, forgotten = (min(1.0, max(0.0, value)) for value in (kept, forgotten))
    total = kept + forgotten
    return 2 * kept * forgotten / total if total > 0 else 0.0
