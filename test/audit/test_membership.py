import copy
import json
import math

import pytest
import torch

from torch_geometric_unlearn.audit import compare_membership, hold_out_users, membership
from torch_geometric_unlearn.audit.membership import CLASSIFIERS, _Audit, self_check
from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.datasets import SyntheticMultimodal
from torch_geometric_unlearn.nn import EmbeddingTable
from torch_geometric_unlearn.transforms import (
    ForgetInteractions,
    ForgetItems,
    ForgetUsers,
)

FAST = {'classifiers': ['logistic'], 'num_bootstrap': 200}
FULL = SyntheticMultimodal('tiny', num_users=300, num_items=80)[0]


@pytest.fixture
def marked():
    return ForgetUsers(ratio=0.4, seed=1)(FULL)


def memory(data, retained=1.0, forgotten=1.0, noise=0.2):
    r"""A model that scores its training pairs as told, and anything else at random."""
    rng = torch.Generator().manual_seed(0)
    sizes = schema.num_users(data), schema.num_items(data)
    scores = noise * torch.randn(*sizes, generator=rng)
    train = data[schema.EDGE_TYPE].edge_index
    scores[train[0], train[1]] += retained
    gone = schema.forgotten_edge_index(data)
    scores[gone[0], gone[1]] += forgotten - retained
    return EmbeddingTable(scores, torch.eye(sizes[1]))


@pytest.mark.parametrize('mode', ['direct', 'transfer'])
def test_catches_a_memoriser(mode, marked):
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
def test_finds_nothing_where_nothing_is(forget, mode):
    marked = forget(ratio=0.4)(FULL)
    model = memory(marked, forgotten=0.0)
    train_everywhere = forget is ForgetInteractions and mode == 'transfer'
    if train_everywhere:  # Few users have no pair in such a request.
        marked = ForgetInteractions(ratio=0.07)(FULL)
        model = memory(marked, forgotten=0.0)
    result = membership(model, marked, mode=mode, num_bootstrap=200)
    low, high = result.intervals['auc']
    assert low - 0.02 <= 0.5 <= high + 0.02
    assert result.balanced_accuracy == pytest.approx(0.5, abs=0.1)
    assert result.num_members == result.num_nonmembers >= 50


def test_over_forgetting_is_found_directly_and_fools_transfer(marked):
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


def test_examples_are_balanced_within_users(marked):
    audit = audit_of(marked)
    test = audit.test
    for user in test.group.unique():
        own = test.label[test.group == user]
        assert own.sum() == (~own).sum()
    codes = schema.pair_codes(test.pairs, 80)
    gone = schema.pair_codes(schema.forgotten_edge_index(marked), 80)
    held = schema.pair_codes(schema.held_out(marked, 'test'), 80)
    assert torch.isin(codes[test.label], gone).all()
    assert torch.isin(codes[~test.label], held).all()
    assert codes.unique().numel() == codes.numel()
    audit(audit.source(memory(marked)), 'transfer')
    assert not torch.isin(audit.train_set.group, marked['forget_users']).any()


def audit_of(data, level='pair', negatives='heldout', max_examples=10_000):
    return _Audit(data, level, negatives, CLASSIFIERS, 5, max_examples, 100, 0)


def test_members_of_items_come_from_users_like_those_of_the_test_pairs():
    # Users with few items have a larger share of them held out.
    data = SyntheticMultimodal('tiny', num_users=2000, num_items=200)[0]
    marked = ForgetItems(ratio=0.5)(data)
    test = audit_of(marked).test
    assert torch.equal(test.group, test.pairs[1])
    length = data[schema.EDGE_TYPE].edge_index[0].bincount(minlength=2000).double()
    means = [length[test.pairs[0, test.label == side]].mean() for side in (True, False)]
    plain = length[schema.forgotten_edge_index(marked)[0]].mean()
    assert abs(means[0] - means[1]) < 0.25 * abs(plain - means[1])


def test_random_negatives_flatter_any_recommender(data, trained):
    marked = ForgetUsers(ratio=0.6)(data)
    audit = audit_of(marked, negatives='random')
    pairs = audit.test.pairs[:, ~audit.test.label]
    known = torch.cat([audit.train, *audit.held_out.values()], dim=1)
    assert not torch.isin(
        schema.pair_codes(pairs, 60), schema.pair_codes(known, 60)
    ).any()
    items = ForgetItems(ratio=0.5)(data)
    audit = audit_of(items, negatives='random', max_examples=70)
    assert audit.test.counts == (70, 70)
    assert torch.isin(audit.test.pairs[1], items['forget_items']).all()


def test_reproducible_and_input_untouched(marked):
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


