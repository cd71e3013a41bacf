from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor
from torch_geometric.data import HeteroData

from torch_geometric_unlearn.data.request import is_erased
from torch_geometric_unlearn.metrics.ranking import retained_ndcg
from torch_geometric_unlearn.nn.models import Served
from torch_geometric_unlearn.nn.models.base import RecommenderLike
from torch_geometric_unlearn.report import save_json
from torch_geometric_unlearn.utils.tensor_file import load_tensors, save_tensors

from .ledger import Ledger
from .store import BuildModel, Store

_LAST = 'SELECT version FROM alias_event ORDER BY id DESC LIMIT 1'
#: A job that completes a rollback, or may do so if a person signs for it.
_WAITS = (
    "(j.state = 'waiting' OR (j.replays AND EXISTS (SELECT 1 FROM attempt a WHERE "
    "a.job = j.id AND a.state = 'kept')))"
)


class Versions:
    r"""The versions of a workspace, and which is in service.

    Args:
        root (Path): The workspace.
        ledger (Ledger): Where they are written.
        build_model (callable): Returns a fresh model for some data.
        clock (callable): Returns the time in seconds since 1970.
        k (int): Length of the lists in which utility is measured.
    """

    def __init__(
        self,
        root: Path,
        ledger: Ledger,
        build_model: BuildModel,
        clock: Callable[[], float],
        k: int,
    ) -> None:
        self.root, self.ledger, self.clock, self.k = root, ledger, clock, k
        self.build_model, self.store = build_model, Store(root)
        self._data: tuple[str, HeteroData] | None = None
        self._internal: dict[tuple[str, str], dict[Any, int]] = {}

    @property
    def service(self) -> Any:
        r"""The version in service, a row of the ledger."""
        row = self.ledger.row(
            'SELECT v.* FROM version v JOIN alias_event a ON a.version = v.id '
            'ORDER BY a.id DESC LIMIT 1'
        )
        if row is None:
            raise ValueError(
                f"The workspace '{self.root}' was not made completely. Remove the "
                f'folder and make it anew.'
            )
        return row

    @property
    def last_full(self) -> Any:
        r"""The last version that was trained from scratch, a row of the ledger."""
        row = self.ledger.row(
            "SELECT * FROM version WHERE is_full = 1 AND state != 'withdrawn' "
            'ORDER BY created_at DESC, rowid DESC LIMIT 1'
        )
        assert row is not None
        return row

    def get_data(self, name: str) -> HeteroData:
        r"""Returns stored data; the last is kept in memory."""
        if self._data is None or self._data[0] != name:
            self._data = name, self.store.get_data(name)
        return self._data[1]

    def get_model(self, version: str) -> RecommenderLike:
        r"""Returns a stored model."""
        row = self.ledger.row('SELECT data FROM version WHERE id = ?', version)
        assert row is not None
        data = self.get_data(row['data'])
        return self.store.get_model(version, data, self.build_model)

    def internal(self, kind: str) -> dict[Any, int]:
        r"""Returns the internal id by raw id in the data in service, without erased
        ones.
        """
        key = self.service['data'], kind
        if key not in self._internal:
            ids = enumerate(self.get_data(key[0])[kind].raw_id)
            found = {raw: index for index, raw in ids if not is_erased(raw)}
            kept = {k: v for k, v in self._internal.items() if k[0] == key[0]}
            self._internal = kept | {key: found}
        return self._internal[key]

    def add_version(
        self,
        names: tuple[str, str],
        watermark: int,
        job: str | None,
        is_full: bool,
        parent: str | None,
    ) -> None:
        r"""Registers a version, or other data of one; inside a transaction."""
        self.ledger.write(
            'INSERT INTO version VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO '
            'UPDATE SET data = excluded.data, state = excluded.state, '
            'watermark = MAX(watermark, excluded.watermark), created_at = '
            'CASE WHEN excluded.is_full THEN excluded.created_at ELSE created_at END, '
            'is_full = MAX(is_full, excluded.is_full), job = COALESCE(job, '
            'excluded.job)',
            names[0],
            parent,
            job,
            names[1],
            'candidate',
            watermark,
            int(is_full),
            self.clock(),
        )

    def point_to(self, version: str, who: str, why: str) -> None:
        r"""Puts a version into service; inside a transaction.

        Raises:
            ValueError: If its watermark is lower than that of the one in service.
        """
        rows = {
            row['id']: row['watermark']
            for row in self.ledger.rows('SELECT id, watermark FROM version')
        }
        last = self.ledger.row(_LAST)
        if last is not None and rows[version] < rows[last['version']]:
            raise ValueError(
                f"Version '{version[:12]}' knows what was erased since and must not "
                f'be served'
            )
        self.ledger.write("UPDATE version SET state = 'old' WHERE state = 'service'")
        self.ledger.write("UPDATE version SET state = 'service' WHERE id = ?", version)
        self.ledger.write(
            'INSERT INTO alias_event (at, version, who, why) VALUES (?, ?, ?, ?)',
            self.clock(),
            version,
            who,
            why,
        )

    def install(
        self,
        model: RecommenderLike,
        data: HeteroData,
        who: str,
        watermark: int,
        why: str = 'a full training',
        then: Callable[[], None] = lambda: None,
    ) -> str:
        r"""Puts a trained model into service, and calls :obj:`then` in the same
        transaction. Returns the version.

        Raises:
            ValueError: If the model is not finite.
        """
        names = self.store.put_model(model), self.store.put_data(data)
        served = Served.of(self.store.get_model(names[0], data, self.build_model), data)
        if not served.is_finite:
            raise ValueError('The model is not finite and must not be served')
        self.save_full_ndcg(names[0], *retained_ndcg(served, data, self.k))
        with self.ledger.transaction():
            last = self.ledger.row(_LAST)
            parent = None if last is None else last['version']
            self.add_version(names, watermark, None, True, parent)
            self.point_to(names[0], who, why)
            self.ledger.event(self.clock(), 'installed', version=names[0], who=who)
            then()
        self.write_serving()
        return names[0]

    def write_serving(self) -> None:
        r"""Writes :obj:`serving.json`, which follows from the ledger.

        Raises:
            ValueError: As for :meth:`check_head`, which could not be told afterwards.
        """
        self.check_head()
        service = self.service
        waiting = self.ledger.row(
            'SELECT COUNT(*) AS n FROM request WHERE state IN '
            "('queued', 'review', 'held', 'working')"
        )
        assert waiting is not None
        content = {
            'version': service['id'],
            'data': service['data'],
            'watermark': service['watermark'],
            'contained_requests': waiting['n'],
            'head': self.ledger.head,
        }
        save_json(self.root / 'serving.json', content)

    def check_head(self) -> None:
        r"""Raises a :class:`ValueError` if the ledger lacks an event that
        :obj:`serving.json` knows of.
        """
        self.ledger.check_head(self.served_head())

    def served_head(self) -> str | None:
        r"""Returns the last event that :obj:`serving.json` knows of."""
        try:
            return str(json.loads((self.root / 'serving.json').read_text())['head'])
        except (FileNotFoundError, ValueError, KeyError):  # Written anew.
            return None

    def save_full_ndcg(self, version: str, users: Tensor, ndcg: Tensor) -> None:
        r"""Keeps the utility of a full training, user by user."""
        path = self.root / 'full' / f'{version}.safetensors'
        save_tensors(path, {'users': users, 'ndcg': ndcg}, {})

    def full_ndcg(self) -> tuple[Tensor, Tensor] | None:
        r"""Returns users and their NDCG@K at the last full training."""
        path = self.root / 'full' / f'{self.last_full["id"]}.safetensors'
        if not path.exists():  # The training after it was taken out of service.
            return None
        tensors, _ = load_tensors(path)
        return tensors['users'], tensors['ndcg']

    def kept(self, since: float) -> set[str]:
        r"""Returns the versions that must not be purged: what is served, the one before
        if that is served since then only, what versions came from whose requests
        are on probation, and what a rollback starts from that waits. None of them may
        know of a request that is completed.
        """
        service = self.service
        kept = {service['id']}
        if service['created_at'] > since:
            kept.add(service['parent'])
        rows = self.ledger.rows(
            'SELECT v.id, v.parent FROM version v JOIN job j ON j.version = v.id '
            "JOIN request r ON r.job = j.id WHERE r.state = 'probation'"
        )
        for row in rows:
            kept |= {row['id'], row['parent']}
        rows = self.ledger.rows(f'SELECT j.parent FROM job j WHERE {_WAITS}')
        kept |= {row['parent'] for row in rows}
        done = self.ledger.row(
            'SELECT MAX(COALESCE(v.watermark, p.watermark)) AS least FROM request r '
            'JOIN job j ON j.id = r.job LEFT JOIN version v ON v.id = j.version '
            'LEFT JOIN version p ON p.id = j.parent '
            "WHERE r.state = 'completed' AND r.outcome = 'erased'"
        )
        assert done is not None
        knowing = self.ledger.rows(
            'SELECT id FROM version WHERE watermark < ?', done['least'] or 0
        )
        return kept - {row['id'] for row in knowing} - {None}

    def remove_unnamed(self) -> list[str]:
        r"""Removes all files that no version needs, and returns which these were."""
        rows = self.ledger.rows(
            "SELECT id, data FROM version WHERE state != 'purged' UNION "
            "SELECT version, data FROM attempt WHERE state = 'kept'"
        )
        models, data = ({row[key] for row in rows} for key in ('id', 'data'))
        # What a way back starts from, if the same weights serve with other data.
        rows = self.ledger.rows(
            'SELECT j.data FROM job j JOIN version v ON v.id = j.parent WHERE '
            f"{_WAITS} AND j.data IS NOT NULL AND v.state != 'purged'"
        )
        data |= {row['data'] for row in rows}
        gone = [f'removed {name}' for name in self.store.remove_all_but(models, data)]
        # The figures of the last full training outlive its weights.
        keep = models | {self.last_full['id']}
        for path in sorted((self.root / 'full').glob('*')):
            if path.stem not in keep:
                path.unlink()
                gone.append(f'removed full/{path.name}')
        return gone
