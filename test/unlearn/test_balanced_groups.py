import sys

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from torch_geometric_unlearn.unlearn import _balanced_groups
from torch_geometric_unlearn.unlearn._balanced_groups import (
    balanced_groups,
    group_sizes,
    round_plan,
    transport_plan,
)


def blobs(num, dim=4, num_blobs=3, seed=0):
    r"""Points around centres of unequal weight, so that balance costs something."""
    rng = torch.Generator().manual_seed(seed)
    centre = 4 * torch.randn(num_blobs, dim, generator=rng)
    share = torch.arange(1.0, num_blobs + 1)
    blob = torch.multinomial(share, num, replacement=True, generator=rng)
    return centre[blob] + torch.randn(num, dim, generator=rng)


def greedy_rounding(plan, sizes):
    r"""The definition, one entry after the other."""
    room, label = sizes.tolist(), [-1] * plan.size(0)
    order = np.argsort(-plan.numpy().ravel(), kind='stable')
    for user, group in zip(*np.unravel_index(order, plan.shape)):
        if label[user] < 0 and room[group] > 0:
            label[user] = int(group)
            room[group] -= 1
    return label


def total_cost(x, label):
    x = x.double()
    groups = [x[label == k] for k in label.unique()]
    return sum(float((g - g.mean(dim=0)).pow(2).sum()) for g in groups)


@pytest.mark.parametrize('solver', ['exact', 'sinkhorn'])
@pytest.mark.parametrize(('num', 'num_groups'), [(97, 5), (60, 6), (7, 7), (11, 2)])
def test_sizes_differ_by_at_most_one(num, num_groups, solver):
    pytest.importorskip('ot')
    label = balanced_groups(blobs(num), num_groups, solver, num_rounds=2)
    counts = label.bincount(minlength=num_groups)
    assert counts.max() - counts.min() <= 1
    assert counts.tolist() == group_sizes(num, num_groups).tolist()


def test_exact_plan_equals_the_assignment_problem():
    pytest.importorskip('ot')
    x = blobs(53)
    sizes = group_sizes(53, 4)
    cost = torch.cdist(x, x[:4]).square().double()
    plan = transport_plan(cost, sizes)
    assert plan.unique().tolist() == [0.0, 1.0]
    assert plan.sum(dim=0).tolist() == sizes.tolist()
    assert (plan.sum(dim=1) == 1).all()
    places = torch.arange(4).repeat_interleave(sizes)
    rows, columns = linear_sum_assignment(cost[:, places].numpy())
    expected = float(cost[rows, places[columns]].sum())
    assert float((plan * cost).sum()) == pytest.approx(expected, rel=1e-12)


def test_sinkhorn_is_close_to_the_exact_plan():
    pytest.importorskip('ot')
    x = blobs(80, num_blobs=1)
    sizes = group_sizes(80, 4)
    cost = torch.cdist(x, x[:4]).square().double()
    exact = float((transport_plan(cost, sizes) * cost).sum())
    plan = transport_plan(cost, sizes, 'sinkhorn')
    assert float(plan.sum()) == pytest.approx(80, rel=1e-3)
    assert float((plan * cost).sum()) == pytest.approx(exact, rel=0.02)
    label = round_plan(plan, sizes)
    rounded = float(cost.gather(1, label.unsqueeze(1)).sum())
    assert exact <= rounded * (1 + 1e-12)
    assert rounded < 1.1 * exact


@pytest.mark.parametrize('seed', range(5))
def test_not_above_greedy_balanced_k_means(seed):
    pytest.importorskip('ot')
    x = blobs(90, num_blobs=4, seed=seed)
    rng = torch.Generator().manual_seed(seed)
    sizes = group_sizes(90, 3)
    centroid = x[torch.randperm(90, generator=rng)[:3]]
    for _ in range(10):
        cost = torch.cdist(x, centroid).square()
        label = torch.tensor(greedy_rounding(-cost, sizes))
        centroid = torch.stack([x[label == k].mean(dim=0) for k in range(3)])
    best = total_cost(x, balanced_groups(x, 3, seed=seed))
    assert best <= total_cost(x, label) * (1 + 1e-6)


@pytest.mark.parametrize('seed', range(4))
def test_rounding_equals_its_definition(seed):
    rng = torch.Generator().manual_seed(seed)
    plan = torch.rand(61, 5, generator=rng)
    for values in (plan, (plan * 4).round()):  # The second one is full of ties.
        sizes = group_sizes(61, 5)
        assert round_plan(values, sizes).tolist() == greedy_rounding(values, sizes)


def test_finds_planted_groups_and_stops():
    pytest.importorskip('ot')
    truth = torch.arange(40) % 4
    x = 50 * torch.eye(4)[truth] + torch.rand(40, 4)
    found = min(
        total_cost(x, balanced_groups(x, 4, seed=seed, num_rounds=50))
        for seed in range(5)
    )
    assert found == pytest.approx(total_cost(x, truth), rel=1e-6)


def test_same_seed_same_groups():
    pytest.importorskip('ot')
    x = blobs(50)
    first = balanced_groups(x, 4, seed=3)
    torch.rand(5)
    assert torch.equal(first, balanced_groups(x, 4, seed=3))


@pytest.mark.parametrize('solver', ['exact', 'sinkhorn'])
def test_equal_vectors_are_balanced_too(solver):
    pytest.importorskip('ot')
    assert balanced_groups(torch.zeros(4, 2), 2, solver).bincount().tolist() == [2, 2]


def test_bad_arguments(monkeypatch):
    x = blobs(5)
    with pytest.raises(ValueError, match=r'must not exceed the number of rows, 5'):
        balanced_groups(x, 6)
    with pytest.raises(ValueError, match="'x' must be finite"):
        balanced_groups(torch.full((4, 2), torch.nan), 2)
    with pytest.raises(ValueError, match="'solver' must be one of"):
        balanced_groups(x, 2, 'greedy')
    monkeypatch.setitem(sys.modules, 'ot', None)
    with pytest.raises(ImportError, match=r'torch_geometric_unlearn\[ot\]'):
        balanced_groups(x, 2)


def test_no_convergence_is_an_error(monkeypatch):
    class Stopped:
        @staticmethod
        def emd(a, b, cost, numItermax, log):
            return np.zeros_like(cost), {'warning': 'numItermax reached'}

    monkeypatch.setattr(_balanced_groups, '_import_pot', lambda: Stopped)
    with pytest.raises(RuntimeError, match='did not converge'):
        balanced_groups(blobs(6), 2)
