r"""The command that takes out of new tables what must not come back."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import IO

from torch_geometric_unlearn.utils.files import atomic_save

from ..filtering import Counts, filter_csv, filter_parquet
from .answer import Answer, UsageError
from .source import open_workspace

FORMATS = ('csv', 'parquet')
_IN_MEMORY = 1 << 24


def filter_table(args: argparse.Namespace) -> Answer:
    form, separator = _form(args), {'tab': '\t'}.get(args.separator, args.separator)
    if len(separator) != 1:
        raise UsageError("'--separator' must be one character, or 'tab'")
    ws, names = open_workspace(args), (args.user, args.item)

    def write(target: IO[bytes]) -> Counts:
        with _opened(args.table, form) as source:
            if form == 'parquet':
                return filter_parquet(ws, source, target, *names)
            return filter_csv(ws, source, target, *names, separator)

    to_stdout = args.to == '-'
    if to_stdout:  # Nothing of a table that turns out to be broken.
        with SpooledTemporaryFile(_IN_MEMORY) as draft:
            found = write(draft)
            draft.seek(0)
            shutil.copyfileobj(draft, sys.stdout.buffer)
            sys.stdout.buffer.flush()
    else:
        counts: list[Counts] = []
        atomic_save(lambda file: counts.append(write(file)), args.to)
        (found,) = counts
    num_out = found.rows - found.left
    words = f'rows: {found.rows:,}, left: {found.left:,}, out: {num_out:,}'
    content = {'rows': found.rows, 'left': found.left, 'out': num_out}
    return Answer(content, [words], is_aside=to_stdout)


@contextmanager
def _opened(name: str, form: str) -> Iterator[IO[bytes]]:
    if name != '-':
        with open(name, 'rb') as file:
            yield file
    elif form == 'parquet':  # It is read from its end.
        yield BytesIO(sys.stdin.buffer.read())
    else:
        yield sys.stdin.buffer


def _form(args: argparse.Namespace) -> str:
    names = [name for name in (args.table, args.to) if name != '-']
    given = {Path(name).suffix.lower().removeprefix('.') for name in names}
    given = {'csv' if name in ('tsv', 'txt') else name for name in given}
    given |= {args.format} - {None}
    if len(given) > 1 or not given <= set(FORMATS):
        raise UsageError(
            "Tables are files whose name ends with '.csv' or '.parquet', both of the "
            "same form; for standard input say '--format'"
        )
    return given.pop() if given else 'csv'
