r"""The attacker: classifiers, cross-validation by group, metrics and intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torch_geometric_unlearn.utils.check import check_choice, check_int
from torch_geometric_unlearn.utils.finite import check_finite
from torch_geometric_unlearn.utils.optional import import_optional
from torch_geometric_unlearn.utils.seed import generator

from ._features import DESCENDING, MAIN, NEUTRAL

CLASSIFIERS = ('logistic', 'boosting')
NEGATIVES = ('auto', 'control', 'heldout', 'random')
METRICS = ('balanced_accuracy', 'auc', 'tpr_at_1_fpr')
#: With fewer examples on one side, a figure would be noise.
MIN_EXAMPLES = 50
MAX_SCORES = 2000
_INNER_FOLDS = 3
_NUM_TREES = 200
_BLOCK_NUMEL = 2**20  # Weights of resamples in memory at once.


@dataclass
class MembershipResult:
    r"""What a membership attack has found.

    Attributes:
        mode (str): The kind of attack.
        level (str): What an example is: :obj:`'pair'`, :obj:`'user'` or
            :obj:`'neighbours'`.
        balanced_accuracy (float): :math:`(\textrm{TPR} + \textrm{TNR}) / 2`.
        auc (float): Area under the ROC curve.
        tpr_at_1_fpr (float): Largest true positive rate at a false positive rate of at
            most 1%.
        intervals (dict): 95% bootstrap interval :obj:`[low, high]` by metric.
        deviation (float): :math:`|\textrm{balanced accuracy} - 0.5|`, from either
            side.
        classifier (str): The classifier chosen, the most frequent one over the folds.
        direction (str): :obj:`'remembered'` if members score above non-members,
            :obj:`'over-forgotten'` if below, :obj:`'none'` if the interval of the AUC
            holds 0.5, and :obj:`''` where it means nothing: without metrics, for
            neighbours, and for the shadow attack.
        num_members (int): Examples on the side of the members.
        num_nonmembers (int): Examples on the other side.
        features (list): Per feature its :obj:`name`, the :obj:`difference` of the
            means, members minus non-members, in standard deviations, and the
            :obj:`reading` of its sign (:obj:`'none'` within two standard errors).
        scores (dict): Standardised scores of :obj:`members` and :obj:`nonmembers`, at
            most 2,000 each, for plots.
        details (dict): What only some attacks report.
        check (dict, optional): Result of
            :meth:`~torch_geometric_unlearn.audit.self_check`, if the original model
            was given.
        num_groups (int): Users (items) of the examples, which the intervals are from;
            these are NaN for a single one.
        reason (str): Why the metrics are NaN, or an empty string.
    """

    mode: str
    level: str
    balanced_accuracy: float = math.nan
    auc: float = math.nan
    tpr_at_1_fpr: float = math.nan
    intervals: dict[str, list[float]] = field(
        default_factory=lambda: {name: [math.nan, math.nan] for name in METRICS}
    )
    deviation: float = math.nan
    classifier: str = ''
    direction: str = ''
    num_members: int = 0
    num_nonmembers: int = 0
    features: list[dict[str, Any]] = field(default_factory=list)
    scores: dict[str, list[float]] = field(
        default_factory=lambda: {'members': [], 'nonmembers': []}
    )
    details: dict[str, Any] = field(default_factory=dict)
    check: dict[str, Any] | None = None
    num_groups: int = 0
    reason: str = ''

    def to_dict(self) -> dict[str, Any]:
        r"""Returns everything as JSON-serialisable values."""
        return asdict(self)

    def __repr__(self) -> str:
        low, high = self.intervals['auc']
        return (
            f'{self.__class__.__name__}({self.mode}, {self.level}, '
            f'balanced_accuracy={self.balanced_accuracy:.4f}, auc={self.auc:.4f} '
            f'[{low:.4f}, {high:.4f}], direction={self.direction!r}, '
            f'members={self.num_members}, nonmembers={self.num_nonmembers})'
        )


@dataclass(frozen=True)
class Settings:
    r"""The arguments of :meth:`~torch_geometric_unlearn.audit.membership` that are the
    same for all models and modes.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If it is out of range.
    """

    level: str = 'pair'
    negatives: str = 'auto'
    classifiers: Sequence[str] = CLASSIFIERS
    num_folds: int = 5
    max_examples: int = 10_000
    num_bootstrap: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice(self.level, 'level', ('pair', 'user', 'neighbours'))
        check_choice(self.negatives, 'negatives', NEGATIVES)
        names = self.classifiers
        if isinstance(names, str):
            raise TypeError(
                f"'classifiers' must be a sequence of names (got the string "
                f"'{names}'). For one classifier, pass ['{names}']."
            )
        if len(names) == 0:
            raise ValueError(
                f"'classifiers' must name at least one of {CLASSIFIERS} (got none)"
            )
        for name in names:
            check_choice(name, 'classifiers', CLASSIFIERS)
        check_int(self.num_folds, 'num_folds', 2)
        check_int(self.max_examples, 'max_examples', 1)
        check_int(self.num_bootstrap, 'num_bootstrap', 1)
        generator(self.seed)  # Checks the seed.


class Attacker:
    r"""A classifier with a threshold, both chosen on the training side only.

    Candidates are compared by their AUC out of the folds of an inner, grouped
    cross-validation, and the threshold is the one of the best balanced accuracy
    there [ours: on the examples that a classifier was fitted to, boosting would always
    win, and its threshold would be far off].

    Args:
        classifiers (sequence): Names of the candidates.
        seed (int): Seed of the inner folds and of the classifiers.

    Raises:
        ImportError: If scikit-learn is missing.
    """

    def __init__(self, classifiers: Sequence[str], seed: int) -> None:
        import_optional('sklearn', 'The membership audit', 'audit')
        self.classifiers = classifiers
        self.seed = seed

    def fit(self, x: Tensor, label: Tensor, group: Tensor) -> Attacker:
        r"""Fits to features float64 :obj:`[n, F]`, labels bool :obj:`[n]` and groups
        int64 :obj:`[n]`.
        """
        check_finite(x, 'features')
        fold = group_folds(group, label, _INNER_FOLDS, self.seed)
        best = -1.0
        for name in self.classifiers:
            score = torch.empty(label.numel(), dtype=torch.float64)
            for k in range(_INNER_FOLDS):
                inside = fold == k
                model = self._build(name).fit(*_arrays(x[~inside], label[~inside]))
                score[inside] = _decide(model, x[inside])
            value = float(ranking_figures(score, label)['auc'])
            if value > best:
                best, self.name = value, name
                self.threshold = best_threshold(score, label)
        self.model = self._build(self.name).fit(*_arrays(x, label))
        return self

    def __call__(self, x: Tensor) -> Tensor:
        r"""Returns log-odds of membership, float64 :obj:`[n]`."""
        check_finite(x, 'features')
        return _decide(self.model, x)

    def _build(self, name: str) -> Any:
        from sklearn.ensemble import HistGradientBoostingClassifier
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        if name == 'logistic':
            return make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        return HistGradientBoostingClassifier(  # Trees don't see the scale.
            max_iter=_NUM_TREES,
            max_depth=3,
            early_stopping=False,
            random_state=self.seed,
        )


def cross_validate(
    x: Tensor,
    label: Tensor,
    group: Tensor,
    classifiers: Sequence[str],
    num_folds: int,
    seed: int,
) -> tuple[Tensor, Tensor, str]:
    r"""Returns the log-odds of every example from an :class:`Attacker` that has seen no
    example of its group, whether it takes the example for a member, and the classifier
    chosen most often.
    """
    check_finite(x, 'features')
    fold = group_folds(group, label, num_folds, seed)
    score = torch.empty(label.numel(), dtype=torch.float64)
    guess = torch.empty_like(label)
    names = []
    for k in range(num_folds):
        test = fold == k
        attacker = Attacker(classifiers, seed).fit(x[~test], label[~test], group[~test])
        score[test] = attacker(x[test])
        guess[test] = score[test] > attacker.threshold
        names.append(attacker.name)
    return score, guess, max(classifiers, key=names.count)


def group_folds(group: Tensor, label: Tensor, num_folds: int, seed: int) -> Tensor:
    r"""Deals groups out to folds at random, int64 :obj:`[n]`; groups with more members
    and groups with more non-members are spread evenly.
    """
    _, index = group.unique(return_inverse=True)
    count = index.bincount()
    share = torch.zeros(count.numel(), dtype=torch.float64)
    share.index_add_(0, index, label.double())
    perm = torch.randperm(count.numel(), generator=generator(seed))
    perm = perm[(share / count)[perm].argsort(stable=True)]
    fold = torch.empty_like(perm)
    fold[perm] = torch.arange(perm.numel()) % num_folds
    return fold[index]


def best_threshold(score: Tensor, label: Tensor) -> float:
    r"""Returns the threshold of the best balanced accuracy, halfway between two scores;
    an example is taken for a member if it scores above.
    """
    check_finite(score, 'score')
    values, index = score.unique(return_inverse=True)
    members = index[label].bincount(minlength=values.numel()).double()
    others = index[~label].bincount(minlength=values.numel()).double()
    # Place k: everything up to the k-th value is taken for a non-member.
    gain = others.cumsum(0) / others.sum() - members.cumsum(0) / members.sum()
    place = int(gain.argmax())
    after = min(place + 1, values.numel() - 1)
    return float(values[place] + values[after]) / 2


def ranking_figures(
    score: Tensor, label: Tensor, weight: Tensor | None = None
) -> dict[str, Tensor]:
    r"""Returns AUC and true positive rate at 1% false positives, for one or many
    weightings of the examples :obj:`[B, n]` at once; ties count half in the AUC, and
    without examples of one side both are NaN.
    """
    check_finite(score, 'score')
    if weight is None:
        weight = torch.ones(1, score.numel(), dtype=torch.float64)
    order = score.argsort(descending=True)
    score, label, weight = score[order], label[order], weight[:, order]
    # Last place of every run of equal scores, and the place before its first.
    _, run, size = score.unique_consecutive(return_inverse=True, return_counts=True)
    end = (size.cumsum(0) - 1)[run]
    members = (weight * label).cumsum(1)
    others = torch.nn.functional.pad((weight * ~label).cumsum(1), (1, 0))
    positive, negative = members[:, -1], others[:, -1]
    upto, before = others[:, end + 1], others[:, (end + 1) - size[run]]
    below = negative.unsqueeze(1) - (upto + before) / 2
    auc = (weight * label * below).sum(dim=1) / (positive * negative)
    allowed = upto <= 0.01 * negative.unsqueeze(1)
    rate = torch.where(allowed, members[:, end], 0.0).amax(dim=1) / positive
    rate = torch.where(negative > 0, rate, torch.nan)
    return {'auc': auc, 'tpr_at_1_fpr': rate}


def attack_figures(
    score: Tensor, guess: Tensor, label: Tensor, weight: Tensor | None = None
) -> dict[str, Tensor]:
    r"""Adds the balanced accuracy of guesses to :meth:`ranking_figures`."""
    if weight is None:
        weight = torch.ones(1, score.numel(), dtype=torch.float64)
    hit = guess == label
    rates = [
        (weight * (hit & side)).sum(dim=1) / (weight * side).sum(dim=1)
        for side in (label, ~label)
    ]
    out = {'balanced_accuracy': (rates[0] + rates[1]) / 2}
    return out | ranking_figures(score, label, weight)


def percentiles(values: Tensor) -> list[float]:
    r"""Returns the 95% percentile interval of resampled values."""
    quantile = torch.tensor([0.025, 0.975], dtype=torch.float64)
    return values.nanquantile(quantile).tolist()


def resample(
    score: Tensor,
    guess: Tensor,
    label: Tensor,
    group: Tensor,
    num_bootstrap: int,
    seed: int,
) -> dict[str, Tensor]:
    r"""Returns every metric on resamples of whole groups, float64
    :obj:`[num_bootstrap]`; the same seed and groups give the same resamples, so that
    two models can be compared on each.
    """
    _, index = group.unique(return_inverse=True)
    num = int(index.max()) + 1
    rng = generator(seed)
    rows = max(1, _BLOCK_NUMEL // score.numel())
    parts = []
    for start in range(0, num_bootstrap, rows):
        size = min(rows, num_bootstrap - start)
        draw = torch.randint(num, (size, num), generator=rng)
        weight = torch.zeros(size, num, dtype=torch.float64)
        weight.scatter_add_(1, draw, torch.ones_like(weight))
        parts.append(attack_figures(score, guess, label, weight[:, index]))
    return {name: torch.cat([part[name] for part in parts]) for name in METRICS}


def fill_result(
    result: MembershipResult,
    score: Tensor,
    guess: Tensor,
    label: Tensor,
    group: Tensor,
    num_bootstrap: int,
    seed: int,
) -> dict[str, Tensor]:
    r"""Writes metrics, intervals, counts and the first scores into :obj:`result`;
    returns the metrics on the resamples.
    """
    for name, value in attack_figures(score, guess, label).items():
        setattr(result, name, float(value))
    result.deviation = abs(result.balanced_accuracy - 0.5)
    result.num_members, result.num_nonmembers = int(label.sum()), int((~label).sum())
    for name, side in (('members', label), ('nonmembers', ~label)):
        result.scores[name] = score[side][:MAX_SCORES].tolist()
    resamples = resample(score, guess, label, group, num_bootstrap, seed)
    result.num_groups = group.unique().numel()
    if result.num_groups < 2:  # All resamples of one group are the same.
        return {name: torch.full_like(x, math.nan) for name, x in resamples.items()}
    result.intervals = {key: percentiles(value) for key, value in resamples.items()}
    return resamples


def fill_direction(result: MembershipResult, members_above: bool) -> None:
    r"""Writes the direction, given where the members lie."""
    low, high = result.intervals['auc']
    if low <= 0.5 <= high:
        result.direction = 'none'
    elif low <= high:  # Not so where they are NaN.
        result.direction = 'remembered' if members_above else 'over-forgotten'


def mean_difference(x: Tensor, label: Tensor) -> Tensor:
    r"""Returns the means of the members minus those of the others, in standard
    deviations, :obj:`[F]`; 0 where nothing varies.
    """
    members, others = x[label], x[~label]
    spread = ((members.var(dim=0) + others.var(dim=0)) / 2).sqrt()
    difference = members.mean(dim=0) - others.mean(dim=0)
    return torch.where(spread > 0, difference / spread, 0.0)


def compare_features(
    x: Tensor, label: Tensor, names: Sequence[str]
) -> list[dict[str, Any]]:
    r"""Returns name, standardised mean difference and reading of every feature."""
    error = (1 / int(label.sum()) + 1 / int((~label).sum())) ** 0.5
    out = []
    for name, value in zip(names, mean_difference(x, label).tolist()):
        above = value > 0
        if abs(value) <= 2 * error:
            reading = 'none'
        elif name.endswith(NEUTRAL) or name.startswith(('spread_', 'list_')):
            reading = 'higher' if above else 'lower'
        else:
            above = above != name.endswith(DESCENDING)
            reading = 'remembered' if above else 'over-forgotten'
        out.append({'name': name, 'difference': value, 'reading': reading})
    return out


def plot_scores(
    x: Tensor, label: Tensor, names: Sequence[str], seed: int
) -> tuple[dict[str, list[float]], bool]:
    r"""Returns the standardised scores of both sides, capped by a seeded draw, and
    whether those of the members are higher on average.
    """
    name = MAIN if MAIN in names else f'mean_{MAIN}'
    score = x[:, list(names).index(name)]
    rng, out = generator(seed), {}
    for key, values in (('members', score[label]), ('nonmembers', score[~label])):
        perm = torch.randperm(values.numel(), generator=rng)
        out[key] = values[perm[:MAX_SCORES]].tolist()
    return out, bool(score[label].mean() > score[~label].mean())


def _arrays(x: Tensor, label: Tensor) -> tuple[np.ndarray, np.ndarray]:
    return x.numpy(), label.numpy().astype(int)


def _decide(model: Any, x: Tensor) -> Tensor:
    return torch.from_numpy(model.decision_function(x.numpy()))
