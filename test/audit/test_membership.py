import copy
import json
import math

import pytest
import torch

from torch_geometric_unlearn.audit import hold_out_users, membership
from torch_geometric_unlearn.audit._attack import Settings
from torch_geometric_unlearn.audit._examples import ExampleSampler
from torch_geometric_unlearn.datasets import SyntheticMultimodal
from torch_geometric_unlearn.transforms import (
    ForgetInteractions,
    ForgetItems,
    ForgetUsers,
)

FAST = {'classifiers': ['logistic'], 'num_bootstrap': 200}


@pytest.mark.parametrize('mode', ['direct', 'transfer'])
def test_catches_a_memoriser(mode, marked, memory):
    result = membership(memory(marked), marked, mode=mode, **FAST)
    assert result.balanced_accuracy > 0.9
    assert result.auc > 0.95
    assert result.direction == 'remembered'
    assert result.deviation == pytest.approx(result.balanced_accuracy - 0.5)
    low, high = result.intervals['balanced_accuracy']
    assert low <= result.balanced_accuracy <= high
    readings = {row['name']: row['reading'] for row in result.features}
    assert readings['score_row'] == readings['log_rank'] == 'remembered'
    assert readings['user_norm'] == 'none'


@pytest.mark.parametrize('forget', [ForgetUsers, ForgetItems, ForgetInteractions])
@pytest.mark.parametrize('mode', ['direct', 'transfer'])
def test_finds_nothing_where_nothing_is(forget, mode, memory, full):
    marked = forget(ratio=0.4)(full)
    model = memory(marked, forgotten=0.0)
    train_everywhere = forget is ForgetInteractions and mode == 'transfer'
    if train_everywhere:  # Few users have no pair in such a request.
        marked = ForgetInteractions(ratio=0.07)(full)
        model = memory(marked, forgotten=0.0)
    result = membership(model, marked, mode=mode, num_bootstrap=200)
    low, high = result.intervals['auc']
    assert low - 0.02 <= 0.5 <= high + 0.02
    assert result.balanced_accuracy == pytest.approx(0.5, abs=0.1)
    assert result.num_members == result.num_nonmembers >= 50


def test_over_forgetting_is_found_directly_and_fools_transfer(marked, memory):
    model = memory(marked, forgotten=-1.0)
    direct = membership(model, marked, **FAST)
    assert direct.balanced_accuracy > 0.9
    assert direct.direction == 'over-forgotten'
    readings = {row['name']: row['reading'] for row in direct.features}
    assert readings['score'] == readings['log_rank'] == 'over-forgotten'
    transfer = membership(model, marked, mode='transfer', **FAST)
    assert transfer.balanced_accuracy < 0.55
    assert transfer.auc < 0.2
    assert transfer.direction == 'over-forgotten'


def test_reproducible_and_input_untouched(marked, memory):
    model = memory(marked)
    before = copy.deepcopy(marked.to_dict())
    torch.manual_seed(1)
    first = membership(model, marked, mode='transfer', **FAST).to_dict()
    torch.manual_seed(2)
    assert membership(model, marked, mode='transfer', **FAST).to_dict() == first
    other = membership(model, marked, mode='transfer', seed=1, **FAST).to_dict()
    assert other['intervals'] != first['intervals']
    after = marked.to_dict()
    for key, store in before.items():
        for name, value in store.items() if isinstance(store, dict) else ():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, after[key][name])
    assert json.loads(json.dumps(first)) == first
    assert len(first['scores']['members']) == first['num_members']


def test_the_original_has_no_influence(marked, memory):
    model, original = memory(marked, forgotten=0.3), memory(marked)
    plain = membership(model, marked, **FAST).to_dict()
    checked = membership(model, marked, original=original, **FAST).to_dict()
    check = checked.pop('check')
    assert plain.pop('check') is None
    assert checked == plain
    assert check['null_ok']
    assert check['original_ok']


def test_user_level(memory, full):
    kept = hold_out_users(full, ratio=0.45, seed=3)
    marked = ForgetUsers(ratio=0.8, seed=1)(kept)
    caught = membership(memory(marked), marked, level='user', **FAST)
    assert caught.balanced_accuracy > 0.9
    assert caught.direction == 'remembered'
    assert len(caught.features) == 4 * 9 + 2
    clean = membership(memory(marked, forgotten=0.0), marked, level='user', **FAST)
    assert clean.intervals['auc'][0] <= 0.52
    with pytest.warns(UserWarning, match='for training'):
        membership(memory(marked), marked, level='user', mode='transfer', **FAST)
    fewer = ForgetUsers(ratio=0.5, seed=1)(kept)
    left = membership(memory(fewer), fewer, level='user', mode='transfer', **FAST)
    assert left.auc > 0.9


def test_neighbours(memory):
    data = SyntheticMultimodal('tiny', num_users=1500, num_items=300)[0]
    marked = ForgetUsers(ratio=0.05, seed=1)(data)
    test = ExampleSampler(marked, Settings('neighbours')).test
    model = memory(marked, forgotten=0.0)
    near = torch.zeros(1500, dtype=torch.bool)
    near[test.ids[test.label]] = True
    with torch.no_grad():  # What unlearning has done to those around.
        model.user_embedding.weight[near] *= 0.2
    result = membership(model, marked, level='neighbours', **FAST)
    assert result.auc > 0.9
    assert result.direction == ''
    with pytest.raises(ValueError, match="'mode' must be 'direct'"):
        membership(model, marked, level='neighbours', mode='transfer')


def test_too_few_and_empty_requests(data, trained):
    for marked in (ForgetUsers([3])(data), data):
        with pytest.warns(UserWarning, match='needs 50 members'):
            result = membership(trained, marked)
        assert math.isnan(result.auc)
        assert math.isnan(result.intervals['auc'][0])
        assert result.direction == ''
        assert result.features == []
    assert result.num_members == 0


def test_stale_graphs_are_refused(marked, memory, full):
    model = memory(marked)
    stale = memory(marked)
    stale.build_graph = lambda data: model.build_graph(full)
    with pytest.raises(ValueError, match="'build_graph' must leave out the forgotten"):
        membership(stale, marked)
    graph = model.build_graph(full)
    assert membership(stale, marked, graph=graph, **FAST).auc > 0.9


def test_bad_arguments(marked, memory, full):
    model = memory(marked)
    for kwargs, message in [
        ({'mode': 'both'}, "'mode' must be one of"),
        ({'level': 'item'}, "'level' must be one of"),
        ({'negatives': 'hard'}, "'negatives' must be one of"),
        ({'num_folds': 1}, "'num_folds' must be at least 2"),
        ({'max_examples': 0}, "'max_examples' must be at least 1"),
        ({'num_bootstrap': 0}, "'num_bootstrap' must be at least 1"),
        ({'seed': -1}, "'seed' must be an integer in"),
    ]:
        with pytest.raises(ValueError, match=message):
            membership(model, marked, **kwargs)
    items = ForgetItems([1])(full)
    with pytest.raises(ValueError, match="'level' must be 'pair' or 'neighbours'"):
        membership(model, items, level='user')