@pytest.mark.usefixtures('few_trees')
def test_examples_do_not_depend_on_what_was_asked_before(marked):
    source = audit_of(marked).source(memory(marked))
    audit = audit_of(marked)
    audit.null_examples()
    audit(source, 'direct')
    late = audit(source, 'transfer')
    assert audit_of(marked)(source, 'transfer').to_dict() == late.to_dict()


def test_the_original_has_no_influence(marked):
    model, original = memory(marked, forgotten=0.3), memory(marked)
    plain = membership(model, marked, **FAST).to_dict()
    checked = membership(model, marked, original=original, **FAST).to_dict()
    check = checked.pop('check')
    assert plain.pop('check') is None
    assert checked == plain
    assert check['null_ok']
    assert check['original_ok']


def test_self_check_sees_a_blunt_original(marked):
    check = self_check(memory(marked, 0.0, 0.0), marked, **FAST)
    assert check['null_ok']
    assert not check['original_ok']
    json.dumps(check)


def test_compare(marked):
    models = {
        'original': memory(marked),
        'over': memory(marked, forgotten=-1.0),
        'retrained': memory(marked, forgotten=0.0),
    }
    out = compare_membership(models, marked, **FAST)
    rows = {(row['method'], row['mode']): row for row in out['rows']}
    assert len(rows) == 6
    assert out['missing'] == {}
    assert out['confounded'] is False
    assert out['self_check']['original_ok']
    own, reference = rows['over', 'direct'], rows['retrained', 'direct']
    gap = own['balanced_accuracy'] - reference['balanced_accuracy']
    assert own['priv_gap'] == pytest.approx(gap)
    assert gap > 0.3
    change = 100 * (own['auc'] / reference['auc'] - 1)
    assert own['auc_relative'] == pytest.approx(change)
    assert rows['retrained', 'transfer']['priv_gap'] == 0
    alone = membership(models['over'], marked, mode='transfer', **FAST)
    assert alone.auc == rows['over', 'transfer']['auc']

    del models['retrained'], models['original']
    out = compare_membership(models, marked, modes=['direct'], **FAST)
    assert set(out['missing']) == {'retrained', 'original'}
    assert out['confounded'] is out['self_check'] is None
    assert 'priv_gap' not in out['rows'][0]


def test_user_level():
    kept = hold_out_users(FULL, ratio=0.45, seed=3)
    unseen = kept['never_trained_edge_label_index'][0].unique()
    marked = ForgetUsers(ratio=0.8, seed=1)(kept)
    assert not torch.isin(kept[schema.EDGE_TYPE].edge_index[0], unseen).any()
    assert not torch.isin(schema.held_out(kept, 'test')[0], unseen).any()
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
    with pytest.raises(ValueError, match="'data' must hold no request yet"):
        hold_out_users(marked)


def test_users_without_training_pairs_are_non_members_too():
    data = hold_out_users(FULL, ratio=0.4)
    held = schema.held_out(data, 'test')
    extra = data['never_trained_edge_label_index']
    data['test_edge_label_index'] = torch.cat([held, extra], dim=1)
    del data['never_trained_edge_label_index']
    marked = ForgetUsers(ratio=0.5)(data)
    assert torch.equal(audit_of(marked, 'user').never_trained, extra)


def test_neighbours():
    data = SyntheticMultimodal('tiny', num_users=1500, num_items=300)[0]
    marked = ForgetUsers(ratio=0.05, seed=1)(data)
    test = audit_of(marked, 'neighbours').test
    gone = set(marked['forget_users'].tolist())
    train = data[schema.EDGE_TYPE].edge_index
    items = [set() for _ in range(1500)]
    for u, i in train.t().tolist():
        items[u].add(i)
    for user, label in zip(test.ids.tolist(), test.label.tolist()):
        shared = max(len(items[user] & items[u]) for u in gone)
        assert (shared >= 3) == label
        assert user not in gone
    lengths = [
        sorted(len(items[u]) for u in test.ids[test.label == side].tolist())
        for side in (True, False)
    ]
    assert lengths[0] == lengths[1]
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


def test_stale_graphs_are_refused(marked):
    model = memory(marked)
    stale = memory(marked)
    stale.build_graph = lambda data: model.build_graph(FULL)
    with pytest.raises(ValueError, match="'build_graph' must leave out the forgotten"):
        membership(stale, marked)
    full = model.build_graph(FULL)
    assert membership(stale, marked, graph=full, **FAST).auc > 0.9


def test_bad_arguments(marked):
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
    items = ForgetItems([1])(FULL)
    with pytest.raises(ValueError, match="'level' must be 'pair' or 'neighbours'"):
        membership(model, items, level='user')
    with pytest.raises(ValueError, match="'modes' must be one of"):
        compare_membership({'model': model}, marked, modes=['all'])
