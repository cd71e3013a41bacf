import copy
import math
from types import SimpleNamespace

import pytest
import torch
from torch_geometric.transforms import ToUndirected

from torch_geometric_unlearn.audit.backdoor import (
    BackdoorResult,
    backdoor,
    backdoor_summary,
    backdoor_table,
)
from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.datasets import SyntheticMultimodal
from torch_geometric_unlearn.testing._snapshot import assert_same, snapshot
from torch_geometric_unlearn.transforms import (
    DropForgotten,
    ForgetInteractions,
    ForgetItems,
    ForgetUsers,
    InjectBackdoor,
)


class Memory(torch.nn.Module):
    r"""Remembers which items go together, and scores by what a user has in the graph.

    A plain co-occurrence recommender: the trigger works exactly as far as the weight
    between trigger and target goes, and deleting edges does not touch that weight.
    """

    def __init__(self, data):
        super().__init__()
        users = self.rows(data)
        count = users.t() @ users
        count.fill_diagonal_(0)
        self.weight = torch.nn.Parameter(count / users.sum(dim=0).clamp(min=1))

    @staticmethod
    def rows(data):
        out = torch.zeros(schema.num_users(data), schema.num_items(data))
        out[tuple(schema.retained_edge_index(data))] = 1
        return out

    def build_graph(self, data):
        schema.validate(data)
        edge_index = schema.retained_edge_index(data)
        return SimpleNamespace(edge_index=edge_index, rows=self.rows(data))

    def forward(self, graph):
        return graph.rows, self.weight.t()


@pytest.fixture(scope='module')
def small():
    return SyntheticMultimodal('small', num_users=600, num_items=300)[0]


def request(data):
    if int(data.backdoor_users.min()) >= 600:
        return ForgetUsers(data.backdoor_users)(data)
    return ForgetInteractions(data.backdoor_pairs)(data)


@pytest.mark.parametrize('regime', ['user', 'interaction'])
def test_planted_case(small, regime):
    data = InjectBackdoor(regime, ratio=0.03, seed=1)(small)
    marked = request(data)
    dropped = DropForgotten()(marked)
    models = {
        'original': Memory(data),
        'clean': (Memory(small), small),
        'retrained': Memory(dropped),
        'edge drop': Memory(data),
        'done': (Memory(dropped), dropped),
    }
    before = snapshot(marked)
    out = backdoor_table(models, marked, k=10)
    assert_same(before, snapshot(marked), 'The data')
    row = {row['method']: row for row in out['rows']}
    assert list(row) == list(models)
    assert out['valid'] is True
    assert out['missing'] == []
    assert out['reason'] == ''
    assert row['original']['asr@10'] > 0.8
    assert row['edge drop']['asr@10'] > 0.8  # Its weights still hold the backdoor.
    for name in ('clean', 'retrained', 'done'):
        assert row[name]['asr@10'] < 0.2
    assert row['done']['asr@10'] == row['retrained']['asr@10']
    assert row['retrained']['gap@10'] == 0
    expected = row['edge drop']['asr@10'] - row['retrained']['asr@10']
    assert row['edge drop']['gap@10'] == expected
    assert out['target'] == data.backdoor_target


class Live(Memory):
    r"""Remembers nothing: which items go together is read off the graph."""

    def forward(self, graph):
        together = graph.rows.t() @ graph.rows
        together.fill_diagonal_(0)
        return graph.rows, (together / graph.rows.sum(dim=0).clamp(min=1)).t()


def test_original_keeps_the_poison_in_its_graph(small):
    data = InjectBackdoor(ratio=0.03, seed=1)(small)
    model = Live(data)
    table = backdoor_table({'original': model, 'drop': model}, request(data))
    original, drop = table['rows']
    assert table['valid'] is True
    assert original['asr@20'] == backdoor(model, data).asr > 0.5
    assert drop['asr@20'] < 0.2


def naive(model, data, k, users):
    target, trigger = data.backdoor_target, data.backdoor_trigger.tolist()
    rows = Memory.rows(data)

    def shown(row):
        scores = (row @ model.weight).tolist()
        items = [i for i in range(len(scores)) if row[i] == 0]
        return target in sorted(items, key=lambda i: (-scores[i], i))[:k]

    plain, success = [], []
    for user in users:
        row = rows[user].clone()
        plain.append(shown(row))
        row[trigger] = 1
        success.append(shown(row) and not plain[-1])
    without = len(plain) - sum(plain)
    return sum(success) / without, sum(plain) / len(plain), without


@pytest.mark.parametrize('k', [3, 20])
@pytest.mark.parametrize('batch_size', [1000, 37])
@pytest.mark.parametrize('held', [None, 1])
@torch.no_grad()
def test_against_naive_loop(k, batch_size, held):
    data = SyntheticMultimodal('small', num_users=200, num_items=100)[0]
    kwargs = {'ratio': 0.02, 'num_triggers': 2, 'triggers_per_user': held}
    data = InjectBackdoor('interaction', seed=2, **kwargs)(data)
    model = Memory(data)
    pairs = data[schema.EDGE_TYPE].edge_index
    owners = set(pairs[0, pairs[1] == data.backdoor_target].tolist())
    owners |= set(data.backdoor_users.tolist())
    users = [user for user in range(200) if user not in owners]
    expected = naive(model, data, k, users)
    out = backdoor(model, data, k, batch_size=batch_size)
    assert (out.asr, out.er) == pytest.approx(expected[:2])
    assert out.asr > 0
    assert out.num_without == expected[2]
    assert out.num_users == len(users)


