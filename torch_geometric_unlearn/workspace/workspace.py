from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor
from torch_geometric.data import HeteroData

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.data.request import is_erased
from torch_geometric_unlearn.nn.models.base import RecommenderLike
from torch_geometric_unlearn.report import save_json
from torch_geometric_unlearn.utils.files import (
    atomic_folder,
    make_folder,
    remove_stale,
)
from torch_geometric_unlearn.utils.optional import import_optional

from . import (
    approval,
    attempts,
    evidence,
    filtering,
    new_data,
    schedule,
    signing,
    site,
    training,
    upkeep,
    worker,
)
from . import rollback as way_back
from .attempts import Attempt
from .book import Book, RequestInfo, check_text
from .contained import Contained
from .content import dropped_items, without_content
from .keys import encode, keyed, make_key, read_key
from .ledger import Ledger
from .marking import mark
from .schedule import Plan
from .settings import SOURCE, Settings
from .store import BuildModel
from .versions import Versions
from .worker import Job

if TYPE_CHECKING:
    import pandas as pd


class Busy(RuntimeError):
    r"""Another worker is at work in the same workspace."""


class Workspace:
    r"""A folder that keeps who asked to be forgotten, which model is in service, and
    what was done, measured and destroyed.

    Accepted requests take effect in what :meth:`load` returns at once; the model
    follows when :meth:`work` finds that a batch is due. Nothing is served that failed a
    gate, and no path brings back what was erased. One process works at a time; any
    number may submit and load.

    Args:
        root (str or Path): The folder, as :meth:`create` has made it.
        build_model (callable): Returns a fresh model for some data.
        clock (callable, optional): Returns the time in seconds since 1970.
            (default: :func:`time.time`)

    Raises:
        FileNotFoundError: If there is no workspace, or its key is missing.
        ValueError: If the key is that of another workspace, or the ledger is none.

    Example:
        >>> data = SyntheticMultimodal('tiny')[0]
        >>> model = MGCN.from_data(data)
        >>> shop = Workspace.create(
        ...     'shop', data=data, model=model, build_model=MGCN.from_data)
        >>> request = shop.submit(
        ...     'erasure', users=[3], client_id='T-1', verified_by='crm')
        >>> request.state
        'queued'
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        build_model: BuildModel,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.root = Path(root)
        if not (self.root / 'workspace.json').is_file():
            raise FileNotFoundError(
                f"There is no workspace '{self.root}'. Make one with "
                f"'Workspace.create' or 'tgu init'."
            )
        self.settings = Settings.load(self.root / 'workspace.json')
        self.build_model, self.clock = build_model, clock
        self.key = read_key(Path(self.settings.key))
        self.ledger = Ledger(self.root / 'ledger.db')
        self.book = Book(self.ledger, self.key, clock)
        try:
            self.book.check_key(self.settings.key)
        except BaseException:
            self.ledger.close()
            raise
        self.versions = Versions(
            self.root, self.ledger, build_model, clock, self.settings.k
        )

    @classmethod
    def create(
        cls,
        root: str | os.PathLike[str],
        *,
        data: HeteroData,
        model: RecommenderLike,
        build_model: BuildModel,
        key: str | os.PathLike[str] | None = None,
        clock: Callable[[], float] = time.time,
        source: Mapping[str, str] | None = None,
        **settings: Any,
    ) -> Workspace:
        r"""Makes a workspace around a trained model. It is made beside the folder and
        gets its name at the end, so that a call that is killed leaves no half of one;
        the next call removes what it has left.

        Args:
            root (str or Path): The folder, which must not exist or be empty.
            data (HeteroData): The data that the model was trained on.
            model (torch.nn.Module): The model.
            build_model (callable): Returns a fresh model for some data.
            key (str or Path, optional): File of the key, made if it does not exist;
                outside of the folder. Beside it if not given. (default: :obj:`None`)
            clock (callable, optional): Returns the time. (default: :func:`time.time`)
            source (dict, optional): Where the command :obj:`tgu` finds the functions
                that give data and model, as :obj:`{'data': 'shop.py:load_data',
                'model': 'shop.py:build_model'}`. (default: :obj:`None`)
            **settings (optional): Entries of :class:`Settings`.

        Raises:
            FileExistsError: If the folder is not empty.
            OSError: If the folder can't be written.
            TypeError, ValueError: If the data can't be stored, or a setting is unknown.
        """
        root = Path(root)
        if root.exists() and any(root.iterdir()):
            raise FileExistsError(f"'{root}' is not empty. Choose another folder.")
        path = Path(key) if key is not None else root.with_name(f'{root.name}.key')
        if root.resolve() in path.resolve().parents:
            raise ValueError(
                f"'key' must lie outside of the folder (got '{path}'), or whoever gets "
                f'the folder can tell whom it has erased.'
            )
        data = new_data.with_ids(data)
        chosen = Settings(key=str(path.resolve()), **settings)
        signing.signer(root, chosen)  # Before anything is made.
        is_new = not path.exists()
        make_folder(str(path.parent))
        remove_stale(str(path.parent), path.name)
        try:
            if is_new:
                make_key(path)
            with atomic_folder(root) as folder:
                chosen.save(folder / 'workspace.json')
                if source is not None:
                    save_json(folder / SOURCE, dict(source))
                ws = cls(folder, build_model, clock)
                try:
                    worker.make_unlearner(ws, chosen.method, 'none')
                    ws.versions.install(model, data, 'created', 0)
                    site.write_site(ws, root.resolve().name)
                finally:
                    ws.ledger.close()
        except BaseException:  # Nothing was there before.
            if is_new:
                path.unlink(missing_ok=True)
            raise
        return cls(root, build_model, clock)

    # Requests -------------------------------------------------------------------------

    def submit(
        self,
        kind: str,
        *,
        users: Iterable[Any] = (),
        items: Iterable[Any] = (),
        pairs: Iterable[tuple[Any, Any]] = (),
        client_id: str,
        verified_by: str,
        received_at: float | None = None,
        due_days: float | None = None,
        drop_features: bool = False,
    ) -> RequestInfo:
        r"""Accepts a request; it takes effect in :meth:`load` at once.

        Args:
            kind (str): :obj:`'erasure'`, :obj:`'consent'` (withdrawn),
                :obj:`'takedown'`, :obj:`'correction'` or :obj:`'cleanup'`.
            users (iterable, optional): Raw ids of users. (default: :obj:`()`)
            items (iterable, optional): Raw ids of items. (default: :obj:`()`)
            pairs (iterable, optional): Raw (user, item) ids. (default: :obj:`()`)
            client_id (str): Your name for it: the same name with the same content
                returns the request that there is.
            verified_by (str): Who has checked that it may be made.
            received_at (float, optional): When it came in, in seconds since 1970; now
                if not given. (default: :obj:`None`)
            due_days (float, optional): Days to the deadline; that of the kind if not
                given. (default: :obj:`None`)
            drop_features (bool, optional): For a :obj:`'takedown'`, whether the
                features of the items are erased as well, from data and models; they
                stay otherwise, as they hold no interactions. (default: :obj:`False`)

        Raises:
            ValueError: If an argument is wrong, or :obj:`client_id` names another
                request.
        """
        targets = {
            'user': self._ids('user', users, 'users'),
            'item': self._ids('item', items, 'items'),
            'pair': self._ids('pair', pairs, 'pairs'),
        }
        review = self._asks_for_everything(targets)
        known = self.versions.internal(schema.ITEM)
        absent = [
            keyed(self.key, 'item', raw) for raw in targets['item'] if raw not in known
        ]
        with self._renewed():
            return self.book.submit(
                kind,
                targets,
                client_id,
                verified_by,
                received_at,
                due_days,
                review,
                drop_features,
                absent,
            )

    def submit_all(self, requests: Iterable[Mapping[str, Any]]) -> list[RequestInfo]:
        r"""Accepts many requests in one transaction, all of them or none.

        Args:
            requests (iterable): The arguments of :meth:`submit`, by name.

        Raises:
            TypeError, ValueError: If a request is wrong; none is accepted then.
        """
        with self._renewed(), self.ledger.transaction():
            return [self.submit(**request) for request in requests]

    def _ids(self, level: str, ids: Iterable[Any], name: str) -> list[Any]:
        r"""Returns ids as a list, and raises for those that nobody can have."""
        if isinstance(ids, (str, bytes)):
            raise TypeError(f"'{name}' must be a list of ids (got a single one)")
        out = list(ids)
        for raw in out:
            encode(level, raw)
            parts = zip(('user', 'item'), raw) if level == 'pair' else [(level, raw)]
            for kind, part in parts:
                filtering.check_type(self, kind, type(part))
        return out

    def _asks_for_everything(self, targets: dict[str, list[Any]]) -> str:
        data = self.versions.get_data(self.versions.service['data'])
        pairs = data[schema.EDGE_TYPE].edge_index
        left = torch.ones(pairs.size(1), dtype=torch.bool)
        for row, level in enumerate(('user', 'item')):
            known = self.versions.internal(level)
            ids = [known[raw] for raw in targets[level] if raw in known]
            left &= ~torch.isin(pairs[row], torch.tensor(ids, dtype=torch.int64))
        if targets['pair'] and left.any():
            users, items = (self.versions.internal(x) for x in ('user', 'item'))
            ones = [(users.get(u, -1), items.get(i, -1)) for u, i in targets['pair']]
            named = schema.pair_codes(torch.tensor(ones).t(), schema.num_items(data))
            codes = schema.pair_codes(pairs, schema.num_items(data))
            left &= ~torch.isin(codes, named)
        return '' if left.any() else 'it asks for everything'

    def cancel(self, number: int, who: str, why: str) -> RequestInfo:
        r"""Cancels a request that no job serves yet."""
        return self._move(number, who, 'cancelled', why)

    def hold(self, number: int, who: str, why: str) -> RequestInfo:
        r"""Keeps a request from being served, e.g. for a legal hold; its subjects stay
        out of the lists.
        """
        return self._move(number, who, 'held', why)

    def release(self, number: int, who: str, why: str) -> RequestInfo:
        r"""Puts a request that is held, or was reviewed, back into the queue."""
        return self._move(number, who, 'queued', why)

    def reject(self, number: int, who: str, why: str) -> RequestInfo:
        r"""Ends a request after a review."""
        return self._move(number, who, 'rejected', why)

    def _move(self, number: int, who: str, to: str, why: str) -> RequestInfo:
        self.settings.check_role('review', who)
        with self._renewed():
            return self.book.move(number, who, to, why)

    def attempts(self) -> list[Attempt]:
        r"""Returns the versions that a person may sign for: those that failed a soft
        gate, while all requests of their job wait for a decision and no other version
        was served since, and those that are served although their gates could not be
        told.
        """
        return [*attempts.kept(self), *attempts.undecided(self)]

    def sign(
        self, job: str, number: int, *, although: Collection[str], who: str, why: str
    ) -> Job:
        r"""Serves an attempt of a job although it did not pass all soft gates, or lets
        one that is served stay although they could not be told. The name and the reason
        stay in the ledger and in the evidence; other attempts of the job are destroyed.

        Args:
            job (str): The job.
            number (int): The attempt, as in :meth:`attempts`.
            although (collection): Names of all gates that it did not pass.
            who (str): Who signs for it.
            why (str): The reason.

        Raises:
            Busy: If another process is at work.
            PermissionError: If others have the role :obj:`'sign'`.
            ValueError: If there is no such attempt any more, it failed a hard gate,
                or other gates are named.
        """
        self.doctor()  # What can't be signed for any more goes.
        with self._at_work():
            signed = approval.sign(self, job, number, although, who, why)
            upkeep.heal(self)
        return signed

    # Serving --------------------------------------------------------------------------

    def load(self) -> tuple[Contained, HeteroData]:
        r"""Returns what is in service: the model, which recommends no item that is
        taken down, and the data, in which whatever waits to be erased is erased
        already, its rows drawn anew. A request for everything takes no effect before
        its review, other than that its items are not recommended.

        Users and items are looked up with :func:`raw_to_internal
        <torch_geometric_unlearn.data.from_frame.raw_to_internal>`; an erased user is
        not found.

        Raises:
            ValueError: If a file is not what it was.
        """
        with self.ledger.transaction():  # Nothing is promoted or purged meanwhile.
            service = self.versions.service
            model = self.versions.get_model(service['id'])
            data = self.versions.get_data(service['data'])
            waiting = [
                row['id']
                for row in self.ledger.rows(
                    'SELECT id FROM request WHERE state IN '
                    "('queued', 'review', 'held', 'working')"
                )
            ]
            marked, outcomes = mark(self, waiting)
            served = sorted({number for number, _ in outcomes})
            dropped = dropped_items(self, served)
            banned = self._banned(data)
        if dropped:
            model, marked = without_content(model, marked, dropped)
        if marked is not data:
            result = upkeep.contain(self, model, marked)
            model, data = result.model, result.data
        return Contained(model, banned), data

    def _banned(self, data: HeteroData) -> Tensor:
        suppressed = self.book.suppressed()['item']
        banned = [
            index
            for raw, index in self.versions.internal(schema.ITEM).items()
            if keyed(self.key, 'item', raw) in suppressed
        ]
        raw_ids = data[schema.ITEM].get('raw_id', [])
        banned += [index for index, raw in enumerate(raw_ids) if is_erased(raw)]
        return torch.tensor(sorted(banned), dtype=torch.int64)

    def filter(
        self, frame: pd.DataFrame, user: str = 'user', item: str = 'item'
    ) -> pd.DataFrame:
        r"""Returns a table of new interactions without users, items and pairs that are
        suppressed. Call it before any training.

        Args:
            frame (pandas.DataFrame): One interaction per row; left as it is.
            user (str, optional): Column of user ids. (default: :obj:`'user'`)
            item (str, optional): Column of item ids. (default: :obj:`'item'`)
        """
        return filtering.filter_frame(self, frame, user, item)

    def lift(self, level: str, raw: Any, who: str, why: str) -> None:
        r"""Lets a user, an item or a pair come back in new data: a new consent, an item
        that is reinstated.
        """
        self.settings.check_role('review', who)
        with self._renewed():
            self.book.lift(level, raw, who, why)

    # Work -----------------------------------------------------------------------------

    def plan(self) -> Plan:
        r"""Returns what :meth:`work` would do now."""
        return schedule.plan(self)

    def work(self, now: bool = False) -> list[Job]:
        r"""Does whatever is due; safe to kill and to repeat.

        Args:
            now (bool, optional): Whether to serve what waits although nothing is due.
                (default: :obj:`False`)

        Raises:
            Busy: If another process is at work.
            ValueError: If the ledger is damaged, a file is not what it was, or the
                clock was set back.
            ImportError: If scikit-learn is missing, which the membership gate needs.
        """
        import_optional('sklearn', 'The membership gate', 'audit')
        # Before a job that could not be told of.
        signing.signer(self.root, self.settings)
        jobs = []
        with self._at_work():
            upkeep.heal(self)
            upkeep.finalise(self)
            self.renew()  # Whatever becomes of the batch.
            batch = schedule.plan(self, now)
            if batch.is_surge:
                for number in batch.requests:
                    self.book.to_review(number, batch.reason)
            elif batch.decides:
                jobs.append(training.decide(self, batch.reason))
            elif batch.replays:
                jobs.append(way_back.replay(self))
            elif batch.requests and (job := worker.run(self, batch)) is not None:
                jobs.append(job)
            upkeep.heal(self)
        return jobs

    def refresh(self, data: HeteroData, who: str, why: str) -> str:
        r"""Trains a new model on new data, which :meth:`filter` has been applied to,
        and puts it into service. Returns the version. After a crash the same call goes
        on where it has stopped.

        Raises:
            Busy: If another process is at work.
            PermissionError: If others have the role :obj:`'rollback'`.
            ValueError: If the data names someone who is suppressed, or takes an
                internal id from somebody.
        """
        self.settings.check_role('rollback', who)
        with self._at_work():
            version = new_data.refresh(self, data, who, why)
            upkeep.heal(self)
        return version

    def rollback(self, who: str, why: str) -> str:
        r"""Takes the model out of service, and returns the version that serves.

        That is the newest version before which knows nothing that was erased. If there
        is none, it is the *containment* version: the weights before, without what was
        erased since and its rows drawn anew. The next :meth:`work` completes the
        rollback by a job of its own, through all gates: it erases from these weights
        what was erased since (a *replay*), or trains new ones. Nothing that was taken
        out of service comes back that way.

        Older weights exist while all that was erased since is on probation. Without
        them the model stays in service until new ones are trained.

        Args:
            who (str): Who decides.
            why (str): The reason.

        Raises:
            Busy: If another process is at work.
            PermissionError: If others have the role :obj:`'rollback'`.
            ValueError: If nobody or no reason is named.
        """
        self.settings.check_role('rollback', who)
        with self._at_work():
            return way_back.rollback(self, who, why)

    def finalise(self) -> list[int]:
        r"""Completes the requests whose probation is over: destroys their raw ids and
        the versions before, and returns their numbers. :meth:`work` does so as well.

        Raises:
            Busy: If another process is at work.
        """
        with self._at_work():
            return upkeep.finalise(self)

    def doctor(self) -> list[str]:
        r"""Finishes what a crash has left: removes files that no version in use names,
        puts requests of a dead job back into the queue, writes what servers read, and
        checks the chain of events. Returns what it did.

        Raises:
            Busy: If another process is at work.
            ValueError: If the chain is broken.
        """
        with self._locked():
            stale = site.outdated(self)
            return upkeep.heal(self) + [f'renewed {name}' for name in stale]

    def renew(self) -> Path:
        r"""Writes what follows from the ledger: :obj:`serving.json`,
        :obj:`site/index.html` and :obj:`metrics.prom`, and returns the page. All that
        changes the ledger does so afterwards, and :meth:`doctor` after a crash.
        """
        with self.ledger.transaction():  # No one writes an older state over a newer.
            self.versions.write_serving()
            return site.write_site(self)

    def evidence(self, job: str) -> Path:
        r"""Writes the evidence of a job as it stands, and returns its folder.

        Raises:
            Busy: If another process is at work.
            ValueError: If nothing was promoted by such a job.
        """
        with self._locked():
            row = self.ledger.row('SELECT bundled_at FROM job WHERE id = ?', job)
            with self.ledger.transaction():  # If this is killed, the doctor does it.
                self.ledger.write('UPDATE job SET bundled_at = NULL WHERE id = ?', job)
            folder = evidence.bundle(self, job)
            with self.ledger.transaction():
                at = None if row is None or row['bundled_at'] is None else self.clock()
                sql = 'UPDATE job SET bundled_at = ? WHERE id = ?'
                self.ledger.write(sql, at, job)
            return folder

    def status(self) -> dict[str, Any]:
        r"""Returns numbers of requests by state, how many are overdue, the version
        in service, the job that is to complete a rollback, and the one that was to
        settle before a deadline what the gates could not tell, if it has failed.
        """
        states = self.ledger.rows('SELECT state, COUNT(*) AS n FROM request GROUP BY 1')
        overdue = self.ledger.row(
            'SELECT COUNT(*) AS n, MIN(due_at) AS due FROM request WHERE state NOT IN '
            "('completed', 'rejected', 'cancelled', 'probation') AND due_at < ?",
            self.clock(),
        )
        waiting = self.ledger.row(
            'SELECT MIN(due_at) AS due FROM request WHERE state NOT IN '
            "('completed', 'rejected', 'cancelled', 'probation')"
        )
        assert overdue is not None
        assert waiting is not None
        service, pending = self.versions.service, schedule.pending(self)
        return {
            'requests': {row['state']: row['n'] for row in states},
            'overdue': overdue['n'],
            'next_deadline': waiting['due'],
            'version': service['id'],
            'watermark': service['watermark'],
            'rollback': None if pending is None else pending['id'],
            'failed': schedule.failed_decision(self),
        }

    def accept_clock(self, who: str, why: str) -> None:
        r"""Lets the workspace go by the clock although earlier events are ahead of it:
        that which had told their times was wrong. Times that stand in it stay.

        Args:
            who (str): Who decides.
            why (str): The reason.

        Raises:
            PermissionError: If others have the role :obj:`'review'`.
            ValueError: If nobody or no reason is named.
        """
        self.settings.check_role('review', who)
        check_text(who, 'who')
        check_text(why, 'why')
        with self._renewed(), self.ledger.transaction():
            self.ledger.event(self.clock(), 'clock_set', who=who, why=why)

    @contextmanager
    def _renewed(self) -> Iterator[None]:
        r"""Renews after a change of the ledger, once for changes that belong together,
        and refuses any to an older copy of it.
        """
        is_outer = not self.ledger.db.in_transaction
        if is_outer:
            self.versions.check_head()
        yield
        if is_outer:
            self.renew()

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        with self._locked():
            self.ledger.check_clock(self.clock())
            yield

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            with FileLock(self.root / 'worker.lock', timeout=0):
                self.versions.check_head()
                yield
                self.renew()
        except Timeout as error:
            raise Busy(f"Another worker is at work in '{self.root}'") from error

    def __repr__(self) -> str:
        return f"{self.__class__.__name__}('{self.root}')"

