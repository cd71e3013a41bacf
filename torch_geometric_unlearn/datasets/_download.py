r"""Downloads that resume after a break and are verified before they count."""

from __future__ import annotations

import errno
import gzip
import hashlib
import json
import os
import os.path as osp
import re
import ssl
import sys
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from email.message import Message
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from tqdm import tqdm

from torch_geometric_unlearn.utils.files import (
    WRITE_ERRNOS,
    atomic_save,
    explain_write_errors,
    free_bytes,
    make_folder,
)

_BLOCK = 1 << 20
_RETRY_STATUS = {408, 416, 425, 429, 500, 502, 503, 504}


class _Interrupted(Exception):
    r"""The transfer did not finish, but another attempt may succeed."""


def download(
    url: str,
    path: str,
    verify: Callable[[str], None] | None = None,
    sha256: str | None = None,
    retries: int = 4,
    backoff: float = 1.0,
    timeout: float = 30.0,
    log: bool = True,
) -> str:
    r"""Downloads :obj:`url` to :obj:`path`, unless that file exists.

    The content goes to :obj:`<path>.part`. After a break, also of the whole
    process, a later attempt asks for the missing rest only, provided that the server
    supports it and that its file has not changed (judged by its ETag or date and by
    its size). The file gets its name only when its size and :obj:`verify` and
    :obj:`sha256`, if given, agree. Certificates of :obj:`https` are verified.

    Args:
        url (str): The :obj:`http` or :obj:`https` address.
        path (str): The file to write.
        verify (callable, optional): Called with the path of the finished download;
            raises a :class:`ValueError` if its content is damaged.
            (default: :obj:`None`)
        sha256 (str, optional): The expected SHA-256 digest in hexadecimal form.
            (default: :obj:`None`)
        retries (int, optional): Number of further attempts without progress of at
            least 1 MiB. (default: :obj:`4`)
        backoff (float, optional): Seconds before the first further attempt,
            doubled for each one that follows. (default: :obj:`1.0`)
        timeout (float, optional): Seconds without any data after which an attempt
            has failed. (default: :obj:`30.0`)
        log (bool, optional): Whether to print the progress. (default: :obj:`True`)

    Returns:
        str: :obj:`path`.

    Raises:
        ValueError: If :obj:`url` is neither :obj:`http` nor :obj:`https`.
        ConnectionError: If the file can't be downloaded completely; names the
            address, the file, the reason and the way out.
        OSError: If the folder can't be written or has too little space.
    """
    if osp.exists(path):
        return path
    if urlsplit(url).scheme not in ('http', 'https'):
        raise ValueError(
            f"'url' must start with http:// or https:// (got '{url}'). Copy a local "
            f"file to '{path}' by hand instead."
        )
    if log and 'PYTEST_CURRENT_TEST' not in os.environ:
        print(f'Downloading {url}', file=sys.stderr)
    part, best, attempt = f'{path}.part', 0, 0
    make_folder(osp.dirname(part) or '.')
    while True:
        try:
            _fetch(url, part, timeout, log)
            _verify(part, verify, sha256)
            break
        except _Interrupted as error:
            reason: Exception = error
        except HTTPError as error:
            if error.code not in _RETRY_STATUS:
                raise _failure(url, path, error) from error
            reason = error
        except (OSError, HTTPException) as error:
            # Errors of the disk don't go away by asking the server again.
            if getattr(error, 'errno', None) in WRITE_ERRNOS:
                raise
            reason = error
        size = _size(part)
        if size >= best + _BLOCK:
            best, attempt = size, 0
        attempt += 1
        if attempt > retries:
            raise _failure(url, path, reason) from reason
        time.sleep(backoff * 2 ** (attempt - 1))
    with explain_write_errors(osp.dirname(path) or '.'):
        os.replace(part, path)
    _remove(_state_path(part))
    return path


def verify_gzip(path: str) -> None:
    r"""Raises a :class:`ValueError` unless :obj:`path` is a complete gzip file."""
    try:
        with gzip.open(path, 'rb') as file:
            while file.read(_BLOCK):
                pass
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f'no complete gzip file: {error}') from error


def verify_records(path: str, num_bytes: int) -> None:
    r"""Raises a :class:`ValueError` unless :obj:`path` holds one or more records of
    :obj:`num_bytes` bytes.
    """
    size = _size(path)
    if size == 0 or size % num_bytes != 0:
        raise ValueError(f'{size} bytes are no multiple of {num_bytes} bytes')


