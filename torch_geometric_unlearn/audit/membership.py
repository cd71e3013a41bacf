r"""Membership inference by an attacker who sees the audited model and nothing else."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.data.request import Request
from torch_geometric_unlearn.loader import TripletLoader
from torch_geometric_unlearn.nn.models.served import Served
from torch_geometric_unlearn.transforms import DropForgotten, ForgetUsers
from torch_geometric_unlearn.utils.check import check_choice, check_int
from torch_geometric_unlearn.utils.knn import content_neighbors
from torch_geometric_unlearn.utils.seed import generator
from torch_geometric_unlearn.utils.topk import PairIndex

from ._attack import (
    CLASSIFIERS,
    METRICS,
    MIN_EXAMPLES,
    Attacker,
    MembershipResult,
    attack_figures,
    check_classifiers,
    compare_features,
    cross_validate,
    fill_direction,
    fill_result,
    percentiles,
    plot_scores,
    require_sklearn,
    resample,
)
from ._features import PairFeatures
from ._matching import Matcher, occurrence
from .exchangeability import compare_covariates

#: Where :meth:`hold_out_users` keeps the pairs of users that are never trained on.
NEVER_TRAINED = 'never_trained_edge_label_index'
NEGATIVES = ('auto', 'control', 'heldout', 'random')
#: Items that a retained user shares with a deleted one to count as a neighbour.
MIN_SHARED = 3
#: Above this balanced accuracy, a comparison of equals is confounded.
MAX_NULL = 0.55


@dataclass
class Examples:
    r"""What an attacker is trained or tested on, members first.

    Attributes:
        pairs (torch.Tensor): Pairs to query, int64 :obj:`[2, m]`.
        ids (torch.Tensor): Users whose histories are the examples, int64 :obj:`[n]`,
            or empty if every pair is an example of its own.
        group (torch.Tensor): Examples that stay together, int64 :obj:`[n]`.
        label (torch.Tensor): Membership, bool :obj:`[n]`.
    """

    pairs: Tensor
    ids: Tensor
    group: Tensor
    label: Tensor

    @classmethod
    def of_pairs(cls, members: Tensor, others: Tensor, row: int) -> Examples:
        r"""Every pair is an example, grouped by user (row 0) or item (row 1)."""
        pairs = torch.cat([members, others], dim=1)
        label = torch.arange(pairs.size(1)) < members.size(1)
        return cls(pairs, pairs.new_empty(0), pairs[row], label)

    @classmethod
    def of_users(cls, pairs: Tensor, members: Tensor, others: Tensor) -> Examples:
        r"""Every user with its queried pairs is an example and a group."""
        ids = torch.cat([members, others])
        label = torch.arange(ids.numel()) < members.numel()
        return cls(pairs[:, torch.isin(pairs[0], ids)], ids, ids, label)

    @property
    def counts(self) -> tuple[int, int]:
        r"""Number of members and of non-members."""
        return int(self.label.sum()), int((~self.label).sum())

    def features(self, source: PairFeatures) -> tuple[Tensor, list[str]]:
        r"""Returns the features of all examples and their names."""
        if self.ids.numel() == 0:
            return source(self.pairs), source.names
        return source.of_histories(self.pairs, self.ids)


def membership(
    model: Any,
    data: HeteroData,
    graph: Any = None,
    mode: str = 'direct',
    level: str = 'pair',
    negatives: str = 'auto',
    classifiers: Sequence[str] = CLASSIFIERS,
    num_folds: int = 5,
    max_examples: int = 10_000,
    num_bootstrap: int = 1000,
    seed: int = 0,
    original: Any = None,
) -> MembershipResult:
    r"""Attacks a model: can what it should have forgotten be told from what it has
    never seen?

    The attacker queries the audited model alone (see below), never the original model,
    degrees or ids, as the scores of the original would give membership away
    [ours: papers on unlearning report balanced accuracies, but no attacker].

    **Examples.** Members are the forgotten pairs, non-members the control pairs of the
    same users (of the same items in an item-level request), or else their test pairs,
    equally many per user (item). The split being random, a model that has seen neither
    can't tell them apart, so retraining gives 0.5. As users with a short history have
    a larger share of it in the test split, the members of an item are drawn such that
    their users are a sample like those of its test pairs; they still have one retained
    pair less, so look at retraining's value there. Random pairs
    (:obj:`negatives='random'`) are separated by any good recommender without memory
    and are offered for comparison only.

    **Yardstick.** Under a split by time, test pairs differ from trained ones without
    any memory. :obj:`details['exchangeability']` says whether members and non-members
    can be told apart by popularity, activity and time alone, and, if so,
    :obj:`details['weighted']` has the figures with overlap weights, under which both
    sides agree in these [ours]. Control pairs
    (:class:`~torch_geometric_unlearn.transforms.SplitInteractions`) and the value of a
    retrained model (:meth:`compare_membership`) are the better yardsticks.

    **Modes.** :obj:`'direct'` is the headline: cross-validation over these examples,
    grouped by user (item), which finds *any* difference, also pairs pushed too far
    down. :obj:`'transfer'` is trained on the retained pairs of users (items) outside
    the request against their validation pairs and tested on the same examples; it
    finds what is left of memory and takes pairs that were pushed down for unseen ones.

    **Levels.** :obj:`'pair'` as above. :obj:`'user'`: one example per deleted user,
    against users that were never trained on (see
    :meth:`~torch_geometric_unlearn.audit.hold_out_users`), with mean, minimum, maximum
    and spread of the pair features and the distance between history and list.
    :obj:`'neighbours'` (direct only): retained users who shared at least three
    deleted items with one user of the request, against retained users who did not,
    equally many by length of history and quintile of mean item popularity [ours:
    sharing items goes with both]. Users who share items still lie closer together in
    any model, so only the difference to retraining counts there, and no direction is
    given.

    **Features** of a pair: score, raw and standardised over the user's row and the
    item's column; logarithm of the rank with retained positives masked; margin to the
    user's 20th score; cosine; both norms; mean score of the ten content neighbours of
    the item; score and rank in every branch, if the model has
    :obj:`branch_embeddings`.

    Args:
        model (torch.nn.Module or Served): The audited model.
        data (HeteroData): The data with the request *still marked*.
        graph (Any, optional): What the model propagates over; the retained
            interactions if not given. Pass the graph of the unmarked data only for
            the original model as it was in service. (default: :obj:`None`)
        mode (str, optional): :obj:`'direct'` or :obj:`'transfer'`.
            (default: :obj:`'direct'`)
        level (str, optional): :obj:`'pair'`, :obj:`'user'` or :obj:`'neighbours'`.
            (default: :obj:`'pair'`)
        negatives (str, optional): :obj:`'control'`, :obj:`'heldout'` for the test
            split, :obj:`'random'`, or :obj:`'auto'` for control pairs where at least 50
            can be compared and the test split elsewhere; for pairs only.
            (default: :obj:`'auto'`)
        classifiers (sequence, optional): Candidates, of which the better one on the
            training side is used: logistic regression and gradient boosting (200 trees
            of depth 3). (default: :obj:`('logistic', 'boosting')`)
        num_folds (int, optional): Folds of the direct mode. (default: :obj:`5`)
        max_examples (int, optional): Examples per side. (default: :obj:`10_000`)
        num_bootstrap (int, optional): Resamples of users (items) for the intervals.
            (default: :obj:`1000`)
        seed (int, optional): Seed of draws, folds and classifiers.
            (default: :obj:`0`)
        original (torch.nn.Module, optional): The original model, for a
            :meth:`~torch_geometric_unlearn.audit.self_check` beside the result, on
            which it has no influence. (default: :obj:`None`)

    Returns:
        MembershipResult: Metrics with their intervals; NaN with a warning with fewer
        than 50 examples on a side.

    Raises:
        ImportError: If scikit-learn is missing.
        ValueError: If an argument is out of range, or the graph that the model builds
            still holds forgotten pairs.

    Example:
        >>> from torch_geometric_unlearn.audit import membership
        >>> data = SyntheticMultimodal('tiny', num_users=400)[0]
        >>> model = MGCN.from_data(data, hidden_channels=16)
        >>> result = membership(model, ForgetUsers(ratio=0.3)(data))
        >>> result.num_members == result.num_nonmembers
        True
    """
    check_choice(mode, 'mode', ('direct', 'transfer'))
    check_choice(level, 'level', ('pair', 'user', 'neighbours'))
    if level == 'neighbours' and mode == 'transfer':
        raise ValueError(
            "'mode' must be 'direct' for the level 'neighbours' (got 'transfer'): "
            'retained users are members already.'
        )
    audit = _Audit(
        data,
        level,
        negatives,
        classifiers,
        num_folds,
        max_examples,
        num_bootstrap,
        seed,
    )
    source = audit.source(model, graph)
    result = audit(source, mode)
    if original is not None:
        result.check = _self_check(audit, original)
    return result


def compare_membership(
    models: Mapping[str, Any],
    data: HeteroData,
    modes: Sequence[str] = ('direct', 'transfer'),
    level: str = 'pair',
    negatives: str = 'auto',
    classifiers: Sequence[str] = CLASSIFIERS,
    num_folds: int = 5,
    max_examples: int = 10_000,
    num_bootstrap: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    r"""Attacks several models in the same way, and compares with the retrained one.

    :obj:`'original'` is scored on all interactions, as it was in service, and every
    other model on the retained ones. With :obj:`'retrained'` among the models, every
    row has

    .. math::
        \textrm{priv_gap} = \textrm{BalAcc}(\theta) - \textrm{BalAcc}(\theta_R), \qquad
        \textrm{auc_relative} = 100 \,
        \frac{\textrm{AUC}(\theta) - \textrm{AUC}(\theta_R)}{\textrm{AUC}(\theta_R)},

    and :obj:`excess_balanced_accuracy` and :obj:`excess_auc` over the retrained model,
    with 95% intervals :obj:`_low` and :obj:`_high` from resamples of users (items) on
    which both models are compared.

    Args:
        models (dict): Models by name.
        data (HeteroData): The data with the request still marked.
        modes (sequence, optional): Modes to run; for neighbours, transfer is left out.
            (default: :obj:`('direct', 'transfer')`)
        level (str, optional): As for :meth:`membership`. (default: :obj:`'pair'`)
        negatives (str, optional): As for :meth:`membership`.
            (default: :obj:`'auto'`)
        classifiers (sequence, optional): As for :meth:`membership`.
            (default: :obj:`('logistic', 'boosting')`)
        num_folds (int, optional): As for :meth:`membership`. (default: :obj:`5`)
        max_examples (int, optional): As for :meth:`membership`.
            (default: :obj:`10_000`)
        num_bootstrap (int, optional): As for :meth:`membership`.
            (default: :obj:`1000`)
        seed (int, optional): As for :meth:`membership`. (default: :obj:`0`)

    Returns:
        dict: :obj:`rows`, one per model and mode: the name as :obj:`method`, and
        metrics; :obj:`results` with everything, as dictionaries in the same order;
        :obj:`missing`, by name of an absent model what can't be said without it;
        :obj:`confounded`, whether retraining lies above 0.55 in the direct mode, so
        that nothing should be concluded (:obj:`None` without it and for neighbours,
        where it does by nature); and
        :obj:`self_check` (:obj:`None` without the original).

    Example:
        >>> from torch_geometric_unlearn.audit import compare_membership
        >>> data = SyntheticMultimodal('tiny', num_users=400)[0]
        >>> models = {'edge_drop': MGCN.from_data(data, hidden_channels=16)}
        >>> out = compare_membership(
        ...     models, ForgetUsers(ratio=0.3)(data), modes=['direct'])
        >>> sorted(out['missing'])
        ['original', 'retrained']
    """
    for mode in modes:
        check_choice(mode, 'modes', ('direct', 'transfer'))
    audit = _Audit(
        data,
        level,
        negatives,
        classifiers,
        num_folds,
        max_examples,
        num_bootstrap,
        seed,
    )
    if level == 'neighbours':
        modes = ('direct',)
    rows: list[dict[str, Any]] = []
    results, resamples = [], {}
    for name, model in models.items():
        served = Served.before if name == 'original' else Served.of
        source = audit.source(served(model, data))
        for mode in modes:
            result = audit(source, mode)
            if 'retrained' in models and result.auc == result.auc:
                resamples[name, mode] = audit.resample()
            row: dict[str, Any] = {'method': name, 'mode': mode, 'level': level}
            row |= {key: getattr(result, key) for key in (*METRICS, 'deviation')}
            row |= {'direction': result.direction, 'classifier': result.classifier}
            for key, (low, high) in result.intervals.items():
                row |= {f'{key}_low': low, f'{key}_high': high}
            rows.append(row)
            results.append(result.to_dict())
    missing, confounded = {}, None
    if 'retrained' in models:
        reference = {row['mode']: row for row in rows if row['method'] == 'retrained'}
        for row in rows:
            ours = reference[row['mode']]
            row['priv_gap'] = row['balanced_accuracy'] - ours['balanced_accuracy']
            change = row['auc'] - ours['auc']
            relative = 100 * change / ours['auc'] if ours['auc'] else math.nan
            row['auc_relative'] = relative
            row |= _excess(row, ours, resamples)
        if 'direct' in reference and level != 'neighbours':
            confounded = reference['direct']['balanced_accuracy'] > MAX_NULL
    else:
        missing['retrained'] = 'priv_gap, auc_relative, and whether it is confounded'
    check = None
    if 'original' in models:
        check = _self_check(audit, models['original'])
    else:
        missing['original'] = 'self_check'
    return {
        'rows': rows,
        'results': results,
        'missing': missing,
        'confounded': confounded,
        'self_check': check,
    }


def self_check(
    original: Any,
    data: HeteroData,
    classifiers: Sequence[str] = CLASSIFIERS,
    num_folds: int = 5,
    max_examples: int = 10_000,
    num_bootstrap: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    r"""Checks the attacker itself on the original model in service.

    On held-out pairs, split at random per user into pseudo members and non-members, it
    must find nothing; on the request it must find memory, if the model has any. An
    audit of a model for which the second fails says little, as there was nothing that
    this attacker could have seen before.

    Args:
        original (torch.nn.Module): The model before unlearning.
        data (HeteroData): The data with the request still marked.
        classifiers (sequence, optional): As for :meth:`membership`.
            (default: :obj:`('logistic', 'boosting')`)
        num_folds (int, optional): As for :meth:`membership`. (default: :obj:`5`)
        max_examples (int, optional): As for :meth:`membership`.
            (default: :obj:`10_000`)
        num_bootstrap (int, optional): As for :meth:`membership`.
            (default: :obj:`1000`)
        seed (int, optional): As for :meth:`membership`. (default: :obj:`0`)

    Returns:
        dict: :obj:`null` and :obj:`original` with the metrics and intervals of both
        direct attacks; :obj:`null_ok`, whether the first has 0.5 within the interval
        of the AUC or a balanced accuracy of at most 0.55; :obj:`original_ok`, whether
        the interval of the AUC of the second lies above 0.5.

    Example:
        >>> from torch_geometric_unlearn.audit import self_check
        >>> data = SyntheticMultimodal('tiny', num_users=400)[0]
        >>> model = MGCN.from_data(data, hidden_channels=16)
        >>> self_check(model, ForgetUsers(ratio=0.3)(data))['null_ok']
        True
    """
    audit = _Audit(
        data,
        'pair',
        'auto',
        classifiers,
        num_folds,
        max_examples,
        num_bootstrap,
        seed,
    )
    return _self_check(audit, original)


def hold_out_users(data: HeteroData, ratio: float = 0.05, seed: int = 0) -> HeteroData:
    r"""Sets users aside *before any training*, as non-members of user-level attacks.

    Their training pairs move to :obj:`data.never_trained_edge_label_index`, their
    held-out pairs are dropped, and they stay as nodes without edges, so that a model
    keeps their rows as they were drawn. Returns a new data object.

    Args:
        data (HeteroData): The data without a request.
        ratio (float, optional): Share of the users. (default: :obj:`0.05`)
        seed (int, optional): Seed of the draw. (default: :obj:`0`)

    Raises:
        ValueError: If :obj:`data` holds a request already.

    Example:
        >>> from torch_geometric_unlearn.audit import hold_out_users
        >>> kept = hold_out_users(data)
        >>> kept.never_trained_edge_label_index[0].unique().numel()
        5
    """
    if 'forget_mask' in data[schema.EDGE_TYPE]:
        raise ValueError(
            "'data' must hold no request yet (got a 'forget_mask'). Set users aside "
            'before training, and mark the request after it.'
        )
    marked = ForgetUsers(ratio=ratio, seed=seed)(data)
    pairs = schema.forgotten_edge_index(marked)
    out = DropForgotten()(marked)
    if NEVER_TRAINED in data:
        pairs = torch.cat([data[NEVER_TRAINED], pairs], dim=1)
    out[NEVER_TRAINED] = pairs
    return out


def never_trained_pairs(data: HeteroData) -> Tensor:
    r"""Returns pairs of users that no model has been trained on, int64 :obj:`[2, *]`:
    those that :meth:`hold_out_users` has set aside, or else the held-out pairs of users
    without any training pair.
    """
    if NEVER_TRAINED in data:
        return data[NEVER_TRAINED]
    pairs = torch.cat([schema.held_out(data, s) for s in ('val', 'test')], dim=1)
    trained = data[schema.EDGE_TYPE].edge_index[0]
    return pairs[:, ~torch.isin(pairs[0], trained)]


class _Audit:
    r"""The examples of an audit, which do not depend on the model, and the attack."""

    def __init__(
        self,
        data: HeteroData,
        level: str,
        negatives: str,
        classifiers: Sequence[str],
        num_folds: int,
        max_examples: int,
        num_bootstrap: int,
        seed: int,
    ) -> None:
        self.level = check_choice(level, 'level', ('pair', 'user', 'neighbours'))
        self.negatives = check_choice(negatives, 'negatives', NEGATIVES)
        self.classifiers = check_classifiers(classifiers)
        self.num_folds = check_int(num_folds, 'num_folds', 2)
        self.max_examples = check_int(max_examples, 'max_examples', 1)
        self.num_bootstrap = check_int(num_bootstrap, 'num_bootstrap', 1)
        self.seed = seed
        generator(seed)  # Checks the seed.
        require_sklearn()
        schema.validate(data)
        if level == 'user' and Request.of(data).users.numel() == 0:
            raise ValueError(
                "'level' must be 'pair' or 'neighbours' for a request that deletes no "
                "user (got 'user'). Mark whole users with 'ForgetUsers'."
            )
        self.data = data
        on_cpu = copy.copy(data).to('cpu')
        self.train = on_cpu[schema.EDGE_TYPE].edge_index
        self.retained = schema.retained_edge_index(on_cpu)
        self.forgotten = schema.forgotten_edge_index(on_cpu)
        self.held_out = {s: schema.held_out(on_cpu, s) for s in schema.SPLITS}
        self.never_trained = never_trained_pairs(on_cpu)
        self.sizes = schema.num_users(data), schema.num_items(data)
        self.row = 1 if Request.of(data).level == 'item' else 0
        self.neighbors = content_neighbors(schema.features(data).values())
        # Both modes are tested on the same examples, as are all models.
        self.train_set: Examples | None = None
        self.raw: tuple[Tensor, Tensor] = (torch.empty(0), torch.empty(0))
        self.balance: tuple[dict[str, Any], Tensor] | None = None
        self.rng = generator(seed)
        if level == 'pair':
            self.test, self.outside = self._test_pairs(), None
        elif level == 'user':
            self.test, self.outside = self._test_users()
        else:
            self.test, self.outside = self._neighbours(), None

    def source(self, model: Any, graph: Any = None) -> PairFeatures:
        r"""Returns the features of a model.

        Raises:
            ValueError: If the graph that the model builds holds a forgotten pair.
        """
        served = Served.of(model, self.data, graph)
        return PairFeatures(served, self.data, self.neighbors)

    def __call__(self, source: PairFeatures, mode: str) -> MembershipResult:
        r"""Attacks one model."""
        result = MembershipResult(mode, self.level)
        if mode == 'direct':
            return self.attack(source, result, self.test)
        if self.train_set is None:
            self.train_set = self._train_examples()
        return self.attack(source, result, self.test, self.train_set)

    def attack(
        self,
        source: PairFeatures,
        result: MembershipResult,
        test: Examples,
        train: Examples | None = None,
    ) -> MembershipResult:
        r"""Tests on :obj:`test` an attacker trained on :obj:`train`, or by
        cross-validation.
        """
        label = test.label
        result.num_members, result.num_nonmembers = test.counts
        for side, examples in (('testing', test), ('training', train)):
            if examples is not None and min(examples.counts) < MIN_EXAMPLES:
                _warn_too_few(examples, side, self.level)
                return result
        x, names = test.features(source)
        if train is None:
            score, guess, result.classifier = cross_validate(
                x, label, test.group, self.classifiers, self.num_folds, self.seed
            )
        else:
            attacker = Attacker(self.classifiers, self.seed)
            attacker.fit(train.features(source)[0], train.label, train.group)
            score = attacker(x)
            guess = score > attacker.threshold
            result.classifier = attacker.name
        size = self.num_bootstrap
        fill_result(result, score, guess, label, test.group, size, self.seed)
        self.raw = score, guess
        if test is self.test and self.level == 'pair' and self.negatives != 'random':
            self._add_balance(result, score, guess)
        result.features = compare_features(x, label, names)
        result.scores, above = plot_scores(x, label, names, self.seed)
        if self.level != 'neighbours':
            fill_direction(result, above)
        return result

    def _add_balance(
        self, result: MembershipResult, score: Tensor, guess: Tensor
    ) -> None:
        r"""Says what the examples differ in without a model, and weighs it away."""
        test = self.test
        if self.balance is None:  # Does not depend on the model.
            self.balance = compare_covariates(
                self.data,
                test.pairs,
                test.label,
                self.row,
                self.num_bootstrap,
                self.seed,
            )
        found, log_odds = self.balance
        result.details |= {'negatives': self.negatives, 'exchangeability': found}
        if found['exchangeable']:
            return
        propensity = log_odds.sigmoid()
        weight = torch.where(test.label, 1 - propensity, propensity).unsqueeze(0)
        figures = attack_figures(score, guess, test.label, weight)
        result.details['weighted'] = {k: float(v) for k, v in figures.items()}

    def resample(self) -> dict[str, Tensor]:
        r"""Returns the metrics of the last attack on resamples of the groups."""
        test = self.test
        size = self.num_bootstrap
        return resample(*self.raw, test.label, test.group, size, self.seed)

    def null_examples(self) -> Examples:
        r"""Returns held-out pairs under labels that mean nothing."""
        pairs = torch.cat([self.held_out['val'], self.held_out['test']], dim=1)
        self.rng = generator(self.seed)
        order = self._shuffled(torch.arange(pairs.size(1)))
        pairs = pairs[:, order[pairs[0, order].argsort(stable=True)]]
        even = occurrence(pairs[0]) % 2 == 0
        # The first of an odd number has no partner; which one it is, is random.
        members, others = self._matched(pairs[:, even], pairs[:, ~even], 0)
        return Examples.of_pairs(members, others, 0)

    def _test_pairs(self) -> Examples:
        if self.negatives == 'auto':
            self.negatives = 'heldout'
            if self.held_out['control'].size(1) > 0:
                self.negatives = 'control'
                examples = self._test_pairs()
                if min(examples.counts) >= MIN_EXAMPLES:
                    return examples
                self.negatives, self.rng = 'heldout', generator(self.seed)
        split = 'control' if self.negatives == 'control' else 'test'
        if self.negatives == 'random':
            others = self._random_pairs(self.forgotten)
        else:
            others = self.held_out[split]
        members, others = self._matched(self.forgotten, others, self.row, split)
        return Examples.of_pairs(members, others, self.row)

    def _test_users(self) -> tuple[Examples, Tensor]:
        r"""Returns deleted users against users that no model has seen, and those of the
        latter that are left to train the attacker of the transfer mode on.
        """
        unseen = self._shuffled(self.never_trained[0].unique())
        outside, unseen = unseen.tensor_split(2)
        members = self._shuffled(self.forgotten[0].unique())
        pairs = torch.cat([self.forgotten, self.never_trained], dim=1)
        return self._balanced_users(pairs, members, unseen), outside

    def _neighbours(self) -> Examples:
        num_users = self.sizes[0]
        users, place = self.forgotten[0].unique(return_inverse=True)
        fans = PairIndex(self.retained.flip(0), self.sizes[1])
        row, fan = fans.lookup(self.forgotten[1])
        codes, shared = (place[row] * num_users + fan).unique(return_counts=True)
        near = torch.zeros(num_users, dtype=torch.bool)
        near[codes[shared >= MIN_SHARED] % num_users] = True
        kept = self.retained[0].unique()
        kept = kept[~torch.isin(kept, users)]

        length = self.retained[0].bincount(minlength=num_users)
        popularity = self.retained[1].bincount(minlength=self.sizes[1]).double()
        mean = torch.zeros(num_users, dtype=torch.float64)
        mean.index_add_(0, self.retained[0], popularity[self.retained[1]].log())
        mean = (mean / length.clamp(min=1))[kept]
        quintile = mean.argsort().argsort() * 5 // max(1, kept.numel())
        stratum = torch.stack([length[kept] * 5 + quintile, kept])
        members, others = self._matched(
            stratum[:, near[kept]], stratum[:, ~near[kept]], 0
        )
        return Examples.of_users(self.retained, members[1], others[1])

    def _train_examples(self) -> Examples:
        self.rng = generator(self.seed)
        if self.level == 'user':
            assert self.outside is not None
            members = self.retained[0].unique()
            gone = torch.isin(members, self.forgotten[0])
            pairs = torch.cat([self.retained, self.never_trained], dim=1)
            members = self._shuffled(members[~gone])
            return self._balanced_users(pairs, members, self.outside)
        asked, val = self.forgotten[self.row], self.held_out['val']
        members = self.retained[:, ~torch.isin(self.retained[self.row], asked)]
        if self.negatives == 'random':
            members = members[:, self._shuffled(torch.arange(members.size(1)))]
            members = members[:, : self.max_examples]
            others = self._random_pairs(members)
        else:
            others = val[:, ~torch.isin(val[self.row], asked)]
        members, others = self._matched(members, others, self.row, 'val')
        return Examples.of_pairs(members, others, self.row)

    def _balanced_users(
        self, pairs: Tensor, members: Tensor, others: Tensor
    ) -> Examples:
        num = min(members.numel(), others.numel(), self.max_examples)
        return Examples.of_users(pairs, members[:num], others[:num])

    def _matched(
        self, members: Tensor, others: Tensor, row: int, split: str = ''
    ) -> tuple[Tensor, Tensor]:
        r"""Returns equally many pairs of both kinds per group, within the cap."""
        key = -torch.rand(members.size(1), generator=self.rng).log()
        if split and self.negatives != 'random':
            # An exponential race: drawn in proportion to the weights. It makes the
            # users of the members of an item a sample like those of the test pairs.
            held = self.held_out[split][0].bincount(minlength=self.sizes[0])
            train = self.train[0].bincount(minlength=self.sizes[0])
            weight = held.double() / train.clamp(min=1)
            key = key / weight[members[0]]
        members = members[:, key.argsort()]
        others = others[:, self._shuffled(torch.arange(others.size(1)))]
        matcher = Matcher(self.seed, self.max_examples)
        matcher.rng = self.rng
        return matcher.limited(members, others, row)

    def _random_pairs(self, pairs: Tensor) -> Tensor:
        r"""Returns as many pairs of the same users (items) that nobody has made."""
        known = torch.cat([self.train, *self.held_out.values()], dim=1)
        group, size = pairs[self.row], self.sizes[1 - self.row]
        if self.row == 1:
            known = known.flip(0)
        seed = int(torch.randint(2**31, (1,), generator=self.rng))
        loader = TripletLoader(
            known, size, negative_items=torch.arange(size), seed=seed
        )
        drawn = torch.stack([group, loader.sample_negatives(group)])
        return drawn.flip(0) if self.row == 1 else drawn

    def _shuffled(self, ids: Tensor) -> Tensor:
        return ids[torch.randperm(ids.numel(), generator=self.rng)]


def _excess(
    row: dict[str, Any],
    reference: dict[str, Any],
    resamples: dict[tuple[str, str], dict[str, Tensor]],
) -> dict[str, float]:
    out = {}
    ours = resamples.get((row['method'], row['mode']))
    theirs = resamples.get((reference['method'], reference['mode']))
    for name in ('balanced_accuracy', 'auc'):
        key = f'excess_{name}'
        out[key] = row[name] - reference[name]
        low, high = math.nan, math.nan
        if ours is not None and theirs is not None:
            low, high = percentiles(ours[name] - theirs[name])
        out |= {f'{key}_low': low, f'{key}_high': high}
    return out


def _self_check(audit: _Audit, original: Any) -> dict[str, Any]:
    if audit.level != 'pair' or audit.negatives == 'random':
        audit = _Audit(
            audit.data,
            'pair',
            'auto',
            audit.classifiers,
            audit.num_folds,
            audit.max_examples,
            audit.num_bootstrap,
            audit.seed,
        )
    source = audit.source(Served.before(original, audit.data))
    null = MembershipResult('direct', 'null')
    null = audit.attack(source, null, audit.null_examples())
    found = audit(source, 'direct')
    low, high = null.intervals['auc']
    holds = low <= 0.5 <= high or null.balanced_accuracy <= MAX_NULL
    out: dict[str, Any] = {}
    for name, result in (('null', null), ('original', found)):
        out[name] = {key: getattr(result, key) for key in METRICS}
        out[name]['intervals'] = result.intervals
    out['null_ok'] = bool(holds)
    out['original_ok'] = bool(found.intervals['auc'][0] > 0.5)
    return out


def _warn_too_few(examples: Examples, side: str, level: str) -> None:
    members, others = examples.counts
    advice = 'Mark more, or keep more pairs out of training.'
    if level == 'user':
        advice = "Set users aside before training with 'hold_out_users'."
    warnings.warn(
        f'The attack needs {MIN_EXAMPLES} members and as many non-members for {side} '
        f'(got {members} and {others}), so its metrics are '
        f'NaN. {advice}',
        stacklevel=5,
    )
