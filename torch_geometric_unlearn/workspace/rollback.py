r"""Ways back: another version, old weights without what was erased since, or new ones.

Old weights know what was erased since they were in service. They are kept while all of
these erasures are on probation, and destroyed with the end of the first. So a way back
to them exists for as long; after that there is a training from scratch.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from . import gates, training, upkeep
from .book import check_text
from .closing import cancel_pending, give_up
from .content import content_lost, without_content
from .kinds import KINDS
from .marking import remark
from .promotion import Task, promote, settle
from .schedule import job_id, pending
from .worker import DIED, MAX_ATTEMPTS, Job, fail, try_methods

if TYPE_CHECKING:
    from .workspace import Workspace


def rollback(ws: Workspace, who: str, why: str) -> str:
    r"""Takes the version in service out of it, and returns the one that serves."""
    check_text(who, 'who')
    check_text(why, 'why')
    clean = _clean(ws)
    if clean is not None:
        return _withdraw(ws, clean, who, why)
    return _wait_for(ws, _base(ws), who, why)


def replay(ws: Workspace) -> Job:
    r"""Completes a rollback: erases from the old weights what was erased since, or
    trains new ones if there are none. After a crash, the same call goes on.
    """
    row, ledger = pending(ws), ws.ledger
    assert row is not None
    job, numbers = row['id'], json.loads(row['requests'])
    with ledger.transaction():
        if row['attempts'] >= MAX_ATTEMPTS:
            give_up(ws, job, [], DIED)
            return Job(job, gates.FAIL, requests=numbers)
        sql = 'UPDATE job SET attempts = attempts + 1, created_at = ? WHERE id = ?'
        ledger.write(sql, ws.clock(), job)
        ledger.write('DELETE FROM gate WHERE job = ?', job)
        reason = 'a rollback is to be completed'
        ledger.event(ws.clock(), 'started', job=job, requests=numbers, reason=reason)
    base = ledger.row('SELECT * FROM version WHERE id = ?', row['parent'])
    if row['data'] is None or base is None or base['state'] == 'purged':
        return _train(ws, job, numbers)
    task = replay_task(ws, row, base)
    tried = try_methods(ws, task)
    if tried.found is None:
        fail(ws, job, [], tried)
        return Job(job, gates.FAIL, None, tried.gates, numbers)
    verdict = promote(ws, task, tried.found, ending(ws, task))
    return Job(job, verdict, tried.found.version, tried.gates, numbers)


def replay_task(ws: Workspace, row: Any, base: Any) -> Task:
    r"""Returns what completes a rollback by its rows of the ledger: the job, and the
    version that it starts from.
    """
    service = ws.versions.service
    before = ws.versions.get_data(row['data'])
    after = ws.versions.get_data(service['data'])
    return Task(
        job=row['id'],
        methods=json.loads(row['methods']),
        parent=ws.versions.store.get_model(base['id'], before, ws.build_model),
        origin=base['parent'],
        marked=remark(before, after),
        dropped=content_lost(before, after),
        requests=json.loads(row['requests']),
        watermark=service['watermark'],
        withdrawn=_withdrawn(ws),
    )


def ending(ws: Workspace, task: Task) -> Callable[[], None]:
    r"""Returns what is written together with the promotion of a replay."""
    service = ws.versions.service['id']

    def then() -> None:
        _take_over(ws, task.job, task.requests)
        if service in task.withdrawn:
            _retire(ws, service)

    return then


def _clean(ws: Workspace) -> Any:
    r"""Returns the newest version before that has gone through the gates and knows
    nothing that the one in service does not, or nothing.
    """
    service, versions = ws.versions.service, ws.versions
    after = versions.get_data(service['data'])
    rows = ws.ledger.rows(
        "SELECT v.* FROM version v JOIN alias_event a ON a.version = v.id WHERE "
        "v.state = 'old' AND v.watermark >= ? AND v.id != ? AND (v.job IS NOT NULL OR "
        'v.is_full) GROUP BY v.id ORDER BY MAX(a.id) DESC',
        service['watermark'],
        service['id'],
    )
    for row in rows:
        if _is_there(ws, row):
            before = versions.get_data(row['data'])
            # The numbers say so; the data must as well.
            if remark(before, after) is before and not content_lost(before, after):
                return row
    return None


def _base(ws: Workspace) -> Any:
    r"""Returns the last version before whose weights exist and were not taken out of
    service, or nothing.
    """
    row = ws.versions.service
    while row['parent'] is not None:
        row = ws.ledger.row('SELECT * FROM version WHERE id = ?', row['parent'])
        if row is None or not _is_there(ws, row):
            return None
        if row['state'] != 'withdrawn':
            return row
    return None


def _is_there(ws: Workspace, row: Any) -> bool:
    store = ws.versions.store
    paths = store.model_path(row['id']), store.data_path(row['data'])
    return row['state'] != 'purged' and all(path.exists() for path in paths)


def _contain(ws: Workspace, base: Any) -> tuple[str, str]:
    r"""Stores old weights without what was erased since, rows drawn anew, and returns
    their names.
    """
    versions, service = ws.versions, ws.versions.service
    before, after = (versions.get_data(row['data']) for row in (base, service))
    model, marked = versions.get_model(base['id']), remark(before, after)
    if dropped := content_lost(before, after):
        model, marked = without_content(model, marked, dropped)
    result = upkeep.contain(ws, model, marked)
    return versions.store.put_model(result.model), versions.store.put_data(result.data)


def _withdraw(ws: Workspace, clean: Any, who: str, why: str) -> str:
    versions, service = ws.versions, ws.versions.service
    with ws.ledger.transaction():
        cancel_pending(ws)
        versions.point_to(clean['id'], who, why)
        _retire(ws, service['id'])
        jobs = _reopen(ws, clean, service)
        ws.ledger.event(
            ws.clock(),
            'rolled_back',
            version=clean['id'],
            withdrawn=service['id'],
            who=who,
            why=why,
            jobs=jobs,
        )
    versions.write_serving()
    return str(clean['id'])


def _wait_for(ws: Workspace, base: Any, who: str, why: str) -> str:
    r"""Notes what completes the rollback, and lets the containment version serve until
    then.
    """
    versions, service = ws.versions, ws.versions.service
    names = (service['id'], service['data']) if base is None else _contain(ws, base)
    numbers = [] if base is None else _since(ws, base['watermark'])
    start = service if base is None else base
    kinds = {ws.book.info(number).kind for number in numbers}
    retrains = base is None or any(KINDS[kind].retrains for kind in kinds)
    methods = ['Retrain'] if retrains else [ws.settings.method, 'Retrain']
    methods = list(dict.fromkeys(methods))
    text = ['replay', start['id'], start['data'], service['id'], service['data']]
    job = job_id(ws, *text, methods)
    with ws.ledger.transaction():
        cancel_pending(ws)
        jobs: list[str] = []
        if base is not None:
            # The old weights have learned from what was erased since.
            jobs = _reopen(ws, base, service)
        if names[0] != service['id']:
            versions.add_version(
                names, service['watermark'], None, False, base['parent']
            )
            versions.point_to(names[0], who, why)
            _retire(ws, service['id'])
        ws.ledger.write(
            'INSERT INTO job (id, parent, requests, methods, state, attempts, '
            "created_at, replays, data) VALUES (?, ?, ?, ?, 'waiting', 0, ?, 1, ?) "
            "ON CONFLICT (id) DO UPDATE SET state = 'waiting', attempts = 0, "
            'verdict = NULL',
            job,
            start['id'],
            json.dumps(numbers),
            json.dumps(methods),
            ws.clock(),
            None if base is None else base['data'],
        )
        ws.ledger.event(
            ws.clock(),
            'rolled_back',
            version=names[0],
            withdrawn=service['id'],
            who=who,
            why=why,
            jobs=jobs,
            replay=job,
        )
    versions.write_serving()
    return names[0]


def _retire(ws: Workspace, version: str) -> None:
    sql = "UPDATE version SET state = 'withdrawn' WHERE id = ?"
    ws.ledger.write(sql, version)


def _withdrawn(ws: Workspace) -> set[str]:
    r"""Returns what was taken out of service, also if the last one serves on."""
    rows = ws.ledger.rows("SELECT id FROM version WHERE state = 'withdrawn'")
    event = ws.ledger.row(
        "SELECT json_extract(body, '$.withdrawn') AS version FROM event WHERE "
        "kind = 'rolled_back' ORDER BY id DESC LIMIT 1"
    )
    assert event is not None
    return {event['version'], *(row['id'] for row in rows)}


_JOBS = (
    'FROM job j JOIN request r ON r.job = j.id LEFT JOIN version v ON v.id = j.version '
    'LEFT JOIN version p ON p.id = j.parent '
    "WHERE r.state = 'probation' AND COALESCE(v.watermark, p.watermark) >= ?"
)


def _since(ws: Workspace, watermark: int) -> list[int]:
    r"""Returns the requests that were served after a version."""
    sql = f'SELECT r.id {_JOBS} ORDER BY r.id'
    return [row['id'] for row in ws.ledger.rows(sql, watermark + 1)]


def _reopen(ws: Workspace, base: Any, service: Any) -> list[str]:
    r"""Lets the verdicts wait on what old weights don't tell any more, and returns the
    jobs: those that were promoted since, and those that the version has settled that is
    taken out of service.
    """
    sql = f'SELECT DISTINCT j.id {_JOBS}'
    found = {row['id'] for row in ws.ledger.rows(sql, base['watermark'] + 1)}
    decided = (
        "SELECT x.value AS id FROM event e, json_each(e.body, '$.jobs') x WHERE "
        "e.kind = 'decided' AND json_extract(e.body, '$.version') = ?"
    )
    open_ = {row['id'] for row in ws.ledger.rows(sql, 0)}
    found |= {row['id'] for row in ws.ledger.rows(decided, service['id'])} & open_
    jobs = sorted(found)
    for job in jobs:
        ws.ledger.write("UPDATE job SET verdict = 'inconclusive' WHERE id = ?", job)
    return jobs


def _take_over(ws: Workspace, job: str, numbers: list[int]) -> None:
    r"""Lets a replay stand for the jobs whose erasures it has repeated; inside a
    transaction.
    """
    rows = ws.ledger.rows(
        'SELECT DISTINCT job FROM request WHERE id IN (SELECT value FROM json_each(?))',
        json.dumps(numbers),
    )
    for row in rows:  # Its own pairs are these and maybe more.
        ws.ledger.write('UPDATE job SET pairs = NULL WHERE id = ?', row['job'])
    for number in numbers:
        ws.ledger.write('UPDATE request SET job = ? WHERE id = ?', job, number)


def _train(ws: Workspace, job: str, numbers: list[int]) -> Job:
    r"""Trains from scratch on the data in service, where no old weights are left."""
    service = ws.versions.service
    data = ws.versions.get_data(service['data'])
    model = training.trained(ws, data, job)
    version = ws.versions.store.put_model(model)
    if version in _withdrawn(ws):
        with ws.ledger.transaction():
            reason = 'a full training gives the version that was taken out of service'
            give_up(ws, job, [], reason)
        return Job(job, gates.FAIL, None, requests=numbers)

    def then() -> None:
        _retire(ws, service['id'])
        training.finish(ws, job)
        settle(ws)

    why = f'job {job}'
    ws.versions.install(model, data, 'worker', service['watermark'], why, then)
    return Job(job, gates.PASS, version, requests=numbers)