def _fetch(url: str, part: str, timeout: float, log: bool) -> None:
    r"""One attempt to complete :obj:`part`."""
    state = _read_state(part, url)
    offset = _size(part) if state else 0
    headers = {'User-Agent': 'torch_geometric_unlearn', 'Accept-Encoding': 'identity'}
    if offset > 0:
        headers['Range'] = f'bytes={offset}-'
        headers['If-Range'] = state['validator']
    context = ssl.create_default_context()  # Verifies certificates.
    request = Request(url, headers=headers)
    try:
        response = urlopen(request, timeout=timeout, context=context)
    except HTTPError as error:
        if error.code != 416:
            raise
        if _content_range(error.headers)[1] == offset > 0:
            error.close()
            return  # The file was complete already.
        _remove(part)
        raise
    with response:
        start, total = _content_range(response.headers)
        if response.status != 206:
            length = response.headers.get('Content-Length')
            start, total = 0, int(length) if length and length.isdigit() else None
            _remove(part)  # Before the new state, so that no old part fits to it.
        elif start != offset or total != state.get('total', total):
            _remove(part)
            raise _Interrupted('the server sent another part than the one asked for')
        assert start is not None
        _write_state(part, url, response.headers, total)
        _receive(response, part, start, total, log)


def _receive(
    response: Any, part: str, start: int, total: int | None, log: bool
) -> None:
    folder = osp.dirname(part) or '.'
    rest = None if total is None else total - start
    with explain_write_errors(folder, rest):
        if rest is not None and rest > free_bytes(folder):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        file = open(part, 'ab')  # noqa: SIM115
    show = log and 'PYTEST_CURRENT_TEST' not in os.environ
    bar = tqdm(total=total, initial=start, unit='B', unit_scale=True, disable=not show)
    with file, bar:
        while block := response.read(_BLOCK):
            with explain_write_errors(folder, rest):
                file.write(block)
            bar.update(len(block))
        with explain_write_errors(folder, rest):
            file.flush()
            os.fsync(file.fileno())
    size = _size(part)
    if total is not None and size != total:
        if size > total:
            _remove(part)
        raise _Interrupted(f'the connection ended after {size:,} of {total:,} bytes')


def _verify(
    part: str, verify: Callable[[str], None] | None, sha256: str | None
) -> None:
    try:
        if sha256 is not None:
            with open(part, 'rb') as file:
                digest = hashlib.sha256()
                while block := file.read(_BLOCK):
                    digest.update(block)
            if digest.hexdigest() != sha256.lower():
                raise ValueError(
                    f'its SHA-256 is {digest.hexdigest()}, expected {sha256.lower()}'
                )
        if verify is not None:
            verify(part)
    except ValueError as error:
        _remove(part)
        _remove(_state_path(part))
        raise _Interrupted(f'the downloaded file is damaged ({error})') from error


def _content_range(headers: Message) -> tuple[int | None, int | None]:
    r"""Returns first byte and total size of a :obj:`Content-Range` header."""
    value = headers.get('Content-Range') or ''
    match = re.fullmatch(r'bytes (?:(\d+)-\d+|\*)/(\d+|\*)', value.strip())
    if match is None:
        return None, None
    start = int(match[1]) if match[1] else None
    return start, int(match[2]) if match[2] != '*' else None


def _state_path(part: str) -> str:
    return f'{part}.json'


def _read_state(part: str, url: str) -> dict[str, Any]:
    r"""Returns what is known of a broken-off download, or nothing if it can't be
    continued: another address, or no mark by which to see that the file changed.
    """
    try:
        with open(_state_path(part), encoding='utf-8') as file:
            state = json.load(file)
    except (OSError, ValueError):
        return {}
    is_usable = isinstance(state, dict) and state.get('url') == url
    return state if is_usable and state.get('validator') else {}


def _write_state(part: str, url: str, headers: Message, total: int | None) -> None:
    etag = headers.get('ETag') or ''
    # A weak ETag does not promise equal bytes.
    weak = etag.startswith('W/')
    validator = headers.get('Last-Modified') if weak or not etag else etag
    state = {'url': url, 'validator': validator}
    content = json.dumps(state if total is None else {**state, 'total': total})
    atomic_save(lambda file: file.write(content.encode()), _state_path(part))


def _size(path: str) -> int:
    return osp.getsize(path) if osp.exists(path) else 0


def _remove(path: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(path)


def _failure(url: str, path: str, reason: Exception) -> ConnectionError:
    return ConnectionError(
        f"Cannot download '{url}' to '{path}': {reason}. Try again to continue where "
        f'it stopped, or get the file in another way and put it there by hand.'
    )
