import sys

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, roc_auc_score, roc_curve

from torch_geometric_unlearn.audit import _attack
from torch_geometric_unlearn.audit._attack import (
    CLASSIFIERS,
    Attacker,
    MembershipResult,
    Settings,
    attack_figures,
    best_threshold,
    compare_features,
    cross_validate,
    fill_direction,
    fill_result,
    group_folds,
    percentiles,
    resample,
)


def toy(n=300, seed=0, ties=False):
    rng = torch.Generator().manual_seed(seed)
    label = torch.rand(n, generator=rng) < 0.4
    score = torch.randn(n, generator=rng, dtype=torch.float64) + 0.8 * label
    return (score * 3).round() / 3 if ties else score, label


@pytest.mark.parametrize('ties', [False, True])
@pytest.mark.parametrize('weighted', [False, True])
def test_metrics_equal_scikit_learn(ties, weighted):
    score, label = toy(ties=ties)
    weight = torch.ones(2, 300, dtype=torch.float64)
    if weighted:
        weight[1] = torch.arange(300) % 4
    guess = score > 0.3
    out = attack_figures(score, guess, label, weight)
    for row in range(2):
        w = weight[row].numpy()
        fpr, tpr, _ = roc_curve(label, score, sample_weight=w, drop_intermediate=False)
        auc = roc_auc_score(label, score, sample_weight=w)
        accuracy = balanced_accuracy_score(label, guess, sample_weight=w)
        assert float(out['auc'][row]) == pytest.approx(auc, abs=1e-12)
        assert float(out['balanced_accuracy'][row]) == pytest.approx(accuracy)
        assert float(out['tpr_at_1_fpr'][row]) == pytest.approx(tpr[fpr <= 0.01].max())


def test_best_threshold_against_all_cuts():
    score, label = toy(80, ties=True)
    cut = best_threshold(score, label)
    values = [
        balanced_accuracy_score(label, score > c) for c in np.arange(-5, 5, 1 / 6)
    ]
    assert balanced_accuracy_score(label, score > cut) == pytest.approx(max(values))


def test_bootstrap_resamples_groups():
    # Copies of every example tell nothing new if they share a group.
    score, label = toy(400)
    group = torch.arange(400)
    guess = score > 0.4
    single = resample(score, guess, label, group, 400, 0)
    copies = score.repeat(4), guess.repeat(4), label.repeat(4)
    same = resample(*copies, group.repeat(4), 400, 0)
    apart = resample(*copies, torch.arange(1600), 400, 0)
    width = {}
    for name, out in (('single', single), ('same', same), ('apart', apart)):
        low, high = percentiles(out['auc'])
        width[name] = high - low
    assert width['same'] == pytest.approx(width['single'], rel=1e-9)
    assert width['apart'] < 0.65 * width['single']
    low, high = percentiles(single['auc'])
    assert low < roc_auc_score(label, score) < high


def test_resamples_by_loops():
    rng = torch.Generator().manual_seed(0)
    group = torch.arange(40) // 4
    label = torch.arange(40) % 2 == 0
    score = torch.randn(40, generator=rng, dtype=torch.float64) + label
    values = resample(score, score > 0.5, label, group, 5, 3)
    same = resample(score, score > 0.5, label, group, 5, 3)
    assert torch.equal(values['auc'], same['auc'])
    draw = torch.randint(10, (5, 10), generator=torch.Generator().manual_seed(3))
    for k in range(5):
        rows = torch.cat([(group == g).nonzero().view(-1) for g in draw[k].tolist()])
        auc = roc_auc_score(label[rows].numpy(), score[rows].numpy())
        assert float(values['auc'][k]) == pytest.approx(auc)
    plain = attack_figures(score, score > 0.5, label)['auc']
    assert float(plain) == pytest.approx(roc_auc_score(label.numpy(), score.numpy()))


def test_folds_keep_groups_together_and_balanced():
    group = torch.randint(40, (500,))
    label = group < 20
    fold = group_folds(group, label, 5, 0)
    for g in group.unique():
        assert fold[group == g].unique().numel() == 1
    first = torch.tensor([(group[fold == k].unique() < 20).sum() for k in range(5)])
    assert first.max() - first.min() <= 1
    assert not torch.equal(fold, group_folds(group, label, 5, 1))


