from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.transforms import ForgetInteractions
from torch_geometric_unlearn.unlearn._strata import Strata


def strata_of(data, num_strata):
    marked = ForgetInteractions(ratio=0.2, seed=1)(data)
    forgotten = schema.forgotten_edge_index(marked)
    reference = schema.held_out(marked, 'val')
    return Strata(forgotten, reference, marked, num_strata), forgotten, reference


def test_one_stratum_is_plain_transport(data):
    strata, forgotten, reference = strata_of(data, (1, 1))
    rng = torch.Generator().manual_seed(0)
    value = torch.randn(forgotten.size(1), generator=rng).round(decimals=1).double()
    goal = torch.randn(reference.size(1), generator=rng).round(decimals=1).double()
    assert torch.equal(strata.sort(value), value.sort()[0])
    levels = (np.arange(value.numel()) + 0.5) / value.numel()
    expected = np.quantile(goal.numpy(), levels, method='hazen')
    assert np.allclose(strata.goals(goal).numpy(), expected)
    label = torch.cat([torch.ones_like(value), torch.zeros_like(goal)])
    expected = roc_auc_score(label, torch.cat([value, goal]))
    assert strata.auc(value, goal) == pytest.approx(expected)


def test_strata_are_of_similar_degree_and_never_empty(data):
    strata, forgotten, reference = strata_of(data, (3, 3))
    num = int(strata.goal_cell.max()) + 1
    assert 3 < num <= 9
    assert strata.goal_cell.bincount(minlength=num).min() > 0
    assert set(strata.cell.tolist()) <= set(strata.goal_cell.tolist())
    popularity = data[schema.EDGE_TYPE].edge_index[1].bincount(minlength=60)
    both = torch.cat([popularity[forgotten[1]], popularity[reference[1]]])
    cell = torch.cat([strata.cell, strata.goal_cell])
    groups = [both[cell == i].double() for i in range(num)]
    within = sum(float(x.var(correction=0)) * x.numel() for x in groups)
    assert within < 0.4 * float(both.double().var(correction=0)) * both.numel()


def test_each_stratum_is_transported_by_itself(data):
    strata, forgotten, reference = strata_of(data, (2, 2))
    rng = torch.Generator().manual_seed(0)
    value = torch.randn(forgotten.size(1), generator=rng)
    goal = torch.randn(reference.size(1), generator=rng)
    moved, goals = strata.sort(value), strata.goals(goal)
    start = 0
    aucs = []
    for i in range(int(strata.goal_cell.max()) + 1):
        own, other = value[strata.cell == i], goal[strata.goal_cell == i]
        stop = start + own.numel()
        assert torch.equal(moved[start:stop], own.sort()[0])
        levels = (np.arange(own.numel()) + 0.5) / max(1, own.numel())
        expected = np.quantile(other.numpy(), levels, method='hazen')
        assert np.allclose(goals[start:stop].numpy(), expected, atol=1e-6)
        above = (own[:, None] > other).double().mean(dim=1)
        aucs.append(above)
        start = stop
    assert strata.auc(value, goal) == pytest.approx(float(torch.cat(aucs).mean()))


def test_a_shift_inside_of_strata_shows(data):
    r"""Pairs of rare items too high and of popular ones too low cancel out over all
    pairs, but not in the loss by strata.
    """
    strata, forgotten, reference = strata_of(data, (2, 2))
    plain = strata_of(data, (1, 1))[0]
    rng = torch.Generator().manual_seed(0)
    size = reference.size(1)
    sign = torch.where(strata.cell < 2, 1.0, -1.0)
    goal_sign = torch.where(strata.goal_cell < 2, 1.0, -1.0)
    value = -3 * sign + torch.randn(forgotten.size(1), generator=rng)
    goal = 3 * goal_sign + torch.randn(size, generator=rng)
    together = (plain.sort(value) - plain.goals(goal)).abs().mean()
    apart = (strata.sort(value) - strata.goals(goal)).abs().mean()
    assert apart > 5.0
    assert together < 0.3 * apart


def test_number_of_strata_follows_the_reference(data):
    marked = ForgetInteractions(ratio=0.2, seed=1)(data)
    forgotten = schema.forgotten_edge_index(marked)
    rng = torch.Generator().manual_seed(0)
    for size, most in ((100, 1), (700, 4), (40000, 16)):
        users = torch.randint(100, (size,), generator=rng)
        items = torch.randint(60, (size,), generator=rng)
        strata = Strata(forgotten, torch.stack([users, items]), marked)
        num = int(strata.goal_cell.max()) + 1
        assert most / 2 <= num <= most


def test_gradient_reaches_every_value(data):
    strata, forgotten, reference = strata_of(data, (2, 2))
    value = torch.randn(forgotten.size(1), dtype=torch.float64, requires_grad=True)
    goal = torch.randn(reference.size(1), dtype=torch.float64)
    (strata.sort(value) - strata.goals(goal)).pow(2).sum().backward()
    assert (value.grad != 0).all()
    step = value.detach() - value.grad / 2
    assert torch.allclose(strata.sort(step), strata.goals(goal))
