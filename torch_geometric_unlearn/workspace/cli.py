r"""The command :obj:`tgu`: a workspace from a shell, a cron table or a scheduler.

Exit codes: 0 done, 1 an error (on stderr), 2 wrong usage, 3 a person has to decide, 4 a
request is overdue, 75 another worker is at work.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import inspect
import json
import os
import sqlite3
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from functools import cache
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from torch_geometric.data import HeteroData

from torch_geometric_unlearn.nn.models.base import RecommenderLike
from torch_geometric_unlearn.train.checkpoint import load_model
from torch_geometric_unlearn.train.fit import fit
from torch_geometric_unlearn.utils.check import check_float
from torch_geometric_unlearn.utils.seed import isolated_seed

from .book import RequestInfo
from .evidence import verify
from .kinds import KINDS, LEVELS
from .settings import SOURCE, Settings
from .site import span, utc, write_site
from .workspace import Busy, Workspace

DONE, ERROR, USAGE, REVIEW, OVERDUE, BUSY = 0, 1, 2, 3, 4, 75
_FOLDER = 'TGU_WORKSPACE'
_MOST_DAYS = 3_660.0


class Answer(NamedTuple):
    r"""What a command found: as JSON, as lines of text, and its exit code."""

    content: dict[str, Any]
    lines: list[str]
    code: int = DONE


class UsageError(Exception):
    r"""A command that was called in a wrong way."""


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
    except KeyboardInterrupt:
        return _fail('Stopped. It is safe to call the command again.', ERROR)
    except (TypeError, ValueError, OSError, ImportError, RuntimeError) as error:
        return _fail(str(error), ERROR)
    except Exception as error:
        # Most likely the caller's own function: say where, in one line.
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f'{Path(place.filename).name}, line {place.lineno}'
        return _fail(f'{type(error).__name__}: {error} ({where})', ERROR)
    if args.json:
        print(json.dumps(answer.content, indent=2))
    else:
        print('\n'.join(answer.lines))
    return answer.code


def _fail(message: str, code: int) -> int:
    print(f'tgu: {message}', file=sys.stderr)
    return code


# Where data and model come from -------------------------------------------------------


def find_function(name: str) -> Callable[..., Any]:
    r"""Returns a function by its place.

    Args:
        name (str): :obj:`'shop.py:load_data'` for a file, or :obj:`'shop:load_data'`
            for a module that is installed.

    Raises:
        ValueError: If there is none.
    """
    place, _, function = name.rpartition(':')
    if not place or not all(part.isidentifier() for part in function.split('.')):
        raise ValueError(
            f"A function must be named as 'shop.py:load_data' or 'module:function' "
            f"(got '{name}')"
        )
    module = _run_file(Path(place)) if place.endswith('.py') else _import(place)
    try:
        out = attrgetter(function)(module)
    except AttributeError as error:
        raise ValueError(f"'{place}' has no '{function}'") from error
    if not callable(out):
        raise ValueError(f"'{name}' must be a function (got {type(out).__name__})")
    return out


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f'{name}.'.startswith(f'{error.name}.'):
            raise
        raise ValueError(
            f"There is no module '{name}'. Install it, or name a file, as 'shop.py:...'"
        ) from error


def _run_file(path: Path) -> Any:
    r"""Runs a file as a module of its name; it may import its neighbours."""
    if not path.is_file():
        raise ValueError(f"There is no file '{path}'")
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(path.stem)
    sys.modules[path.stem] = module  # As an import does.
    try:
        spec.loader.exec_module(module)
    finally:
        if before is not None:
            sys.modules[path.stem] = before
    return module


def _absolute(name: str) -> str:
    r"""Returns the place of a function that holds in every folder."""
    place, _, function = name.rpartition(':')
    if place.endswith('.py'):
        return f'{Path(place).resolve()}:{function}'
    return name


def _open(args: argparse.Namespace) -> Workspace:
    root = Path(args.workspace or os.environ.get(_FOLDER) or '.')
    if not (root / 'workspace.json').is_file():
        raise FileNotFoundError(
            f"There is no workspace in '{root}'. Name its folder with '--workspace' or "
            f"the variable '{_FOLDER}', or make one with 'tgu init'."
        )
    # Most commands build no model; a file is run once.
    found = cache(lambda: find_function(_source(root)['model']))

    def build_model(data: HeteroData) -> RecommenderLike:
        return found()(data)

    return Workspace(root, build_model)


def _source(root: Path) -> dict[str, str]:
    try:
        content = json.loads((root / SOURCE).read_text())
        return {key: str(content[key]) for key in ('data', 'model')}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"'{root / SOURCE}' must name the functions that give data and model, as "
            f'{{"data": "shop.py:load_data", "model": "shop.py:build_model"}}. Write '
            f'it.'
        ) from error


# Ids ----------------------------------------------------------------------------------


def _read_ids(args: argparse.Namespace) -> dict[str, list[str]]:
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


def _targets(
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


# Commands -----------------------------------------------------------------------------


def _init(args: argparse.Namespace) -> Answer:
    root = Path(args.folder)
    if root.exists() and any(root.iterdir()):  # Before a training.
        raise FileExistsError(f"'{root}' is not empty. Choose another folder.")
    values: dict[str, Any] = {}
    if args.settings is not None:
        values = json.loads(Path(args.settings).read_text())
        try:
            Settings(key='', **values)
        except TypeError as error:
            raise ValueError(f"'{args.settings}' is wrong: {error}") from error
    settings = Settings(key='', **values)
    load_data, build_model = find_function(args.data), find_function(args.model)
    data = load_data()
    with isolated_seed(settings.seed):
        model = build_model(data)
    if args.trained is not None:
        load_model(model, args.trained, data=data)
    else:
        fit(model, data, seed=settings.seed, **settings.fit_args)
    ws = Workspace.create(
        root,
        data=data,
        model=model,
        build_model=build_model,
        key=args.key,
        source={'data': _absolute(args.data), 'model': _absolute(args.model)},
        **values,
    )
    write_site(ws)
    key = ws.settings.key
    return Answer(
        {'workspace': str(root.resolve()), 'key': key, **ws.status()},
        [
            f"Made the workspace '{root}'.",
            f"Keep a copy of its key '{key}' where you keep secrets, apart from copies "
            f'of the folder.',
        ],
    )


def _submit(args: argparse.Namespace) -> Answer:
    lines = _read_ids(args)
    ws = _open(args)
    received = None if args.received is None else _date(args.received)
    if args.due_days is not None:
        check_float(args.due_days, '--due-days', 0.0, _MOST_DAYS)
    targets, num_unknown = _targets(ws, lines)
    info = ws.submit(
        args.kind,
        users=targets['user'],
        items=targets['item'],
        pairs=targets['pair'],
        client_id=args.client_id,
        verified_by=args.verified_by,
        received_at=received,
        due_days=args.due_days,
        drop_features=args.drop_features,
    )
    answer = _about(info)
    if num_unknown:
        answer.lines.append(f'Not in the data in service: {num_unknown}')
    code = REVIEW if info.state == 'review' else DONE
    return Answer(answer.content | {'unknown': num_unknown}, answer.lines, code)


def _date(text: str) -> float:
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(
            f"'--received' must be a date such as 2026-03-01 (got '{text}')"
        ) from None
    return (when if when.tzinfo else when.replace(tzinfo=timezone.utc)).timestamp()


def _about(info: RequestInfo) -> Answer:
    lines = [
        f'Request {info.id} ({info.client_id}): {info.kind}, {info.state}, '
        f'due {utc(info.due_at)}',
        f'Subjects: {info.num_targets}, erased interactions: {info.num_pairs}',
    ]
    if info.outcome:
        lines.append(f'Outcome: {info.outcome}')
    return Answer(asdict(info), lines)


def _status(args: argparse.Namespace) -> Answer:
    return _standing(_open(args))


def _standing(ws: Workspace) -> Answer:
    status = ws.status()
    in_review = ws.book.requests('review')
    due = status['next_deadline']
    lines = [f'{state}: {n}' for state, n in sorted(status['requests'].items())]
    lines.append(f'overdue: {status["overdue"]}')
    if due is not None:
        rest = due - ws.clock()
        words = f'in {span(rest)}' if rest >= 0 else f'{span(rest)} ago'
        lines.append(f'next deadline: {utc(due)} ({words})')
    lines.append(
        f'in service: {status["version"][:12]}, free of {status["watermark"]} requests'
    )
    if status['rollback'] is not None:
        lines.append(f"a rollback waits for 'work': job {status['rollback']}")
    lines += [f'to decide: request {x.id} ({x.outcome})' for x in in_review]
    reviews = [{'id': info.id, 'reason': info.outcome} for info in in_review]
    code = REVIEW if in_review else DONE
    code = OVERDUE if status['overdue'] else code
    return Answer(status | {'to_decide': reviews}, lines, code)


def _plan(args: argparse.Namespace) -> Answer:
    plan = _open(args).plan()
    lines = [plan.reason]
    if plan.is_surge:
        lines.append(f'to review: {_numbers(plan.requests)}')
    elif plan.requests:
        lines.append(f'requests: {_numbers(plan.requests)}')
        lines.append(f'methods: {", then ".join(plan.methods)}')
    elif plan.decides or plan.replays:
        lines.append('a full training')
    return Answer(asdict(plan), lines, REVIEW if plan.is_surge else DONE)


def _numbers(requests: Iterable[int]) -> str:
    return ', '.join(map(str, requests))


def _work(args: argparse.Namespace) -> Answer:
    ws = _open(args)
    jobs = ws.work(now=args.now)
    lines = []
    for job in jobs:
        lines.append(f'job {job.id}: {job.verdict}, requests {_numbers(job.requests)}')
        for attempt, gates in job.gates.items():
            found = ', '.join(f'{name} {verdict}' for name, verdict in gates.items())
            lines.append(f'  {attempt}: {found}')
    write_site(ws)
    standing = _standing(ws)
    content = {'jobs': [asdict(job) for job in jobs], 'status': standing.content}
    return Answer(content, lines + standing.lines, standing.code)


def _review(args: argparse.Namespace) -> Answer:
    ws = _open(args)
    _expect(ws, args.id, 'review')
    decide = ws.release if args.approve else ws.reject
    return _about(decide(args.id, args.who, args.why))


def _hold(args: argparse.Namespace) -> Answer:
    return _about(_open(args).hold(args.id, args.who, args.why))


def _release(args: argparse.Namespace) -> Answer:
    ws = _open(args)
    _expect(ws, args.id, 'held')
    return _about(ws.release(args.id, args.who, args.why))


def _cancel(args: argparse.Namespace) -> Answer:
    return _about(_open(args).cancel(args.id, args.who, args.why))


def _expect(ws: Workspace, number: int, state: str) -> None:
    found = ws.book.info(number).state
    if found != state:
        raise ValueError(f"Request {number} must be '{state}' (it is '{found}')")


def _lift(args: argparse.Namespace) -> Answer:
    lines = _read_ids(args)
    ws = _open(args)
    targets, _ = _targets(ws, lines)
    for level, ids in targets.items():
        for raw in ids:
            ws.lift(level, raw, args.who, args.why)
    num = sum(map(len, targets.values()))
    return Answer({'lifted': num}, [f'May come back in new data: {num}'])


def _show(args: argparse.Namespace) -> Answer:
    ws = _open(args)
    info = ws.book.info(args.id)
    sql = 'SELECT at, who, decision, reason FROM review WHERE request = ? ORDER BY id'
    decisions = [dict(row) for row in ws.ledger.rows(sql, args.id)]
    sql = 'SELECT level, outcome, pairs FROM target WHERE request = ?'
    targets = [dict(row) for row in ws.ledger.rows(sql, args.id)]
    sql = 'SELECT attempt, name, verdict FROM gate WHERE job = ? ORDER BY attempt, name'
    gates = [dict(row) for row in ws.ledger.rows(sql, info.job)]
    content, lines, _ = _about(info)
    for x in decisions:
        lines.append(f'{utc(x["at"])}: {x["decision"]} by {x["who"]}, {x["reason"]}')
    if info.job is not None:
        lines.append(f'Job: {info.job}')
    lines += [f'  {x["attempt"]} {x["name"]}: {x["verdict"]}' for x in gates]
    more = {'decisions': decisions, 'targets': targets, 'gates': gates}
    return Answer(content | more, lines)


def _rollback(args: argparse.Namespace) -> Answer:
    ws = _open(args)
    version = ws.rollback(args.who, args.why)
    content, lines, _ = _in_service(version)
    job = ws.status()['rollback']
    if job is not None:
        lines.append(f"'work' completes the rollback: job {job}")
    return Answer(content | {'rollback': job}, lines)


def _clock(args: argparse.Namespace) -> Answer:
    ws = _open(args)
    ws.accept_clock(args.who, args.why)
    return Answer({'now': ws.clock()}, [f'It is {utc(ws.clock())}.'])


def _refresh(args: argparse.Namespace) -> Answer:
    ws = _open(args)
    load_data = find_function(args.data or _source(ws.root)['data'])
    # It needs the workspace to filter by.
    takes = inspect.signature(load_data).parameters
    data = load_data(ws) if takes else load_data()
    return _in_service(ws.refresh(data, args.who, args.why))


def _in_service(version: str) -> Answer:
    return Answer({'version': version}, [f'in service: {version[:12]}'])


def _evidence(args: argparse.Namespace) -> Answer:
    folder = _open(args).evidence(args.job)
    return Answer({'folder': str(folder)}, [str(folder)])


def _verify(args: argparse.Namespace) -> Answer:
    found = verify(args.folder)
    lines = [f'job {found["job"]}: {found["verdict"]}, nothing was changed']
    lines += [f'  {name}: {verdict}' for name, verdict in found['gates'].items()]
    return Answer(found, lines)


def _doctor(args: argparse.Namespace) -> Answer:
    done = _open(args).doctor()
    return Answer({'done': done}, done or ['Nothing to mend.'])


def _stats(args: argparse.Namespace) -> Answer:
    ws = _open(args)

    def count(column: str, table: str) -> dict[str, int]:
        sql = f'SELECT {column} AS x, COUNT(*) AS n FROM {table} GROUP BY 1 ORDER BY 1'
        return {str(row['x'] or 'none'): row['n'] for row in ws.ledger.rows(sql)}

    days = ws.ledger.row(
        'SELECT AVG(j.finished_at - r.received_at) / 86400 AS mean, '
        'MAX(j.finished_at - r.received_at) / 86400 AS most '
        'FROM request r JOIN job j ON j.id = r.job'
    )
    erased = ws.ledger.row('SELECT TOTAL(pairs) AS n FROM target')
    assert days is not None
    assert erased is not None
    content: dict[str, Any] = {
        'requests_by_kind': count('kind', 'request'),
        'requests_by_state': count('state', 'request'),
        'requests_by_outcome': count('outcome', 'request'),
        'jobs_by_verdict': count('verdict', 'job'),
        'versions_by_state': count('state', 'version'),
        'mean_days_to_service': days['mean'],
        'most_days_to_service': days['most'],
        'erased_interactions': int(erased['n']),
        'ledger_bytes': (ws.root / 'ledger.db').stat().st_size,
    }
    lines = []
    for name, value in content.items():
        if isinstance(value, dict):
            value = ', '.join(f'{k} {n}' for k, n in value.items()) or 'none'
        if isinstance(value, float):
            value = f'{value:.1f}'
        lines.append(f'{name.replace("_", " ")}: {"none" if value is None else value}')
    return Answer(content, lines)


def _site(args: argparse.Namespace) -> Answer:
    page = write_site(_open(args))
    return Answer({'page': str(page)}, [str(page)])


# Arguments ----------------------------------------------------------------------------


def make_parser() -> argparse.ArgumentParser:
    r"""Returns the parser of all commands."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument('--json', action='store_true', help='print JSON')
    placed = argparse.ArgumentParser(add_help=False, parents=[common])
    placed.add_argument(
        '--workspace', metavar='FOLDER', help=f'its folder (default: {_FOLDER} or .)'
    )
    signed = argparse.ArgumentParser(add_help=False, parents=[placed])
    signed.add_argument('--who', required=True, help='who decides')
    signed.add_argument('--why', '--reason', required=True, help='the reason')
    named = argparse.ArgumentParser(add_help=False)
    for level, words in zip(LEVELS, ('users', 'items', 'user TAB item')):
        named.add_argument(
            f'--{level}', metavar='FILE', help=f"{words}, one in a line; '-' is stdin"
        )
    named.add_argument('ids', nargs='*', help=argparse.SUPPRESS)

    parser = argparse.ArgumentParser(
        prog='tgu', description='Deletion requests from receipt to evidence.'
    )
    commands = parser.add_subparsers(required=True, metavar='COMMAND')

    def add(
        name: str,
        run: Callable[[argparse.Namespace], Answer],
        words: str,
        *parents: argparse.ArgumentParser,
    ) -> argparse.ArgumentParser:
        out = commands.add_parser(
            name, help=words, description=words, parents=parents, allow_abbrev=False
        )
        out.set_defaults(run=run)
        return out

    init = add('init', _init, 'make a workspace', common)
    init.add_argument('folder', help='a new folder')
    init.add_argument('--data', required=True, help='as shop.py:load_data')
    init.add_argument('--model', required=True, help='as shop.py:build_model')
    init.add_argument('--trained', help="file of 'save_model'; trains one if not given")
    init.add_argument('--settings', help='JSON file with settings')
    init.add_argument('--key', help='file of the key (default: beside the folder)')

    submit = add('submit', _submit, 'accept a request', placed, named)
    submit.add_argument('--kind', required=True, choices=KINDS)
    submit.add_argument('--client-id', required=True, help='your name for it; no id')
    submit.add_argument('--verified-by', required=True, help='who has checked it')
    submit.add_argument('--received', help='date of receipt (default: now)')
    submit.add_argument('--due-days', type=float, help='days from then to the deadline')
    submit.add_argument(
        '--drop-features',
        action='store_true',
        help="erase the features of the items of a 'takedown' as well",
    )

    add('status', _status, 'say where requests stand', placed)
    add('plan', _plan, "say what 'work' would do", placed)
    work = add('work', _work, 'do what is due', placed)
    work.add_argument('--now', action='store_true', help='serve all that waits')
    review = add('review', _review, 'decide on a request', signed)
    choice = review.add_mutually_exclusive_group(required=True)
    choice.add_argument('--approve', action='store_true')
    choice.add_argument('--reject', action='store_true')
    hold = add('hold', _hold, 'keep a request from being served', signed)
    release = add('release', _release, 'let a request that is held go on', signed)
    cancel = add('cancel', _cancel, 'cancel a request', signed)
    show = add('show', _show, 'say what is known of a request', placed)
    for command in (review, hold, release, cancel, show):
        command.add_argument('id', type=int, help='number of the request')
    add('lift', _lift, 'let a subject come back in new data', signed, named)
    add('rollback', _rollback, 'take the model out of service', signed)
    add('clock', _clock, 'go by a clock that was set back', signed)
    refresh = add('refresh', _refresh, 'train and serve a model on new data', signed)
    refresh.add_argument('--data', help="another function than that of 'init'")
    evidence = add('evidence', _evidence, 'write the evidence of a job', placed)
    evidence.add_argument('job')
    check = add('verify', _verify, 'check evidence, without a workspace', common)
    check.add_argument('folder')
    add('doctor', _doctor, 'finish what a crash has left, check all', placed)
    add('stats', _stats, 'sum up what was done', placed)
    add('site', _site, "write 'site/index.html' and 'metrics.prom'", placed)
    return parser
