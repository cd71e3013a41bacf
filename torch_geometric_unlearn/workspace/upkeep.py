r"""What keeps a workspace in order: ends of requests, and what crashes have left."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

from torch_geometric.data import HeteroData

from torch_geometric_unlearn.nn.models.base import RecommenderLike
from torch_geometric_unlearn.unlearn import RowReset
from torch_geometric_unlearn.utils.files import remove_stale

from . import attempts, evidence
from .book import DAY

if TYPE_CHECKING:
    from .workspace import Workspace


def finalise(ws: Workspace) -> list[int]:
    r"""Completes the requests whose probation is over, destroys their raw ids and the
    versions before, and returns their numbers.
    """
    limit = ws.clock() - ws.settings.probation_days * DAY
    with ws.ledger.transaction():
        rows = ws.ledger.rows(
            'SELECT r.id, r.job FROM request r JOIN job j ON j.id = r.job WHERE '
            "r.state = 'probation' AND j.finished_at <= ? AND j.verdict IN "
            "('pass', 'nothing', 'signed')",
            limit,
        )
        numbers = [row['id'] for row in rows]
        jobs = sorted({row['job'] for row in rows})
        for number in numbers:
            ws.ledger.write(
                "UPDATE request SET state = 'completed' WHERE id = ?", number
            )
            ws.book.finish(number)
        for job in jobs:
            ws.ledger.write('UPDATE job SET pairs = NULL WHERE id = ?', job)
        # A way back that had no request to repeat.
        ws.ledger.write(
            "UPDATE job SET pairs = NULL WHERE replays AND requests = '[]' AND "
            'finished_at <= ?',
            limit,
        )
        ws.ledger.write(
            'UPDATE job SET losses = NULL WHERE finished_at <= ?', ws.clock() - DAY
        )
        where = "state != 'purged' AND id NOT IN (SELECT value FROM json_each(?))"
        kept = json.dumps(sorted(ws.versions.kept(limit)))
        rows = ws.ledger.rows(f'SELECT id FROM version WHERE {where}', kept)
        purged = [row['id'] for row in rows]
        ws.ledger.write(f"UPDATE version SET state = 'purged' WHERE {where}", kept)
        if numbers or purged:
            ws.ledger.event(
                ws.clock(), 'completed', requests=numbers, purged=sorted(purged)
            )
    heal(ws)
    return numbers


def heal(ws: Workspace) -> list[str]:
    r"""Finishes what a crash has left, and returns what it did."""
    done, ledger = [], ws.ledger
    ledger.check_pages()
    ledger.check_chain(ws.versions.served_head())
    with ledger.transaction():
        rows = ledger.rows("SELECT id FROM request WHERE state = 'working'")
        for row in rows:
            ledger.write("UPDATE request SET state = 'queued' WHERE id = ?", row['id'])
            done.append(f'request {row["id"]} is queued again')
        if rows:
            numbers = [row['id'] for row in rows]
            ledger.event(ws.clock(), 'requeued', requests=numbers)
    done += attempts.drop_stale(ws)
    done += ws.versions.remove_unnamed()
    running = ledger.rows("SELECT id FROM job WHERE state IN ('running', 'waiting')")
    keep = {f'{row["id"]}.ck' for row in running}
    for path in sorted((ws.root / 'jobs').glob('*')):
        if path.name not in keep:
            path.unlink()
            done.append(f'removed jobs/{path.name}')
    done += _remove_drafts(ws)
    ws.versions.write_serving()
    rows = ledger.rows(
        'SELECT id FROM job WHERE version IS NOT NULL AND pairs IS NULL AND '
        'bundled_at IS NULL ORDER BY finished_at'
    )
    for row in rows:
        evidence.bundle(ws, row['id'])
        with ledger.transaction():
            ledger.write(
                'UPDATE job SET bundled_at = ? WHERE id = ?', ws.clock(), row['id']
            )
        done.append(f'wrote evidence/{row["id"]}')
    return done


def _remove_drafts(ws: Workspace) -> list[str]:
    r"""Removes reports of jobs that promoted nothing, and what killed writes left."""
    rows = ws.ledger.rows('SELECT id FROM job WHERE version IS NOT NULL')
    keep, gone = {row['id'] for row in rows}, []
    remove_stale(str(ws.root))
    for folder in sorted((ws.root / 'evidence').glob('*')):
        if folder.name in keep:
            remove_stale(str(folder))
        else:
            shutil.rmtree(folder)
            gone.append(f'removed evidence/{folder.name}')
    return gone


def contain(ws: Workspace, model: RecommenderLike, marked: HeteroData) -> Any:
    r"""Returns a model and its data without what is marked, at no cost: edges dropped,
    rows drawn anew.
    """
    return RowReset(seed=ws.settings.seed)(model, marked)
