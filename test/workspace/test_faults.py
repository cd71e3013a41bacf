r"""What goes wrong around a workspace is said, and changes nothing."""

import builtins
import errno
import json
import os
import resource
import shutil
import sqlite3

import pytest
from torch_geometric.testing import onlyLinux

from torch_geometric_unlearn.data.request import is_erased
from torch_geometric_unlearn.utils import files
from torch_geometric_unlearn.workspace import Workspace
from torch_geometric_unlearn.workspace.book import DAY
from torch_geometric_unlearn.workspace.cli import main
from torch_geometric_unlearn.workspace.keys import make_key, read_key
from torch_geometric_unlearn.workspace.ledger import _TABLES, MIGRATIONS, Ledger


def standing(ws):
    states = {info.id: info.state for info in ws.book.requests()}
    return ws.versions.service['id'], ws.status()['watermark'], states


def goes_on(ws, shop):
    r"""The fault is over: nothing was lost, and what waits is served."""
    jobs = ws.work(now=True)
    assert [job.requests for job in jobs] == [[1]]
    assert ws.book.info(1).outcome == 'erased'
    assert ws.doctor() == []
    shop.check(ws)


# The clock ----------------------------------------------------------------------------


def test_a_clock_that_is_set_back(cheap, ask, shop, clock, capsys):
    ask(cheap, users=[shop.user(3)])
    clock.now -= 0.9 * 3_600  # As clocks do.
    assert cheap.work() == []
    clock.now -= 2 * DAY
    before = standing(cheap)
    for call in (
        lambda: cheap.work(now=True),
        cheap.finalise,
        lambda: cheap.rollback('eve', 'a test'),
        lambda: cheap.refresh(None, 'eve', 'a test'),
    ):
        with pytest.raises(ValueError, match=r'set back: .* 48\.9 hours ahead'):
            call()
    assert standing(cheap) == before
    # Requests are taken all the same, and don't hide it.
    ask(cheap, users=[shop.user(4)])
    assert is_erased(cheap.load()[1]['user'].raw_id[4])
    with pytest.raises(ValueError, match='set back'):
        cheap.work(now=True)
    with pytest.raises(ValueError, match="'why' must be a text"):
        cheap.accept_clock('kim', '')
    cheap.accept_clock('kim', 'it had run ahead')
    assert sorted(cheap.work(now=True)[0].requests) == [1, 2]
    assert cheap.doctor() == []
    clock.now -= 2 * DAY  # And once more.
    with pytest.raises(ValueError, match='set back'):
        cheap.work(now=True)


def test_the_command_for_the_clock(cheap, shop, capsys, clock):
    place = ['--workspace', str(cheap.root)]
    args = ['clock', *place, '--who', 'kim', '--why', 'a test', '--json']
    assert main(args) == 0
    assert json.loads(capsys.readouterr().out)['now'] > clock()  # That of the machine.
    # Now those of the tests are back.
    with pytest.raises(ValueError, match='set back'):
        cheap.work()


# The disk -----------------------------------------------------------------------------


@pytest.mark.parametrize('number', [errno.ENOSPC, errno.EROFS])
@pytest.mark.parametrize('last', [1, 2, 4])
def test_a_disk_that_takes_nothing(cheap, ask, shop, monkeypatch, number, last):
    ask(cheap, users=[shop.user(3)])
    before = cheap.versions.service['id'], cheap.status()['watermark']
    left = [last]

    def refuse(path, mode='r'):
        left[0] -= 1
        if left[0] <= 0:
            raise OSError(number, 'no')
        return builtins.open(path, mode)

    with monkeypatch.context() as patch:
        patch.setattr(files, 'open', refuse, raising=False)
        with pytest.raises(OSError, match='Cannot write to the folder'):
            cheap.work(now=True)
    assert left[0] <= 0
    if cheap.book.info(1).state in ('queued', 'working'):
        assert before == (cheap.versions.service['id'], cheap.status()['watermark'])
        goes_on(cheap, shop)
    assert cheap.book.info(1).state == 'probation'
    assert cheap.status()['watermark'] == 1
    cheap.doctor()
    assert cheap.doctor() == []
    shop.check(cheap)


