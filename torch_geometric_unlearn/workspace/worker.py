r"""What a worker does: chooses a batch, unlearns it, and promotes what passes."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from torch_geometric_unlearn import unlearn
from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.data.request import Request, is_erased
from torch_geometric_unlearn.metrics.ranking import retained_ndcg
from torch_geometric_unlearn.nn.models import Served
from torch_geometric_unlearn.transforms import (
    ForgetInteractions,
    ForgetItems,
    ForgetUsers,
)
from torch_geometric_unlearn.unlearn.base import UnlearnResult

from . import evidence, gates
from .book import DAY, RequestInfo
from .keys import decode
from .kinds import KINDS, LEVELS

if TYPE_CHECKING:
    from .workspace import Workspace

#: Times that a job is taken up again before a person has to look.
MAX_ATTEMPTS = 3
_TRANSFORMS: dict[str, Any] = {
    'user': ForgetUsers,
    'item': ForgetItems,
    'pair': ForgetInteractions,
}


@dataclass(frozen=True)
class Plan:
    r"""What the next call of :meth:`Workspace.work` does.

    Attributes:
        reason (str): The rule that fired, or why nothing is due.
        requests (list): Numbers of the requests it serves.
        methods (list): Methods to try, one after the other.
        is_surge (bool): Whether a person has to look at the requests instead.
        decides (bool): Whether it trains a model from scratch because the gates of
            promoted ones could not be told before a deadline.
    """

    reason: str
    requests: list[int] = field(default_factory=list)
    methods: list[str] = field(default_factory=list)
    is_surge: bool = False
    decides: bool = False


@dataclass(frozen=True)
class Job:
    r"""What a job did.

    Attributes:
        id (str): Its name, which follows from what it was to do.
        verdict (str): :obj:`'pass'`, :obj:`'inconclusive'` for one that is served
            until more requests tell, :obj:`'fail'` for one that a person has to look
            at, or :obj:`'nothing'` where there was nothing to erase.
        version (str, optional): The model that was promoted.
        gates (dict): Verdicts by attempt, as :obj:`'0 PartialRetrain'`, and gate.
        requests (list): Numbers of the requests that it served.
    """

    id: str
    verdict: str
    version: str | None = None
    gates: dict[str, dict[str, str]] = field(default_factory=dict)
    requests: list[int] = field(default_factory=list)


def plan(ws: Workspace, now: bool = False) -> Plan:
    r"""Returns what is due, or with :obj:`now` what could be done."""
    time, settings = ws.clock(), ws.settings
    margin = DAY + _retrain_seconds(ws)
    open_ = ws.ledger.row(
        'SELECT MIN(r.due_at) AS due FROM request r JOIN job j ON j.id = r.job '
        "WHERE r.state = 'probation' AND j.verdict = 'inconclusive'"
    )
    if open_ is not None and open_['due'] is not None and open_['due'] - margin <= time:
        return Plan('gates could not be told before a deadline', decides=True)
    waiting = ws.book.requests('queued')
    if not waiting:
        return Plan('nothing is waiting')
    numbers = [info.id for info in waiting]
    marked, outcomes = mark(ws, numbers)
    if rest := sorted(set(numbers) - {number for number, _ in outcomes}):
        return Plan('together they ask for everything', rest, is_surge=True)
    request = Request.of(marked)
    num_pairs = request.pairs.size(1)
    num_nodes = request.users.numel() + request.items.numel()
    total = marked[schema.EDGE_TYPE].edge_index.size(1)
    recent = [info.id for info in waiting if info.received_at > time - DAY]
    fresh = [info for info in recent if not _was_reviewed(ws, info)]
    if fresh:
        served = _erased_since(ws, time - DAY)
        share = Request.of(mark(ws, fresh)[0]).pairs.size(1) + served
        share /= total + served
        if share > settings.surge_share:
            reason = f'surge: {share:.1%} of all interactions in a day'
            return Plan(reason, fresh, is_surge=True)
    methods = _methods(ws, waiting, num_pairs)
    first = min(info.due_at for info in waiting)
    oldest = min(info.received_at for info in waiting)
    rules = {
        'a deadline is near': first - margin <= time,
        'enough users or items wait': num_nodes >= settings.min_users,
        'enough interactions wait': num_pairs >= settings.min_pairs,
        'the oldest request has waited': oldest + settings.max_wait_days * DAY <= time,
        'asked for': now,
    }
    for reason, fires in rules.items():
        if fires:
            return Plan(reason, numbers, methods)
    return Plan('nothing is due')


def _retrain_seconds(ws: Workspace) -> float:
    r"""Returns the seconds that the last retraining took, a day if there was none."""
    row = ws.ledger.row(
        "SELECT finished_at - created_at AS seconds FROM job WHERE state = 'done' AND "
        "methods = '[\"Retrain\"]' AND version IS NOT NULL "
        'ORDER BY finished_at DESC LIMIT 1'
    )
    return DAY if row is None or row['seconds'] is None else row['seconds']


def _undecided(ws: Workspace) -> list[dict[str, Any]]:
    r"""Returns what earlier jobs have erased whose gates could not be told."""
    rows = ws.ledger.rows(
        "SELECT pairs FROM job WHERE verdict = 'inconclusive' AND pairs IS NOT NULL "
        'ORDER BY finished_at'
    )
    return [json.loads(row['pairs']) for row in rows]


def _erased_since(ws: Workspace, time: float) -> int:
    r"""Returns how many pairs of requests that came since then are erased already,
    without those that a person has looked at.
    """
    row = ws.ledger.row(
        'SELECT TOTAL(t.pairs) AS n FROM target t JOIN request r ON r.id = t.request '
        "WHERE r.received_at > ? AND r.state IN ('probation', 'completed') AND r.id "
        "NOT IN (SELECT request FROM review WHERE decision = 'queued')",
        time,
    )
    assert row is not None
    return int(row['n'])


def _was_reviewed(ws: Workspace, number: int) -> bool:
    sql = "SELECT 1 FROM review WHERE request = ? AND decision = 'queued'"
    return ws.ledger.row(sql, number) is not None


def _methods(ws: Workspace, waiting: list[RequestInfo], num_pairs: int) -> list[str]:
    r"""Returns the chain of methods: from scratch where the budget is spent."""
    if any(KINDS[info.kind].retrains for info in waiting):
        return ['Retrain']
    settings, service = ws.settings, ws.versions.service
    full = ws.versions.last_full
    since = ws.ledger.row(
        'SELECT COUNT(*) AS updates, TOTAL(num_pairs) AS erased FROM job WHERE version '
        'IN (SELECT version FROM alias_event WHERE id > '
        '(SELECT MAX(id) FROM alias_event WHERE version = ?))',
        full['id'],
    )
    assert since is not None
    erased = since['erased'] + num_pairs
    total = ws.versions.get_data(service['data'])[schema.EDGE_TYPE].edge_index.size(1)
    spent = (
        since['updates'] >= settings.max_updates
        or erased > settings.max_erased * (total + since['erased'])
        or ws.clock() - full['created_at'] > settings.max_days * DAY
    )
    chain = ['Retrain'] if spent else [settings.method, 'Retrain']
    return list(dict.fromkeys(chain))


def mark(
    ws: Workspace, numbers: list[int]
) -> tuple[HeteroData, dict[tuple[int, str], str]]:
    r"""Marks what requests name in the data in service, and returns it with what was
    found of every target, by request and digest. Requests that would leave no
    interaction are left out.
    """
    data = ws.versions.get_data(ws.versions.service['data'])
    outcomes: dict[tuple[int, str], str] = {}
    named: dict[int, dict[str, list[Any]]] = {}
    known = {kind: ws.versions.internal(kind) for kind in (schema.USER, schema.ITEM)}
    num_items = schema.num_items(data)
    codes = schema.pair_codes(_all_pairs(data), num_items).sort()[0]
    for target in ws.book.targets(numbers):
        level = target['level']
        raw = decode(level, target['raw'])
        ids: Any = None
        if level == 'pair':
            user, item = known['user'].get(raw[0]), known['item'].get(raw[1])
            if user is not None and item is not None:
                code = torch.tensor([user * num_items + item])
                place = int(torch.searchsorted(codes, code))
                if place < codes.numel() and codes[place] == code:
                    ids = user, item
        else:
            ids = known[level].get(raw)
        key = target['request'], target['digest']
        found = named.setdefault(target['request'], {kind: [] for kind in LEVELS})
        if ids is None and target['outcome'] == 'erased':  # By new data.
            outcomes[key] = 'erased'
        elif ids is None:
            earlier = ws.ledger.row(
                "SELECT 1 FROM target WHERE digest = ? AND outcome = 'erased'",
                target['digest'],
            )
            outcomes[key] = 'nothing_found' if earlier is None else 'already_erased'
        else:
            outcomes[key] = 'erased'
            found[level].append(ids)
    served = _possible(data, named)
    outcomes = {key: value for key, value in outcomes.items() if key[0] in served}
    marked = data
    for level, request in _TRANSFORMS.items():
        if ids := sorted({x for number in served for x in named[number][level]}):
            marked = request(ids)(marked)
    return marked, outcomes


def _possible(data: HeteroData, named: dict[int, dict[str, list[Any]]]) -> list[int]:
    r"""Returns the requests, in order, that together leave an interaction."""
    pairs, num_items = data[schema.EDGE_TYPE].edge_index, schema.num_items(data)
    codes = schema.pair_codes(pairs, num_items)

    def hits(requests: list[dict[str, list[Any]]]) -> Tensor:
        users, items, ones = (
            torch.tensor([x for found in requests for x in found[level]]).long()
            for level in LEVELS
        )
        hit = torch.isin(pairs[0], users) | torch.isin(pairs[1], items)
        ones = schema.pair_codes(ones.view(-1, 2).t(), num_items)
        return hit | torch.isin(codes, ones)

    if not hits(list(named.values())).all():
        return list(named)
    out, gone = [], torch.zeros_like(codes, dtype=torch.bool)
    for number, found in named.items():
        after = gone | hits([found])
        if not after.all():
            out.append(number)
            gone = after
    return out


def remark(before: HeteroData, after: HeteroData) -> HeteroData:
    r"""Returns data with everything marked that later data lack, node by node and pair
    by pair, held out or not.
    """
    marked, num_items = before, schema.num_items(before)
    for kind in (schema.USER, schema.ITEM):
        ids = zip(before[kind].raw_id, after[kind].raw_id)
        gone = [i for i, (old, new) in enumerate(ids) if _is_gone(old, new)]
        if gone:
            marked = _TRANSFORMS[kind](gone)(marked)
    codes = schema.pair_codes(_all_pairs(after), num_items)
    pairs = _all_pairs(before)
    lost = pairs[:, ~torch.isin(schema.pair_codes(pairs, num_items), codes)]
    return ForgetInteractions(lost)(marked) if lost.numel() else marked


def _is_gone(old: Any, new: Any) -> bool:
    return is_erased(new) and not is_erased(old)


def _all_pairs(data: HeteroData) -> Tensor:
    parts = [data[schema.EDGE_TYPE].edge_index]
    return torch.cat(parts + [schema.held_out(data, s) for s in schema.SPLITS], dim=1)


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
        for number in batch.requests:
            ledger.write("UPDATE request SET state = 'working' WHERE id = ?", number)
        ledger.event(
            ws.clock(), 'started', job=job, requests=batch.requests, reason=batch.reason
        )
    marked, outcomes = mark(ws, batch.requests)
    if Request.of(marked).is_empty and not _named(marked):
        return _nothing(ws, job, batch, outcomes)
    verdicts: dict[str, dict[str, str]] = {}
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
                    'INSERT OR REPLACE INTO gate VALUES (?, ?, ?, ?, ?)',
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
            verdict = _promote(
                ws, job, batch, outcomes, (version, data), verdict, marked, full
            )
            return Job(job, verdict, version, verdicts, batch.requests)
    with ledger.transaction():
        failed = _give_up(ws, job, batch, 'no method passed the gates')
    return Job(job, failed.verdict, None, verdicts, batch.requests)


def _named(marked: HeteroData) -> bool:
    return Request.of(marked).named.numel() > 0


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


def erased_pairs(marked: HeteroData) -> dict[str, list[list[int]]]:
    r"""Returns what a request erases, by split, in internal ids."""
    request, num_items = Request.of(marked), schema.num_items(marked)
    out = {'train': request.pairs.tolist()}
    for split in schema.SPLITS:
        pairs = schema.held_out(marked, split)
        gone = request.covers(pairs) | request.names(pairs, num_items)
        out[split] = pairs[:, gone].tolist()
    return out


def pooled(marked: HeteroData, earlier: list[dict[str, Any]]) -> HeteroData:
    r"""Returns the data of a request together with what earlier ones have erased, whose
    gates could not be told, all marked.
    """
    if not earlier:
        return marked
    num_items = schema.num_items(marked)
    known = schema.pair_codes(_all_pairs(marked), num_items)

    def pairs(split: str) -> Tensor:
        parts = [torch.tensor(part[split]).view(2, -1).long() for part in earlier]
        out = torch.cat(parts, dim=1).unique(dim=1)
        # One that came back since, with a new consent, counts as what it is now.
        return out[:, ~torch.isin(schema.pair_codes(out, num_items), known)]

    out = HeteroData()
    for kind in (schema.USER, schema.ITEM):
        out[kind].num_nodes = marked[kind].num_nodes
    for name, x in schema.features(marked).items():
        out[schema.ITEM][f'x_{name}'] = x
    store = marked[schema.EDGE_TYPE]
    old = pairs('train')
    edges = out[schema.EDGE_TYPE]
    edges.edge_index = torch.cat([store.edge_index, old], dim=1)
    mask = old.new_ones(old.size(1), dtype=torch.bool)
    edges.forget_mask = torch.cat([schema.forget_mask(marked), mask])
    for split in schema.SPLITS:
        held_out = torch.cat([schema.held_out(marked, split), pairs(split)], dim=1)
        if held_out.numel():
            out[f'{split}_edge_label_index'] = held_out
    out.forget_level = 'mixed'
    return out


def _promote(
    ws: Workspace,
    job: str,
    batch: Plan,
    outcomes: dict[tuple[int, str], str],
    names: tuple[str, str],
    verdict: str,
    marked: HeteroData,
    full: tuple[Tensor, Tensor] | None,
) -> str:
    ledger, service, now = ws.ledger, ws.versions.service, ws.clock()
    if full is not None:
        ws.versions.save_full_ndcg(names[0], *full)
    pairs = erased_pairs(marked)
    with ledger.transaction():
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
        ws.versions.point_to(names[0], 'worker', f'job {job}')
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


def _give_up(ws: Workspace, job: str, batch: Plan, reason: str) -> Job:
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
    ws.ledger.event(ws.clock(), 'review', job=job, reason=reason)
    return Job(job, 'fail', requests=batch.requests)
