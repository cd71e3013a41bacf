r"""Are never-trained pairs what trained ones would be without memory?"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.data.known_pairs import KnownPairs
from torch_geometric_unlearn.utils.check import check_choice, check_int
from torch_geometric_unlearn.utils.finite import check_finite
from torch_geometric_unlearn.utils.seed import generator

from ._attack import (
    MIN_EXAMPLES,
    MembershipResult,
    cross_validate,
    fill_result,
    mean_difference,
)
from ._examples import Examples
from ._matching import match

#: An AUC this close to 0.5 changes no conclusion of an audit.
TOLERANCE = 0.02


def exchangeability(
    data: HeteroData,
    split: str = 'test',
    max_examples: int = 10_000,
    num_bootstrap: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    r"""Tests whether the pairs of a split are exchangeable with the training pairs, by
    what no model can know: popularity of the item, activity of the user and, where
    both have it, time [ours].

    An audit compares deleted pairs with never-trained ones. Under a split by time these
    differ without any memory, which an attacker finds too. Training and held-out pairs
    are drawn equally often per user, as the membership attack does, so that activity is
    the same on both sides; popularity leaves the pair itself out, which a training pair
    would count.

    Args:
        data (HeteroData): The data; marked pairs count as training pairs.
        split (str, optional): :obj:`'val'`, :obj:`'test'` or :obj:`'control'`.
            (default: :obj:`'test'`)
        max_examples (int, optional): Pairs per side. (default: :obj:`10_000`)
        num_bootstrap (int, optional): Resamples of users for the interval.
            (default: :obj:`1000`)
        seed (int, optional): Seed of draws and folds. (default: :obj:`0`)

    Returns:
        dict: :obj:`covariates`, the difference of the means by name, training minus
        held-out, in standard deviations; :obj:`auc` of a logistic regression on them,
        cross-validated by user, with its 95% :obj:`interval`; and
        :obj:`exchangeable`, whether the interval begins below 0.5 or the AUC is at most
        0.52.

    Raises:
        ImportError: If scikit-learn is missing.
        ValueError: If an argument is out of range, or fewer than 50 pairs per side can
            be compared.

    Example:
        >>> from torch_geometric_unlearn.audit import exchangeability
        >>> data = SyntheticMultimodal('tiny', num_users=400)[0]
        >>> exchangeability(data)['exchangeable']
        True
    """
    check_choice(split, 'split', schema.SPLITS)
    check_int(max_examples, 'max_examples', 1)
    data = schema.validate(data)
    train = data[schema.EDGE_TYPE].edge_index.cpu()
    others = schema.held_out(data, split).cpu()
    rng = generator(seed)
    key = torch.rand(train.size(1), generator=rng)
    members, others = match(train, others, key, 0, max_examples, rng)
    if members.size(1) < MIN_EXAMPLES:
        raise ValueError(
            f"'{split}' must have at least {MIN_EXAMPLES} pairs to compare with (got "
            f'{members.size(1)} of users that have both). Hold out more.'
        )
    examples = Examples.of_pairs(members, others, 0)
    return compare_covariates(data, examples, 0, num_bootstrap, seed)[0]


def compare_covariates(
    data: HeteroData, examples: Examples, row: int, num_bootstrap: int, seed: int
) -> tuple[dict[str, Any], Tensor]:
    r"""Returns what :meth:`exchangeability` says of given pairs, equally many per user
    (row 0) or item (row 1), and the log-odds of the label that the covariates give,
    float64 :obj:`[n]`, each from a classifier that has not seen its group.
    """
    x, names = covariates(data, examples.pairs, row)
    label, group = examples.label, examples.group
    score, guess, _ = cross_validate(x, label, group, ('logistic',), 5, seed)
    result = MembershipResult('covariates', 'pair')
    fill_result(result, score, guess, label, group, num_bootstrap, seed)
    auc, interval = result.auc, result.intervals['auc']
    # Without any difference, cross-validation tends to lie below 0.5.
    holds = interval[0] <= 0.5 or auc <= 0.5 + TOLERANCE
    return {
        'covariates': dict(zip(names, mean_difference(x, label).tolist())),
        'auc': auc,
        'interval': interval,
        'exchangeable': bool(holds),
    }, score


def covariates(
    data: HeteroData, pairs: Tensor, row: int = 0
) -> tuple[Tensor, list[str]]:
    r"""Returns what can be said of pairs int64 :obj:`[2, n]` without a model, float64
    :obj:`[n, F]`, and the names: logarithms of the training pairs of the item and of
    the user, without the pair itself but where pairs are matched by :obj:`row`, and the
    time where all pairs have one.
    """
    store, num_items = data[schema.EDGE_TYPE], schema.num_items(data)
    train, pairs = store.edge_index.cpu(), pairs.cpu()
    own = KnownPairs(train, num_items).contains(*pairs).long()
    sizes = schema.num_users(data), num_items
    columns, names = [], []
    for side, name in ((1, 'item_popularity'), (0, 'user_activity')):
        count = train[side].bincount(minlength=sizes[side])[pairs[side]]
        count = count if side == row else count - own
        columns.append(count.double().log1p())
        names.append(name)
    time = _times(data, pairs)
    if time is not None:
        columns.append(time)
        names.append('time')
    for column, name in zip(columns, names):
        check_finite(column, name, 'Correct it in the data.')
    return torch.stack(columns, dim=1), names


def _times(data: HeteroData, pairs: Tensor) -> Tensor | None:
    store, num_items = data[schema.EDGE_TYPE], schema.num_items(data)
    if not isinstance(store.get('time'), Tensor):
        return None
    known, values = [store.edge_index], [store.time.double()]
    for split in schema.SPLITS:
        if f'{split}_edge_time' in data:
            known.append(schema.held_out(data, split))
            values.append(data[f'{split}_edge_time'].double())
    # 'KnownPairs' says whether it has a pair, not at which place its time stands.
    codes, order = schema.pair_codes(torch.cat(known, dim=1).cpu(), num_items).sort()
    wanted = schema.pair_codes(pairs, num_items)
    place = torch.searchsorted(codes, wanted).clamp(max=codes.numel() - 1)
    if not torch.equal(codes[place], wanted):
        return None  # Some pair has none.
    time = torch.cat(values).cpu()[order[place]]
    return (time - time.mean()) / time.std().clamp(min=1e-12)
