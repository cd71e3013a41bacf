r"""When a person has to look, by each rule and at its limits."""

import json
from collections import Counter

import pytest

from torch_geometric_unlearn.data.schema import EDGE_TYPE
from torch_geometric_unlearn.workspace.book import DAY
from torch_geometric_unlearn.workspace.settings import Settings

CHEAP = {'method': 'RowReset', 'method_args': {}}


def history(ws, ask, shop, clock, days, num):
    r"""So many requests a day for unknown users, spread over days."""
    for _ in range(days):
        for _ in range(num):
            ask(ws, users=[f'nobody{len(ws.book.requests())}@shop.org'])
            clock.wait(1 / num)


# Requests a day -----------------------------------------------------------------------


@pytest.mark.parametrize(('num', 'fires'), [(10, False), (11, True)])
def test_rate(make, ask, shop, clock, tmp_path, num, fires):
    ws = make(tmp_path / 'shop', surge_requests=3, surge_history_days=9, **CHEAP)
    history(ws, ask, shop, clock, 10, 2)
    clock.wait(1)  # Nothing of the last day but what comes now.
    old = [info.id for info in ws.book.requests()]
    new = [ask(ws, users=[shop.user(i)]).id for i in range(num)]
    # Twenty in 10 days and what comes within them: about 2 a day, five times that.
    plan = ws.plan()
    assert plan.is_surge is fires
    if fires:
        assert plan.reason == f'surge: {num} requests in a day, where 2.0 are usual'
        assert plan.requests == new
        assert ws.work(now=True) == []
        assert {ws.book.info(n).state for n in new} == {'review'}
        assert {ws.book.info(n).state for n in old} == {'queued'}
        # Until somebody has decided, whoever comes is one more.
        late = ask(ws, users=[shop.user(50)]).id
        assert ws.plan().requests == [late]
        for number in new:
            ws.release(number, 'kim', 'a campaign')
        assert not ws.plan().is_surge
        ws.cancel(late, 'kim', 'not theirs')
    clock.wait(1)
    assert not ws.plan().is_surge


def test_rate_needs_history_and_a_number(make, ask, shop, clock, tmp_path):
    ws = make(tmp_path / 'shop', surge_requests=5, **CHEAP)
    for i in range(6):
        ask(ws, users=[shop.user(i)])
    clock.wait(0.5)
    assert not ws.plan().is_surge  # It is the first day.
    clock.wait(14.6)  # Six in 14.1 days, and one day more.
    for i in range(6, 10):
        ask(ws, users=[shop.user(i)])
    assert not ws.plan().is_surge  # Ten times as many, but four.
    ask(ws, users=[shop.user(10)])
    assert ws.plan().is_surge
    assert ws.plan().reason == 'surge: 5 requests in a day, where 0.4 are usual'


def test_what_was_approved_or_refused_is_not_usual(make, ask, shop, clock, tmp_path):
    ws = make(tmp_path / 'shop', surge_requests=5, **CHEAP)
    for i in range(60):
        number = ask(ws, users=[shop.user(i)]).id
        with ws.ledger.transaction():
            ws.book._set(number, 'review', 'a flood')
        (ws.release if i % 2 else ws.reject)(number, 'kim', 'looked at')
    clock.wait(15.1)
    for i in range(60, 65):
        ask(ws, users=[shop.user(i)])
    assert ws.plan().reason == 'surge: 5 requests in a day, where 0.0 are usual'


def test_the_day_counts_from_acceptance(make, ask, shop, clock, tmp_path):
    ws = make(tmp_path / 'shop', surge_share=0.04, **CHEAP)
    for i in range(20):  # Said to have come in long ago.
        ask(ws, users=[shop.user(i)], received_at=clock() - 20 * DAY)
    assert ws.plan().is_surge


# An item ------------------------------------------------------------------------------


@pytest.fixture
def busiest(data):
    pairs = data[EDGE_TYPE].edge_index
    item, num = Counter(pairs[1].tolist()).most_common(1)[0]
    return item, num, pairs[0][pairs[1] == item].tolist()


