r"""New data for a workspace: what they must be, and the training on them."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch_geometric.data import HeteroData

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.data.request import is_erased

from . import training
from .book import check_text
from .content import content_erased
from .keys import encode, keyed
from .marking import mark
from .schedule import job_id

if TYPE_CHECKING:
    from .workspace import Workspace


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


def refresh(ws: Workspace, data: HeteroData, who: str, why: str) -> str:
    r"""Trains a new model on new data and puts it into service. Called again with the
    same data after a crash, it goes on.
    """
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

    watermark = ws.versions.service['watermark'] + len({number for number, _ in gone})
    job = job_id(ws, 'refresh', ws.versions.store.put_data(data))
    training.begin(ws, job, why)  # As often as it is called.
    return training.install(ws, job, data, who, watermark, why, absorb)


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