FULL = '''
import resource
from torch_geometric_unlearn.nn import LightGCN
from torch_geometric_unlearn.workspace import Workspace
def build(data):
    return LightGCN.from_data(data, hidden_channels=8)
ws = Workspace({root!r}, build, lambda: 1e9)
size = {size}
resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
try:
    ws.submit('erasure', users=['user004@shop.org'], client_id='T-9', verified_by='x')
except Exception as error:
    raise SystemExit(9 if 'disk' in str(error) else 8)
'''


@onlyLinux
def test_a_ledger_on_a_full_disk(cheap, ask, shop, run_code):
    assert resource.RLIMIT_FSIZE is not None
    ask(cheap, users=[shop.user(3)])
    before = standing(cheap)
    cheap.ledger.close()
    assert run_code(FULL.format(root=str(cheap.root), size=4096)) == 9
    ws = Workspace(cheap.root, shop.build, cheap.clock)
    assert standing(ws) == before  # It was not confirmed, and is not there.
    assert not is_erased(ws.load()[1]['user'].raw_id[4])
    ws.ledger.check_chain()
    goes_on(ws, shop)


# The ledger ---------------------------------------------------------------------------


def test_a_damaged_ledger(cheap, ask, shop):
    for i in range(40):
        ask(cheap, users=[shop.user(i)])
    cheap.ledger.close()
    path = cheap.root / 'ledger.db'
    content = bytearray(path.read_bytes())
    size = 4096
    for page in range(3, len(content) // size, 3):
        bad = content.copy()
        bad[page * size : page * size + 200] = b'\x07' * 200
        path.write_bytes(bad)
        with pytest.raises(ValueError, match=r'is damaged|is no ledger'):
            Workspace(cheap.root, shop.build, cheap.clock).work(now=True)
        assert path.read_bytes() == bad
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r'is damaged|is no ledger'):
        Workspace(cheap.root, shop.build, cheap.clock).work(now=True)
    path.write_bytes(content)
    ws = Workspace(cheap.root, shop.build, cheap.clock)
    assert len(ws.work(now=True)[0].requests) == 40


def test_an_older_copy_of_the_ledger(cheap, ask, shop, data):
    ask(cheap, users=[shop.user(3)])
    path, kept = cheap.root / 'ledger.db', cheap.root / 'serving.json'
    older = path.read_bytes()
    ask(cheap, users=[shop.user(4)])
    newer, serving = path.read_bytes(), kept.read_bytes()
    cheap.ledger.close()
    path.write_bytes(older)
    ws = Workspace(cheap.root, shop.build, cheap.clock)
    named = {'kind': 'erasure', 'users': [shop.user(5)], 'client_id': 'T-5',
             'verified_by': 'crm'}  # fmt: skip
    for call in (
        lambda: ws.submit(**named),
        lambda: ws.submit_all([named]),
        lambda: ws.hold(1, 'eve', 'a test'),
        lambda: ws.cancel(1, 'eve', 'a test'),
        lambda: ws.accept_clock('eve', 'a test'),
        lambda: ws.work(now=True),
        lambda: ws.refresh(data, 'eve', 'a test'),
        lambda: ws.rollback('eve', 'a test'),
        ws.finalise,
        ws.renew,
        ws.doctor,
    ):
        with pytest.raises(ValueError, match='If the ledger is an older copy'):
            call()
        assert path.read_bytes() == older
        assert kept.read_bytes() == serving
    ws.ledger.close()
    path.write_bytes(newer)
    ws = Workspace(cheap.root, shop.build, cheap.clock)
    assert ws.doctor() == []
    assert ws.work(now=True)[0].requests == [1, 2]
    # The other way round nothing is missing.
    newest, serving = path.read_bytes(), kept.read_bytes()
    kept.write_text('{}')
    ask(ws, users=[shop.user(5)])
    assert path.read_bytes() != newest
    assert kept.read_bytes() != serving
    shop.check(ws)


