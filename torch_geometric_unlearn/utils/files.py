r"""Writes that are either complete or not there at all."""

from __future__ import annotations

import errno
import os
import os.path as osp
import platform
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

_SECONDS_UNTIL_STALE = 86_400.0
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
    that :func:`remove_stale` removes.

    Args:
        write (callable): Called with the file, opened for writing bytes.
        path (str): Where to store the file.
        num_bytes (int, optional): Its expected size, named in the error if the
            disk is full. (default: :obj:`None`)

    Raises:
        OSError: If the file can't be written; names the folder and the way out.
    """
    folder = osp.dirname(os.fspath(path)) or '.'
    temp = f'{os.fspath(path)}.{host_name()}.{os.getpid()}.tmp'
    with explain_write_errors(folder, num_bytes):
        try:
            with open(temp, 'wb') as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temp, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(temp)
            raise
        _sync_folder(folder)


def remove_stale(folder: str) -> None:
    r"""Removes temporary files in :obj:`folder` that killed processes left behind.

    Those of a running process on this machine stay, and those of other machines
    for one day, as their processes can't be seen from here.
    """
    host = host_name()
    for path in Path(folder).glob('*.tmp'):
        match = re.fullmatch(r'.+\.([^.]*)\.(\d+)\.tmp', path.name)
        if match is None:
            continue
        with suppress(OSError):
            is_old = time.time() - path.stat().st_mtime > _SECONDS_UNTIL_STALE
            is_ours = match[1] == host
            if is_old or (is_ours and not _is_running(int(match[2]))):
                path.unlink()


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


def _sync_folder(folder: str) -> None:
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
