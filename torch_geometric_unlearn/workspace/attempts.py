r"""Attempts that failed a soft gate: kept until a person has decided on them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch_geometric_unlearn.utils.files import remove_stale

from .gates import FAIL, HARD, NAMES, PASS, SIGNED, Gate
from .schedule import pending

if TYPE_CHECKING:
    from .workspace import Workspace


#: Number, method, version and data of an attempt.
Kept = tuple[int, str, str, str]


@dataclass(frozen=True)
class Attempt:
    r"""A version that a person may sign for.

    Attributes:
        job (str): The job that made it.
        number (int): Its place in the chain of methods.
        method (str): The method.
        version (str): The version.
        is_served (bool): Whether it is served already, as its gates are inconclusive.
        gates (dict): Verdicts by gate.
        requests (list): Numbers of the requests that it serves.
        report (Path): The page that describes it.
    """

    job: str
    number: int
    method: str
    version: str
    is_served: bool
    gates: dict[str, str]
    requests: list[int]
    report: Path
    unpassed: list[str] = field(init=False)  #: Gates that must be named.

    def __post_init__(self) -> None:
        gates = [name for name, verdict in self.gates.items() if verdict != PASS]
        object.__setattr__(self, 'unpassed', gates)


def may_be_signed(found: Sequence[Gate]) -> bool:
    r"""Returns whether all gates were measured and no hard one has failed."""
    hard = [gate.verdict for gate in found if gate.name in HARD]
    return {gate.name for gate in found} == set(NAMES) and FAIL not in hard


def attempt_folder(ws: Workspace, job: str, number: int) -> Path:
    r"""Returns where the report of an attempt is kept."""
    return ws.root / 'attempts' / f'{job}.{number}'


def keep(ws: Workspace, job: str, kept: Sequence[Kept]) -> None:
    r"""Keeps attempts of a job, instead of those of an earlier run; inside a
    transaction.
    """
    service = ws.versions.service
    ws.ledger.write('DELETE FROM attempt WHERE job = ?', job)
    for values in kept:
        ws.ledger.write(
            'INSERT INTO attempt (job, number, method, version, data, parent, '
            "parent_data, state) VALUES (?, ?, ?, ?, ?, ?, ?, 'kept')",
            job,
            *values,
            service['id'],
            service['data'],
        )


def kept(ws: Workspace) -> list[Attempt]:
    r"""Returns the attempts that failed and can still be served: all requests of the
    job wait for a decision, what is served has not changed since, and nobody has taken
    it out of service. A replay was to complete a rollback: the old weights that it came
    from must be there, and its requests on probation as before.
    """
    if pending(ws) is not None:
        return []
    service = ws.versions.service
    rows = ws.ledger.rows(
        'SELECT a.*, j.requests, j.methods FROM attempt a JOIN job j ON j.id = a.job '
        "LEFT JOIN version v ON v.id = j.parent WHERE a.state = 'kept' AND "
        'a.parent = ? AND a.parent_data = ? AND '
        "(NOT j.replays OR COALESCE(v.state, 'purged') != 'purged') AND "
        '(SELECT COUNT(*) FROM json_each(j.requests)) = (SELECT COUNT(*) FROM '
        'request r WHERE r.id IN (SELECT value FROM json_each(j.requests)) AND '
        "(CASE WHEN j.replays THEN r.state = 'probation' ELSE r.state = 'review' AND "
        'r.job = j.id END)) ORDER BY j.finished_at, a.job, a.number',
        service['id'],
        service['data'],
    )
    return [_attempt(ws, row, row['number'], False) for row in rows]


def undecided(ws: Workspace) -> list[Attempt]:
    r"""Returns the versions that are on probation because their gates could not be
    told, without those that a rollback has opened again: it serves other weights, until
    the same job is done anew.
    """
    rows = ws.ledger.rows(
        'SELECT DISTINCT j.id AS job, j.requests, j.version, j.methods FROM job j '
        "JOIN request r ON r.job = j.id WHERE j.verdict = 'inconclusive' AND "
        "j.state = 'done' AND r.state = 'probation' AND NOT EXISTS (SELECT 1 FROM "
        "event e, json_each(e.body, '$.jobs') x WHERE e.kind = 'rolled_back' AND "
        'x.value = j.id AND e.id > (SELECT MAX(s.id) FROM event s WHERE '
        "s.kind = 'started' AND json_extract(s.body, '$.job') = j.id)) "
        'ORDER BY j.finished_at, j.id'
    )
    return [_attempt(ws, row, promoted(ws, row['job']), True) for row in rows]


def _attempt(ws: Workspace, row: Any, number: int, is_served: bool) -> Attempt:
    gates = ws.ledger.rows(
        'SELECT name, verdict FROM gate WHERE job = ? AND attempt = ? ORDER BY rowid',
        row['job'],
        number,
    )
    folder = attempt_folder(ws, row['job'], number)
    if is_served:
        folder = ws.root / 'evidence' / row['job']
    return Attempt(
        row['job'],
        number,
        json.loads(row['methods'])[number],
        row['version'],
        is_served,
        {gate['name']: gate['verdict'] for gate in gates},
        json.loads(row['requests']),
        folder / 'report.html',
    )


def promoted(ws: Workspace, job: str) -> int:
    r"""Returns which attempt of a job was promoted: the one that was signed for, else
    the last one.
    """
    row = ws.ledger.row(
        "SELECT COALESCE((SELECT number FROM attempt WHERE job = ?1 AND "
        "state = 'promoted'), (SELECT MAX(attempt) FROM gate WHERE job = ?1)) AS n",
        job,
    )
    assert row is not None
    return int(row['n'])


def drop_stale(ws: Workspace) -> list[str]:
    r"""Gives up the attempts that can't be served any more, removes the reports of all
    but those that can, and returns what it did.
    """
    ledger, done = ws.ledger, []
    with ledger.transaction():
        left = {(attempt.job, attempt.number) for attempt in kept(ws)}
        rows = ledger.rows("SELECT job, number FROM attempt WHERE state = 'kept'")
        for row in rows:
            if (row['job'], row['number']) not in left:
                give_up(ws, row['job'], row['number'])
                done.append(f'gave up attempt {row["number"]} of job {row["job"]}')
    names = {attempt_folder(ws, *key).name for key in left}
    for path in sorted((ws.root / 'attempts').glob('*')):
        if path.name in names:
            remove_stale(str(path))
        else:
            shutil.rmtree(path)
            done.append(f'removed attempts/{path.name}')
    return done


def give_up(ws: Workspace, job: str, number: int) -> None:
    r"""Lets the files of an attempt go; inside a transaction."""
    ws.ledger.write(
        "UPDATE attempt SET state = 'destroyed' WHERE job = ? AND number = ?",
        job,
        number,
    )
    ws.ledger.event(ws.clock(), 'attempt_destroyed', job=job, attempt=number)


def signatures(ws: Workspace, job: str | None) -> list[dict[str, Any]]:
    r"""Returns who has signed for a version of a job, for which gates and why."""
    rows = ws.ledger.rows('SELECT * FROM event WHERE kind = ? ORDER BY id', SIGNED)
    return signatures_in(map(dict, rows), job)


def signatures_in(
    events: Iterable[Mapping[str, Any]], job: str | None
) -> list[dict[str, Any]]:
    r"""Returns the same out of some events."""
    found = [
        {'at': event['at']} | json.loads(event['body'])
        for event in events
        if event['kind'] == SIGNED
    ]
    return [entry for entry in found if entry['job'] == job]
