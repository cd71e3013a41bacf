r"""How what a job has made comes into service."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch_geometric.data import HeteroData

from . import gates
from .marking import erased_pairs

if TYPE_CHECKING:
    from .workspace import Workspace


@dataclass(frozen=True)
class Task:
    r"""What a job starts from, and what it must erase.

    Attributes:
        job (str): Its name.
        methods (list): Methods to try, one after the other.
        parent (torch.nn.Module): The model to start from.
        origin (str): The version that the model is of.
        marked (HeteroData): Its data with the request.
        dropped (list): Items whose features are erased as well.
        requests (list): Numbers of the requests.
        watermark (int): That of the version that it makes.
        withdrawn (collection): Versions that must not come back.
    """

    job: str
    methods: list[str]
    parent: Any
    origin: str | None
    marked: HeteroData
    dropped: list[int]
    requests: list[int]
    watermark: int
    withdrawn: Collection[str] = ()


@dataclass(frozen=True)
class Candidate:
    r"""A version that has passed the gates, or could not be told.

    Attributes:
        version (str): Its model.
        data (str): Its data.
        verdict (str): The verdict on it.
        full (tuple, optional): Users and their NDCG@K if it was trained from scratch.
    """

    version: str
    data: str
    verdict: str
    full: tuple[Tensor, Tensor] | None


def promote(
    ws: Workspace,
    task: Task,
    found: Candidate,
    then: Callable[[], None],
    by: tuple[str, str] | None = None,
) -> str:
    r"""Puts what a job has made into service, and calls :obj:`then` in the same
    transaction, before all else; :obj:`by` says who has decided that and why, if a
    person has. Returns the verdict.
    """
    ledger, now, is_full = ws.ledger, ws.clock(), found.full is not None
    if found.full is not None:
        ws.versions.save_full_ndcg(found.version, *found.full)
    pairs, verdict = erased_pairs(task.marked), found.verdict
    names = found.version, found.data
    with ledger.transaction():
        then()
        ws.versions.add_version(names, task.watermark, task.job, is_full, task.origin)
        ledger.write(
            "UPDATE job SET state = 'done', finished_at = ?, verdict = ?, pairs = ?, "
            'num_pairs = ?, version = ? WHERE id = ?',
            now,
            verdict,
            json.dumps(pairs),
            len(pairs['train'][0]),
            found.version,
            task.job,
        )
        by = by or ('worker', f'job {task.job}')
        ws.versions.point_to(found.version, *by)
        ledger.event(
            now, 'promoted', job=task.job, version=found.version, verdict=verdict
        )
        # A model from scratch settles what the figures could not tell.
        if verdict == gates.PASS or is_full:
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
