import math

import pytest
import torch

from torch_geometric_unlearn.audit import compare_completion, completion, hold_out_users
from torch_geometric_unlearn.audit.completion import (
    NUM_STRATA,
    _shares,
    completion_yardstick,
)
from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.datasets import SyntheticMultimodal
from torch_geometric_unlearn.nn import EmbeddingTable, LightGCN
from torch_geometric_unlearn.transforms import ForgetInteractions, ForgetUsers

EDGE = schema.EDGE_TYPE


@pytest.fixture(scope='module')
def shop():
    return SyntheticMultimodal('tiny', num_users=400)[0]


def table(data, item_emb):
    user_emb = torch.zeros(data['user'].num_nodes, item_emb.size(1))
    return EmbeddingTable(user_emb, item_emb)


def planted():
    r"""Users who buy within one of six groups, and vectors that say the group."""
    data = SyntheticMultimodal('tiny', num_users=200)[0]
    group = torch.arange(60) % 6
    pairs = [
        (u, i)
        for u in range(200)
        for i in range(60)
        if group[i] == u % 6 and (u + i // 6) % 2
    ]
    data[EDGE].edge_index = torch.tensor(pairs).t().contiguous()
    del data.val_edge_label_index, data.test_edge_label_index
    if schema.REV_EDGE_TYPE in data.edge_types:
        del data[schema.REV_EDGE_TYPE]
    return data, torch.nn.functional.one_hot(group, 6).float()


def test_planted_case_and_chance():
    data, vectors = planted()
    noise = torch.randn(60, 6, generator=torch.Generator().manual_seed(0))
    marked = ForgetUsers(ratio=0.5)(data)
    found = completion(table(data, vectors + 0.01 * noise), marked)
    assert found.auc > 0.9
    assert found.interval[0] > 0.9
    rng, chance = torch.Generator().manual_seed(0), []
    for _ in range(20):  # There are twelve different histories only.
        vectors_ = torch.randn(60, 6, generator=rng)
        chance.append(completion(table(data, vectors_), marked, num_bootstrap=2).auc)
    assert sum(chance) / 20 == pytest.approx(0.5, abs=0.05)
    single = ForgetInteractions(ratio=0.2)(data)
    assert completion(table(data, vectors + 0.01 * noise), single).auc > 0.9


def test_shares_by_loops():
    rng = torch.Generator().manual_seed(0)
    unit, query = torch.randn(40, 4, generator=rng), torch.randn(3, 4, generator=rng)
    unit[7] = unit[8]  # A tie.
    items = torch.tensor([1, 7, 12, 5, 8, 30, 2, 3])
    place = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2])
    target = torch.tensor([True, True, False, False, True, True, True, False])
    stratum = torch.arange(40) * NUM_STRATA // 40
    got = _shares(query, unit, items, place, target, stratum)
    expected = []
    for u, i, wanted in zip(place.tolist(), items.tolist(), target.tolist()):
        if not wanted:
            continue
        own = set(items[place == u].tolist())
        score = query[u] @ unit.t()
        others = [j for j in range(40) if stratum[j] == stratum[i] and j not in own]
        below = sum(
            1.0 if score[j] < score[i] else 0.5 * float(score[j] == score[i])
            for j in others
        )
        expected.append(below / len(others))
    assert got.tolist() == pytest.approx(expected)


def test_no_other_item_of_the_stratum():
    unit = torch.eye(10)
    items, place = torch.tensor([0, 1]), torch.tensor([0, 0])
    target = torch.tensor([False, True])
    share = _shares(unit[:1], unit, items, place, target, torch.arange(10))
    assert share.isnan().all()


def test_seed_and_yardstick(shop):
    model = LightGCN.from_data(shop, hidden_channels=8)
    marked = ForgetUsers(ratio=0.3)(shop)
    first = completion(model, marked)
    assert first == completion(model, marked)
    assert first != completion(model, marked, seed=1)
    assert 'targets=' in repr(first)
    kept = hold_out_users(shop, 0.3)
    never = kept.never_trained_edge_label_index
    yardstick = completion_yardstick(model, kept, never)
    assert 0 <= yardstick.auc <= 1
    assert yardstick.num_users <= never[0].unique().numel()
    out = compare_completion({'original': model, 'again': model}, marked)
    assert out['again'] == first
    assert out['original'] != first  # Propagated over all interactions.


def test_too_few_and_none(shop):
    model = LightGCN.from_data(shop, hidden_channels=8)
    with pytest.warns(UserWarning, match='needs 50 deleted pairs'):
        result = completion(model, ForgetUsers([3])(shop))
    assert math.isnan(result.auc)
    assert result.reason.startswith('The completion attack needs 50 deleted pairs')
    with pytest.raises(ValueError, match='must hold a request'):
        completion(model, shop)
    with pytest.raises(ValueError, match="'num_splits' must be at least 1"):
        completion(model, ForgetUsers([3])(shop), num_splits=0)


def test_one_user_has_no_interval(shop):
    model = LightGCN.from_data(shop, hidden_channels=8)
    pairs = torch.stack([torch.full((36,), 3), torch.arange(36)])
    result = completion_yardstick(model, shop, pairs)
    assert result.num_users == 1
    assert result.num_targets >= 50
    assert 0 <= result.auc <= 1
    assert all(math.isnan(x) for x in (*result.interval, result.standard_error))
    assert result.reason == ''
