r"""How a job ends for its requests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch_geometric.data import HeteroData

from torch_geometric_unlearn.data.request import Request

from .keys import decode

if TYPE_CHECKING:
    from .workspace import Workspace


def close(
    ws: Workspace,
    job: str,
    numbers: list[int],
    outcomes: dict[tuple[int, str], str],
    marked: HeteroData | None,
) -> None:
    r"""Writes what became of every target; what had nothing to erase ends here. Inside
    a transaction.
    """
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
            'UPDATE request SET state = ?, outcome = ?, job = ?, attempts = 0 '
            'WHERE id = ?',
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


def give_up(
    ws: Workspace,
    job: str,
    numbers: list[int],
    reason: str,
    gates: Mapping[str, Any] | None = None,
) -> None:
    r"""Ends a job that promoted nothing, and lets a person look at its requests; inside
    a transaction. The verdicts of its gates stay in the chain, whatever comes later.
    """
    ws.ledger.write(
        "UPDATE job SET state = 'failed', finished_at = ?, verdict = 'fail' "
        'WHERE id = ?',
        ws.clock(),
        job,
    )
    for number in numbers:
        ws.ledger.write(
            "UPDATE request SET state = 'review', outcome = ?, job = ?, attempts = 0 "
            'WHERE id = ?',
            reason,
            job,
            number,
        )
    ws.ledger.event(
        ws.clock(),
        'review',
        job=job,
        reason=reason,
        given_up=list(numbers),
        gates=dict(gates or {}),
    )


def cancel_pending(ws: Workspace) -> None:
    r"""Ends a rollback that something else has completed; inside a transaction."""
    ws.ledger.write("UPDATE job SET state = 'left' WHERE state = 'waiting'")