def test_cross_validation_never_sees_the_group(monkeypatch):
    group = torch.arange(200) // 4
    label = torch.arange(200) % 2 == 0
    x = torch.randn(200, 3, dtype=torch.float64)
    x[:, 2] = torch.arange(200)  # Names the example.
    seen = []

    class Spy(Attacker):
        def fit(self, x, label, group):
            self.known = set((x[:, 2] // 4).long().tolist())
            return super().fit(x, label, group)

        def __call__(self, x):
            tested = set((x[:, 2] // 4).long().tolist())
            seen.append(tested)
            assert not tested & self.known
            return super().__call__(x)

    monkeypatch.setattr(_attack, 'Attacker', Spy)
    cross_validate(x, label, group, ('logistic',), 5, 0)
    assert len(seen) == 5
    assert set().union(*seen) == set(range(50))


def test_memorising_users_does_not_help_the_attacker():
    # Labels agree within a group, and features name the group: without grouping,
    # boosting would be nearly perfect.
    rng = torch.Generator().manual_seed(0)
    group = torch.arange(120).repeat_interleave(8)
    label = torch.rand(120, generator=rng)[group] < 0.5
    x = torch.randn(120, 4, generator=rng, dtype=torch.float64)[group]
    score, _, _ = cross_validate(x, label, group, ('boosting',), 5, 0)
    assert 0.3 < roc_auc_score(label, score) < 0.7


def test_chooses_the_better_classifier():
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(600, 2, generator=rng, dtype=torch.float64)
    group = torch.arange(600)
    both = ('logistic', 'boosting')
    ring = x.norm(dim=1) > 1.2
    score, guess, name = cross_validate(x, ring, group, both, 3, 0)
    assert name == 'boosting'
    assert roc_auc_score(ring, score) > 0.95
    assert balanced_accuracy_score(ring, guess) > 0.9
    line = x.sum(dim=1) + 0.7 * torch.randn(600, generator=rng) > 0
    assert cross_validate(x, line, group, both, 3, 0)[2] == 'logistic'


def test_readings():
    label = torch.arange(200) < 100
    x = torch.randn(200, 4, dtype=torch.float64) * 0.01
    x[label] += torch.tensor([1.0, -1, 1, 0]).double()
    x[:, 3] = 0
    rows = compare_features(x, label, ['score', 'id_log_rank', 'user_norm', 'margin'])
    assert [row['reading'] for row in rows] == [
        'remembered',
        'remembered',
        'higher',
        'none',
    ]
    assert rows[0]['difference'] > 10


def test_bad_classifiers_and_missing_package(monkeypatch):
    with pytest.raises(ValueError, match="'classifiers' must be one of"):
        Settings(classifiers=['forest'])
    with pytest.raises(ValueError, match="'classifiers' must name at least one"):
        Settings(classifiers=[])
    with pytest.raises(TypeError, match=r"pass \['logistic'\]"):
        Settings(classifiers='logistic')
    monkeypatch.setitem(sys.modules, 'sklearn', None)
    with pytest.raises(ImportError, match=r'torch_geometric_unlearn\[audit\]'):
        Attacker(CLASSIFIERS, 0)


@pytest.mark.parametrize('num_groups', [1, 2, 30])
def test_resamples_of_one_group_say_nothing(num_groups):
    score, label = toy()
    result = MembershipResult('direct', 'pair')
    group = torch.arange(300) % num_groups
    out = fill_result(result, score, score > 0.3, label, group, 50, 0)
    fill_direction(result, True)
    assert result.num_groups == num_groups
    low, high = result.intervals['auc']
    assert (low != low and high != high) == (num_groups == 1)
    assert bool(out['auc'].isnan().all()) == (num_groups == 1)
    assert result.direction == ('' if num_groups == 1 else 'remembered')


def test_nothing_is_defined_without_examples_of_one_side():
    score, _ = toy()
    for label in (torch.ones(300).bool(), torch.zeros(300).bool()):
        figures = attack_figures(score, score > 0.3, label)
        assert all(bool(value.isnan().all()) for value in figures.values())
