import json
import random

import pytest

from torch_geometric_unlearn.workspace.book import DAY, Book
from torch_geometric_unlearn.workspace.keys import keyed
from torch_geometric_unlearn.workspace.kinds import KINDS
from torch_geometric_unlearn.workspace.ledger import Ledger

KEY = bytes(range(32))


@pytest.fixture
def book(tmp_path, clock):
    return Book(Ledger(tmp_path / 'ledger.db'), KEY, clock)


def submit(book, client_id='T-1', kind='erasure', **targets):
    targets = targets or {'user': ['ann@shop.org']}
    return book.submit(kind, targets, client_id, 'crm')


def suppressed(book, level='user', raw='ann@shop.org'):
    return keyed(KEY, level, raw) in book.suppressed()[level]


def test_same_request_twice_is_one(book):
    first = submit(book, user=['ann@shop.org', 'bob@shop.org'])
    again = submit(book, user=['bob@shop.org', 'ann@shop.org', 'bob@shop.org'])
    assert again == first
    assert first.num_targets == 2
    assert len(book.requests()) == 1
    assert book.ledger.check_chain() == 1
    for other in ({'user': ['ann@shop.org']}, {'item': ['ann@shop.org']}):
        with pytest.raises(ValueError, match="'T-1' was used for another one"):
            submit(book, **other)
    with pytest.raises(ValueError, match="'T-1' was used for another one"):
        submit(book, kind='consent', user=['ann@shop.org', 'bob@shop.org'])
    assert len(book.requests()) == 1
    assert not suppressed(book, 'item')


RAW = {'user': 'ann@shop.org', 'item': 'sku-1', 'pair': ('ann@shop.org', 'sku-1')}
LEVELS = {
    'erasure': 'user item pair',
    'consent': 'user pair',
    'takedown': 'item',
    'correction': 'pair',
    'cleanup': 'user item pair',
}
DAYS = dict(erasure=30, consent=30, takedown=7, correction=90, cleanup=3)


@pytest.mark.parametrize('kind', LEVELS)
@pytest.mark.parametrize('level', RAW)
def test_kinds_and_levels(book, clock, kind, level):
    assert set(KINDS) == set(LEVELS)
    if level not in LEVELS[kind].split():
        with pytest.raises(ValueError, match=f"got a '{level}'"):
            submit(book, kind=kind, **{level: [RAW[level]]})
        assert book.requests() == []
        return
    info = submit(book, kind=kind, **{level: [RAW[level]]})
    assert info.state == 'queued'
    assert info.due_at == clock() + DAYS[kind] * DAY
    assert suppressed(book, level, RAW[level])


@pytest.mark.parametrize(
    ('change', 'error', 'match'),
    [
        ({'kind': 'erase'}, ValueError, "'kind' must be one of"),
        ({'targets': {}}, ValueError, 'must name a user, an item or a pair'),
        ({'targets': {'user': [3.0]}}, TypeError, 'strings or integers'),
        ({'targets': {'user': [True]}}, TypeError, 'strings or integers'),
        ({'targets': {'user': [None]}}, TypeError, 'strings or integers'),
        ({'targets': {'pair': ['ab']}}, TypeError, 'must be .user, item'),
        ({'targets': {'pair': [('a', 'b', 'c')]}}, TypeError, 'must be .user, item'),
        ({'client_id': ' '}, ValueError, "'client_id' must be a text"),
        ({'verified_by': None}, ValueError, "'verified_by' must be a text"),
        ({'client_id': 'mail of ann@shop.org'}, ValueError, 'must not name whom'),
        ({'verified_by': 'ann@shop.org'}, ValueError, 'must not name whom'),
        ({'received_at': 2e9}, ValueError, 'in the future'),
        ({'received_at': float('nan')}, ValueError, "'received_at' must be a finite"),
        ({'due_days': float('nan')}, ValueError, "'due_days' must be a finite"),
        ({'due_days': -1}, ValueError, "'due_days' must be a finite"),
        ({'due_days': '3'}, TypeError, "'due_days' must be a number"),
    ],
)
def test_bad_requests_write_nothing(book, change, error, match):
    kwargs = {
        'kind': 'erasure',
        'targets': {'user': ['ann@shop.org']},
        'client_id': 'T-1',
        'verified_by': 'crm',
    }
    with pytest.raises(error, match=match):
        book.submit(**(kwargs | change))
    assert book.requests() == []
    assert book.ledger.check_chain() == 0
    assert not any(book.suppressed().values())


