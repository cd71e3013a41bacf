r"""Trainings from scratch that serve no batch of requests: as jobs, so that one that
dies goes on where it has stopped.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING

from torch_geometric.data import HeteroData

from torch_geometric_unlearn.nn.models.base import RecommenderLike
from torch_geometric_unlearn.train.fit import fit
from torch_geometric_unlearn.utils.seed import isolated_seed

from . import gates
from .closing import cancel_pending, give_up
from .promotion import settle
from .schedule import decision
from .worker import DIED, MAX_ATTEMPTS, Job

if TYPE_CHECKING:
    from .workspace import Workspace


def trained(ws: Workspace, data: HeteroData, job: str) -> RecommenderLike:
    r"""Returns a model that is trained from scratch for a job."""
    seed, kwargs = ws.settings.seed, dict(ws.settings.fit_args)
    kwargs |= {'checkpoint': ws.root / 'jobs' / f'{job}.ck', 'resume': True}
    with isolated_seed(seed):
        model = ws.build_model(data)
    fit(model, data, seed=seed, **kwargs)
    return model


def begin(ws: Workspace, job: str, reason: str) -> int:
    r"""Notes that a training starts, or goes on, and returns how often it has. What
    else was at work is left.
    """
    with ws.ledger.transaction():
        sql = "SELECT attempts FROM job WHERE id = ? AND state = 'running'"
        row = ws.ledger.row(sql, job)
        attempts = 1 if row is None else row['attempts'] + 1
        sql = "UPDATE job SET state = 'left' WHERE state = 'running' AND id != ?"
        ws.ledger.write(sql, job)
        ws.ledger.write(
            'INSERT INTO job (id, parent, requests, methods, state, attempts, '
            "created_at) VALUES (?, ?, '[]', ?, 'running', ?, ?) ON CONFLICT (id) DO "
            'UPDATE SET attempts = excluded.attempts, verdict = NULL, '
            "state = 'running', created_at = excluded.created_at",
            job,
            ws.versions.service['id'],
            json.dumps(['Retrain']),
            attempts,
            ws.clock(),
        )
        ws.ledger.event(ws.clock(), 'started', job=job, requests=[], reason=reason)
    return attempts


def install(
    ws: Workspace,
    job: str,
    data: HeteroData,
    who: str,
    watermark: int,
    why: str,
    then: Callable[[], None] = lambda: None,
) -> str:
    r"""Trains for a job, puts the model into service, and calls :obj:`then` in the same
    transaction. It settles what the gates of others could not tell and ends a rollback
    that waits. Returns the version.
    """
    model = trained(ws, data, job)

    def end() -> None:
        then()
        finish(ws, job)
        cancel_pending(ws)
        settle(ws)  # It has not learned from anybody who is to be forgotten.

    return ws.versions.install(model, data, who, watermark, why, end)


def finish(ws: Workspace, job: str) -> None:
    r"""Ends a training; inside a transaction."""
    ws.ledger.write(
        "UPDATE job SET state = 'done', finished_at = ?, verdict = 'pass' WHERE id = ?",
        ws.clock(),
        job,
    )


def decide(ws: Workspace, why: str) -> Job:
    r"""Trains a new model on the data in service, which settles all that the gates of
    unlearned ones could not tell. If it dies three times a person has to look.
    """
    service, job = ws.versions.service, decision(ws)
    if begin(ws, job, why) > MAX_ATTEMPTS:
        with ws.ledger.transaction():
            give_up(ws, job, [], DIED)
        return Job(job, gates.FAIL)
    data = ws.versions.get_data(service['data'])
    version = install(ws, job, data, 'worker', service['watermark'], why)
    return Job(job, gates.PASS, version)
