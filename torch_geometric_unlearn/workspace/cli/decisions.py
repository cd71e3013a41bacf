r"""Commands of who decides on requests and on what has failed a gate."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from ..page import utc
from ..workspace import Workspace
from .answer import DONE, REVIEW, Answer, UsageError, about, numbered
from .ids import find_targets, read_ids
from .source import open_workspace


def review(args: argparse.Namespace) -> Answer:
    ws = open_workspace(args)
    chosen = args.approve or args.again or args.reject or args.sign is not None
    if not chosen:
        if args.id is not None or args.who or args.why or args.although:
            raise UsageError(
                "To decide, say '--approve', '--again', '--reject' or '--sign ATTEMPT' "
                'on a request or a job, without any of them see what there is'
            )
        return _to_decide(ws)
    if args.id is None or args.who is None or args.why is None:
        raise UsageError("A decision needs a request or a job, '--who' and '--why'")
    if args.although and args.sign is None:
        raise UsageError("'--although' belongs to '--sign'")
    job, numbers = _find(ws, args.id)
    if args.sign is not None:
        if job is None:
            raise ValueError(f'No job has tried to serve request {args.id}')
        return _sign(ws, job, args)
    for number in numbers:
        _expect(ws, number, 'review')
    decide = ws.reject if args.reject else ws.release
    infos = [decide(number, args.who, args.why) for number in numbers]
    if len(infos) == 1:
        return about(infos[0])
    parts = [about(info) for info in infos]
    return Answer(
        {'requests': [part.content for part in parts]},
        [line for part in parts for line in part.lines],
    )


def _find(ws: Workspace, name: str) -> tuple[str | None, list[int]]:
    r"""Returns a job, and its requests that wait for a decision; or a request, and the
    job that has tried to serve it.
    """
    row = ws.ledger.row('SELECT requests FROM job WHERE id = ?', name)
    if row is not None:
        numbers = json.loads(row['requests'])
        states = {number: ws.book.info(number).state for number in numbers}
        # An interrupted call is repeated.
        waiting = [number for number in numbers if states[number] == 'review']
        return name, waiting or numbers
    if not name.isdecimal():
        raise ValueError(f"There is no job '{name}'")
    info = ws.book.info(int(name))
    return info.job, [info.id]


def _sign(ws: Workspace, job: str, args: argparse.Namespace) -> Answer:
    done = ws.sign(
        job, args.sign, although=args.although, who=args.who, why=args.why
    )
    assert done.version is not None
    return Answer(
        asdict(done),
        [
            f'job {job}: {done.verdict}, requests {numbered(done.requests)}',
            f'in service: {done.version[:12]}',
        ],
    )


def _to_decide(ws: Workspace) -> Answer:
    requests, lines = ws.book.requests('review'), []
    attempts = ws.attempts()
    for info in requests:
        lines.append(f'request {info.id} ({info.kind}, due {utc(info.due_at)}): ')
        lines[-1] += f'{info.outcome}; --approve, --again or --reject'
    for attempt in attempts:
        gates = ' '.join(f'--although {name}' for name in attempt.unpassed)
        where = 'is served on probation' if attempt.is_served else 'failed, is kept'
        lines += [
            f'job {attempt.job}, attempt {attempt.number} ({attempt.method}) {where}, '
            f'requests {numbered(attempt.requests)}: --sign {attempt.number} {gates}',
            f'  {attempt.report}',
        ]
    content = {
        'requests': [asdict(info) for info in requests],
        'attempts': [asdict(x) | {'report': str(x.report)} for x in attempts],
    }
    failed = [x for x in attempts if not x.is_served]
    code = REVIEW if requests or failed else DONE
    return Answer(content, lines or ['Nothing to decide.'], code)


def hold(args: argparse.Namespace) -> Answer:
    return about(open_workspace(args).hold(args.id, args.who, args.why))


def release(args: argparse.Namespace) -> Answer:
    ws = open_workspace(args)
    _expect(ws, args.id, 'held')
    return about(ws.release(args.id, args.who, args.why))


def cancel(args: argparse.Namespace) -> Answer:
    return about(open_workspace(args).cancel(args.id, args.who, args.why))


def _expect(ws: Workspace, number: int, state: str) -> None:
    found = ws.book.info(number).state
    if found != state:
        raise ValueError(f"Request {number} must be '{state}' (it is '{found}')")


def lift(args: argparse.Namespace) -> Answer:
    lines = read_ids(args)
    ws = open_workspace(args)
    targets, _ = find_targets(ws, lines)
    for level, ids in targets.items():
        for raw in ids:
            ws.lift(level, raw, args.who, args.why)
    num = sum(map(len, targets.values()))
    return Answer({'lifted': num}, [f'May come back in new data: {num}'])


def clock(args: argparse.Namespace) -> Answer:
    ws = open_workspace(args)
    ws.accept_clock(args.who, args.why)
    return Answer({'now': ws.clock()}, [f'It is {utc(ws.clock())}.'])
