r"""What a worker does with a batch: unlearns it, and promotes what passes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from torch_geometric.data import HeteroData

from torch_geometric_unlearn import unlearn
from torch_geometric_unlearn.data.request import Request
from torch_geometric_unlearn.metrics.ranking import retained_ndcg
from torch_geometric_unlearn.nn.models import Served

from . import evidence, gates
from .attempts import Kept, attempt_folder, keep, may_be_signed
from .closing import close, give_up
from .content import dropped_items, without_content
from .keys import decode
from .marking import mark, pooled
from .promotion import Candidate, Task, promote
from .schedule import Plan, job_id
from .surges import losses

if TYPE_CHECKING:
    from .workspace import Workspace

#: Times that a job is taken up before a person has to look.
MAX_ATTEMPTS = 3
DIED = 'a worker died three times'


@dataclass(frozen=True)
class Job:
    r"""What a job did.

    Attributes:
        id (str): Its name, which follows from what it was to do.
        verdict (str): :obj:`'pass'`, :obj:`'inconclusive'` for one that is served
            until more requests tell, :obj:`'fail'` for one that a person has to look
            at, :obj:`'signed'` for one that a person has signed for, or
            :obj:`'nothing'` where there was nothing to erase.
        version (str, optional): The model that was promoted.
        gates (dict): Verdicts by attempt, as :obj:`'0 PartialRetrain'`, and gate.
        requests (list): Numbers of the requests that it served; none for a training
            that settles what the gates could not tell.
    """

    id: str
    verdict: str
    version: str | None = None
    gates: dict[str, dict[str, str]] = field(default_factory=dict)
    requests: list[int] = field(default_factory=list)


def run(ws: Workspace, batch: Plan) -> Job | None:
    r"""Serves a batch; after a crash, the same call goes on. Returns nothing if all its
    requests were taken back meanwhile.
    """
    ledger, service = ws.ledger, ws.versions.service
    with ledger.transaction():
        sql = "SELECT id, attempts FROM request WHERE state = 'queued'"
        queued = {row['id']: row['attempts'] for row in ledger.rows(sql)}
        numbers = [number for number in batch.requests if number in queued]
        # Counted by request: another batch with it does not begin anew.
        worn = [number for number in numbers if queued[number] >= MAX_ATTEMPTS]
        batch = replace(batch, requests=[n for n in numbers if n not in worn])
        text = [service['id'], service['data'], batch.requests, batch.methods]
        job = job_id(ws, *text)
        if worn:
            last = ledger.row(
                "SELECT id FROM job WHERE state = 'running' AND requests != '[]'"
            )
            dead = job if last is None else last['id']
            give_up(ws, dead, worn, DIED)
            if not batch.requests:
                return Job(dead, 'fail', requests=worn)
        if not batch.requests:
            return None
        ledger.write(
            "UPDATE job SET state = 'left' WHERE state = 'running' AND id != ?", job
        )
        ledger.write(
            'INSERT INTO job (id, parent, requests, methods, state, attempts, '
            'created_at) VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET '
            "attempts = excluded.attempts, state = 'running', verdict = NULL, "
            'created_at = excluded.created_at',
            job,
            service['id'],
            json.dumps(batch.requests),
            json.dumps(batch.methods),
            'running',
            1 + max(queued[number] for number in batch.requests),
            ws.clock(),
        )
        # Those of a run that failed stand in the chain.
        ledger.write('DELETE FROM gate WHERE job = ?', job)
        for number in batch.requests:
            ledger.write(
                "UPDATE request SET state = 'working', attempts = attempts + 1 "
                'WHERE id = ?',
                number,
            )
        ledger.event(
            ws.clock(), 'started', job=job, requests=batch.requests, reason=batch.reason
        )
    task, outcomes = batch_task(ws, job, batch.requests, batch.methods)
    if Request.of(task.marked).is_empty and not _named(task.marked):
        return _nothing(ws, job, batch, outcomes)
    tried = try_methods(ws, task)
    if tried.found is None:
        return fail(ws, job, batch.requests, tried)
    verdict = promote(ws, task, tried.found, ending(ws, task, outcomes))
    return Job(job, verdict, tried.found.version, tried.gates, batch.requests)


def batch_task(
    ws: Workspace, job: str, numbers: list[int], methods: list[str]
) -> tuple[Task, dict[tuple[int, str], str]]:
    r"""Returns what a job is to make for some requests, from the version in service,
    and what becomes of every target.
    """
    service = ws.versions.service
    marked, outcomes = mark(ws, numbers)
    task = Task(
        job=job,
        methods=methods,
        parent=ws.versions.get_model(service['id']),
        origin=service['id'],
        marked=marked,
        dropped=dropped_items(ws, sorted({number for number, _ in outcomes})),
        requests=numbers,
        watermark=service['watermark'] + len(numbers),
    )
    return task, outcomes


def ending(
    ws: Workspace, task: Task, outcomes: dict[tuple[int, str], str]
) -> Callable[[], None]:
    r"""Returns what is written of the requests of a job together with its promotion."""
    lost = losses(ws, task.requests)

    def then() -> None:
        close(ws, task.job, task.requests, outcomes, task.marked)
        ws.ledger.write('UPDATE job SET losses = ? WHERE id = ?', lost, task.job)

    return then


@dataclass(frozen=True)
class Tried:
    r"""What the methods of a task have come to.

    Attributes:
        gates (dict): Verdicts by attempt and gate, as in :class:`Job`.
        found (Candidate, optional): What passed, or could not be told.
        kept (list): Attempts that a person may sign for if nothing did.
    """

    gates: dict[str, dict[str, str]]
    found: Candidate | None = None
    kept: list[Kept] = field(default_factory=list)


def try_methods(ws: Workspace, task: Task) -> Tried:
    r"""Tries the methods of a task until one passes the gates. Writes the report of
    what passed, and of what a person may sign for.
    """
    ledger, parent, marked = ws.ledger, task.parent, task.marked
    if task.dropped:
        parent, marked = without_content(parent, marked, task.dropped)
    verdicts: dict[str, dict[str, str]] = {}
    kept: list[Kept] = []
    for attempt, name in enumerate(task.methods):
        unlearner = make_unlearner(ws, name, task.job)
        supported, reason = unlearner.supports(parent, marked)
        if not supported:
            _refuse(ws, task, name, reason)
            continue
        result = unlearner(parent, marked)
        version = ws.versions.store.put_model(result.model)
        if version in task.withdrawn:
            _refuse(ws, task, name, 'it gives a version that was taken out of service')
            continue
        data = ws.versions.store.put_data(result.data)
        found = _gates(ws, result, task, marked, (version, data))
        verdicts[f'{attempt} {name}'] = {gate.name: gate.verdict for gate in found}
        with ledger.transaction():
            for gate in found:
                ledger.write(
                    'INSERT INTO gate VALUES (?, ?, ?, ?, ?)',
                    task.job,
                    attempt,
                    gate.name,
                    gate.verdict,
                    gate.content(),
                )
        verdict = gates.overall(found)
        if verdict != gates.FAIL:
            full = None
            if name == 'Retrain':
                served = Served.of(result.model, result.data)
                full = retained_ndcg(served, result.data, ws.settings.k)
            evidence.write_job_report(ws, task.job, result, task.parent, task.marked)
            return Tried(verdicts, Candidate(version, data, verdict, full))
        if may_be_signed(found):
            folder = attempt_folder(ws, task.job, attempt)
            evidence.write_job_report(
                ws, task.job, result, task.parent, task.marked, folder
            )
            kept.append((attempt, name, version, data))
    return Tried(verdicts, kept=kept)


def fail(ws: Workspace, job: str, numbers: list[int], tried: Tried) -> Job:
    r"""Ends a job that no method has passed the gates for; a person can sign for what
    it keeps.
    """
    with ws.ledger.transaction():
        keep(ws, job, tried.kept)
        reason = 'no method passed the gates'
        give_up(ws, job, numbers, reason, tried.gates)
    return Job(job, gates.FAIL, None, tried.gates, numbers)


def _refuse(ws: Workspace, task: Task, method: str, why: str) -> None:
    with ws.ledger.transaction():
        ws.ledger.event(ws.clock(), 'refused', job=task.job, method=method, why=why)


def _named(marked: HeteroData) -> bool:
    return Request.of(marked).named.numel() > 0


def _undecided(ws: Workspace) -> list[dict[str, Any]]:
    r"""Returns what earlier jobs have erased whose gates could not be told."""
    rows = ws.ledger.rows(
        "SELECT pairs FROM job WHERE verdict = 'inconclusive' AND pairs IS NOT NULL "
        'ORDER BY finished_at'
    )
    return [json.loads(row['pairs']) for row in rows]


def make_unlearner(ws: Workspace, name: str, job: str) -> Any:
    r"""Returns a method as the settings say."""
    settings = ws.settings
    if name == 'Retrain':
        path = ws.root / 'jobs' / f'{job}.ck'
        kwargs = {'checkpoint': path, 'resume': True, **settings.fit_args}
        return unlearn.Retrain(ws.build_model, seed=settings.seed, **kwargs)
    return getattr(unlearn, name)(seed=settings.seed, **settings.method_args)


def _gates(
    ws: Workspace,
    result: Any,
    task: Task,
    marked: HeteroData,
    names: tuple[str, str],
) -> list[gates.Gate]:
    version, data = names
    k, watermark = ws.settings.k, ws.versions.service['watermark']
    served = Served.of(result.model, result.data)
    files = {
        'model file': ws.versions.store.model_path(version).read_bytes(),
        'data file': ws.versions.store.data_path(data).read_bytes(),
    }
    targets = [row for row in ws.book.targets(task.requests) if row['level'] != 'pair']
    ids = {decode(row['level'], row['raw']) for row in targets}
    stored = ws.versions.store.get_data(data)
    reloaded = ws.versions.store.get_model(version, stored, ws.build_model)
    out = [
        gates.check_data(task.marked, stored, files, ids),
        gates.check_integrity(
            served, Served.of(reloaded, stored), (watermark, task.watermark)
        ),
    ]
    if task.dropped:
        faults = gates.features_left(
            (task.parent, task.marked), (reloaded, stored), task.dropped, files
        )
        out[0] = replace(out[0], faults=out[0].faults + faults)
    if out[1].verdict == gates.FAIL:
        return out
    pool = pooled(marked, _undecided(ws))
    before = Served.of(task.parent, task.marked)
    soft = [
        gates.utility(served, before, marked, ws.versions.full_ndcg(), k),
        gates.forget(served, pool, k),
        gates.attack(served, pool, ws.settings.seed),
    ]
    return out + (list(map(gates.of_exact, soft)) if result.exact else soft)


def _nothing(
    ws: Workspace, job: str, batch: Plan, outcomes: dict[tuple[int, str], str]
) -> Job:
    with ws.ledger.transaction():
        ws.ledger.write(
            "UPDATE job SET state = 'done', finished_at = ?, verdict = 'nothing' "
            'WHERE id = ?',
            ws.clock(),
            job,
        )
        close(ws, job, batch.requests, outcomes, None)
        ws.ledger.event(ws.clock(), 'nothing_to_erase', job=job)
    return Job(job, 'nothing', requests=batch.requests)
