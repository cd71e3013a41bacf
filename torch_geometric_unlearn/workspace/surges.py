r"""When requests are so many, or hit one place so hard, that a person has to look."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.data.request import Request

from .book import DAY
from .marking import mark

if TYPE_CHECKING:
    from .workspace import Workspace

#: Days before the last one over which the usual number of requests is taken [ours].
WINDOW = 28.0
_OPEN = ('queued', 'review', 'held', 'working')
#: Nobody has approved them, and nobody has taken them back.
_UNSEEN = (
    "state NOT IN ('rejected', 'cancelled') AND id NOT IN "
    "(SELECT request FROM review WHERE decision = 'queued')"
)


def find_surge(ws: Workspace) -> tuple[str, list[int]] | None:
    r"""Returns the rule that the requests of the last day break, and those that wait,
    or nothing.

    The day counts from when requests were accepted, not from when they are said to have
    come in. Those that a person has approved count no more, here as in what is usual;
    nor do those that were rejected or cancelled.

    - *Rate*: more than :obj:`surge_rate` times the usual number of requests, and at
      least :obj:`surge_requests`. What is usual is the mean number a day over the 28
      days before, or since the workspace was made; with less than
      :obj:`surge_history_days` of them the rule says nothing [ours].
    - *Share*: more than :obj:`surge_share` of all training pairs.
    - *Item*: an item loses :obj:`surge_item_share` of its pairs, and at least
      :obj:`surge_item_pairs` of them, to requests that don't name it [ours].
    """
    since, settings = ws.clock() - DAY, ws.settings
    rows = ws.ledger.rows(
        f'SELECT id, state FROM request WHERE accepted_at > ? AND {_UNSEEN} '
        'ORDER BY due_at, id',
        since,
    )
    waiting = [row['id'] for row in rows if row['state'] == 'queued']
    if not waiting:
        return None
    usual = _usual(ws, since)
    enough = usual is not None and len(rows) >= settings.surge_requests
    if enough and len(rows) > settings.surge_rate * (usual or 0.0):
        found = f'{len(rows)} requests in a day, where {usual:.1f} are usual'
        return f'surge: {found}', waiting
    open_ = [row['id'] for row in rows if row['state'] in _OPEN]
    marked = mark(ws, open_)[0]
    request = Request.of(marked)
    total = marked[schema.EDGE_TYPE].edge_index
    served = _erased(ws, since)
    share = (request.pairs.size(1) + served) / (total.size(1) + served)
    if share > settings.surge_share:
        return f'surge: {share:.1%} of all interactions in a day', waiting
    lost = _lost(request, schema.num_items(marked))
    before = _losses_since(ws, since, lost.numel())
    hit = (lost > 0) & (lost + before >= settings.surge_item_pairs)
    left = total[1].bincount(minlength=lost.numel()) + before
    shares = ((lost + before) / left.clamp(min=1))[hit]
    if (shares >= settings.surge_item_share).any():
        reason = f'surge: {shares.max():.0%} of the interactions of an item in a day'
        return reason, waiting
    return None


def losses(ws: Workspace, numbers: list[int]) -> str:
    r"""Returns how many pairs items lose to requests that nobody has approved and that
    don't name them, as JSON: a list of internal ids and numbers. To be kept with a job,
    before it is promoted.
    """
    sql = f'SELECT id FROM request WHERE {_UNSEEN}'
    unseen = {row['id'] for row in ws.ledger.rows(sql)}
    marked = mark(ws, [number for number in numbers if number in unseen])[0]
    lost = _lost(Request.of(marked), schema.num_items(marked))
    items = lost.nonzero().view(-1)
    return json.dumps(torch.stack([items, lost[items]]).t().tolist())


def _lost(request: Request, num_items: int) -> Tensor:
    r"""Returns the number of pairs that every item loses, int64 :obj:`[I]`, zero for
    those that are named.
    """
    lost = request.pairs[1].bincount(minlength=num_items)
    lost[request.items] = 0
    return lost


def _losses_since(ws: Workspace, time: float, num_items: int) -> Tensor:
    out = torch.zeros(num_items, dtype=torch.int64)
    sql = 'SELECT losses FROM job WHERE finished_at > ? AND losses IS NOT NULL'
    for row in ws.ledger.rows(sql, time):
        for item, num in json.loads(row['losses']):
            if item < num_items:  # Another, smaller version may be back in service.
                out[item] += num
    return out


def _usual(ws: Workspace, until: float) -> float | None:
    r"""Returns the usual number of requests a day, or nothing if it is not known."""
    row = ws.ledger.row('SELECT MIN(created_at) AS start FROM version')
    assert row is not None
    start = max(row['start'], until - WINDOW * DAY)
    days = (until - start) / DAY
    if days < ws.settings.surge_history_days:
        return None
    row = ws.ledger.row(
        'SELECT COUNT(*) AS n FROM request WHERE accepted_at >= ? AND '
        f'accepted_at <= ? AND {_UNSEEN}',
        start,
        until,
    )
    assert row is not None
    return float(row['n'] / days)


def _erased(ws: Workspace, time: float) -> int:
    r"""Returns how many pairs of requests that came since then are erased already."""
    row = ws.ledger.row(
        'SELECT TOTAL(pairs) AS n FROM target WHERE request IN (SELECT id FROM request '
        f"WHERE accepted_at > ? AND state IN ('probation', 'completed') AND {_UNSEEN})",
        time,
    )
    assert row is not None
    return int(row['n'])
