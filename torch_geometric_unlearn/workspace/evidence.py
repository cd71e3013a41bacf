r"""Evidence of a job: files that anyone can check without the workspace."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch_geometric.data import HeteroData

from torch_geometric_unlearn.report import read_report, write_report
from torch_geometric_unlearn.utils.files import atomic_save, make_folder
from torch_geometric_unlearn.utils.versions import versions

from .gates import NAMES, Gate, overall
from .ledger import check_chain

if TYPE_CHECKING:
    from .workspace import Workspace

MANIFEST = 'manifest.json'
_FILES = {
    'decisions.json',
    'events.json',
    'gates.json',
    'limits.txt',
    'lineage.json',
    'report.html',
    'report.json',
    'requests.json',
}
_LIMITS = """What this folder does not say
=============================

- Whether what was done suffices by law.
- That whoever runs the workspace tells the truth: who has the files can make others.
- Anything about copies outside of the workspace, such as databases and backups.
- A verdict on one person: figures are those of all requests of the job together, and
  where a gate is 'inconclusive' they were too few to tell.
"""


def write_job_report(
    ws: Workspace, job: str, result: Any, parent: Any, marked: HeteroData
) -> None:
    r"""Writes the report of a job; its subjects are numbered."""
    folder = ws.root / 'evidence' / job
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
    settings = {k: v for k, v in asdict(ws.settings).items() if k != 'key'}
    files = {
        'gates.json': _json({'verdict': row['verdict'], 'attempts': attempts}),
        'lineage.json': _json({
            'job': job,
            'parent': row['parent'],
            'version': version['id'],
            'data': version['data'],
            'watermark': version['watermark'],
            'methods': json.loads(row['methods']),
            'settings': settings,
            'versions': versions(),
        }),
        'requests.json': _json({'requests': requests, 'targets': targets}),
        'decisions.json': _json({
            'reviews': [
                dict(review)
                for number in numbers
                for review in ws.ledger.rows(
                    'SELECT * FROM review WHERE request = ?', number
                )
            ]
        }),
        'events.json': _json(_segment(ws, job)),
        'limits.txt': _LIMITS.encode(),
    }
    for name, content in files.items():
        _write(folder / name, content)
    names = [*files, 'report.html', 'report.json']
    digests = {
        name: sha256((folder / name).read_bytes()).hexdigest() for name in sorted(names)
    }
    _write(folder / MANIFEST, _json({'job': job, 'files': digests}))
    return folder


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


def verify(folder: str | Path) -> dict[str, Any]:
    r"""Checks the evidence of a job with nothing but its folder: every byte against the
    manifest, the chain of events, the report, and that the verdicts follow from the
    figures.

    Args:
        folder (str or Path): The folder.

    Returns:
        dict: :obj:`job`, :obj:`verdict`, and :obj:`gates`, the verdicts of the last
        attempt by name.

    Raises:
        ValueError: If something does not fit; says what.
    """
    try:
        return _verify(Path(folder))
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            f"'{folder}' does not hold the evidence of a job: its content has another "
            f'form ({error!r})'
        ) from error


def _verify(folder: Path) -> dict[str, Any]:
    if not (folder / MANIFEST).is_file():
        raise ValueError(
            f"'{folder}' holds no '{MANIFEST}', so its evidence can't be read. It is "
            f"written when the requests of the job are completed, and before that by "
            f"'tgu evidence JOB'."
        )
    manifest = _read(folder, MANIFEST)
    if set(manifest) != {'job', 'files'} or not set(manifest['files']) >= _FILES:
        raise ValueError(f"'{MANIFEST}' does not name the evidence of a job")
    there = {path.name for path in folder.iterdir()} - {MANIFEST}
    if there != set(manifest['files']):
        raise ValueError(
            f"'{folder}' must hold the files of its manifest and no others (differing: "
            f'{sorted(there ^ set(manifest["files"]))})'
        )
    for name, digest in manifest['files'].items():
        if sha256((folder / name).read_bytes()).hexdigest() != digest:
            raise ValueError(f"'{name}' was changed after the evidence was written")
    read_report(folder / 'report')
    segment, lineage = _read(folder, 'events.json'), _read(folder, 'lineage.json')
    check_chain(segment['events'], segment['before'])
    if lineage['job'] != manifest['job']:
        raise ValueError("'manifest.json' and 'lineage.json' are of different jobs")
    written = _read(folder, 'gates.json')
    last = max(written['attempts'], key=int, default='0')
    found = {entry['name'] for entry in written['attempts'].get(last, [])}
    if found != set(NAMES):
        raise ValueError(
            f'The last attempt must have gone through all gates (differing: '
            f'{sorted(found ^ set(NAMES))})'
        )
    for attempt, entries in written['attempts'].items():
        for entry in entries:
            content = {k: v for k, v in entry.items() if k != 'verdict'}
            if Gate.of(json.dumps(content)).verdict != entry['verdict']:
                raise ValueError(
                    f"The verdict on '{entry['name']}' in attempt {attempt} does not "
                    f'follow from its figures'
                )
    gates = [
        Gate.of(json.dumps({k: v for k, v in entry.items() if k != 'verdict'}))
        for entry in written['attempts'][last]
    ]
    verdict = overall(gates)
    # What could not be told may have been decided together with later requests, and
    # what could be told is open again after a rollback.
    later = {
        event['kind']
        for event in segment['events']
        if manifest['job'] in json.loads(event['body']).get('jobs', [])
    }
    allowed = {verdict} - {'fail'}
    allowed |= {'pass'} if 'decided' in later else set()
    allowed |= {'inconclusive'} if 'rolled_back' in later else set()
    if written['verdict'] not in allowed or verdict == 'fail':
        raise ValueError(
            f"The verdict '{written['verdict']}' does not follow from the gates, which "
            f"say '{verdict}'"
        )
    return {
        'job': manifest['job'],
        'verdict': written['verdict'],
        'gates': {gate.name: gate.verdict for gate in gates},
    }


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=1, sort_keys=True) + '\n').encode()


def _read(folder: Path, name: str) -> Any:
    try:
        text = (folder / name).read_bytes()
        content = json.loads(text)
    except (OSError, ValueError) as error:
        raise ValueError(f"'{folder / name}' can't be read ({error})") from error
    if _json(content) != text:
        raise ValueError(f"'{name}' was changed after the evidence was written")
    return content


def _write(path: Path, content: bytes) -> None:
    atomic_save(lambda file: file.write(content), path, len(content))
