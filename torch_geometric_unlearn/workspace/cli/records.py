r"""Commands that say what was done, and check it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .. import signing
from ..attempts import signatures
from ..page import utc
from ..verification import verify as verify_bundle
from .answer import Answer, about, in_words, standing
from .source import open_workspace

_SIGNATURES = {
    'valid': 'signature: by the given key',
    'not checked': 'signature: not checked, as no public key was given '
    "('--public-key FILE')",
    'none': 'signature: none',
}


def status(args: argparse.Namespace) -> Answer:
    return standing(open_workspace(args))


def show(args: argparse.Namespace) -> Answer:
    ws = open_workspace(args)
    info = ws.book.info(args.id)
    sql = 'SELECT at, who, decision, reason FROM review WHERE request = ? ORDER BY id'
    decisions = [dict(row) for row in ws.ledger.rows(sql, args.id)]
    sql = 'SELECT level, outcome, pairs FROM target WHERE request = ?'
    targets = [dict(row) for row in ws.ledger.rows(sql, args.id)]
    sql = 'SELECT attempt, name, verdict FROM gate WHERE job = ? ORDER BY attempt, name'
    gates = [dict(row) for row in ws.ledger.rows(sql, info.job)]
    content, lines, *_ = about(info)
    for x in decisions:
        lines.append(f'{utc(x["at"])}: {x["decision"]} by {x["who"]}, {x["reason"]}')
    if info.job is not None:
        lines.append(f'Job: {info.job}')
    lines += [f'  {x["attempt"]} {x["name"]}: {x["verdict"]}' for x in gates]
    signed = signatures(ws, info.job)
    lines += [in_words(entry) for entry in signed]
    more = {'decisions': decisions, 'targets': targets, 'gates': gates}
    more['signed_for'] = signed
    return Answer(content | more, lines)


def evidence(args: argparse.Namespace) -> Answer:
    folder = open_workspace(args).evidence(args.job)
    return Answer({'folder': str(folder)}, [str(folder)])


def verify(args: argparse.Namespace) -> Answer:
    found = verify_bundle(args.folder, args.public_key)
    lines = [f'job {found["job"]}: {found["verdict"]}, nothing was changed']
    lines += [f'  {name}: {verdict}' for name, verdict in found['gates'].items()]
    lines += [in_words(entry) for entry in found['signed_for']]
    lines.append(_SIGNATURES[found['signature']])
    return Answer(found, lines)


def keygen(args: argparse.Namespace) -> Answer:
    private = Path(args.file).resolve()
    public = signing.make_pair(private)
    return Answer(
        {'private_key': str(private), 'public_key': str(public)},
        [
            f"Keep '{private}' where you keep secrets, and name it in "
            f"'workspace.json' as \"signing_key\".",
            f"Give '{public}' to whoever checks evidence, by another way than that.",
        ],
    )


def doctor(args: argparse.Namespace) -> Answer:
    done = open_workspace(args).doctor()
    return Answer({'done': done}, done or ['Nothing to mend.'])


def stats(args: argparse.Namespace) -> Answer:
    ws = open_workspace(args)

    def count(column: str, table: str) -> dict[str, int]:
        sql = f'SELECT {column} AS x, COUNT(*) AS n FROM {table} GROUP BY 1 ORDER BY 1'
        return {str(row['x'] or 'none'): row['n'] for row in ws.ledger.rows(sql)}

    days = ws.ledger.row(
        'SELECT AVG(j.finished_at - r.received_at) / 86400 AS mean, '
        'MAX(j.finished_at - r.received_at) / 86400 AS most '
        'FROM request r JOIN job j ON j.id = r.job'
    )
    erased = ws.ledger.row('SELECT TOTAL(pairs) AS n FROM target')
    assert days is not None
    assert erased is not None
    content: dict[str, Any] = {
        'requests_by_kind': count('kind', 'request'),
        'requests_by_state': count('state', 'request'),
        'requests_by_outcome': count('outcome', 'request'),
        'jobs_by_verdict': count('verdict', 'job'),
        'versions_by_state': count('state', 'version'),
        'mean_days_to_service': days['mean'],
        'most_days_to_service': days['most'],
        'erased_interactions': int(erased['n']),
        'ledger_bytes': (ws.root / 'ledger.db').stat().st_size,
    }
    lines = []
    for name, value in content.items():
        if isinstance(value, dict):
            value = ', '.join(f'{k} {n}' for k, n in value.items()) or 'none'
        if isinstance(value, float):
            value = f'{value:.1f}'
        lines.append(f'{name.replace("_", " ")}: {"none" if value is None else value}')
    return Answer(content, lines)


def site(args: argparse.Namespace) -> Answer:
    page = open_workspace(args).renew()
    return Answer({'page': str(page)}, [str(page)])