@pytest.mark.parametrize('kind', ['erasure', 'correction', 'gradual'])
def test_half_of_an_item(make, ask, shop, clock, tmp_path, busiest, kind):
    item, num, users = busiest
    half = (num + 1) // 2
    few = {'surge_share': 1.0, 'surge_item_pairs': half, 'min_users': 1}
    ws = make(tmp_path / 'shop', **few, **CHEAP)
    for k, user in enumerate(users[:half]):
        if k > half - 4:
            assert not ws.plan().is_surge, k
        if kind == 'correction':
            ask(ws, kind, pairs=[(shop.user(user), shop.item(item))])
        else:
            ask(ws, users=[shop.user(user)])
        if kind == 'gradual' and k < half - 1 and k % 10 == 3:
            assert ws.work(now=True)[0].version is not None
    plan = ws.plan()
    assert plan.is_surge
    share = round(100 * half / num)
    assert plan.reason == f'surge: {share}% of the interactions of an item in a day'
    if kind == 'gradual':  # Those that are erased already are no more in it.
        assert len(plan.requests) < half
        row = ws.ledger.rows('SELECT losses FROM job WHERE losses IS NOT NULL')[0]
        assert dict(json.loads(row['losses']))[item] == 4
    assert ws.work(now=True) == []
    for info in ws.book.requests('review'):
        ws.release(info.id, 'kim', 'they were asked')
    assert not ws.plan().is_surge


def test_items_with_few_pairs_and_those_that_are_named(
    make, ask, shop, clock, tmp_path, busiest
):
    item, num, users = busiest
    ws = make(tmp_path / 'shop', surge_share=1.0, surge_item_pairs=num, **CHEAP)
    for user in users[:-1]:
        ask(ws, users=[shop.user(user)])
    assert not ws.plan().is_surge  # One less than its number.
    ask(ws, 'takedown', items=[shop.item(item)])
    ask(ws, users=[shop.user(users[-1])])
    assert not ws.plan().is_surge  # It is to lose all of them.
    ws.cancel(len(users), 'kim', 'it stays')
    assert ws.plan().is_surge


def test_a_days_losses_end(make, ask, shop, clock, tmp_path, busiest):
    _, num, users = busiest
    few = {'surge_share': 1.0, 'surge_item_pairs': num // 2, 'min_users': 1}
    ws = make(tmp_path / 'shop', **few, **CHEAP)
    first = users[: num // 2 - 1]
    for user in first:
        ask(ws, users=[shop.user(user)])
    assert ws.work(now=True)[0].version is not None
    clock.wait(1.1)
    for user in users[len(first) : len(first) + 3]:
        ask(ws, users=[shop.user(user)])
    assert not ws.plan().is_surge  # Three, and those before are another day's.
    ws.work()
    assert ws.ledger.row('SELECT losses FROM job')['losses'] is None


@pytest.mark.parametrize(
    ('change', 'error', 'match'),
    [
        ({'surge_rate': 0.5}, ValueError, "'surge_rate' must be a finite number"),
        ({'surge_rate': 'x'}, TypeError, "'surge_rate' must be a number"),
        ({'surge_history_days': 0}, ValueError, "'surge_history_days' must be"),
        ({'surge_requests': 0}, ValueError, "'surge_requests' must be at least 1"),
        ({'surge_requests': 2.5}, TypeError, "'surge_requests' must be an integer"),
        ({'surge_item_share': 1.5}, ValueError, "'surge_item_share' must be a finite"),
        ({'surge_item_pairs': 0}, ValueError, "'surge_item_pairs' must be at least 1"),
        ({'max_loss': -0.1}, ValueError, "'max_loss' must be a finite"),
        ({'max_loss': 1.1}, ValueError, "'max_loss' must be a finite"),
    ],
)
def test_settings_are_checked(change, error, match):
    with pytest.raises(error, match=match):
        Settings(key='k', **change)
