r"""Writes that are either complete or not there at all.

A killed write may leave a temporary file, whose content can be as confidential as that
of the file itself: rows of a model that are to be forgotten. Every write clears those
of its own file first.
"""

from __future__ import annotations

import errno
import os
import os.path as osp
import platform
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import IO, Any

_SECONDS_UNTIL_STALE = 3_600.0
#: Temporary files that this process is writing, and a number for each.
_active: set[str] = set()
_numbers = count()
WRITE_ERRNOS = {
    getattr(errno, name)
    for name in (
        'EACCES',
        'EPERM',
        'EROFS',
        'ENOSPC',
        'EDQUOT',
        'EFBIG',
        'EEXIST',
        'ENOTDIR',
        'EIO',
    )
    if hasattr(errno, name)
}


def make_folder(folder: str) -> None:
    r"""Creates :obj:`folder` with its parents if it does not exist.

    Raises:
        OSError: If it can't be created; names the folder and the way out.
    """
    with explain_write_errors(folder):
        os.makedirs(folder, exist_ok=True)


def atomic_save(
    write: Callable[[IO[bytes]], Any],
    path: str | os.PathLike[str],
    num_bytes: int | None = None,
) -> None:
    r"""Writes a file so that it is either complete or absent, never half-written.

    Writes to a temporary file in the same folder, flushes it to disk and renames
    it. A failing write leaves nothing behind, and a killed one a temporary file
    that the next write of the same file removes, as :func:`remove_stale` does.

    Args:
        write (callable): Called with the file, opened for writing bytes.
        path (str): Where to store the file.
        num_bytes (int, optional): Its expected size, named in the error if the
            disk is full. (default: :obj:`None`)

    Raises:
        OSError: If the file can't be written; names the folder and the way out.
    """
    atomic_save_all([(write, path)], num_bytes)


def atomic_save_all(
    files: Sequence[tuple[Callable[[IO[bytes]], Any], str | os.PathLike[str]]],
    num_bytes: int | None = None,
) -> None:
    r"""Writes files of one folder that belong together, each as :func:`atomic_save`
    does, so that no old one is ever beside a new one.

    All are complete before the first gets its name, and all old ones but the first are
    removed before. A kill in between leaves the first file, old or new, without the
    others, which must follow from it.

    Args:
        files (sequence): What writes a file and its path, the leading one first.
        num_bytes (int, optional): As for :func:`atomic_save`. (default: :obj:`None`)

    Raises:
        OSError: If a file can't be written; names the folder and the way out.
    """
    folder = osp.dirname(os.fspath(files[0][1])) or '.'
    temps: list[str] = []
    with explain_write_errors(folder, num_bytes):
        try:
            for write, path in files:
                remove_stale(folder, osp.basename(os.fspath(path)))
                temps.append(temp_path(path))
                _active.add(osp.abspath(temps[-1]))
                with open(temps[-1], 'wb') as file:
                    write(file)
                    file.flush()
                    os.fsync(file.fileno())
            for _, path in files[1:]:
                with suppress(FileNotFoundError):
                    os.unlink(path)
                sync_folder(folder)
            for temp, (_, path) in zip(temps, files):
                os.replace(temp, path)
                sync_folder(folder)
        except BaseException:
            for temp in temps:
                with suppress(OSError):
                    os.unlink(temp)
            raise
        finally:
            _active.difference_update(map(osp.abspath, temps))


def remove_stale(folder: str, name: str | None = None) -> None:
    r"""Removes temporary files in :obj:`folder` that killed processes left behind, all
    or those of the file :obj:`name`.

    Those of a running process on this machine stay, and those of other machines
    for one hour, as their processes can't be seen from here.
    """
    for path in stale_paths(folder, name):
        with suppress(OSError):
            path.unlink()


