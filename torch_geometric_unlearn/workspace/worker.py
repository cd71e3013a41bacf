r"""What a worker does with a batch: unlearns it, and promotes what passes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch_geometric.data import HeteroData

from torch_geometric_unlearn import unlearn
from torch_geometric_unlearn.data.request import Request
from torch_geometric_unlearn.metrics.ranking import retained_ndcg
from torch_geometric_unlearn.nn.models import Served
from torch_geometric_unlearn.unlearn.base import UnlearnResult

from . import evidence, gates
from .attempts import attempt_folder, keep, may_be_signed
from .keys import decode
from .marking import erased_pairs, mark, pooled
from .schedule import Plan

if TYPE_CHECKING:
    from .workspace import Workspace

#: Times that a job is taken up again before a person has to look.
MAX_ATTEMPTS = 3


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
        requests (list): Numbers of the requests that it served.
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
        rows = ledger.rows("SELECT id FROM request WHERE state = 'queued'")
        queued = {row['id'] for row in rows}
        batch = replace(batch, requests=[n for n in batch.requests if n in queued])
        if not batch.requests:
            return None
        text = [service['id'], service['data'], batch.requests, batch.methods]
        text += [ws.settings.method_args, ws.settings.fit_args, ws.settings.seed]
        job = sha256(json.dumps(text, sort_keys=True).encode()).hexdigest()[:16]
        old = ledger.row('SELECT state, attempts FROM job WHERE id = ?', job)
        died = old is not None and old['state'] in ('running', 'left')
        attempts = old['attempts'] + 1 if died and old is not None else 1
        ledger.write(
            "UPDATE job SET state = 'left' WHERE state = 'running' AND id != ?", job
        )
        if attempts > MAX_ATTEMPTS:
            return _give_up(ws, job, batch, 'a worker died three times')
        ledger.write(
            'INSERT INTO job (id, parent, requests, methods, state, attempts, '
            'created_at) VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET '
            "attempts = excluded.attempts, state = 'running', verdict = NULL",
            job,
            service['id'],
            json.dumps(batch.requests),
            json.dumps(batch.methods),
            'running',
            attempts,
            ws.clock(),
        )
        # Those of a run that failed stand in the chain.
        ledger.write('DELETE FROM gate WHERE job = ?', job)
        for number in batch.requests:
            ledger.write("UPDATE request SET state = 'working' WHERE id = ?", number)
        ledger.event(
            ws.clock(), 'started', job=job, requests=batch.requests, reason=batch.reason
        )
    marked, outcomes = mark(ws, batch.requests)
    if Request.of(marked).is_empty and not _named(marked):
        return _nothing(ws, job, batch, outcomes)
    verdicts: dict[str, dict[str, str]] = {}
    kept = []
    parent = ws.versions.get_model(service['id'])
    for attempt, name in enumerate(batch.methods):
        unlearner = make_unlearner(ws, name, job)
        supported, reason = unlearner.supports(parent, marked)
        if not supported:
            with ledger.transaction():
                ledger.event(ws.clock(), 'refused', job=job, method=name, why=reason)
            continue
        result = unlearner(parent, marked)
        version = ws.versions.store.put_model(result.model)
        data = ws.versions.store.put_data(result.data)
        found = _gates(ws, result, marked, parent, (version, data), batch.requests)
        verdicts[f'{attempt} {name}'] = {gate.name: gate.verdict for gate in found}
        with ledger.transaction():
            for gate in found:
                ledger.write(
                    'INSERT INTO gate VALUES (?, ?, ?, ?, ?)',
                    job,
                    attempt,
                    gate.name,
                    gate.verdict,
                    gate.content(),
                )
        verdict = gates.overall(found)
        if verdict != gates.FAIL:
            full = None
            if name == 'Retrain':
                full = retained_ndcg(
                    Served.of(result.model, result.data), result.data, ws.settings.k
                )
            evidence.write_job_report(ws, job, result, parent, marked)
            verdict = promote(
                ws, job, batch, outcomes, (version, data), verdict, marked, full
            )
            return Job(job, verdict, version, verdicts, batch.requests)
        if may_be_signed(found):
            folder = attempt_folder(ws, job, attempt)
            evidence.write_job_report(ws, job, result, parent, marked, folder)
            kept.append((attempt, name, version, data))
    with ledger.transaction():
        keep(ws, job, kept)
        reason = 'no method passed the gates'
        failed = _give_up(ws, job, batch, reason, verdicts)
    return Job(job, failed.verdict, None, verdicts, batch.requests)


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
    result: UnlearnResult,
    marked: HeteroData,
    parent: Any,
    names: tuple[str, str],
    numbers: list[int],
) -> list[gates.Gate]:
    version, data = names
    k, watermark = ws.settings.k, ws.versions.service['watermark']
    served = Served.of(result.model, result.data)
    files = {
        'model file': ws.versions.store.model_path(version).read_bytes(),
        'data file': ws.versions.store.data_path(data).read_bytes(),
    }
    targets = [row for row in ws.book.targets(numbers) if row['level'] != 'pair']
    ids = {decode(row['level'], row['raw']) for row in targets}
    stored = ws.versions.store.get_data(data)
    reloaded = ws.versions.store.get_model(version, stored, ws.build_model)
    after = watermark + len(numbers)
    out = [
        gates.check_data(marked, stored, files, ids),
        gates.check_integrity(served, Served.of(reloaded, stored), (watermark, after)),
    ]
    if out[1].verdict == gates.FAIL:
        return out
    pool = pooled(marked, _undecided(ws))
    before = Served.of(parent, marked)
    soft = [
        gates.utility(served, before, marked, ws.versions.full_ndcg(), k),
        gates.forget(served, pool, k),
        gates.attack(served, pool, ws.settings.seed),
    ]
    return out + (list(map(gates.of_exact, soft)) if result.exact else soft)


def promote(
    ws: Workspace,
    job: str,
    batch: Plan,
    outcomes: dict[tuple[int, str], str],
    names: tuple[str, str],
    verdict: str,
    marked: HeteroData,
    full: tuple[Tensor, Tensor] | None,
    by: tuple[str, str] | None = None,
    first: Callable[[], None] = lambda: None,
) -> str:
    r"""Puts a version into service and calls :obj:`first` in the same transaction;
    :obj:`by` says who has decided that and why, if a person has. Returns the verdict.
    """
    ledger, service, now = ws.ledger, ws.versions.service, ws.clock()
    if full is not None:
        ws.versions.save_full_ndcg(names[0], *full)
    pairs = erased_pairs(marked)
    with ledger.transaction():
        first()
        watermark = service['watermark'] + len(batch.requests)
        is_full = full is not None
        ws.versions.add_version(names, watermark, job, is_full, service['id'])
        ledger.write(
            "UPDATE job SET state = 'done', finished_at = ?, verdict = ?, pairs = ?, "
            'num_pairs = ?, version = ? WHERE id = ?',
            now,
            verdict,
            json.dumps(pairs),
            len(pairs['train'][0]),
            names[0],
            job,
        )
        _close(ws, job, batch.requests, outcomes, marked)
        ws.versions.point_to(names[0], *(by or ('worker', f'job {job}')))
        ledger.event(now, 'promoted', job=job, version=names[0], verdict=verdict)
        # A model from scratch settles what the figures could not tell.
        if verdict == gates.PASS or full is not None:
            settle(ws)
            verdict = gates.PASS
    ws.versions.write_serving()
    return verdict


def settle(ws: Workspace) -> None:
    r"""Lets all jobs pass whose gates could not be told; inside a transaction."""
    rows = ws.ledger.rows("SELECT id FROM job WHERE verdict = 'inconclusive'")
    if rows:
        jobs = [row['id'] for row in rows]
        ws.ledger.write(
            "UPDATE job SET verdict = 'pass' WHERE verdict = 'inconclusive'"
        )
        service = ws.versions.service['id']
        ws.ledger.event(ws.clock(), 'decided', jobs=jobs, version=service)


def _close(
    ws: Workspace,
    job: str,
    numbers: list[int],
    outcomes: dict[tuple[int, str], str],
    marked: HeteroData | None,
) -> None:
    r"""Writes what became of every target; what had nothing to erase ends here."""
    counts = {} if marked is None else _pairs_by_target(ws, numbers, marked)
    for (number, digest), outcome in outcomes.items():
        ws.ledger.write(
            'UPDATE target SET outcome = ?, pairs = ? WHERE request = ? AND digest = ?',
            outcome,
            counts.get((number, digest), 0),
            number,
            digest,
        )
    for number in numbers:
        found = {value for (n, _), value in outcomes.items() if n == number}
        state = 'probation' if 'erased' in found else 'completed'
        order = ('erased', 'already_erased', 'nothing_found')
        outcome = next(name for name in order if name in found)
        ws.ledger.write(
            'UPDATE request SET state = ?, outcome = ?, job = ? WHERE id = ?',
            state,
            outcome,
            job,
            number,
        )
        if state == 'completed':
            ws.book.finish(number)


def _pairs_by_target(
    ws: Workspace, numbers: list[int], marked: HeteroData
) -> dict[tuple[int, str], int]:
    pairs, out = Request.of(marked).pairs, {}
    known = {level: ws.versions.internal(level) for level in ('user', 'item')}
    for target in ws.book.targets(numbers):
        raw = decode(target['level'], target['raw'])
        key = target['request'], target['digest']
        if target['level'] == 'pair':
            hit = pairs[0] == known['user'].get(raw[0], -1)
            hit &= pairs[1] == known['item'].get(raw[1], -1)
        else:
            row = 0 if target['level'] == 'user' else 1
            hit = pairs[row] == known[target['level']].get(raw, -1)
        out[key] = int(hit.sum())
    return out


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
        _close(ws, job, batch.requests, outcomes, None)
        ws.ledger.event(ws.clock(), 'nothing_to_erase', job=job)
    return Job(job, 'nothing', requests=batch.requests)


def _give_up(
    ws: Workspace,
    job: str,
    batch: Plan,
    reason: str,
    verdicts: dict[str, dict[str, str]] | None = None,
) -> Job:
    ws.ledger.write(
        "UPDATE job SET state = 'failed', finished_at = ?, verdict = 'fail' "
        'WHERE id = ?',
        ws.clock(),
        job,
    )
    for number in batch.requests:
        ws.ledger.write(
            "UPDATE request SET state = 'review', outcome = ?, job = ? WHERE id = ?",
            reason,
            job,
            number,
        )
    ws.ledger.event(
        ws.clock(), 'review', job=job, reason=reason, gates=verdicts or {}
    )
    return Job(job, 'fail', requests=batch.requests)
