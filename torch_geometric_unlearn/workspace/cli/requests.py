r"""Commands of who takes requests in and decides on them."""

from __future__ import annotations

import argparse
from datetime import datetime, timezone

from torch_geometric_unlearn.utils.check import check_float

from ..workspace import Workspace
from .answer import DONE, REVIEW, Answer, UsageError, about
from .ids import find_targets, read_ids
from .source import open_workspace

_MOST_DAYS = 3_660.0


def submit(args: argparse.Namespace) -> Answer:
    lines = read_ids(args)
    ws = open_workspace(args)
    received = None if args.received is None else _date(args.received)
    if args.due_days is not None:
        check_float(args.due_days, '--due-days', 0.0, _MOST_DAYS)
    targets, num_unknown = find_targets(ws, lines)
    info = ws.submit(
        args.kind,
        users=targets['user'],
        items=targets['item'],
        pairs=targets['pair'],
        client_id=args.client_id,
        verified_by=args.verified_by,
        received_at=received,
        due_days=args.due_days,
    )
    answer = about(info)
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


def review(args: argparse.Namespace) -> Answer:
    ws = open_workspace(args)
    _expect(ws, args.id, 'review')
    decide = ws.release if args.approve else ws.reject
    return about(decide(args.id, args.who, args.why))


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
