r"""What a workspace tells those who run it: a page, and figures for a monitor."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch_geometric_unlearn.report.html import Cell, grid
from torch_geometric_unlearn.utils.files import atomic_save, make_folder

from .attempts import kept, signatures
from .gates import FAIL, INCONCLUSIVE, PASS, SIGNED
from .kinds import STATES
from .page import SIGNS, gates_table, render_page, span, utc

if TYPE_CHECKING:
    from .workspace import Workspace

#: What a state means to who reads the page.
MEANINGS = {
    'queued': 'accepted, out of the lists, waits for the next run',
    'review': 'a person has to decide',
    'held': 'kept back by a person, out of the lists',
    'working': 'being unlearned now',
    'probation': 'unlearned and served; the old model still exists',
    'completed': 'done, old model and ids destroyed',
    'rejected': 'ended by a review',
    'cancelled': 'ended by a person before any work',
}
VERDICTS = (PASS, FAIL, INCONCLUSIVE, SIGNED, 'nothing')
PAGE, METRICS = 'site/index.html', 'metrics.prom'
#: States from which a request still has to be unlearned.
_OPEN = "('queued', 'review', 'held', 'working')"
_MOST = 20


def write_site(ws: Workspace, name: str | None = None) -> Path:
    r"""Writes :obj:`site/index.html` and :obj:`metrics.prom`, and returns the page.

    Args:
        ws (Workspace): The workspace.
        name (str, optional): What its folder will be called, if it has another name
            now. (default: :obj:`None`)
    """
    content = collect(ws)
    if name is not None:
        content['name'] = name
    page = ws.root / PAGE
    make_folder(str(page.parent))
    files = {page: render(content), ws.root / METRICS: metrics(content)}
    for path, text in files.items():
        _write(path, text.encode())
    return page


def outdated(ws: Workspace) -> list[str]:
    r"""Returns the names of the files that do not follow from the ledger as it is."""
    head, out = ws.ledger.head, []
    for name in (PAGE, METRICS):
        try:
            text = (ws.root / name).read_text('utf-8')
        except (FileNotFoundError, UnicodeDecodeError):
            text = ''
        if head not in text:
            out.append(name)
    return out


def _write(path: Path, text: bytes) -> None:
    atomic_save(lambda file: file.write(text), path, len(text))


def collect(ws: Workspace) -> dict[str, Any]:
    r"""Returns what the page and the figures are made of; it holds no raw id."""
    ledger = ws.ledger
    due = ledger.rows(
        f'SELECT id FROM request WHERE state IN {_OPEN} ORDER BY due_at, id LIMIT ?',
        _MOST,
    )
    served = ledger.rows(
        'SELECT a.at, a.who, a.why, v.* FROM alias_event a JOIN version v '
        'ON v.id = a.version ORDER BY a.id DESC LIMIT ?',
        _MOST,
    )
    jobs = ledger.rows(
        "SELECT * FROM job WHERE state != 'left' ORDER BY created_at DESC, rowid DESC "
        'LIMIT 5'
    )
    last = ledger.row(
        'SELECT verdict, finished_at FROM job WHERE verdict IS NOT NULL '
        'ORDER BY finished_at DESC, rowid DESC LIMIT 1'
    )
    states = ledger.rows('SELECT state, COUNT(*) AS n FROM version GROUP BY 1')
    return {
        'now': ws.clock(),
        'head': ledger.head,
        'name': ws.root.resolve().name,
        'status': ws.status(),
        'requests': [ws.book.info(row['id']) for row in due],
        'served': [dict(row) for row in served],
        'versions': {row['state']: row['n'] for row in states},
        'jobs': [_job(ws, dict(row)) for row in jobs],
        'last_job': None if last is None else dict(last),
        'attempts': [
            asdict(attempt) | {'report': attempt.report.relative_to(ws.root)}
            for attempt in kept(ws)
        ],
    }


def _job(ws: Workspace, job: dict[str, Any]) -> dict[str, Any]:
    rows = ws.ledger.rows(
        'SELECT * FROM gate WHERE job = ? ORDER BY attempt, rowid', job['id']
    )
    methods = json.loads(job['methods'])
    gates = [
        {'attempt': methods[row['attempt']], 'verdict': row['verdict']}
        | json.loads(row['content'])
        for row in rows
    ]
    page = ws.root / 'evidence' / job['id'] / 'report.html'
    return job | {
        'gates': gates,
        'requests': json.loads(job['requests']),
        'has_report': page.is_file(),
        'signatures': signatures(ws, job['id']),
    }


# Figures for a monitor ----------------------------------------------------------------


def metrics(content: dict[str, Any]) -> str:
    r"""Returns the figures in the text format of Prometheus."""
    status = content['status']
    due = status['next_deadline']
    last = content['last_job'] or {'verdict': None, 'finished_at': None}
    families: list[tuple[str, str, dict[str, float]]] = [
        (
            'requests',
            'Requests by state.',
            {_label('state', x): status['requests'].get(x, 0) for x in STATES},
        ),
        (
            'requests_overdue',
            'Requests past their deadline that are not unlearned.',
            {'': status['overdue']},
        ),
        (
            'next_deadline_seconds',
            'Seconds to the next deadline, negative if it has passed, NaN if none.',
            {'': math.nan if due is None else due - content['now']},
        ),
        (
            'watermark',
            'Requests that the model in service is free of.',
            {'': status['watermark']},
        ),
        (
            'versions',
            'Versions of the model by state.',
            {_label('state', x): n for x, n in sorted(content['versions'].items())},
        ),
        (
            'last_job',
            'Whether this was the verdict on the last finished job.',
            {_label('verdict', x): int(last['verdict'] == x) for x in VERDICTS},
        ),
        (
            'last_job_timestamp_seconds',
            'When the last job was finished, NaN if there is none.',
            {'': math.nan if last['finished_at'] is None else last['finished_at']},
        ),
    ]
    lines = []
    for name, words, values in families:
        lines += [f'# HELP tgu_{name} {words}', f'# TYPE tgu_{name} gauge']
        for labels, value in values.items():
            number = 'NaN' if math.isnan(value) else f'{value:.15g}'
            lines.append(f'tgu_{name}{labels} {number}')
    return '\n'.join([*lines, f'# ledger {content["head"]}', ''])


def _label(name: str, value: str) -> str:
    return f'{{{name}="{value}"}}'


# The page -----------------------------------------------------------------------------


def render(content: dict[str, Any]) -> str:
    r"""Returns the page."""
    return render_page(
        'site.html',
        title=f'Deletion requests: {content["name"]}',
        now=utc(content['now']),
        ledger=content['head'],
        status=content['status'],
        headline=_headline(content),
        states=_states(content),
        deadlines=_deadlines(content),
        attempts=content['attempts'],
        num_waiting=sum(content['status']['requests'].get(x, 0) for x in STATES[:4]),
        served=_served(content),
        jobs=[
            {
                'id': job['id'],
                'title': f'{SIGNS[job["verdict"]]} {job["verdict"] or job["state"]}',
                'when': utc(job['finished_at'] or job['created_at']),
                'num_requests': len(job['requests']),
                'has_report': job['has_report'],
                'signatures': job['signatures'],
                'table': gates_table(job['gates']),
            }
            for job in content['jobs']
        ],
    )


def _headline(content: dict[str, Any]) -> tuple[str, str]:
    r"""Returns a class of the style sheet and a sentence: what is most urgent."""
    status = content['status']
    review = status['requests'].get('review', 0)
    if status['overdue']:
        more = f'; a person has to decide: {review}' if review else ''
        return 'outside', f'✗ Overdue: {status["overdue"]}{more}'
    if review:
        return 'unclear', f'? A person has to decide: {review}'
    if status['next_deadline'] is None:
        return 'within', '✓ Nothing waits'
    rest = span(status['next_deadline'] - content['now'])
    return 'within', f'✓ In time: the next deadline is in {rest}'


def _states(content: dict[str, Any]) -> Any:
    counts = content['status']['requests']
    rows = [
        [Cell(state, small=MEANINGS[state]), counts.get(state, 0)] for state in STATES
    ]
    return grid(['State', 'Requests'], rows)


def _deadlines(content: dict[str, Any]) -> Any:
    rows = []
    for info in content['requests']:
        rest = info.due_at - content['now']
        words = Cell(f'in {span(rest)}')
        if rest < 0:
            words = Cell(f'overdue by {span(rest)}', 'failed')
        name = Cell(f'{info.id}', small=info.client_id)
        why = Cell(info.state, small=info.outcome or '')
        when = Cell(utc(info.due_at), 'when')
        rows.append([name, words, when, info.kind, why, info.num_targets])
    head: list[Any] = [('Request', 'your name for it'), 'Due', 'Date', 'Kind', 'State']
    return grid([*head, 'Subjects'], rows)


def _served(content: dict[str, Any]) -> Any:
    rows = [
        [
            Cell(row['id'][:12], title=row['id']),
            row['state'],
            row['watermark'],
            'full training' if row['is_full'] else 'unlearned',
            Cell(utc(row['at']), 'when'),
            Cell(row['who'], small=row['why']),
        ]
        for row in content['served']
    ]
    head: list[Any] = [
        'Version',
        'State now',
        ('Watermark', 'requests it is free of'),
        'Made by',
        'Into service',
        'By whom',
    ]
    return grid(head, rows, 'Newest first; the first one is served', 0)
