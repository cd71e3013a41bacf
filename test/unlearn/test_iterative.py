import math

import pytest
import torch

from torch_geometric_unlearn.nn import LightGCN
from torch_geometric_unlearn.unlearn.iterative import iterate


class Plan:
    r"""A target whose measures are given: forget hit rate and NDCG of every epoch."""

    k = 20

    def __init__(self, levels, ndcg):
        self.rows = iter(zip(levels, ndcg))

    def measure(self, model, graph):
        level, ndcg = next(self.rows)
        met = float(level <= 0.1)
        return {'miss': level, 'target_met': met, 'retain_val_ndcg@20': ndcg}


@pytest.fixture
def model(data):
    return LightGCN.from_data(data, hidden_channels=4)


def run(model, levels, ndcg, patience=None, fault=None):
    told = []

    def step(met):
        told.append(met)
        with torch.no_grad():
            model.user_embedding.weight.fill_(len(told))
        return {'step': len(told)}

    num = len(levels)
    history = iterate(model, None, Plan(levels, ndcg), step, num, patience, fault)
    return history, told, float(model.user_embedding.weight[0, 0].detach())


def test_takes_the_best_of_those_that_meet_the_target(model):
    levels, ndcg = [0.9, 0.1, 0.0, 0.5], [0.9, 0.2, 0.3, 0.9]
    history, told, value = run(model, levels, ndcg)
    assert value == 3
    assert [row['selected'] for row in history] == [False, False, True, False]
    assert told == [False, False, True, True]  # Met in the epoch before.
    assert all(row['seconds'] >= 0 for row in history)


def test_takes_the_closest_where_none_meets_it(model):
    assert run(model, [0.9, 0.4, 0.5], [0.1, 0.1, 0.9])[2] == 2


@pytest.mark.parametrize(('patience', 'epochs'), [(0, 2), (1, 4), (2, 7), (None, 8)])
def test_patience(model, patience, epochs):
    levels = [0.9] + 7 * [0.0]
    ndcg = [0.9, 0.2, 0.3, 0.1, 0.4, 0.1, 0.1, 0.1]
    assert len(run(model, levels, ndcg, patience)[0]) == epochs


def test_without_validation_pairs_the_target_is_all(model):
    assert len(run(model, [0.5, 0.0, 0.0], 3 * [math.nan], patience=5)[0]) == 2


def test_a_fault_ends_the_run_before_its_epoch(model):
    def fault(row):
        return 'too far' if row['step'] == 2 else ''

    history, _, value = run(model, [0.9, 0.0, 0.0], [0.1, 0.9, 0.9], fault=fault)
    assert [row.get('stopped') for row in history] == [None, 'too far']
    assert value == 1
    before = model.user_embedding.weight.clone()
    history, *_ = run(model, [0.0], [0.9], fault=lambda row: 'at once')
    assert not history[0]['selected']
    assert torch.equal(model.user_embedding.weight, before)  # As it was.


def test_what_is_not_finite_is_never_chosen(model, data):
    history, _, value = run(model, [0.9, math.nan, 0.0], 3 * [0.9])
    assert history[1]['stopped'] == 'the model is no longer finite'
    assert (len(history), value) == (2, 1)

    def explode(met):
        with torch.no_grad():
            model.user_embedding.weight.fill_(math.inf)
        return {}

    with pytest.raises(FloatingPointError, match='ended in its first epoch'):
        iterate(model, model.build_graph(data), Plan([0.0], [0.9]), explode, 3)