def test_a_ledger_of_the_first_version(cheap, ask, shop, tmp_path):
    def columns(ledger):
        tables = ('request', 'job', 'fact', 'version', 'target', 'attempt')
        return {t: sorted(tuple(row)[1:5] for row in ledger.rows(
            f'PRAGMA table_info({t})')) for t in tables}  # fmt: skip

    ask(cheap, users=[shop.user(3)], received_at=cheap.clock() - 5)
    fresh = columns(cheap.ledger)
    cheap.ledger.close()
    assert 'drops_features' in _TABLES
    path = cheap.root / 'ledger.db'
    with sqlite3.connect(path) as db:  # As it was.
        for column in ('accepted_at', 'attempts', 'drops_features'):
            db.execute(f'ALTER TABLE request DROP COLUMN {column}')
        for column in ('replays', 'data', 'losses'):
            db.execute(f'ALTER TABLE job DROP COLUMN {column}')
        db.execute('DROP TABLE fact')
        db.execute('DROP TABLE attempt')
        db.execute('PRAGMA user_version=1')
    db.close()
    ws = Workspace(cheap.root, shop.build, cheap.clock)
    assert columns(ws.ledger) == fresh
    assert 1 in MIGRATIONS
    row = ws.ledger.row('SELECT accepted_at, received_at FROM request')
    assert row['accepted_at'] == row['received_at'] == cheap.clock() - 5
    goes_on(ws, shop)


# The key ------------------------------------------------------------------------------


@pytest.mark.parametrize('version', [1, 2])
def test_a_key_of_another_workspace(cheap, ask, shop, version):
    ask(cheap, users=[shop.user(3)])
    if version == 1:  # Whose ledger does not tell the key.
        with cheap.ledger.transaction():
            cheap.ledger.write('DELETE FROM fact')
    cheap.ledger.close()
    path = cheap.root.with_name('shop.key')
    content = (cheap.root / 'ledger.db').read_bytes()
    shutil.copy(path, path.with_name('kept'))
    path.write_text('ab' * 32)
    with pytest.raises(ValueError, match=r'shop\.key. is that of another workspace'):
        Workspace(cheap.root, shop.build, cheap.clock)
    assert (cheap.root / 'ledger.db').read_bytes() == content
    shutil.copy(path.with_name('kept'), path)
    ws = Workspace(cheap.root, shop.build, cheap.clock)
    assert path.read_text().strip().encode() not in (ws.root / 'ledger.db').read_bytes()
    goes_on(ws, shop)


# What the caller gives ----------------------------------------------------------------


def test_a_loader_that_raises(cheap, ask, shop):
    def broken(data):
        raise ZeroDivisionError('the warehouse is closed')

    ask(cheap, users=[shop.user(3)])
    before = standing(cheap)
    bad = Workspace(cheap.root, broken, cheap.clock)
    for call in (lambda: bad.work(now=True), bad.load):
        with pytest.raises(ZeroDivisionError, match='the warehouse is closed'):
            call()
    bad.doctor()  # Builds none.
    assert standing(cheap) == before
    goes_on(cheap, shop)


def test_a_changed_model_file_stops_the_worker(cheap, ask, shop):
    ask(cheap, users=[shop.user(3)])
    path = cheap.versions.store.model_path(cheap.versions.service['id'])
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    before = cheap.status()
    with pytest.raises(ValueError, match='is not what it was'):
        cheap.work(now=True)
    cheap.doctor()
    assert cheap.status() == before
    path.write_bytes(content)
    goes_on(cheap, shop)


def test_a_new_ledger_is_checked_as_well(tmp_path):
    ledger = Ledger(tmp_path / 'ledger.db')
    ledger.check_pages()
    ledger.check_clock(0.0)  # Nothing has happened.
    assert ledger.check_chain() == 0


def test_a_key_where_there_are_no_links(tmp_path, monkeypatch):
    def link(*_):
        raise PermissionError(errno.EPERM, 'no links')

    monkeypatch.setattr(os, 'link', link)
    path = tmp_path / 'key'
    make_key(path)
    key = read_key(path)
    with pytest.raises(OSError, match='Cannot write'):
        make_key(path)
    assert read_key(path) == key
    assert [p.name for p in tmp_path.iterdir()] == ['key']
