r"""The command of who takes requests in."""

from __future__ import annotations

import argparse
from datetime import datetime, timezone

from torch_geometric_unlearn.utils.check import check_float

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
        drop_features=args.drop_features,
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
