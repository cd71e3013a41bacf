r"""Writing files so that a reader never sees half of one."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path


def atomic_write(path: str | os.PathLike[str], write: Callable[[Path], object]) -> None:
    r"""Lets :obj:`write` fill a temporary file beside :obj:`path`, then puts it in
    place in one step. After a failure or a kill, :obj:`path` is as it was before.

    Args:
        path (str or Path): The file; its folder is made if missing.
        write (callable): Receives the temporary path and writes the whole file.

    Raises:
        OSError: If the folder cannot be written to, or is full; says which.
    """
    path = Path(path)
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with open(temporary, 'rb') as f:
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        hint = (
            'Free some space or choose another folder.'
            if error.errno in (errno.ENOSPC, errno.EDQUOT)
            else 'Choose a folder that you may write to.'
        )
        message = f"Cannot write '{path}': {reason}. {hint}"
        raise OSError(error.errno, message) from error
    finally:
        temporary.unlink(missing_ok=True)
