r"""How ids come in: from standard input or files, never as arguments."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, NoReturn

from ..kinds import LEVELS
from ..workspace import Workspace
from .answer import UsageError


def read_ids(args: argparse.Namespace) -> dict[str, list[str]]:
    r"""Returns the lines that name users, items and pairs, from stdin or files."""
    if args.ids:
        _refuse_ids()
    given = {level: getattr(args, level) for level in LEVELS}
    if list(given.values()).count('-') > 1:
        raise UsageError("Only one of '--user', '--item' and '--pair' can be '-'")
    out = {}
    for level, source in given.items():
        if source is None:
            continue
        path = Path(source)
        if source != '-' and (path.is_dir() or not path.exists()):
            _refuse_ids()
        text = sys.stdin.read() if source == '-' else path.read_text('utf-8')
        lines = text.removeprefix('\ufeff').split('\n')
        out[level] = [line.removesuffix('\r') for line in lines if line.strip()]
    if not any(out.values()):
        raise UsageError('No id was given, on stdin or in a file')
    return out


def _refuse_ids() -> NoReturn:
    # The message must not repeat the id.
    raise UsageError(
        "'--user', '--item' and '--pair' take '-' for stdin, or a file, with one id in "
        'a line. Ids as arguments would stay in the history of the shell and in the '
        'list of processes.'
    )


def find_targets(
    ws: Workspace, lines: dict[str, list[str]]
) -> tuple[dict[str, list[Any]], int]:
    r"""Returns raw ids by level, and how many of them are not in the data."""
    known = {level: ws.versions.internal(level) for level in ('user', 'item')}
    out: dict[str, list[Any]] = {level: [] for level in LEVELS}
    num_unknown = 0
    for level, texts in lines.items():
        for text in texts:
            if level != 'pair':
                raw, is_known = _raw(level, text, known[level])
                out[level].append(raw)
            else:
                parts = text.split('\t')
                if len(parts) != 2:
                    raise UsageError(
                        f'A pair is a user and an item with a tab between them, one in '
                        f'a line (got {len(parts)} parts)'
                    )
                both = [_raw(x, part, known[x]) for x, part in zip(known, parts)]
                out[level].append(tuple(raw for raw, _ in both))
                is_known = all(found for _, found in both)
            num_unknown += not is_known
    return out, num_unknown


def _raw(level: str, text: str, known: dict[Any, int]) -> tuple[Any, bool]:
    r"""Returns an id as the data has it, a string or an integer, and whether it has."""
    for raw in (text, text.strip()):
        if raw in known:
            return raw, True
    text = text.strip()
    if known and all(isinstance(raw, int) for raw in known):
        try:
            number = int(text)
        except ValueError:
            raise ValueError(
                f'The ids of {level}s are integers in the data (got another text)'
            ) from None
        return number, number in known
    return text, False
