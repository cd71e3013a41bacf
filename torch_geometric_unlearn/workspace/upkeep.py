r"""What keeps a workspace in order: ends of requests, crashes, new data, ways back."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING

import torch
from torch_geometric.data import HeteroData

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.data.request import is_erased
from torch_geometric_unlearn.train.fit import fit
from torch_geometric_unlearn.unlearn import RowReset
from torch_geometric_unlearn.utils.seed import isolated_seed

from . import evidence
from .book import DAY
from .keys import keyed
from .worker import remark

if TYPE_CHECKING:
    from .workspace import Workspace


def finalise(ws: Workspace) -> list[int]:
    r"""Completes the requests whose probation is over, destroys their raw ids and the
    versions before, and returns their numbers.
    """
    limit = ws.clock() - ws.settings.probation_days * DAY
    rows = ws.ledger.rows(
        'SELECT r.id, r.job FROM request r JOIN job j ON j.id = r.job '
        "WHERE r.state = 'probation' AND j.finished_at <= ? AND j.verdict = 'pass'",
        limit,
    )
    numbers, jobs = [row['id'] for row in rows], sorted({row['job'] for row in rows})
    if not numbers:
        return []
    with ws.ledger.transaction():
        for number in numbers:
            ws.ledger.write(
                "UPDATE request SET state = 'completed' WHERE id = ?", number
            )
            ws.book.finish(number)
        for job in jobs:
            ws.ledger.write('UPDATE job SET pairs = NULL WHERE id = ?', job)
        kept = json.dumps(sorted(ws.versions.kept()))
        ws.ledger.write(
            "UPDATE version SET state = 'purged' WHERE state != 'purged' AND id "
            'NOT IN (SELECT value FROM json_each(?))',
            kept,
        )
        ws.ledger.event(ws.clock(), 'completed', requests=numbers)
    heal(ws)
    for job in jobs:
        evidence.bundle(ws, job)
    return numbers


def heal(ws: Workspace) -> list[str]:
    r"""Finishes what a crash has left, and returns what it did."""
    done, ledger = [], ws.ledger
    ledger.check_chain()
    with ledger.transaction():
        rows = ledger.rows("SELECT id FROM request WHERE state = 'working'")
        for row in rows:
            ledger.write("UPDATE request SET state = 'queued' WHERE id = ?", row['id'])
            done.append(f'request {row["id"]} is queued again')
        if rows:
            numbers = [row['id'] for row in rows]
            ledger.event(ws.clock(), 'requeued', requests=numbers)
    done += ws.versions.remove_unnamed()
    running = ledger.rows("SELECT id FROM job WHERE state = 'running'")
    keep = {f'{row["id"]}.ck' for row in running}
    for path in sorted((ws.root / 'jobs').glob('*')):
        if path.name not in keep:
            path.unlink()
            done.append(f'removed jobs/{path.name}')
    ws.versions.write_serving()
    return done


def refresh(ws: Workspace, data: HeteroData, who: str, why: str) -> str:
    r"""Trains a new model on new data and puts it into service."""
    data = with_ids(schema.validate(data))
    _check_clean(ws, data)
    seed = ws.settings.seed
    with isolated_seed(seed):
        model = ws.build_model(data)
    fit(model, data, seed=seed, **ws.settings.fit_args)
    watermark = ws.versions.service['watermark']
    return ws.versions.install(model, data, who, watermark, why)


def decide(ws: Workspace, why: str) -> str:
    r"""Trains a new model on the data in service, which settles all that the gates of
    unlearned ones could not tell.
    """
    data = ws.versions.get_data(ws.versions.service['data'])
    version = refresh(ws, data, 'worker', why)
    with ws.ledger.transaction():
        ws.ledger.write(
            "UPDATE job SET verdict = 'pass' WHERE verdict = 'inconclusive'"
        )
        ws.ledger.event(ws.clock(), 'decided', version=version, why=why)
    return version


def rollback(ws: Workspace, who: str, why: str) -> str:
    r"""Goes back to the version before, without what was erased since."""
    versions = ws.versions
    service, parent = versions.service, versions.service['parent']
    if parent is None or not versions.store.model_path(parent).exists():
        raise ValueError(
            'There is no earlier version to go back to: it was destroyed after the '
            "probation. Train a new one with 'refresh'."
        )
    row = ws.ledger.row('SELECT * FROM version WHERE id = ?', parent)
    assert row is not None
    old, before = versions.get_model(parent), versions.get_data(row['data'])
    marked = remark(before, versions.get_data(service['data']))
    result = RowReset(seed=ws.settings.seed)(old, marked)
    names = versions.store.put_model(result.model), service['data']
    with ws.ledger.transaction():
        versions.add_version(names, service['watermark'], None, False)
        ws.ledger.write(
            "UPDATE version SET state = 'withdrawn' WHERE id = ?", service['id']
        )
        versions.point_to(names[0], who, why)
        ws.ledger.event(
            ws.clock(), 'rolled_back', version=names[0], who=who, why=why
        )
    versions.write_serving()
    return names[0]


def with_ids(data: HeteroData) -> HeteroData:
    r"""Returns data whose users and items have raw ids, their internal ones if there
    are no others, so that an erased one can be told.
    """
    data = copy.copy(data)
    for kind in (schema.USER, schema.ITEM):
        if 'raw_id' not in data[kind]:
            data[kind].raw_id = list(range(int(data[kind].num_nodes)))
    return data


def _check_clean(ws: Workspace, data: HeteroData) -> None:
    r"""Raises if data bring back what is suppressed, or give ids to others."""
    suppressed, names = ws.book.suppressed(), {}
    for kind in (schema.USER, schema.ITEM):
        names[kind] = ids = list(data[kind].raw_id)
        for raw, index in ws.versions.internal(kind).items():
            is_same = index < len(ids) and (ids[index] == raw or is_erased(ids[index]))
            if not is_same:
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
