r"""What keeps a workspace in order: ends of requests, crashes, new data."""

from __future__ import annotations

import copy
import json
import shutil
from typing import TYPE_CHECKING, Any

import torch
from torch_geometric.data import HeteroData

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.data.request import is_erased
from torch_geometric_unlearn.nn.models.base import RecommenderLike
from torch_geometric_unlearn.train.fit import fit
from torch_geometric_unlearn.unlearn import RowReset
from torch_geometric_unlearn.utils.files import remove_stale
from torch_geometric_unlearn.utils.seed import isolated_seed

from . import attempts, evidence
from .book import DAY, check_text
from .content import content_erased
from .keys import encode, keyed
from .marking import mark
from .promotion import settle

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


def refresh(ws: Workspace, data: HeteroData, who: str, why: str) -> str:
    r"""Trains a new model on new data and puts it into service."""
    check_text(who, 'who')
    check_text(why, 'why')
    data = with_ids(data)
    _check_clean(ws, data)
    # Whoever waits and is not in the new data is erased by it.
    waiting = [
        row['id']
        for row in ws.ledger.rows(
            "SELECT id FROM request WHERE state IN ('queued', 'review', 'held')"
        )
    ]
    outcomes = mark(ws, waiting)[1]
    gone = [key for key, outcome in outcomes.items() if outcome == 'erased']

    def absorb() -> None:
        for number, digest in gone:
            ws.ledger.write(
                "UPDATE target SET outcome = 'erased', pairs = 0 WHERE request = ? AND "
                'digest = ?',
                number,
                digest,
            )

        cancel_pending(ws)
        settle(ws)  # It has not learned from anybody who is to be forgotten.

    watermark = ws.versions.service['watermark'] + len({number for number, _ in gone})
    model = trained(ws, data)
    return ws.versions.install(model, data, who, watermark, why, absorb)


def trained(ws: Workspace, data: HeteroData, job: str | None = None) -> RecommenderLike:
    r"""Returns a model that is trained from scratch; for a job it goes on where a dead
    worker has stopped.
    """
    seed, kwargs = ws.settings.seed, dict(ws.settings.fit_args)
    if job is not None:
        kwargs |= {'checkpoint': ws.root / 'jobs' / f'{job}.ck', 'resume': True}
    with isolated_seed(seed):
        model = ws.build_model(data)
    fit(model, data, seed=seed, **kwargs)
    return model


def decide(ws: Workspace, why: str) -> str:
    r"""Trains a new model on the data in service, which settles all that the gates of
    unlearned ones could not tell.
    """
    service = ws.versions.service
    data = ws.versions.get_data(service['data'])

    def then() -> None:
        cancel_pending(ws)
        settle(ws)

    watermark = service['watermark']
    return ws.versions.install(
        trained(ws, data), data, 'worker', watermark, why, then
    )


def cancel_pending(ws: Workspace) -> None:
    r"""Ends a rollback that something else has completed; inside a transaction."""
    ws.ledger.write("UPDATE job SET state = 'left' WHERE state = 'waiting'")


def contain(ws: Workspace, model: RecommenderLike, marked: HeteroData) -> Any:
    r"""Returns a model and its data without what is marked, at no cost: edges dropped,
    rows drawn anew.
    """
    return RowReset(seed=ws.settings.seed)(model, marked)


def with_ids(data: HeteroData) -> HeteroData:
    r"""Returns data whose users and items have raw ids, their internal ones if there
    are no others, so that an erased one can be told.
    """
    data = copy.copy(schema.validate(data))
    if 'forget_mask' in data[schema.EDGE_TYPE]:
        raise ValueError("'data' must hold no request. Submit it afterwards.")
    for kind in (schema.USER, schema.ITEM):
        ids = data[kind].get('raw_id', range(int(data[kind].num_nodes)))
        ids = ids.tolist() if hasattr(ids, 'tolist') else list(ids)
        for raw in ids:
            encode(kind, raw)
        if len(set(ids)) < len(ids) or len(ids) != data[kind].num_nodes:
            raise ValueError(
                f"data['{kind}'].raw_id must hold one id per {kind}, each once"
            )
        data[kind].raw_id = ids
    return data


def _check_clean(ws: Workspace, data: HeteroData) -> None:
    r"""Raises if data bring back what is suppressed, or give ids to others."""
    suppressed, names = ws.book.suppressed(), {}
    for kind in (schema.USER, schema.ITEM):
        names[kind] = ids = list(data[kind].raw_id)
        before = ws.versions.get_data(ws.versions.service['data'])[kind].raw_id
        for index, raw in enumerate(before):
            new = ids[index] if index < len(ids) else None
            # An erased one's is given to nobody.
            if not is_erased(new) and (is_erased(raw) or new != raw):
                raise ValueError(
                    f"The data gives internal ids of {kind}s to others. Build it with "
                    f"'from_frame(..., like=...)' of the data in service."
                )
    pairs = [data[schema.EDGE_TYPE].edge_index]
    pairs += [schema.held_out(data, split) for split in schema.SPLITS]
    bad = 0
    gone = {
        kind: {
            index
            for index, raw in enumerate(ids)
            if suppressed[kind] and keyed(ws.key, kind, raw) in suppressed[kind]
        }
        for kind, ids in names.items()
    }
    bad += len(gone[schema.USER])
    for user, item in torch.cat(pairs, dim=1).t().tolist():
        bad += item in gone[schema.ITEM]
        if suppressed['pair']:
            raw = names[schema.USER][user], names[schema.ITEM][item]
            bad += keyed(ws.key, 'pair', raw) in suppressed['pair']
    if bad:
        raise ValueError(
            f'The data bring back {bad} users or interactions that are suppressed. '
            f"Pass the table through 'filter' first."
        )
    without = ws.book.without_features()
    dropped = [
        index
        for index in gone[schema.ITEM]
        if keyed(ws.key, schema.ITEM, names[schema.ITEM][index]) in without
    ]
    dropped += content_erased(ws.versions.get_data(ws.versions.service['data']))
    rows = torch.tensor(sorted(dropped), dtype=torch.int64)
    if any((x[rows] != 0).any() for x in schema.features(data).values()):
        raise ValueError(
            'The data bring back features of items that were taken down with them. '
            "Set them to zero, or leave them to 'from_frame(..., like=...)' of the "
            'data in service.'
        )
