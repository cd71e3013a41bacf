from __future__ import annotations

import json
import os
import sqlite3
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from ..workspace import Busy
from .answer import BUSY, ERROR, USAGE, Answer, UsageError
from .parser import make_parser


def main(argv: Sequence[str] | None = None) -> int:
    r"""Runs a command and returns its exit code.

    Args:
        argv (sequence, optional): The arguments; those of the process if not given.
            (default: :obj:`None`)
    """
    parser = make_parser()
    args = parser.parse_args(argv)
    try:
        answer: Answer = args.run(args)
    except UsageError as error:
        return _fail(str(error), USAGE)
    except Busy as error:
        return _fail(f'{error}. Try again later.', BUSY)
    except sqlite3.OperationalError as error:
        is_busy = 'locked' in str(error)
        return _fail(f'The ledger: {error}', BUSY if is_busy else ERROR)
    except BrokenPipeError:  # A table that goes to standard output.
        _close_output()
        return _fail('The output was not read to its end.', ERROR)
    except KeyboardInterrupt:
        return _fail('Stopped. It is safe to call the command again.', ERROR)
    except (TypeError, ValueError, OSError, ImportError, RuntimeError) as error:
        return _fail(str(error), ERROR)
    except Exception as error:
        # Most likely the caller's own function: say where, in one line.
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f'{Path(place.filename).name}, line {place.lineno}'
        return _fail(f'{type(error).__name__}: {error} ({where})', ERROR)
    out = json.dumps(answer.content, indent=2) if args.json else '\n'.join(answer.lines)
    try:
        print(out, file=sys.stderr if answer.is_aside else sys.stdout, flush=True)
    except BrokenPipeError:  # As by 'head'; what was to be done is done.
        _close_output()
    return answer.code


def _close_output() -> None:
    r"""Lets the interpreter end without another attempt to write what is left."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def _fail(message: str, code: int) -> int:
    print(f'tgu: {message}', file=sys.stderr)
    return code
