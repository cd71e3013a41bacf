from __future__ import annotations

import errno
import gzip
import hashlib
import os
import signal
from functools import partial
from pathlib import Path

import pytest

from torch_geometric_unlearn.datasets import _download
from torch_geometric_unlearn.datasets._download import (
    download,
    verify_gzip,
    verify_records,
)

CONTENT = bytes(range(256)) * 1000
fetch = partial(download, backoff=0.0, timeout=5.0, log=False)


@pytest.fixture
def server(tmp_path, serve):
    (tmp_path / 'www').mkdir()
    (tmp_path / 'www' / 'a.bin').write_bytes(CONTENT)
    return serve(tmp_path / 'www')


@pytest.fixture
def target(tmp_path):
    return tmp_path / 'raw' / 'a.bin'


def leftovers(target: Path) -> list[str]:
    return sorted(path.name for path in target.parent.iterdir() if path != target)


def ranges(server) -> list[str | None]:
    return [asked for _, asked in server.asked]


def test_download(server, target):
    assert fetch(f'{server.url}/a.bin', str(target)) == str(target)
    assert target.read_bytes() == CONTENT
    assert leftovers(target) == []

    fetch(f'{server.url}/a.bin', str(target))
    assert len(server.asked) == 1  # An existing file is not asked for again.


def test_resume(server, target):
    server.cuts = [100_000, 50_000]
    fetch(f'{server.url}/a.bin', str(target))
    assert target.read_bytes() == CONTENT
    assert ranges(server) == [None, 'bytes=100000-', 'bytes=150000-']
    assert leftovers(target) == []


def test_resume_in_a_later_run(server, target):
    server.cuts = [100_000]
    with pytest.raises(
        ConnectionError,
        match=r"Cannot download 'http://.*/a\.bin' to '.*a\.bin': the connection ended "
        r'after 100,000 of 256,000 bytes\. Try again .* put it there by hand',
    ):
        fetch(f'{server.url}/a.bin', str(target), retries=0)
    assert not target.exists()
    assert leftovers(target) == ['a.bin.part', 'a.bin.part.json']

    fetch(f'{server.url}/a.bin', str(target))
    assert target.read_bytes() == CONTENT
    assert ranges(server) == [None, 'bytes=100000-']


def test_server_ignores_ranges(server, target):
    server.cuts, server.ranges = [100_000], False
    fetch(f'{server.url}/a.bin', str(target))
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize('etag', [None, 'W/"weak"'])
def test_no_mark_of_changes(server, target, etag):
    # Nothing tells that the file is the same, so it starts from the beginning.
    server.cuts, server.etag = [100_000], etag
    fetch(f'{server.url}/a.bin', str(target))
    assert target.read_bytes() == CONTENT
    assert ranges(server) == [None, None]


def test_no_length(server, target):
    server.length = False
    fetch(f'{server.url}/a.bin', str(target))
    assert target.read_bytes() == CONTENT


def test_file_changed_between(server, target):
    server.cuts = [100_000]
    with pytest.raises(ConnectionError, match='the connection ended'):
        fetch(f'{server.url}/a.bin', str(target), retries=0)
    (server.folder / 'a.bin').write_bytes(CONTENT[::-1])
    server.etag = '"v2"'
    fetch(f'{server.url}/a.bin', str(target))
    assert target.read_bytes() == CONTENT[::-1]


def test_wrong_part(server, target):
    # Same mark, but another size: the server lies, or a proxy does.
    server.cuts = [100_000]
    with pytest.raises(ConnectionError, match='the connection ended'):
        fetch(f'{server.url}/a.bin', str(target), retries=0)
    (server.folder / 'a.bin').write_bytes(CONTENT * 2)
    fetch(f'{server.url}/a.bin', str(target))
    assert target.read_bytes() == CONTENT * 2
    assert ranges(server) == [None, 'bytes=100000-', None]


@pytest.mark.parametrize('size', [len(CONTENT), len(CONTENT) + 5])
def test_nothing_left_to_ask_for(server, target, size):
    server.cuts = [100_000]
    with pytest.raises(ConnectionError, match='the connection ended'):
        fetch(f'{server.url}/a.bin', str(target), retries=0)
    (target.parent / 'a.bin.part').write_bytes((CONTENT + b'.....')[:size])
    fetch(f'{server.url}/a.bin', str(target))
    assert target.read_bytes() == CONTENT


