import errno
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch_geometric.testing import onlyLinux

from torch_geometric_unlearn.utils import files
from torch_geometric_unlearn.utils.files import (
    atomic_folder,
    atomic_save,
    atomic_save_all,
    explain_write_errors,
    free_bytes,
    host_name,
    make_folder,
    remove_stale,
)


def test_atomic_save(tmp_path):
    path = tmp_path / 'a.bin'
    atomic_save(lambda file: file.write(b'old'), path)
    assert path.read_bytes() == b'old'
    atomic_save(lambda file: file.write(b'new'), str(path))
    assert path.read_bytes() == b'new'
    assert os.listdir(tmp_path) == ['a.bin']
    atomic_save(lambda file: torch.save(torch.arange(3), file), path)
    assert torch.load(path).tolist() == [0, 1, 2]


def test_bare_file_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    atomic_save(lambda file: file.write(b'x'), 'a.bin')
    assert os.listdir(tmp_path) == ['a.bin']


@pytest.mark.parametrize('error', [RuntimeError, KeyboardInterrupt, OSError])
def test_error_while_writing_keeps_the_old_file(tmp_path, error):
    path = tmp_path / 'a.bin'
    path.write_bytes(b'old')

    def write(file):
        file.write(b'half of it')
        raise error('inside')

    with pytest.raises(error, match='inside'):
        atomic_save(write, path)
    assert path.read_bytes() == b'old'
    assert os.listdir(tmp_path) == ['a.bin']


@onlyLinux
def test_kill_while_writing_keeps_the_old_file(tmp_path):
    path = tmp_path / 'a.bin'
    path.write_bytes(b'old')
    code = (
        'import os, runpy, signal, sys\n'
        'atomic_save = runpy.run_path(sys.argv[1])["atomic_save"]\n'
        'def write(file):\n'
        '    file.write(b"half of it")\n'
        '    file.flush()\n'
        '    os.kill(os.getpid(), signal.SIGKILL)\n'
        'atomic_save(write, sys.argv[2])\n'
    )
    command = [sys.executable, '-c', code, files.__file__, str(path)]
    process = subprocess.run(command, check=False)
    assert process.returncode == -signal.SIGKILL
    assert path.read_bytes() == b'old'
    assert len(os.listdir(tmp_path)) == 2
    remove_stale(str(tmp_path))
    assert os.listdir(tmp_path) == ['a.bin']


def test_remove_stale_leaves_running_and_foreign_files(tmp_path):
    names = [
        f'a.{host_name()}.{os.getppid()}.tmp',  # Of a running process.
        'b.elsewhere.1.tmp',
        'notes.tmp',
    ]
    for name in names:
        (tmp_path / name).touch()
    (tmp_path / f'c.{host_name()}.{os.getpid()}.tmp').touch()
    remove_stale(str(tmp_path))
    assert sorted(os.listdir(tmp_path)) == sorted(names)
    os.utime(tmp_path / names[1], (0, 0))
    remove_stale(str(tmp_path))
    assert sorted(os.listdir(tmp_path)) == sorted([names[0], names[2]])


def test_full_disk_is_explained(tmp_path):
    def write(file):
        raise OSError(errno.ENOSPC, 'raw')

    match = r"Cannot write to the folder '.*': No space left on device \(free: [\d,]+ "
    with pytest.raises(OSError, match=match + 'bytes, needed: about 5,000 bytes') as e:
        atomic_save(write, tmp_path / 'a.bin', num_bytes=5000)
    assert e.value.errno == errno.ENOSPC
    assert os.listdir(tmp_path) == []


def test_other_errors_pass_unchanged():
    error = OSError(errno.EINVAL, 'raw')
    with pytest.raises(OSError, match='raw') as info, explain_write_errors('.'):
        raise error
    assert info.value is error


def test_make_folder(tmp_path):
    make_folder(str(tmp_path / 'a' / 'b'))
    make_folder(str(tmp_path / 'a' / 'b'))
    assert (tmp_path / 'a' / 'b').is_dir()
    (tmp_path / 'file').touch()
    with pytest.raises(OSError, match=r"Cannot write to the folder '.*file/sub'"):
        make_folder(str(tmp_path / 'file' / 'sub'))


def test_free_bytes(tmp_path):
    assert free_bytes(str(tmp_path)) > 0
    assert free_bytes(str(tmp_path / 'not' / 'there')) > 0