def stale_paths(folder: str, name: str | None = None) -> list[Path]:
    r"""Returns what killed processes have left in :obj:`folder` under names of
    :func:`temp_path`, files and folders, all or those for :obj:`name`.
    """
    host, start = host_name(), '.+' if name is None else re.escape(name)
    pattern = re.compile(start + r'\.([^.]*)\.(\d+)(?:-\d+)?\.tmp', re.DOTALL)
    out = []
    for path in Path(folder).iterdir():
        match = pattern.fullmatch(path.name)
        if match is None or osp.abspath(path) in _active:
            continue
        with suppress(OSError):
            is_old = time.time() - path.stat().st_mtime > _SECONDS_UNTIL_STALE
            is_ours = match[1] == host
            if is_old or (is_ours and not _is_running(int(match[2]))):
                out.append(path)
    return out


@contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    r"""Gives a new folder beside :obj:`path` that takes its place at the end of the
    block, whole or not at all.

    A failing block leaves nothing behind, and a killed one a temporary folder that the
    next call for the same :obj:`path` removes.

    Args:
        path (str or Path): The folder, which must not exist or be empty.

    Raises:
        FileExistsError: If it is not empty, also if it got something meanwhile.
        OSError: If it can't be written; names the folder and the way out.
    """
    path = Path(osp.realpath(path))
    folder = str(path.parent)
    make_folder(folder)
    for old in stale_paths(folder, path.name):
        shutil.rmtree(old) if old.is_dir() else old.unlink()
    temp = Path(temp_path(path))
    _active.add(str(temp))
    try:
        with explain_write_errors(folder):
            os.mkdir(temp)
            if path.exists():
                temp.chmod(path.stat().st_mode)
        yield temp
        _put_in_place(temp, path)
    except BaseException:
        shutil.rmtree(temp, ignore_errors=True)
        raise
    finally:
        _active.discard(str(temp))


def _put_in_place(temp: Path, path: Path) -> None:
    try:
        if path.exists():
            os.rmdir(path)  # Fails unless it is an empty folder.
        os.rename(temp, path)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise FileExistsError(
                f"'{path}' is not empty. Choose another folder."
            ) from error
        if error.errno == errno.EBUSY:
            raise OSError(
                errno.EBUSY,
                f"'{path}' is in use, such as the place of another disk, and can't be "
                f'replaced. Choose a new folder in it.',
            ) from error
        raise
    sync_folder(str(path.parent))


@contextmanager
def explain_write_errors(folder: str, num_bytes: int | None = None) -> Iterator[None]:
    r"""Re-raises errors of writing into :obj:`folder` with the reason and way out."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        cause = _os_error(error)
        if cause is None or cause.errno is None or cause.errno not in WRITE_ERRNOS:
            raise
        need = '' if num_bytes is None else f', needed: about {num_bytes:,} bytes'
        raise OSError(
            cause.errno,
            f"Cannot write to the folder '{folder}': {os.strerror(cause.errno)} "
            f'(free: {free_bytes(folder):,} bytes{need}). Make it a writable folder '
            f"with enough free space, or pass another path.",
        ) from error


def free_bytes(folder: str) -> int:
    r"""Returns the free space for :obj:`folder`, which may not exist yet."""
    while not osp.isdir(folder):
        parent = osp.dirname(osp.abspath(folder))
        if parent == folder:
            return 0
        folder = parent
    return shutil.disk_usage(folder).free


def host_name() -> str:
    r"""Returns this machine's name in letters that fit between dots."""
    return re.sub(r'\W+', '-', platform.node())


def temp_path(path: str | os.PathLike[str]) -> str:
    r"""Returns a name beside :obj:`path` that :func:`remove_stale` knows."""
    # The number keeps threads apart that write the same file.
    return f'{os.fspath(path)}.{host_name()}.{os.getpid()}-{next(_numbers)}.tmp'


def _os_error(error: BaseException | None) -> OSError | None:
    # `torch.save` may turn an `OSError` of the file into a `RuntimeError`.
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def _is_running(pid: int) -> bool:
    if pid == os.getpid() or os.name != 'posix':
        return pid != os.getpid()
    try:
        os.kill(pid, 0)  # Signal 0 only asks whether the process exists.
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def sync_folder(folder: str) -> None:
    r"""Flushes the names in a folder to disk, where that is possible."""
    if os.name != 'posix':
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:  # Some network file systems can't sync a folder.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