def test_other_address(server, target):
    server.cuts = [100_000]
    with pytest.raises(ConnectionError, match='the connection ended'):
        fetch(f'{server.url}/a.bin', str(target), retries=0)
    (server.folder / 'b.bin').write_bytes(b'b' * 200_000)
    fetch(f'{server.url}/b.bin', str(target))
    assert target.read_bytes() == b'b' * 200_000


def test_killed(server, target, run_code):
    # Dies without notice after the first block.
    code = f"""
import os, signal
from torch_geometric_unlearn.datasets import _download
_download._BLOCK = 1000
class Bar(_download.tqdm):
    def update(self, n):
        os.kill(os.getpid(), signal.SIGKILL)
_download.tqdm = Bar
_download.download('{server.url}/a.bin', {str(target)!r}, log=False)
"""
    assert run_code(code) == -signal.SIGKILL
    assert not target.exists()
    fetch(f'{server.url}/a.bin', str(target))
    assert target.read_bytes() == CONTENT


def test_missing_and_failing(server, target):
    with pytest.raises(ConnectionError, match=r"missing' to .*HTTP Error 404"):
        fetch(f'{server.url}/missing', str(target))
    assert len(server.asked) == 1  # Asking again would not help.
    server.status = 503
    with pytest.raises(ConnectionError, match='HTTP Error 503'):
        fetch(f'{server.url}/a.bin', str(target), retries=2)
    assert len(server.asked) == 4
    with pytest.raises(ValueError, match=r"'url' must start with http.*by hand"):
        fetch('file:///etc/hosts', str(target))
    assert leftovers(target) == []


def test_nobody_answers(target):
    with pytest.raises(ConnectionError, match=r'Cannot download .*refused'):
        fetch('http://127.0.0.1:1/a.bin', str(target), retries=1)


def test_sha256(server, target):
    digest = hashlib.sha256(CONTENT).hexdigest()
    fetch(f'{server.url}/a.bin', str(target), sha256=digest.upper())
    target.unlink()
    with pytest.raises(ConnectionError, match=f'SHA-256 is {digest}, expected 00'):
        fetch(f'{server.url}/a.bin', str(target), sha256='00', retries=1)
    assert leftovers(target) == []


def test_verify(server, target):
    packed = gzip.compress(CONTENT)
    path = server.folder / 'a.gz'
    for bad in (
        packed[:-1],
        packed[: len(packed) // 2],
        b'<html>',
        packed[:-8] + b'x' * 8,
    ):
        path.write_bytes(bad)
        with pytest.raises(ConnectionError, match=r'damaged \(no complete gzip'):
            fetch(f'{server.url}/a.gz', str(target), verify_gzip, retries=0)
        assert leftovers(target) == []
    path.write_bytes(packed)
    fetch(f'{server.url}/a.gz', str(target), verify_gzip)

    verify = partial(verify_records, num_bytes=1000)
    with pytest.raises(ValueError, match='bytes are no multiple of 1000 bytes'):
        verify(str(target))
    (server.folder / 'empty').write_bytes(b'')
    with pytest.raises(ConnectionError, match='damaged'):
        fetch(f'{server.url}/empty', str(target) + '2', verify, retries=0)
    fetch(f'{server.url}/a.bin', str(target) + '3', verify)


def test_disk(server, target, monkeypatch):
    monkeypatch.setattr(_download, 'free_bytes', lambda folder: 10)
    with pytest.raises(
        OSError, match=r"Cannot write.*'.*raw'.*: about 256,000 bytes"
    ) as e:
        fetch(f'{server.url}/a.bin', str(target))
    assert e.value.errno == errno.ENOSPC
    assert len(server.asked) == 1
    assert not os.path.exists(f'{target}.part')


def test_folder_is_a_file(server, tmp_path):
    (tmp_path / 'raw').write_text('')
    with pytest.raises(OSError, match=r"Cannot write to the folder .*another path"):
        fetch(f'{server.url}/a.bin', str(tmp_path / 'raw' / 'a.bin'))