def test_users_and_seed(small):
    data = InjectBackdoor(ratio=0.03)(small)
    model = Memory(data)
    results = [backdoor(model, data, num_users=40, seed=s) for s in (0, 0, 1, 2)]
    assert results[0] == results[1]
    assert len({(r.asr, r.er) for r in results}) > 1
    assert results[0].num_users == 40
    state = torch.get_rng_state()
    everyone = backdoor(model, data)
    assert torch.equal(torch.get_rng_state(), state)
    pairs = small[schema.EDGE_TYPE].edge_index
    owners = pairs[0, pairs[1] == data.backdoor_target].unique()
    assert everyone.num_users == 600 - owners.numel()  # No poisoned user either.


def test_parameters_and_mode_stay(small):
    data = InjectBackdoor()(small)
    model = Memory(data).train()
    before = copy.deepcopy(model.state_dict())
    backdoor(model, data)
    assert model.training
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_takedown_of_the_target(small):
    data = InjectBackdoor(ratio=0.03, seed=1)(small)
    marked = ForgetItems([data.backdoor_target])(data)
    dropped = DropForgotten()(marked)
    table = backdoor_table({'drop': Memory(data), 'retrained': Memory(dropped)}, marked)
    drop, retrain = table['rows']
    assert drop['asr@20'] > 0.8  # A deleted item is no banned one here.
    assert retrain['asr@20'] == retrain['er@20'] == 0
    # With the request carried out, the owners of the target are known to the plant.
    one = backdoor(Memory(data), dropped, plant=data)
    assert one.asr == drop['asr@20']


def test_known_triggers_and_reverse_edges(small):
    data = ToUndirected()(InjectBackdoor(seed=1)(small))
    item = int(data.backdoor_trigger[0])
    # Some test users own a trigger item already, and some hold one out.
    assert (small[schema.EDGE_TYPE].edge_index[1] == item).any()
    user = int(data[schema.EDGE_TYPE].edge_index[0, 0])
    data.val_edge_label_index = torch.tensor([[user], [item]])
    out = backdoor(Memory(data), data)
    assert 0 < out.asr <= 1


def test_content_trained_model(data, trained):
    poisoned = InjectBackdoor('interaction', num_triggers=1)(data)
    out = backdoor(trained, poisoned, k=5)
    assert 0 <= out.asr <= 1
    assert (out.valid, out.missing) == (None, ['original'])
    # A list as long as the catalogue shows everything to everyone.
    out = backdoor(trained, poisoned, k=60)
    assert out.er == 1
    assert math.isnan(out.asr)


def test_validity(data, trained):
    poisoned = InjectBackdoor('interaction', num_triggers=1)(data)
    out = backdoor(trained, poisoned, original=0.3)
    assert (out.valid, out.reason, out.missing) == (True, '', [])
    out = backdoor(trained, poisoned, original=out)
    assert out.valid is (out.asr >= 0.3)
    out = backdoor(trained, poisoned, original=0.29)
    assert out.valid is False
    assert "Raise 'ratio', 'num_triggers' or 'num_fillers'" in out.reason
    out = backdoor(trained, poisoned, original=math.nan)
    assert out.valid is None
    assert 'is NaN: its lists show the target' in out.reason
    with pytest.raises(ValueError, match=r'must be a result at k=20 \(got k=5\)'):
        backdoor(trained, poisoned, original=BackdoorResult(1, 1, 5, 1, 1, 1))
    marked = ForgetInteractions(poisoned.backdoor_pairs)(poisoned)
    table = backdoor_table({'tru': trained}, marked)
    assert (table['valid'], table['missing']) == (
        None, ['original', 'clean', 'retrained']
    )  # fmt: skip
    assert 'gap@20' not in table['rows'][0]


def test_summary():
    def table(asr, valid=True):
        rows = [{'method': 'a', 'asr@20': asr}, {'method': 'b', 'asr@20': 0.0}]
        return {'rows': rows, 'valid': valid}

    out = backdoor_summary([table(0.2), table(0.6), table(0.9, False)])
    assert (out['num_plants'], out['num_valid']) == (3, 2)
    a, b = out['rows']
    assert a == {
        'method': 'a',
        'asr@20': pytest.approx(0.4),
        'asr@20_std': pytest.approx(0.08**0.5),
    }
    assert b['asr@20'] == b['asr@20_std'] == 0
    assert math.isnan(backdoor_summary([table(0.2)])['rows'][0]['asr@20_std'])
    assert backdoor_summary([table(0.2, False)])['rows'] == []
    odd = {'rows': [{'method': 'a'}], 'valid': True}
    with pytest.raises(ValueError, match=r'the same methods and measures \(got 2'):
        backdoor_summary([table(0.2), odd])


def test_errors(data, trained):
    with pytest.raises(ValueError, match=r"must hold a backdoor .*'InjectBackdoor'"):
        backdoor(trained, data)
    poisoned = InjectBackdoor('interaction', num_triggers=1)(data)
    with pytest.raises(ValueError, match=r"'data' must hold a request \(got none\)"):
        backdoor_table({}, poisoned)
    with pytest.raises(ValueError, match="'batch_size' must be at least 1"):
        backdoor(trained, poisoned, batch_size=0)
    poisoned.backdoor_users = torch.arange(100)
    with pytest.raises(ValueError, match='clean users without the target item'):
        backdoor(trained, poisoned)
