import math

import pytest
import torch

from torch_geometric_unlearn.data.schema import EDGE_TYPE, held_out
from torch_geometric_unlearn.metrics.ranking import retained_ndcg
from torch_geometric_unlearn.nn.models import Served
from torch_geometric_unlearn.transforms import (
    DropForgotten,
    ForgetInteractions,
    ForgetUsers,
)
from torch_geometric_unlearn.unlearn import EdgeDrop
from torch_geometric_unlearn.utils.topk import topk_items
from torch_geometric_unlearn.workspace import gates
from torch_geometric_unlearn.workspace.marking import erased_pairs, pooled

NAN, TINY = math.nan, 1e-9
P, F, Q = 'pass', 'fail', 'inconclusive'


@pytest.mark.parametrize(
    ('low', 'high', 'to_full', 'verdict'),
    [
        (-0.01, 0.0, -0.02, P),  # At the limits.
        (-0.01 - TINY, 0.0, 0.0, Q),
        (-0.5, -0.01, 0.0, Q),
        (-0.5, -0.01 - TINY, 0.0, F),
        (0.1, 0.2, -0.02 - TINY, F),
        (-0.5, 0.5, -0.02 - TINY, F),
        (0.1, 0.2, NAN, Q),
        (NAN, NAN, 0.0, Q),
        (NAN, NAN, -0.03, F),
    ],
)
def test_utility_verdict(low, high, to_full, verdict):
    figures = {'low': low, 'high': high, 'to_full': to_full}
    assert gates.verdict_of('utility', figures) == verdict


@pytest.mark.parametrize('name', ['forget', 'membership'])
@pytest.mark.parametrize(
    ('low', 'high', 'num_pairs', 'verdict'),
    [
        (-0.05, 0.05, 50, P),
        (-0.05, 0.05, 49, Q),
        (0.06, 0.09, 49, Q),
        (-0.05 - 1e-6, 0.05, 50, Q),
        (-0.05, 0.05 + 1e-6, 50, Q),
        (0.05, 0.09, 50, Q),
        (0.05 + 1e-6, 0.09, 50, F),
        (-0.09, -0.05 - 1e-6, 50, F),  # Over-forgetting shows as well.
        (NAN, NAN, 50, Q),
    ],
)
def test_soft_verdicts(name, low, high, num_pairs, verdict):
    if name == 'membership':
        low, high = (round(x + 0.5, 9) for x in (low, high))
    figures = {'low': low, 'high': high, 'num_pairs': num_pairs}
    assert gates.verdict_of(name, figures) == verdict


@pytest.mark.parametrize('name', ['data', 'integrity'])
def test_hard_verdicts(name):
    assert gates.verdict_of(name, {}) == P
    assert gates.verdict_of(name, {}, ['a fault']) == F


def test_unknown_gate():
    with pytest.raises(ValueError, match="'name' must be one of"):
        gates.verdict_of('other', {'low': 0.0, 'high': 0.0, 'num_pairs': 99})


def test_overall():
    def gate(verdict):
        low = {P: 0.0, F: 0.2, Q: -0.2}[verdict]
        return gates.Gate('forget', {'low': low, 'high': max(low, 0), 'num_pairs': 99})

    hard = gates.Gate('data', faults=['a fault'])
    assert [gate(x).verdict for x in (P, F, Q)] == [P, F, Q]
    assert gates.overall([gate(P), gate(P)]) == P
    assert gates.overall([gate(P), gate(Q)]) == Q
    assert gates.overall([gate(Q), gate(F)]) == F
    assert gates.overall([gate(P), hard]) == F
    assert gates.overall([]) == Q


def test_content_gives_the_gate_back():
    gate = gates.Gate('utility', {'low': NAN, 'high': 0.25}, ['a fault'])
    again = gates.Gate.of(gate.content())
    assert again.content() == gate.content()
    assert again.figures['low'] != again.figures['low']
    assert again.figures['high'] == 0.25


@pytest.fixture
def marked(data):
    users = list(range(40))
    pair = data[EDGE_TYPE].edge_index[:, -1:]
    return ForgetInteractions(pair)(ForgetUsers(users)(data))


@pytest.fixture
def after(model, marked):
    return EdgeDrop()(model, marked)


def test_data_gate(marked, after, shop):
    ids = {shop.user(i) for i in range(40)}
    assert gates.check_data(marked, after.data, {'f': b'x'}, ids).faults == []

    def faults(change, files=None):
        changed = after.data.clone()
        changed['user'].raw_id = list(after.data['user'].raw_id)
        change(changed)
        return gates.check_data(marked, changed, files or {}, ids).faults

    erased = marked[EDGE_TYPE].edge_index[:, marked[EDGE_TYPE].forget_mask]
    for pairs in (erased[:, :1], erased[:, -1:], torch.tensor([[3], [7]])):
        for name in ('val', 'test'):
            assert faults(lambda d, n=name, p=pairs: d.__setattr__(
                f'{n}_edge_label_index',
                torch.cat([held_out(d, n), p], 1))) == [
                f'erased pairs among the {name} pairs']  # fmt: skip
        assert faults(lambda d, p=pairs: d[EDGE_TYPE].update(
            edge_index=torch.cat([d[EDGE_TYPE].edge_index, p], 1))) == [
            'erased pairs among the training pairs']  # fmt: skip
    back = ('item', 'rev_interacts', 'user')
    assert faults(lambda d: d[back].update(edge_index=erased[:, :1].flip(0))) == [
        'erased pairs among the reverse pairs'
    ]
    assert faults(lambda d: d['user'].raw_id.__setitem__(5, shop.user(5))) == [
        'erased ids in the id map of users'
    ]
    quoted = f'x"{shop.user(5)}"x'.encode()
    longer = f'x"{shop.user(5)}.org"x'.encode()
    assert faults(lambda d: None, {'f': quoted}) == ['erased ids in the f']
    assert faults(lambda d: None, {'f': longer}) == []