def test_next_write_removes_what_killed_ones_left(tmp_path):
    host = host_name()
    stale = [f'a.bin.{host}.{2**22 + 1}.tmp', f'a.bin.{host}.{2**22 + 1}-7.tmp']
    others = [
        f'b.bin.{host}.{2**22 + 1}-0.tmp',  # Of another file.
        f'a.bin.{host}.{os.getppid()}-0.tmp',  # Of a running process.
        'a.bin.elsewhere.1-0.tmp',  # Of another machine, now.
        f'xa.bin.{host}.{2**22 + 1}.tmp',
        'a.bin.tmp',
    ]
    for name in (*stale, *others):
        (tmp_path / name).write_bytes(b'rows')
    atomic_save(lambda file: file.write(b'new'), tmp_path / 'a.bin')
    assert sorted(os.listdir(tmp_path)) == sorted(['a.bin', *others])
    os.utime(tmp_path / others[2], (0, 0))
    atomic_save(lambda file: file.write(b'new'), tmp_path / 'a.bin')
    assert others[2] not in os.listdir(tmp_path)


def test_threads_that_write_the_same_file(tmp_path):
    path = tmp_path / 'a.bin'

    def write(number):
        content = bytes([number]) * 200_000

        def in_parts(file):
            for start in range(0, len(content), 20_000):
                file.write(content[start : start + 20_000])
                remove_stale(str(tmp_path))

        for _ in range(5):
            atomic_save(in_parts, path)
            found = path.read_bytes()
            assert len(found) == 200_000
            assert len(set(found)) == 1

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    assert os.listdir(tmp_path) == ['a.bin']


def test_files_that_belong_together(tmp_path):
    first, second = tmp_path / 'a', tmp_path / 'b'

    def save(value, then=lambda: None):
        files = [(lambda file: file.write(value), first)]
        files += [(lambda file: [file.write(value), then()], second)]
        atomic_save_all(files)

    save(b'old')

    def fail():
        raise ValueError('inside')

    with pytest.raises(ValueError, match='inside'):
        save(b'new', fail)
    # A failure before all are complete changes none of them.
    assert first.read_bytes() == second.read_bytes() == b'old'
    save(b'new')
    assert first.read_bytes() == second.read_bytes() == b'new'
    assert sorted(os.listdir(tmp_path)) == ['a', 'b']


def test_atomic_folder(tmp_path):
    path = tmp_path / 'sub' / 'made'
    for is_there in (False, True):
        if is_there:
            path.mkdir()
            path.chmod(0o750)
        with atomic_folder(path) as folder:
            (folder / 'a').write_text('x')
            assert not path.exists() or not list(path.iterdir())
        assert [p.name for p in path.iterdir()] == ['a']
        assert [p.name for p in path.parent.iterdir()] == ['made']
        assert not is_there or path.stat().st_mode & 0o777 == 0o750
        shutil.rmtree(path)


def fill(path, late):
    r"""Fails in the block, or finds that the folder got something meanwhile."""
    with atomic_folder(path) as folder:
        (folder / 'a').write_text('x')
        if not late:
            raise KeyError('broken')
        path.mkdir(exist_ok=True)
        (path / 'theirs').write_text('y')


def test_atomic_folder_that_fails_leaves_nothing(tmp_path):
    path = tmp_path / 'made'
    with pytest.raises(KeyError, match='broken'):
        fill(path, late=False)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileExistsError, match='is not empty'):
        fill(path, late=True)
    assert (path / 'theirs').read_text() == 'y'
    assert [p.name for p in path.iterdir()] == ['theirs']
    assert [p.name for p in tmp_path.iterdir()] == ['made']


def test_atomic_folder_clears_what_dead_ones_left(tmp_path):
    path, mine = tmp_path / 'made', tmp_path / 'made.notes'
    mine.mkdir()
    dead = tmp_path / f'made.{host_name()}.{2**22 + 1}-0.tmp'
    (dead / 'sub').mkdir(parents=True)
    with atomic_folder(path):
        assert not dead.exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ['made', 'made.notes']


@pytest.mark.parametrize(
    ('number', 'error'), [(errno.EBUSY, 'a new folder in it'), (errno.EIO, 'output')]
)
def test_atomic_folder_that_cannot_be_placed(tmp_path, monkeypatch, number, error):
    def rename(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, 'rename', rename)
    with pytest.raises(OSError, match=error), atomic_folder(tmp_path / 'made'):
        pass
    assert list(tmp_path.iterdir()) == []
