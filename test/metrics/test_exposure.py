import math

import pytest
import torch

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.metrics import embed, exposure
from torch_geometric_unlearn.metrics.exposure import (
    deleted_share,
    exposure_drop,
    exposure_profile,
    item_reach,
)
from torch_geometric_unlearn.transforms import (
    ForgetInteractions,
    ForgetItems,
    ForgetUsers,
)


def as_set(pairs):
    return set(map(tuple, pairs.t().tolist()))


def naive_exposure(user_emb, item_emb, retained, forgotten, audience, banned, k):
    scores = (user_emb.double() @ item_emb.double().t()).tolist()

    def top(user, banned):
        items = [
            item
            for item in range(item_emb.size(0))
            if (user, item) not in retained and item not in banned
        ]
        return sorted(items, key=lambda item: (-scores[user][item], item))[:k]

    lists = {user: set(top(user, banned)) for user in audience}
    targets = {item for _, item in forgotten}
    share = sum(len(lists[user] & targets) / k for user in audience) / len(audience)
    reach = 0.0
    for item in targets:
        served = sum(item in lists[user] for user in audience)
        reach += served / len(audience) / len(targets)
    pair = sum(i in top(u, set()) for u, i in forgotten) / len(forgotten)
    return {f'exposure@{k}': share, f'reach@{k}': reach, f'pair@{k}': pair}


@pytest.mark.parametrize('level', ['user', 'item', 'interaction', 'mixed'])
@pytest.mark.parametrize('audience', ['retained', 'all'])
@pytest.mark.parametrize('k', [5, 70])
def test_against_naive_loop(data, trained, level, audience, k):
    users = {3, 17, 50} if level in ('user', 'mixed') else set()
    items = {2, 30} if level in ('item', 'mixed') else set()
    train = as_set(data[schema.EDGE_TYPE].edge_index)
    pairs = [] if level in ('user', 'item') else sorted(train)[5::60]
    marked = ForgetUsers(sorted(users))(data) if users else data
    marked = ForgetItems(sorted(items))(marked) if items else marked
    marked = ForgetInteractions(pairs)(marked) if pairs else marked
    assert marked.forget_level == level

    forgotten = set(pairs) | {(u, i) for u, i in train if u in users or i in items}
    listeners = set(range(100)) - (users if audience == 'retained' else set())
    user_emb, item_emb = embed(trained, trained.build_graph(marked))
    expected = naive_exposure(
        user_emb, item_emb, train - forgotten, forgotten, listeners, items, k
    )
    out = exposure(trained, marked, k, audience=audience)
    assert list(out) == list(expected)
    assert out == pytest.approx(expected, abs=1e-6)


def test_graph_argument(data, trained):
    marked = ForgetUsers([3])(data)
    train = as_set(data[schema.EDGE_TYPE].edge_index)
    forgotten = {(u, i) for u, i in train if u == 3}
    graph = trained.build_graph(data)
    audience = set(range(100)) - {3}
    expected = naive_exposure(
        *embed(trained, graph), train - forgotten, forgotten, audience, set(), 20
    )
    assert exposure(trained, marked, graph=graph) == pytest.approx(expected, abs=1e-6)


def test_deleted_items_are_gone(data, trained):
    out = exposure(trained, ForgetItems([2, 30])(data))
    assert out['exposure@20'] == out['reach@20'] == 0
    assert out['pair@20'] > 0  # The model still remembers them.


def test_without_request(data, trained):
    with pytest.warns(UserWarning, match='Nothing is marked, so exposure is NaN'):
        out = exposure(trained, data)
    assert list(out) == ['exposure@20', 'reach@20', 'pair@20']
    assert all(math.isnan(value) for value in out.values())


def test_unknown_audience(data, trained):
    match = r"'audience' must be one of .* .got 'deleted'."
    with pytest.raises(ValueError, match=match):
        exposure(trained, data, audience='deleted')


def test_exposure_drop():
    before = {'exposure@5': 0.4, 'reach@5': 0.1}
    assert exposure_drop(before, before) == 0
    assert exposure_drop(before, {'exposure@5': 0.0}) == 1
    assert exposure_drop(before, {'exposure@5': 0.3}) == pytest.approx(0.25)
    assert exposure_drop(before, {'exposure@5': 0.5}) == pytest.approx(-0.25)
    assert math.isnan(exposure_drop({'exposure@5': 0.0}, before))
    assert torch.tensor(exposure_drop(before, {'exposure@5': math.nan})).isnan()


def test_reach_and_profile(data, trained):
    marked = ForgetUsers(list(range(0, 100, 4)))(data)
    share = deleted_share(marked)
    train = data[schema.EDGE_TYPE].edge_index
    for item in (0, 7, 20):
        users = train[0, train[1] == item]
        gone = float((users % 4 == 0).double().mean())
        assert share[item] == pytest.approx(gone)
    before = item_reach(trained, marked, 5, trained.build_graph(data))
    after = item_reach(trained, marked, 5)
    assert float(before.sum()) == pytest.approx(5.0)

    profile = exposure_profile(before, after, share, num_groups=4)
    assert sum(group['num_items'] for group in profile['groups']) == int(
        (share > 0).sum()
    )
    bounds = [group['max_share'] for group in profile['groups']]
    assert bounds == sorted(bounds)
    same = exposure_profile(before, before, share)
    assert math.isnan(same['correlation'])
    # Reach that falls by exactly the deleted share correlates perfectly.
    ideal = exposure_profile(before, before * (1 - share), share)
    assert ideal['correlation'] == pytest.approx(1.0)
    assert -1 <= profile['correlation'] <= 1