def test_moves_say_who_and_why(book):
    number = submit(book).id
    with pytest.raises(ValueError, match="'why' must be a text"):
        book.move(number, 'eve', 'held', '')
    with pytest.raises(ValueError, match="'who' must be a text"):
        book.move(number, '', 'held', 'a lawsuit')
    with pytest.raises(ValueError, match='must not name whom'):
        book.move(number, 'eve', 'held', 'ann@shop.org has a lawsuit')
    with pytest.raises(ValueError, match="is 'queued' and can't become 'rejected'"):
        book.move(number, 'eve', 'rejected', 'no')
    with pytest.raises(ValueError, match='no request 7'):
        book.move(7, 'eve', 'held', 'a lawsuit')
    assert book.move(number, 'eve', 'held', 'a lawsuit').state == 'held'
    assert book.targets([number])
    assert suppressed(book)
    assert book.move(number, 'eve', 'queued', 'it is over').state == 'queued'
    book.to_review(number, 'too many')
    info = book.move(number, 'kim', 'rejected', 'not theirs')
    assert (info.state, info.outcome) == ('rejected', 'not theirs')
    assert not book.targets([number])
    assert not suppressed(book)
    rows = book.ledger.rows('SELECT who, decision, reason FROM review ORDER BY id')
    assert [tuple(row) for row in rows] == [
        ('eve', 'held', 'a lawsuit'),
        ('eve', 'queued', 'it is over'),
        ('kim', 'rejected', 'not theirs'),
    ]
    with pytest.raises(ValueError, match="can't become 'queued'"):
        book.move(number, 'eve', 'queued', 'after all')
    # Whoever plans on a queue that has changed since brings nothing back.
    book.to_review(number, 'too many')
    assert book.info(number).state == 'rejected'


def test_suppression_passes_to_another_that_asks(book):
    first, second = submit(book).id, submit(book, 'T-2').id
    book.move(first, 'eve', 'cancelled', 'withdrawn')
    assert suppressed(book)
    book.move(second, 'eve', 'cancelled', 'withdrawn')
    assert not suppressed(book)
    third = submit(book, 'T-3').id
    assert suppressed(book)
    book.move(third, 'eve', 'cancelled', 'withdrawn')
    assert not suppressed(book)


def complete(book, number):
    with book.ledger.transaction():
        book._set(number, 'completed', 'erased')
        book.finish(number)


def test_lift(book):
    first = submit(book).id
    with pytest.raises(ValueError, match=r"Request 1 .* still 'queued'"):
        book.lift('user', 'ann@shop.org', 'eve', 'new consent')
    complete(book, first)
    second = submit(book, 'T-2').id
    with pytest.raises(ValueError, match=r"Request 2 .* still 'queued'"):
        book.lift('user', 'ann@shop.org', 'eve', 'new consent')
    book.move(second, 'eve', 'cancelled', 'asked twice')
    assert suppressed(book)  # The first one holds.
    with pytest.raises(ValueError, match='must not name whom'):
        book.lift('user', 'ann@shop.org', 'eve', 'consent of ann@shop.org')
    with pytest.raises(ValueError, match="'level' must be one of"):
        book.lift('users', 'ann@shop.org', 'eve', 'new consent')
    book.lift('user', 'ann@shop.org', 'eve', 'new consent')
    assert not suppressed(book)
    with pytest.raises(ValueError, match='is not suppressed'):
        book.lift('user', 'ann@shop.org', 'eve', 'new consent')
    # Asked for again and taken back: the new consent still counts.
    third = submit(book, 'T-3').id
    assert suppressed(book)
    book.move(third, 'eve', 'cancelled', 'withdrawn')
    assert not suppressed(book)


def test_no_raw_id_outlives_a_request(book):
    rng = random.Random(0)
    ids = [f'person-{i:04}-{rng.random()}@shop.org' for i in range(300)]
    numbers = []
    for i, raw in enumerate(ids):
        pair = raw, f'sku-{i}-{rng.random()}'
        numbers.append(submit(book, f'T-{i}', user=[raw], pair=[pair] * (i % 3)).id)
    events = book.ledger.rows('SELECT body FROM event')
    assert not any('person' in row['body'] or 'sku' in row['body'] for row in events)
    assert all(set(json.loads(row['body'])) for row in events)
    assert b'person-0000' in book.ledger.path.read_bytes()
    rng.shuffle(numbers)
    for number in numbers:
        if number % 2:
            complete(book, number)
        else:
            book.move(number, 'eve', 'cancelled', 'withdrawn')
    content = book.ledger.path.read_bytes()
    assert b'person-' not in content
    assert b'sku-' not in content
    assert sorted(p.name for p in book.ledger.path.parent.iterdir()) == ['ledger.db']
