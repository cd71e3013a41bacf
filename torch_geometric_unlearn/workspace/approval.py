r"""What a person can say to a gate: serve it all the same."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from torch_geometric_unlearn.utils.files import make_folder

from . import attempts, worker
from . import rollback as way_back
from .attempts import Attempt
from .book import check_text
from .gates import FAIL, HARD, SIGNED
from .keys import decode
from .promotion import Candidate, promote
from .worker import Job

if TYPE_CHECKING:
    from .workspace import Workspace


def sign(
    ws: Workspace,
    job: str,
    number: int,
    although: Collection[str],
    who: str,
    why: str,
) -> Job:
    r"""Serves an attempt of a job although it did not pass all soft gates."""
    has_role = ws.settings.check_role('sign', who)
    attempt = _find(ws, job, number)
    if isinstance(although, str) or set(although) != set(attempt.unpassed):
        raise ValueError(
            f"'although' must name the gates that attempt {number} did not pass, "
            f'{attempt.unpassed} (got {although!r})'
        )
    ids = [decode(x['level'], x['raw']) for x in ws.book.targets(attempt.requests)]
    check_text(who, 'who', ids)
    check_text(why, 'why', ids)

    def record() -> None:
        if _find(ws, job, number) != attempt:
            raise ValueError(f"Job '{job}' has changed meanwhile. Look at it again.")
        now = ws.clock()
        for request in attempt.requests:
            ws.ledger.write(
                'INSERT INTO review (request, at, who, decision, reason) '
                'VALUES (?, ?, ?, ?, ?)',
                request,
                now,
                who,
                SIGNED,
                why,
            )
        ws.ledger.event(
            now,
            SIGNED,
            job=job,
            attempt=number,
            version=attempt.version,
            gates=attempt.gates,
            although=attempt.unpassed,
            who=who,
            why=why,
            has_role=has_role,
        )

    if attempt.is_served:
        with ws.ledger.transaction():
            record()
            ws.ledger.write('UPDATE job SET verdict = ? WHERE id = ?', SIGNED, job)
    else:
        _serve(ws, attempt, (who, why), record)
    gates = {f'{number} {attempt.method}': attempt.gates}
    return Job(job, SIGNED, attempt.version, gates, attempt.requests)


def _find(ws: Workspace, job: str, number: int) -> Attempt:
    r"""Returns an attempt that may be signed for."""
    found = [*attempts.kept(ws), *attempts.undecided(ws)]
    for attempt in found:
        if (attempt.job, attempt.number) == (job, number):
            return attempt
    rows = ws.ledger.rows(
        'SELECT name FROM gate WHERE job = ? AND attempt = ? AND verdict = ?',
        job,
        number,
        FAIL,
    )
    if hard := sorted({row['name'] for row in rows} & set(HARD)):
        raise ValueError(
            f"Attempt {number} of job '{job}' failed the gate '{hard[0]}', which "
            f'nobody can overrule'
        )
    raise ValueError(
        f"There is no attempt {number} of a job '{job}' to sign for. Attempts that "
        f'failed are kept until one of their requests is decided on, or another '
        f"version is served; 'tgu review' lists those that there are."
    )


def _serve(
    ws: Workspace, attempt: Attempt, by: tuple[str, str], record: Callable[[], None]
) -> None:
    row = ws.ledger.row(
        'SELECT data FROM attempt WHERE job = ? AND number = ?',
        attempt.job,
        attempt.number,
    )
    job = ws.ledger.row('SELECT * FROM job WHERE id = ?', attempt.job)
    assert row is not None
    assert job is not None
    # The files are those that went through the gates, or this raises.
    data = ws.versions.store.get_data(row['data'])
    ws.versions.store.get_model(attempt.version, data, ws.build_model)
    if job['replays']:
        sql = 'SELECT * FROM version WHERE id = ?'
        task = way_back.replay_task(ws, job, ws.ledger.row(sql, job['parent']))
        then = way_back.ending(ws, task)
    else:
        methods = json.loads(job['methods'])
        task, outcomes = worker.batch_task(ws, job['id'], attempt.requests, methods)
        then = worker.ending(ws, task, outcomes)
    to = ws.root / 'evidence' / attempt.job
    make_folder(str(to))
    for name in ('report.json', 'report.html'):
        shutil.copyfile(attempt.report.with_name(name), to / name)

    def first() -> None:
        record()
        for other in attempts.kept(ws):
            if other.job == attempt.job and other.number != attempt.number:
                attempts.give_up(ws, other.job, other.number)
        ws.ledger.write(
            "UPDATE attempt SET state = 'promoted' WHERE job = ? AND number = ?",
            attempt.job,
            attempt.number,
        )
        then()

    found = Candidate(attempt.version, row['data'], SIGNED, None)
    promote(ws, task, found, first, by)
