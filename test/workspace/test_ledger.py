import sqlite3

import pytest

from torch_geometric_unlearn.workspace.ledger import SCHEMA_VERSION, Ledger


@pytest.fixture
def ledger(tmp_path):
    out = Ledger(tmp_path / 'ledger.db')
    with out.transaction():
        for number in range(5):
            out.event(float(number), 'thing', number=number)
    return out


def tamper(ledger, *statements):
    r"""As someone with the file, whom no trigger stops."""
    with sqlite3.connect(ledger.path) as db:
        for name in ('event_is_final', 'event_stays'):
            db.execute(f'DROP TRIGGER {name}')
        for statement in statements:
            db.execute(statement)
    db.close()


def test_chain_of_events(ledger):
    assert ledger.check_chain() == 5
    assert Ledger(ledger.path).check_chain(ledger.head) == 5


@pytest.mark.parametrize(
    'sql', ["UPDATE event SET body = '{}' WHERE id = 3", 'DELETE FROM event']
)
def test_events_are_append_only(ledger, sql):
    with pytest.raises(sqlite3.IntegrityError, match='append-only'), \
            ledger.transaction():  # fmt: skip
        ledger.write(sql)
    assert ledger.check_chain() == 5


@pytest.mark.parametrize(
    'statements',
    [
        ["UPDATE event SET body = '{}' WHERE id = 3"],
        ['UPDATE event SET at = at + 1 WHERE id = 1'],
        ["UPDATE event SET kind = 'other' WHERE id = 5"],
        ['UPDATE event SET hash = (SELECT hash FROM event WHERE id = 1) WHERE id = 3'],
        ['DELETE FROM event WHERE id = 1'],
        ['DELETE FROM event WHERE id = 3'],
        ['DELETE FROM event WHERE id = 3', 'UPDATE event SET id = id - 1 WHERE id > 3'],
        [
            'UPDATE event SET id = 9 WHERE id = 2',
            'UPDATE event SET id = 2 WHERE id = 3',
            'UPDATE event SET id = 3 WHERE id = 9',
        ],
    ],
)
def test_a_changed_chain_is_found(ledger, statements):
    tamper(ledger, *statements)
    with pytest.raises(ValueError, match=r'broken at event|gap before event'):
        ledger.check_chain()


def test_a_cut_chain_is_found_by_its_head(ledger):
    head = ledger.head
    tamper(ledger, 'DELETE FROM event WHERE id = 5')
    assert ledger.check_chain() == 4  # By itself it is a chain.
    with pytest.raises(ValueError, match='last events of the chain are missing'):
        ledger.check_chain(head)


def test_later_schema_is_refused(ledger):
    ledger.close()
    with sqlite3.connect(ledger.path) as db:
        db.execute(f'PRAGMA user_version={SCHEMA_VERSION + 1}')
    db.close()
    content = ledger.path.read_bytes()
    match = rf'schema version {SCHEMA_VERSION + 1}.*Update the package'
    with pytest.raises(ValueError, match=match):
        Ledger(ledger.path)
    assert ledger.path.read_bytes() == content


def test_other_files_are_refused(tmp_path):
    text, other = tmp_path / 'text', tmp_path / 'other'
    text.write_text('no database at all, but long enough to be read as one' * 9)
    with sqlite3.connect(other) as db:
        db.execute('CREATE TABLE something (x)')
    db.close()
    for path in (text, other):
        content = path.read_bytes()
        with pytest.raises(ValueError, match='is no ledger'):
            Ledger(path)
        assert path.read_bytes() == content


def write_and_raise(ledger, error):
    with ledger.transaction():
        ledger.event(9.0, 'lost')
        with ledger.transaction():
            ledger.event(9.0, 'lost as well')
        raise error


def test_transaction_is_all_or_nothing(ledger):
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error):
            write_and_raise(ledger, error)
    assert not ledger.db.in_transaction
    assert ledger.check_chain() == 5


def test_transaction_whose_commit_fails_is_undone(ledger):
    class Failing:
        def __init__(self, db):
            self.db = db

        def execute(self, sql, *values):
            if sql == 'COMMIT':
                raise sqlite3.OperationalError('disk I/O error')
            return self.db.execute(sql, *values)

        def __getattr__(self, name):
            return getattr(self.db, name)

    good, ledger.db = ledger.db, Failing(ledger.db)
    with pytest.raises(sqlite3.OperationalError, match='disk'), ledger.transaction():
        ledger.event(9.0, 'lost')
    ledger.db = good
    with ledger.transaction():  # Not inside of the one before.
        ledger.event(9.0, 'kept')
    assert Ledger(ledger.path).check_chain() == 6
