r"""Evidence of a job: files that anyone can check without the workspace."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

from torch_geometric.data import HeteroData

from torch_geometric_unlearn.report import write_report
from torch_geometric_unlearn.utils.files import atomic_save, make_folder
from torch_geometric_unlearn.utils.versions import versions

from . import signing
from .attempts import promoted, signatures_in
from .bundle_page import render_bundle

if TYPE_CHECKING:
    from .workspace import Workspace

MANIFEST, SIGNATURE = 'manifest.json', 'manifest.sig'
#: Settings that say where keys lie and who may decide, not what was done.
_PRIVATE = {'key', 'roles', 'signing_key'}
FILES = {
    'decisions.json',
    'events.json',
    'gates.json',
    'index.html',
    'limits.txt',
    'lineage.json',
    'report.html',
    'report.json',
    'requests.json',
}
_LIMITS = (
    'Whether what was done suffices by law.',
    'That whoever runs the workspace tells the truth: who has the files can make '
    'others.',
    'Anything about copies outside of the workspace, such as databases and backups.',
    'A verdict on one person: figures are those of all requests of the job together, '
    "and where a gate is 'inconclusive' they were too few to tell.",
)


def write_job_report(
    ws: Workspace,
    job: str,
    result: Any,
    parent: Any,
    marked: HeteroData,
    folder: Path | None = None,
) -> None:
    r"""Writes the report of a job, its evidence if no other folder is given; its
    subjects are numbered.
    """
    folder = ws.root / 'evidence' / job if folder is None else folder
    make_folder(str(folder))
    write_report(
        result,
        folder / 'report',
        original=parent,
        data=marked,
        k=ws.settings.k,
        seed=ws.settings.seed,
        title=f'Deletion job {job}',
    )


def bundle(ws: Workspace, job: str) -> Path:
    r"""Writes the evidence of a job as it stands, and returns its folder.

    Raises:
        ValueError: If there is no such job, or nothing was promoted by it.
    """
    row = ws.ledger.row("SELECT * FROM job WHERE id = ? AND state = 'done'", job)
    folder = ws.root / 'evidence' / job
    if row is None or not (folder / 'report.json').exists():
        raise ValueError(f"There is no evidence of a job '{job}': nothing was promoted")
    numbers = json.loads(row['requests'])
    requests = [asdict(ws.book.info(number)) for number in numbers]
    targets = [
        {key: target[key] for key in ('request', 'level', 'digest', 'outcome', 'pairs')}
        for number in numbers
        for target in ws.ledger.rows('SELECT * FROM target WHERE request = ?', number)
    ]
    attempts: dict[str, list[Any]] = {}
    sql = 'SELECT * FROM gate WHERE job = ? ORDER BY attempt, name'
    for gate in ws.ledger.rows(sql, job):
        entry = json.loads(gate['content']) | {'verdict': gate['verdict']}
        attempts.setdefault(str(gate['attempt']), []).append(entry)
    version = ws.ledger.row('SELECT * FROM version WHERE id = ?', row['version'])
    assert version is not None
    settings = {k: v for k, v in asdict(ws.settings).items() if k not in _PRIVATE}
    events = _segment(ws, job)
    key = signing.signer(ws.root, ws.settings)
    content: dict[str, Any] = {
        'gates.json': {
            'verdict': row['verdict'],
            'promoted': str(promoted(ws, job)),
            'attempts': attempts,
        },
        'lineage.json': {
            'job': job,
            'parent': row['parent'],
            'version': version['id'],
            'data': version['data'],
            'watermark': version['watermark'],
            'methods': json.loads(row['methods']),
            'settings': settings,
            'versions': versions(),
        },
        'requests.json': {'requests': requests, 'targets': targets},
        'decisions.json': {
            'reviews': [
                dict(review)
                for number in numbers
                for review in ws.ledger.rows(
                    'SELECT * FROM review WHERE request = ?', number
                )
            ],
            'signatures': signatures_in(events['events'], job),
        },
        'events.json': events,
    }
    page = render_bundle(content, _LIMITS, ws.clock(), key is not None)
    files = {name: json_bytes(part) for name, part in content.items()}
    files |= {'index.html': page.encode(), 'limits.txt': _limits_text().encode()}
    for name, text in files.items():
        _write(folder / name, text)
    names = [*files, 'report.html', 'report.json']
    digests = {
        name: sha256((folder / name).read_bytes()).hexdigest() for name in sorted(names)
    }
    manifest: dict[str, Any] = {'job': job, 'files': digests}
    (folder / SIGNATURE).unlink(missing_ok=True)
    if key is not None:
        manifest['signed_by'] = signing.fingerprint(key)
        _write(folder / SIGNATURE, json_bytes(signing.sign(key, json_bytes(manifest))))
    _write(folder / MANIFEST, json_bytes(manifest))
    return folder


def _limits_text() -> str:
    title = 'What this folder does not say'
    parts = [fill(f'- {limit}', 88, subsequent_indent='  ') for limit in _LIMITS]
    return '\n'.join([title, '=' * len(title), '', *parts, ''])


def _segment(ws: Workspace, job: str) -> dict[str, Any]:
    r"""Returns the events from the start of a job on, and the hash before them."""
    events = [dict(row) for row in ws.ledger.rows('SELECT * FROM event ORDER BY id')]
    first = next(
        place
        for place, event in enumerate(events)
        if event['kind'] == 'started' and json.loads(event['body'])['job'] == job
    )
    before = events[first - 1]['hash'] if first else '0' * 64
    return {'before': before, 'events': events[first:]}


def json_bytes(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=1, sort_keys=True) + '\n').encode()


def _write(path: Path, content: bytes) -> None:
    atomic_save(lambda file: file.write(content), path, len(content))
