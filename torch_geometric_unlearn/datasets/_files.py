r"""Writes that are either complete or not there at all, and the dataset on them."""

from __future__ import annotations

import errno
import os
import os.path as osp
import platform
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import IO, Any

import torch
from torch_geometric.data import Data, HeteroData, InMemoryDataset
from torch_geometric.data.data import BaseData

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


class StoredDataset(InMemoryDataset):
    r"""An in-memory dataset of one :class:`~torch_geometric.data.HeteroData` whose
    processed file is either complete or absent, whenever the process is killed.

    In contrast to :class:`~torch_geometric.data.InMemoryDataset`, the raw files are
    not asked for once the processed file exists, and a :obj:`pre_transform` is part
    of the processed file's name (see :meth:`processed_name`) instead of a separate
    file, so that each has its own processed file and none is taken for another.

    Raises:
        OSError: If :obj:`root` can't be written.
        ValueError: If the processed file is damaged.
    """

    def processed_name(self, *options: Any) -> str:
        r"""Returns a file name that is readable and unique for :obj:`options`, all
        choices that change the result, together with the :obj:`pre_transform`.
        """
        if self.pre_transform is not None:
            # Without memory addresses, which change from run to run.
            options += (re.sub(r' at 0x[0-9a-f]+', '', repr(self.pre_transform)),)
        parts = [str(option) for option in options]
        readable = [re.sub(r'[^\w.-]+', '-', part)[:32].strip('-') for part in parts]
        digest = sha256('\n'.join(parts).encode()).hexdigest()[:8]
        return '_'.join(['data', *filter(None, readable[:6]), digest]) + '.pt'

    def _download(self) -> None:
        if not self.force_reload and osp.exists(self.processed_paths[0]):
            return
        make_folder(self.raw_dir)
        remove_stale(self.raw_dir)
        super()._download()

    def _process(self) -> None:
        if not self.force_reload and osp.exists(self.processed_paths[0]):
            return
        log = self.log and 'PYTEST_CURRENT_TEST' not in os.environ
        if log:
            print('Processing...', file=sys.stderr)
        make_folder(self.processed_dir)
        remove_stale(self.processed_dir)
        self.process()
        if log:
            print('Done!', file=sys.stderr)

    @classmethod
    def save(cls, data_list: Sequence[BaseData], path: str) -> None:
        r"""Saves a list of data objects to the file path :obj:`path`, atomically."""
        data, slices = cls.collate(data_list)
        content = (data.to_dict(), slices, data.__class__)
        atomic_save(lambda file: torch.save(content, file), path, _num_bytes(data))

    def load(self, path: str, data_cls: type[BaseData] = Data) -> None:
        r"""Loads the dataset from the file path :obj:`path`.

        Raises:
            ValueError: If the file is damaged.
        """
        try:
            super().load(path, data_cls)
        except (MemoryError, PermissionError):
            raise
        except Exception as error:  # `torch.load` raises nearly everything.
            raise ValueError(
                f"'{path}' can't be read as a processed dataset "
                f'({type(error).__name__}: {_first_line(error)}). It was cut off or '
                f'changed on disk. Pass force_reload=True to build it again.'
            ) from error


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
            f"with enough free space, or pass another 'root'.",
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


def _num_bytes(data: BaseData) -> int:
    stores = data.stores if isinstance(data, HeteroData) else [data]
    tensors = [v for store in stores for v in store.to_dict().values()]
    return sum(v.nbytes for v in tensors if isinstance(v, torch.Tensor))


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), 'no further details')