def test_item_with_the_id_of_an_erased_user_is_no_fault(marked, after, shop):
    ids = {shop.user(i) for i in range(40)}
    data = after.data.clone()
    data['item'].raw_id = [shop.user(5), *after.data['item'].raw_id[1:]]
    content = f'["{shop.user(5)}", "{shop.item(1)}"]'.encode()
    assert gates.check_data(marked, data, {'f': content}, ids).faults == []


def test_integrity_gate(data, after, model):
    served = Served.of(after.model, after.data)
    check = gates.check_integrity
    assert check(served, served, (3, 3)).faults == []
    assert check(served, served, (3, 2)).faults == ['the watermark would fall']
    other = Served.of(model, data)
    assert 'another model' in check(served, other, (0, 1)).faults[0]


def test_utility_gate_is_the_mean_difference(model, data, marked, after):
    served, before = Served.of(after.model, after.data), Served.of(model, marked)
    full = retained_ndcg(Served.of(model, data), data, 10)
    figures = gates.utility(served, before, marked, full, 10).figures
    users, ours = retained_ndcg(served, marked, 10)
    _, theirs = retained_ndcg(before, marked, 10)
    assert figures['num_users'] == users.numel() > 100
    assert not torch.isin(users, torch.arange(40)).any()
    change = float(ours.mean() / theirs.mean()) - 1
    assert figures['change'] == pytest.approx(change, abs=1e-9)
    assert figures['low'] <= change <= figures['high']
    same = [float(v) for u, v in zip(*full) if u in users]
    to_full = float(ours.mean()) / (sum(same) / len(same)) - 1
    assert figures['to_full'] == pytest.approx(to_full, abs=1e-9)
    figures = gates.utility(served, before, marked, None, 10).figures
    assert math.isnan(figures['to_full'])


def test_forget_gate_is_the_share_in_the_lists(after, marked):
    served = Served.of(after.model, after.data)
    figures = gates.forget(served, marked, 10).figures
    erased = marked[EDGE_TYPE].edge_index[:, marked[EDGE_TYPE].forget_mask]
    kept = marked[EDGE_TYPE].edge_index[:, ~marked[EDGE_TYPE].forget_mask]
    others, changes = held_out(marked, 'test'), []
    for u in sorted(set(erased[0].tolist()) & set(others[0].tolist())):
        best, _ = topk_items(*served.embeddings, torch.tensor([u]), 10, kept)
        shares = [
            sum(i in best[0].tolist() for v, i in pairs.t().tolist() if v == u)
            / int((pairs[0] == u).sum())
            for pairs in (erased, others)
        ]
        changes.append(shares[0] - shares[1])
    assert figures['change'] == pytest.approx(sum(changes) / len(changes), abs=1e-9)


def test_pooled_pairs_are_those_of_both(data):
    first, second = (ForgetUsers(users)(data) for users in ([1, 2], [5]))
    rest = ForgetUsers([5])(DropForgotten()(first))
    pool = pooled(rest, [erased_pairs(first)])
    both = ForgetUsers([1, 2, 5])(data)

    def sides(x):
        mask = x[EDGE_TYPE].forget_mask
        pairs = x[EDGE_TYPE].edge_index
        out = [pairs[:, mask], pairs[:, ~mask]]
        out += [held_out(x, split) for split in ('val', 'test')]
        return [sorted(map(tuple, p.t().tolist())) for p in out]

    assert sides(pool) == sides(both)
    # Twice the same, and what came back since, count once.
    assert sides(pooled(rest, [erased_pairs(first)] * 2)) == sides(both)
    assert sides(pooled(second, [erased_pairs(first)])) == sides(second)
    assert pooled(rest, []) is rest


@pytest.mark.parametrize('name', ['utility', 'forget', 'membership'])
def test_a_model_trained_from_scratch_is_the_yardstick(name):
    figures = {'low': -0.5, 'high': -0.4, 'to_full': -0.3, 'num_pairs': 1000.0}
    gate = gates.Gate(name, figures)
    assert gate.verdict == 'fail'
    exact = gates.of_exact(gate)
    assert exact.verdict == 'pass'
    assert exact.figures == figures | {'exact': 1.0}
    assert gates.Gate.of(exact.content()).verdict == 'pass'
    hard = gates.of_exact(gates.Gate('data', faults=['erased ids in the data file']))
    assert hard.verdict == 'fail'
