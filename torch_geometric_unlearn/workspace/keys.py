r"""Keyed digests of ids: for whoever lacks the key they tell nothing, and can't be
found by trying.
"""

from __future__ import annotations

import hmac
import json
import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch_geometric_unlearn.utils.files import (
    explain_write_errors,
    sync_folder,
    temp_path,
)

from .kinds import LEVELS


def make_key(path: Path) -> None:
    r"""Writes a new key that only its owner may read, whole or not at all.

    Raises:
        FileExistsError: If there is a file already.
    """
    temp = temp_path(path)
    with explain_write_errors(str(path.parent)):
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        try:
            with os.fdopen(os.open(temp, flags, 0o600), 'w') as file:
                file.write(secrets.token_hex(32) + '\n')
                file.flush()
                os.fsync(file.fileno())
            try:
                os.link(temp, path)  # Whole or not at all, and never over another.
            except PermissionError:  # A file system without links.
                if path.exists():
                    raise
                os.rename(temp, path)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(temp)
        sync_folder(str(path.parent))


def read_key(path: Path) -> bytes:
    r"""Reads a key.

    Raises:
        FileNotFoundError: If there is none; says what that means.
        ValueError: If it is no key.
    """
    try:
        key = bytes.fromhex(path.read_text().strip())
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"There is no key '{path}'. Without it nobody can tell whom the workspace "
            f'has erased; bring it back from where you keep secrets.'
        ) from error
    except ValueError as error:
        raise ValueError(f"'{path}' holds no key in hexadecimal form") from error
    if len(key) < 16:
        raise ValueError(f"'{path}' holds a key of {len(key)} bytes (expected 32)")
    return key


def encode(level: str, raw: Any) -> str:
    r"""Returns a raw id, or the two of a pair, with their types as JSON.

    Raises:
        TypeError: If an id is neither a string nor an integer, or a pair no pair.
    """
    if level == 'pair' and (not isinstance(raw, (tuple, list)) or len(raw) != 2):
        raise TypeError('A pair must be (user, item), as a tuple')
    ids = list(raw) if level == 'pair' else [raw]
    for part in ids:
        if isinstance(part, bool) or not isinstance(part, (str, int)):
            raise TypeError(
                f'Ids must be strings or integers (got a {type(part).__name__}). Pass '
                f"them as in 'raw_id' of the data."
            )
    return json.dumps(ids)


def decode(level: str, text: str) -> Any:
    r"""Returns what :meth:`encode` was given."""
    ids = json.loads(text)
    return tuple(ids) if level == 'pair' else ids[0]


def keyed(key: bytes, level: str, raw: Any) -> str:
    r"""Returns the HMAC-SHA256 of a raw id or pair."""
    assert level in LEVELS
    text = f'{level}\n{encode(level, raw)}'
    return hmac.new(key, text.encode(), 'sha256').hexdigest()


def fingerprint(key: bytes) -> str:
    r"""Returns what tells keys apart, and nothing about them."""
    return hmac.new(key, b'fingerprint', 'sha256').hexdigest()
