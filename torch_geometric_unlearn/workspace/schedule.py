r"""Which requests are due, and how they are served."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.data.request import Request
from torch_geometric_unlearn.metrics.ranking import retained_ndcg
from torch_geometric_unlearn.nn.models import Served

from . import gates
from .book import DAY, RequestInfo
from .kinds import KINDS
from .marking import mark
from .surges import find_surge

if TYPE_CHECKING:
    from .workspace import Workspace


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
        replays (bool): Whether it completes a rollback: erases from older weights
            what was erased since.
    """

    reason: str
    requests: list[int] = field(default_factory=list)
    methods: list[str] = field(default_factory=list)
    is_surge: bool = False
    decides: bool = False
    replays: bool = False


def plan(ws: Workspace, now: bool = False) -> Plan:
    r"""Returns what is due, or with :obj:`now` what could be done."""
    time, settings = ws.clock(), ws.settings
    margin = DAY + _retrain_seconds(ws) + _job_seconds(ws)
    due = _first_undecided(ws)
    if due is not None and due - margin <= time and failed_decision(ws) is None:
        return Plan('gates could not be told before a deadline', decides=True)
    if (row := pending(ws)) is not None:
        numbers, methods = (json.loads(row[key]) for key in ('requests', 'methods'))
        return Plan('a rollback is to be completed', numbers, methods, replays=True)
    waiting = ws.book.requests('queued')
    if not waiting:
        return Plan('nothing is waiting')
    numbers = [info.id for info in waiting]
    marked, outcomes = mark(ws, numbers)
    if rest := sorted(set(numbers) - {number for number, _ in outcomes}):
        return Plan('together they ask for everything', rest, is_surge=True)
    if (surge := find_surge(ws)) is not None:
        return Plan(*surge, is_surge=True)
    request = Request.of(marked)
    num_pairs = request.pairs.size(1)
    num_nodes = request.users.numel() + request.items.numel()
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
            return Plan(reason, numbers, _methods(ws, waiting, num_pairs))
    return Plan('nothing is due')


def _retrain_seconds(ws: Workspace) -> float:
    r"""Returns the seconds that the last retraining took, a day if there was none."""
    row = ws.ledger.row(
        "SELECT finished_at - created_at AS seconds FROM job WHERE state = 'done' AND "
        "methods = '[\"Retrain\"]' AND version IS NOT NULL "
        'ORDER BY finished_at DESC LIMIT 1'
    )
    return DAY if row is None or row['seconds'] is None else row['seconds']


def _job_seconds(ws: Workspace) -> float:
    r"""Returns the seconds of the longest of the last ten jobs, without those that a
    person has had to sign for before they ended.
    """
    row = ws.ledger.row(
        'SELECT MAX(seconds) AS seconds FROM (SELECT finished_at - created_at AS '
        "seconds FROM job WHERE state = 'done' AND version IS NOT NULL AND id NOT IN "
        "(SELECT job FROM attempt WHERE state = 'promoted') "
        'ORDER BY finished_at DESC LIMIT 10)'
    )
    return 0.0 if row is None or row['seconds'] is None else max(row['seconds'], 0.0)


def job_id(ws: Workspace, *what: Any) -> str:
    r"""Returns the name of a job, which follows from what it does."""
    settings = ws.settings
    text = [*what, settings.method_args, settings.fit_args, settings.seed]
    return sha256(json.dumps(text, sort_keys=True).encode()).hexdigest()[:16]


def decision(ws: Workspace) -> str:
    r"""Returns the name of the job that trains from scratch on the data in service."""
    service = ws.versions.service
    return job_id(ws, 'decide', service['id'], service['data'])


def failed_decision(ws: Workspace) -> str | None:
    r"""Returns that job if it has failed and there is something to settle."""
    job, sql = decision(ws), "SELECT 1 FROM job WHERE id = ? AND state = 'failed'"
    has_failed = ws.ledger.row(sql, job) is not None
    return job if has_failed and _first_undecided(ws) is not None else None


def _first_undecided(ws: Workspace) -> float | None:
    r"""Returns the first deadline of a request that is served although the gates could
    not be told.
    """
    row = ws.ledger.row(
        'SELECT MIN(r.due_at) AS due FROM request r JOIN job j ON j.id = r.job '
        "WHERE r.state = 'probation' AND j.verdict = 'inconclusive'"
    )
    return None if row is None else row['due']


def pending(ws: Workspace) -> Any:
    r"""Returns the job that completes a rollback, a row of the ledger, if one waits."""
    return ws.ledger.row("SELECT * FROM job WHERE state = 'waiting'")


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
        or _loss(ws) > settings.max_loss
    )
    chain = ['Retrain'] if spent else [settings.method, 'Retrain']
    return list(dict.fromkeys(chain))


def _loss(ws: Workspace) -> float:
    r"""Returns the share of the NDCG@K at the last full training that the model in
    service lacks, on the same users; 0 if that is not known.
    """
    service, full = ws.versions.service, ws.versions.full_ndcg()
    if service['is_full'] or full is None:
        return 0.0
    data = ws.versions.get_data(service['data'])
    served = Served.of(ws.versions.get_model(service['id']), data)
    change = gates.to_full(*retained_ndcg(served, data, ws.settings.k), full)
    return 0.0 if math.isnan(change) else -change
