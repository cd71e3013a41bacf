r"""Requests: how they come in, where they stand, and whom new data must not bring back.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from torch_geometric_unlearn.utils.check import check_bool, check_choice, check_float

from .keys import decode, encode, fingerprint, keyed
from .kinds import ENDS, KINDS, LEVELS, STATES, kind_of
from .ledger import Ledger

DAY = 86_400.0


@dataclass(frozen=True)
class RequestInfo:
    r"""What the ledger knows of a request.

    Attributes:
        id (int): Its number.
        client_id (str): The caller's name for it.
        kind (str): Its kind.
        state (str): Where it stands.
        received_at (float): When it came, in seconds since 1970.
        due_at (float): Its deadline.
        verified_by (str): Who has checked that it may be made.
        outcome (str, optional): How it ended: :obj:`'erased'`, :obj:`'nothing_found'`,
            :obj:`'already_erased'`, or why it was rejected or cancelled.
        job (str, optional): The job that serves it.
        num_targets (int): How many users, items and pairs it names.
        num_pairs (int): Interactions that were erased for it.
        drops_features (bool): Whether the features of its items are erased as well.
    """

    id: int
    client_id: str
    kind: str
    state: str
    received_at: float
    due_at: float
    verified_by: str
    outcome: str | None
    job: str | None
    num_targets: int
    num_pairs: int
    drops_features: bool = False


class Book:
    r"""The requests of a workspace.

    Args:
        ledger (Ledger): Where they are written.
        key (bytes): Secret of the digests.
        clock (callable): Returns the time in seconds since 1970.
    """

    def __init__(
        self, ledger: Ledger, key: bytes, clock: Callable[[], float]
    ) -> None:
        self.ledger, self.key, self.clock = ledger, key, clock

    def check_key(self, name: str) -> None:
        r"""Raises if the key is another one than that of the digests in the ledger, and
        notes what tells it where that was not done.

        Args:
            name (str): Its file, for the error.

        Raises:
            ValueError: If it is that of another workspace.
        """
        known = self.ledger.row("SELECT value FROM fact WHERE name = 'key'")
        if known is None:  # A new ledger, or one of an earlier version.
            sql = 'SELECT level, digest, raw FROM target WHERE raw IS NOT NULL'
            row = self.ledger.row(sql)
            raw = None if row is None else decode(row['level'], row['raw'])
            is_own = row is None or row['digest'] == keyed(self.key, row['level'], raw)
        else:
            is_own = known['value'] == fingerprint(self.key)
        if not is_own:
            raise ValueError(
                f"The key '{name}' is that of another workspace: with it nobody that "
                f'was erased here would be known. Bring the right one back.'
            )
        if known is None:
            sql = "INSERT OR IGNORE INTO fact VALUES ('key', ?)"
            with self.ledger.transaction():
                self.ledger.write(sql, fingerprint(self.key))

    def submit(
        self,
        kind: str,
        targets: Mapping[str, Iterable[Any]],
        client_id: str,
        verified_by: str,
        received_at: float | None = None,
        due_days: float | None = None,
        to_review: str = '',
        drop_features: bool = False,
        absent: Iterable[str] = (),
    ) -> RequestInfo:
        r"""Accepts a request, in one transaction; the same one twice is one.

        Args:
            kind (str): Its kind.
            targets (dict): Raw ids by :obj:`'user'`, :obj:`'item'` and :obj:`'pair'`.
            client_id (str): The caller's name for it.
            verified_by (str): Who has checked that it may be made.
            received_at (float, optional): When it came in; now if not given.
            due_days (float, optional): Days to the deadline; that of the kind if not
                given.
            to_review (str, optional): Why a person has to look at it first.
            drop_features (bool, optional): Whether the features of its items are
                erased as well.
            absent (iterable, optional): Digests of those that are not in the data.

        Raises:
            ValueError: If an argument is wrong, or the name was used for another
                request.
        """
        what = kind_of(kind)
        if check_bool(drop_features, 'drop_features') and not what.may_drop:
            may = [kind.name for kind in KINDS.values() if kind.may_drop]
            raise ValueError(
                f"'drop_features' is for requests of the kind {may} (got '{kind}')"
            )
        now, received = self.clock(), received_at
        received = now if received is None else check_float(received, 'received_at', 0)
        if received > now + DAY:
            raise ValueError("'received_at' lies in the future")
        rows: dict[str, tuple[str, str]] = {}
        for level, ids in targets.items():
            for raw in ids:
                if level not in what.levels:
                    raise ValueError(
                        f"A request of the kind '{kind}' names {list(what.levels)} "
                        f"(got a '{level}')"
                    )
                rows[keyed(self.key, level, raw)] = level, encode(level, raw)
        if not rows:
            raise ValueError('A request must name a user, an item or a pair (got none)')
        ids = [decode(level, raw) for level, raw in rows.values()]
        check_text(client_id, 'client_id', ids)
        check_text(verified_by, 'verified_by', ids)
        days = what.days if due_days is None else check_float(due_days, 'due_days', 0)
        text = [kind, sorted(rows), *(['drop_features'] * drop_features)]
        content = sha256(json.dumps(text).encode()).hexdigest()
        ledger = self.ledger
        with ledger.transaction():
            old = ledger.row('SELECT * FROM request WHERE client_id = ?', client_id)
            if old is not None:
                if old['content'] != content:
                    raise ValueError(
                        f"'client_id' must name one request, but '{client_id}' was "
                        f'used for another one. Choose a new name.'
                    )
                return self.info(old['id'])
            if drop_features:
                self._check_rows_known(rows, set(absent))
            number = ledger.write(
                'INSERT INTO request (client_id, content, kind, state, received_at, '
                'due_at, verified_by, outcome, accepted_at, drops_features) '
                'VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)',
                client_id,
                content,
                kind,
                'review' if to_review else 'queued',
                received,
                received + days * DAY,
                verified_by,
                to_review or None,
                now,
                int(drop_features),
            )
            for digest, (level, raw) in rows.items():
                ledger.write(
                    'INSERT INTO target VALUES (?, ?, ?, ?, NULL, NULL)',
                    number,
                    level,
                    digest,
                    raw,
                )
                ledger.write(
                    'INSERT INTO suppression VALUES (?, ?, ?, ?, ?, NULL) '
                    'ON CONFLICT (digest) DO UPDATE SET lifted_at = NULL, '
                    'kind = excluded.kind, request = excluded.request, '
                    'since = excluded.since WHERE lifted_at IS NOT NULL',
                    digest,
                    level,
                    kind,
                    number,
                    now,
                )
            ledger.event(
                now,
                'review' if to_review else 'accepted',
                request=number,
                request_kind=kind,
                targets=sorted(rows),
                reason=to_review,
            )
        return self.info(number)

    def _check_rows_known(self, digests: Iterable[str], absent: set[str]) -> None:
        r"""Raises if an item was erased before without its features: nobody can tell
        any more which were its own.
        """
        sql = (
            'SELECT t.outcome, r.state, r.drops_features AS dropped FROM target t JOIN '
            'request r ON r.id = t.request WHERE t.digest = ? AND (t.outcome = '
            "'erased' OR r.state = 'working') ORDER BY r.id DESC LIMIT 1"
        )
        for digest in digests:
            row = self.ledger.row(sql, digest)
            if row is None or row['dropped']:
                continue
            if row['state'] == 'working' or digest in absent:
                raise ValueError(
                    "'drop_features' comes too late for an item: it is erased already, "
                    "and its features can't be told from those of others any more. "
                    "Set them to zero in new data, and call 'refresh'."
                )

    def info(self, number: int) -> RequestInfo:
        r"""Returns what is known of a request.

        Raises:
            ValueError: If there is none of this number.
        """
        row = self.ledger.row(
            'SELECT r.*, COUNT(*) AS num_targets, TOTAL(t.pairs) AS num_pairs '
            'FROM request r JOIN target t ON t.request = r.id WHERE r.id = ? '
            'GROUP BY r.id',
            number,
        )
        if row is None:
            raise ValueError(f'There is no request {number}')
        values = dict(row) | {
            'num_pairs': int(row['num_pairs']),
            'drops_features': bool(row['drops_features']),
        }
        names = RequestInfo.__dataclass_fields__
        return RequestInfo(**{name: values[name] for name in names})

    def requests(self, state: str | None = None) -> list[RequestInfo]:
        r"""Returns all requests, or those in a state, by deadline."""
        if state is not None:
            check_choice(state, 'state', STATES)
        rows = self.ledger.rows(
            'SELECT id FROM request WHERE ?1 IS NULL OR state = ?1 ORDER BY due_at, id',
            state,
        )
        return [self.info(row['id']) for row in rows]

    def move(self, number: int, who: str, to: str, why: str) -> RequestInfo:
        r"""Moves a request by hand: holds, releases, approves, rejects or cancels it.

        Raises:
            ValueError: If nobody or no reason is named, or it can't go there.
        """
        allowed = {
            'held': ('queued', 'review'),
            'queued': ('held', 'review'),
            'rejected': ('review',),
            'cancelled': ('queued', 'review', 'held'),
        }
        check_choice(to, 'to', tuple(allowed))
        ids = [decode(row['level'], row['raw']) for row in self.targets([number])]
        check_text(who, 'who', ids)
        check_text(why, 'why', ids)
        ledger, now = self.ledger, self.clock()
        with ledger.transaction():
            state = self.info(number).state
            if state not in allowed[to]:
                raise ValueError(
                    f"Request {number} is '{state}' and can't become '{to}', which is "
                    f'for {list(allowed[to])}'
                )
            self._set(number, to, why if to in ENDS else None)
            ledger.write(
                'INSERT INTO review (request, at, who, decision, reason) '
                'VALUES (?, ?, ?, ?, ?)',
                number,
                now,
                who,
                to,
                why,
            )
            if to in ENDS:
                self.finish(number)
                self._pass_on(number)
                self._lift('request = ?', number)
            ledger.event(now, to, request=number, who=who, why=why)
        return self.info(number)

    def to_review(self, number: int, why: str) -> None:
        r"""Lets a person look at a request that waits."""
        with self.ledger.transaction():
            if self.info(number).state == 'queued':  # Nobody has cancelled it since.
                self._set(number, 'review', why)
                self.ledger.event(self.clock(), 'review', request=number, reason=why)

    def lift(self, level: str, raw: Any, who: str, why: str) -> None:
        r"""Lets a subject come back in new data: a new consent, a reinstated item.

        Raises:
            ValueError: If it is not suppressed, or its request is still at work.
        """
        digest = keyed(self.key, check_choice(level, 'level', LEVELS), raw)
        check_text(who, 'who', [raw])
        check_text(why, 'why', [raw])
        with self.ledger.transaction():
            row = self.ledger.row(
                'SELECT 1 FROM suppression WHERE digest = ? AND lifted_at IS NULL',
                digest,
            )
            if row is None:
                raise ValueError(f'This {level} is not suppressed')
            rows = self.ledger.rows(
                'SELECT r.id, r.state FROM target t JOIN request r ON r.id = t.request '
                'WHERE t.digest = ? ORDER BY r.id',
                digest,
            )
            for row in rows:
                if row['state'] not in ENDS:
                    raise ValueError(
                        f"Request {row['id']} about this {level} is still "
                        f"'{row['state']}'. Cancel it, or wait for its end."
                    )
            self._lift('digest = ?', digest)
            self.ledger.event(self.clock(), 'lifted', digest=digest, who=who, why=why)

    def suppressed(self) -> dict[str, set[str]]:
        r"""Returns the digests of what must not come back, by level."""
        out: dict[str, set[str]] = {'user': set(), 'item': set(), 'pair': set()}
        sql = 'SELECT digest, level FROM suppression WHERE lifted_at IS NULL'
        for row in self.ledger.rows(sql):
            out[row['level']].add(row['digest'])
        return out

    def targets(self, numbers: Iterable[int]) -> list[Any]:
        r"""Returns the targets of requests that are not finished."""
        chosen = json.dumps(list(numbers))
        return self.ledger.rows(
            'SELECT t.*, r.drops_features FROM target t JOIN request r ON '
            'r.id = t.request WHERE t.raw IS NOT NULL AND t.request IN '
            '(SELECT value FROM json_each(?)) ORDER BY t.request, t.digest',
            chosen,
        )

    def finish(self, number: int) -> None:
        r"""Destroys the raw ids of a request at its end."""
        self.ledger.write('UPDATE target SET raw = NULL WHERE request = ?', number)
        self.ledger.write(
            'UPDATE request SET finished_at = ? WHERE id = ?', self.clock(), number
        )

    def without_features(self) -> set[str]:
        r"""Returns the digests of items that must not come back with features."""
        rows = self.ledger.rows(
            'SELECT s.digest FROM suppression s JOIN target t ON t.digest = s.digest '
            'JOIN request r ON r.id = t.request WHERE s.lifted_at IS NULL AND '
            "s.level = 'item' AND r.drops_features AND r.state NOT IN "
            "('rejected', 'cancelled')"
        )
        return {row['digest'] for row in rows}

    def _set(self, number: int, state: str, outcome: str | None) -> None:
        self.ledger.write(
            'UPDATE request SET state = ?, outcome = ?, attempts = 0 WHERE id = ?',
            state,
            outcome,
            number,
        )

    def _pass_on(self, number: int) -> None:
        r"""Leaves what a later request asks for as well to that one. Whatever an
        earlier one had asked for was lifted before this one came.
        """
        other = (
            'FROM target t JOIN request r ON r.id = t.request '
            'WHERE t.digest = suppression.digest AND t.request > suppression.request '
            "AND r.state NOT IN ('rejected', 'cancelled')"
        )
        self.ledger.write(
            f'UPDATE suppression SET request = (SELECT MIN(t.request) {other}) '
            f'WHERE request = ? AND EXISTS (SELECT 1 {other})',
            number,
        )

    def _lift(self, where: str, value: Any) -> None:
        self.ledger.write(
            f'UPDATE suppression SET lifted_at = ? WHERE lifted_at IS NULL AND {where}',
            self.clock(),
            value,
        )


def check_text(value: Any, name: str, ids: Iterable[Any] = ()) -> None:
    r"""Raises unless :obj:`value` is a text, and names none of some ids: it stays when
    these are destroyed.
    """
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"'{name}' must be a text (got {value!r})")
    for raw in ids:
        for part in raw if isinstance(raw, (tuple, list)) else (raw,):
            # An integer may stand for anything.
            found = isinstance(part, str) and part in value
            if found and re.search(rf'(?<!\w){re.escape(part)}(?!\w)', value):
                raise ValueError(
                    f"'{name}' must not name whom the request is about, since it stays "
                    f'when the ids are destroyed. Use a number of your own.'
                )
