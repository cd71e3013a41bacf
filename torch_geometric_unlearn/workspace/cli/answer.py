r"""What commands answer, and in which words."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any, NamedTuple

from ..book import RequestInfo
from ..page import span, utc
from ..workspace import Workspace

DONE, ERROR, USAGE, REVIEW, OVERDUE, BUSY = 0, 1, 2, 3, 4, 75


class Answer(NamedTuple):
    r"""What a command found: as JSON, as lines of text, its exit code, and whether it
    goes to standard error, as a table is on standard output.
    """

    content: dict[str, Any]
    lines: list[str]
    code: int = DONE
    is_aside: bool = False


class UsageError(Exception):
    r"""A command that was called in a wrong way."""


def about(info: RequestInfo) -> Answer:
    lines = [
        f'Request {info.id} ({info.client_id}): {info.kind}, {info.state}, '
        f'due {utc(info.due_at)}',
        f'Subjects: {info.num_targets}, erased interactions: {info.num_pairs}',
    ]
    if info.outcome:
        lines.append(f'Outcome: {info.outcome}')
    return Answer(asdict(info), lines)


def standing(ws: Workspace) -> Answer:
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
    if status['failed'] is not None:
        lines.append(
            f'to decide: job {status["failed"]}, which was to settle what gates could '
            f"not tell, died three times: call 'refresh', or sign ('review')"
        )
    lines += [f'to decide: request {x.id} ({x.outcome})' for x in in_review]
    reviews = [{'id': info.id, 'reason': info.outcome} for info in in_review]
    code = REVIEW if in_review or status['failed'] is not None else DONE
    code = OVERDUE if status['overdue'] else code
    return Answer(status | {'to_decide': reviews}, lines, code)


def numbered(requests: Iterable[int]) -> str:
    return ', '.join(map(str, requests))


def in_words(entry: dict[str, Any]) -> str:
    r"""Returns who has signed for what."""
    by = 'has the role' if entry['has_role'] else 'no roles were set'
    return (
        f'served although not passed: {", ".join(entry["although"])}; signed by '
        f'{entry["who"]} ({by}): {entry["why"]}'
    )
