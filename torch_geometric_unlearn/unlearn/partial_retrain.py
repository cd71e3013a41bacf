from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import HeteroData
from tqdm.auto import tqdm

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.loader.row_loader import RowLoader
from torch_geometric_unlearn.metrics import embed, ranking_metrics
from torch_geometric_unlearn.nn.models import LinearRows, TableRows, Triplets
from torch_geometric_unlearn.nn.models.base import HasRowBranches, RecommenderLike
from torch_geometric_unlearn.train.checkpoint import (
    fingerprint,
    load_tensors,
    save_tensors,
    tensor_digest,
)
from torch_geometric_unlearn.utils.check import check_float, check_int
from torch_geometric_unlearn.utils.resources import ResourceMeter
from torch_geometric_unlearn.utils.seed import generator

from ._touched_rows import (
    TouchedRows,
    reset_features,
    row_types,
    start_smoothly,
    touched_rows,
)
from .base import Unlearner
from .row_reset import draw_rows, lacks_id_table

#: The learning rate falls from the first to the second multiple of the training's.
BOOST = (5.0, 2.0)
#: A batch is this part of one of the training: more steps for the same pairs.
BATCH_PARTS = 2
#: Training goes on while an epoch lifts the validation curve by more than this share,
#: up to this multiple of the steps.
RISE, LONGEST = 0.01, 3
#: Above this share of deleted pairs, the frozen modules have seen too much of them.
MAX_DELETED = 0.5
#: Users that the validation curve looks at, and the pairs that it must have to choose.
MAX_USERS = 2000
MIN_PAIRS = 200


class PartialRetrain(Unlearner):
    r"""Draws the rows that a deletion touches anew and trains them by the model's own
    loss on what is retained, with everything else frozen [ours].

    ID rows hold nearly all memory of single pairs. A row :math:`n` is drawn anew, as
    the model itself did at first, if the request names it, or if the deletion has had
    enough influence on it,

    .. math::
        s(n) + \frac{1}{|\mathcal{N}(n)|} \sum_{m \in \mathcal{N}(n)} s(m) \geq \tau,

    where :math:`s` is the share of a node's training pairs that is deleted, and
    :math:`\mathcal{N}` are its retained neighbours: the second term is what reached the
    row through those that it was trained together with. Popular items that lose one
    purchase in a hundred hold next to nothing of it and stay. As soon as the rows that
    are drawn anew take part in more than a quarter of the retained pairs, *all* rows
    are: a step costs the same, and no attacker can tell a deleted pair by the freshness
    of its rows. Raw feature rows, where a model trains some, are set back to the
    features.

    A model that is nothing but its ID tables, such as
    :class:`~torch_geometric_unlearn.nn.LightGCN`, would then have lost all that it
    knows. So a second start is tried: what the retained interactions alone can tell of
    the original rows, their projection on the leading singular vectors of the retained,
    normalised interactions, as many as the rows have channels, and at most a sixteenth
    of the users or items. Whichever start is better on validation pairs of the rows
    after the first epoch goes on.

    Then Adam trains these rows on the triplets of a training epoch that touch them
    (:obj:`loader.row_loader.RowLoader`), in batches of half of :obj:`batch_size`, with
    a learning rate that falls from five times to twice :obj:`lr`, and goes on at the
    latter while an epoch still lifts the NDCG on the validation pairs of these rows by
    more than 1 %. Rows without a retained pair stay as drawn, as in a retrained model.
    Other rows, and what all nodes share, are left bit-identical.

    There is nothing to aim at, to reverse or to stop by: a request of one pair is
    served like one of 5 %, and a request after another starts from fresh rows. It is
    not exact: the frozen rows, and shared modules such as projections and gates, come
    from a training that saw the deleted pairs in sums over everything. For a model
    without item rows, such as :class:`~torch_geometric_unlearn.nn.MIGGT`, only users
    are drawn anew: what its encoders have learned about an item stays, unless
    :obj:`shared_lr` lets them move. Measured on Amazon Baby, 5 %, membership was then
    like retraining at user-level, and .10 and .11 (balanced accuracy) above it for
    interactions and items.

    Related are RecEraser and :class:`~torch_geometric_unlearn.unlearn.UltraRE`, which
    retrain shards, and SCIF and
    :class:`~torch_geometric_unlearn.unlearn.InfluenceFunction`, which move rows by
    their influence. The settings were chosen on validation pairs of Amazon Baby and on
    generated data.

    The cost follows the neighbourhood of the request where the model tells its
    :obj:`row_branches` (:class:`~torch_geometric_unlearn.nn.MGCN`,
    :class:`~torch_geometric_unlearn.nn.LightGCN`); other models take full steps.

    Args:
        tau (float, optional): Influence :math:`\tau` from which on a row is drawn anew;
            at 0, every row that the deletion has reached over one or two edges.
            (default: :obj:`0.05`)
        num_epochs (int, optional): Passes over the touched triplets; at most three
            times as many while the validation curve rises. (default: :obj:`5`)
        min_steps (int, optional): Least number of steps, and twice as many where all
            rows are drawn anew: fresh rows need some steps to arrive, however few
            batches there are. (default: :obj:`200`)
        lr (float, optional): Learning rate of the training. (default: :obj:`1e-3`)
        batch_size (int, optional): Batch size of the training.
            (default: :obj:`2048`)
        shared_lr (float, optional): Learning rate of what all nodes share; frozen at 0,
            and every step is a full one above. (default: :obj:`0.0`)
        checkpoint (str or Path, optional): File to keep the state of a long run in,
            once per epoch. It holds rows of the model. (default: :obj:`None`)
        resume (bool, optional): Whether to go on from :obj:`checkpoint` if it exists;
            on the CPU, the result is that of an uninterrupted run.
            (default: :obj:`False`)
        seed (int, optional): Seed of fresh rows and batches. (default: :obj:`0`)

    The history has a row per epoch: :obj:`epoch`, :obj:`steps`, :obj:`loss` (mean),
    :obj:`lr` of the last step, :obj:`touched_val_ndcg@20` on the validation pairs of
    users and items that were drawn anew (of at most 2,000 users; with fewer than 200
    pairs in the last epoch only, else NaN), :obj:`selected`, :obj:`num_users` and
    :obj:`num_items` (rows drawn anew),
    :obj:`num_trained` (those with a retained pair), :obj:`num_pairs` (retained pairs
    that touch the latter), :obj:`all_rows`, :obj:`smooth_start` (whether the rows
    started from the projection; after a choice, the first row has the NDCG of the other
    start as :obj:`other_start_ndcg@20`), :obj:`path` (:obj:`'response'`,
    :obj:`'propagate'` or :obj:`'model'`) and :obj:`seconds`. With at least 200 such
    validation pairs the best epoch is returned, else the last one.

    Raises:
        ValueError: If an argument is out of range or can't act, the model has no ID
            table or a frozen or half-precision one, the request deletes more than half
            of the training pairs, or the checkpoint belongs to another model, request
            or other settings.
        FileExistsError: If :obj:`checkpoint` exists and :obj:`resume` is not set.
        FloatingPointError: If the loss is no longer finite.

    Example:
        >>> result = PartialRetrain()(model, ForgetUsers([3])(data))
        >>> result.history[0]['num_users'] >= 1
        True
    """

    serves_nodes = True

    def __init__(
        self,
        tau: float = 0.05,
        num_epochs: int = 5,
        min_steps: int = 200,
        lr: float = 1e-3,
        batch_size: int = 2048,
        shared_lr: float = 0.0,
        checkpoint: str | os.PathLike[str] | None = None,
        resume: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(seed)
        self.tau = check_float(tau, 'tau', 0.0)
        self.num_epochs = check_int(num_epochs, 'num_epochs', 1)
        self.min_steps = check_int(min_steps, 'min_steps', 0)
        self.lr = check_float(lr, 'lr', 1e-12)
        self.batch_size = check_int(batch_size, 'batch_size', 1)
        self.shared_lr = check_float(shared_lr, 'shared_lr', 0.0)
        if resume and checkpoint is None:
            raise ValueError(
                "'resume' needs a 'checkpoint' to go on from (got None). Name the file."
            )
        self.checkpoint = checkpoint
        self.resume = resume

    def supports(self, model: RecommenderLike, data: HeteroData) -> tuple[bool, str]:
        ok, reason = super().supports(model, data)
        if not ok:
            return ok, reason
        reason = lacks_id_table(model) or self._unfit(model)
        share = float(schema.forget_mask(data).float().mean())
        if not reason and share > MAX_DELETED:
            reason = (
                f'it deletes {share:.0%} of the training pairs, of which too much '
                f"would be left in what stays frozen. Use 'Retrain'"
            )
        return not reason, reason

    def _unfit(self, model: RecommenderLike) -> str:
        tables = model.tables()
        for table in tables:
            if table.is_raw:
                continue
            if not table.parameter.requires_grad:
                return (
                    "a table is frozen ('requires_grad' is False), so its rows can't "
                    'be trained again. Unfreeze it'
                )
            if table.parameter.dtype not in (torch.float32, torch.float64):
                return (
                    f"a table is {table.parameter.dtype}, too coarse for Adam's steps. "
                    f"Convert the model with '.float()' and back afterwards"
                )
        known = {id(table.parameter) for table in tables}
        if self.shared_lr > 0 and all(id(p) in known for p in model.parameters()):
            return (
                f"'shared_lr' can't act (got {self.shared_lr}): the model has nothing "
                f'but tables'
            )
        return ''

    def _unlearn(
        self, model: RecommenderLike, data: HeteroData, retained: HeteroData
    ) -> tuple[RecommenderLike, list[dict[str, Any]]]:
        path = self.checkpoint
        if path is not None and Path(path).exists() and not self.resume:
            raise FileExistsError(
                f"'{path}' exists. Pass resume=True to go on from it, or remove it."
            )
        num_users = schema.num_users(data)
        touched = touched_rows(data, retained, self.tau, row_types(model))
        original = tensor_digest(model.state_dict().values()) if path else ''
        tables: list[Tensor] = []  # Small requests need no copy of the whole tables.
        if touched.is_all:
            own = [table.parameter for table in model.tables() if not table.is_raw]
            tables = [parameter.detach().clone() for parameter in own]
        draw_rows(model, touched.users, touched.items, num_users)
        reset_features(model, retained, touched.items)
        run = _Run(self, model, data, retained, touched, original)
        if path is not None and Path(path).exists():
            run.load(path)
        elif (
            touched.is_all
            and run.can_choose
            and start_smoothly(model, tables, retained)
        ):
            smooth = _Run(self, model, data, retained, touched, original)
            run = _better_start(run, smooth, path)
        run.train(path)
        return model, run.history


class _Run:
    r"""The training of one request: everything that a resume must bring back."""

    def __init__(
        self,
        unlearner: PartialRetrain,
        model: RecommenderLike,
        data: HeteroData,
        retained: HeteroData,
        touched: TouchedRows,
        original: str,
    ) -> None:
        self.unlearner, self.model = unlearner, model
        self.is_smooth = False
        self.device = next(model.parameters()).device
        self.graph = model.build_graph(retained)
        self.touched = touched
        self.loader = RowLoader(
            schema.retained_edge_index(retained),
            schema.num_items(retained),
            touched.trained_users,
            touched.trained_items,
            max(1, unlearner.batch_size // BATCH_PARTS),
            unlearner.seed,
        )
        num_users = schema.num_users(retained)
        nodes = [touched.trained_users, touched.trained_items + num_users]
        self.rows = _rows_of(
            model, self.graph, torch.cat(nodes), num_users, unlearner.shared_lr > 0
        )
        own = sum(not table.is_raw for table in model.tables())
        own = len(self.rows.values) if isinstance(self.rows, LinearRows) else own
        groups: list[dict[str, Any]] = [{'params': self.rows.values[:own]}]
        if unlearner.shared_lr > 0:
            groups.append({'params': self.rows.values[own:], 'lr': unlearner.shared_lr})
        self.optimizer = torch.optim.Adam(groups, fused=True)
        num_batches = len(self.loader)
        has_rows = sum(value.numel() for value in self.rows.values[:own]) > 0
        least = unlearner.min_steps * (2 if touched.is_all else 1)
        self.num_steps = max(unlearner.num_epochs * num_batches, least)
        if num_batches == 0 or not has_rows:
            self.num_steps = 0
        self.per_epoch = max(1, -(-self.num_steps // unlearner.num_epochs))
        self.curve = _ValidationCurve(retained, touched, unlearner.seed, self.device)
        self.can_choose = self.curve.num_pairs >= MIN_PAIRS
        self.step = 0
        self.history: list[dict[str, Any]] = []
        self.best: list[Tensor] | None = None
        self.settings = unlearner._settings() | {
            'data': fingerprint(data),
            'original': original,
            'request': tensor_digest(
                [schema.forgotten_edge_index(data), touched.users, touched.items]
            ),
        }
        for key in ('checkpoint', 'resume'):
            self.settings.pop(key, None)

    def train(self, path: str | os.PathLike[str] | None) -> None:
        r"""Runs what is left, and leaves the chosen rows in the model."""
        if self.num_steps == 0:
            self.history = [self._facts() | {'epoch': 0, 'steps': 0, 'selected': True}]
            self.rows.write()
            return
        bar = tqdm(
            total=self.num_steps, disable=None, desc='partial', initial=self.step
        )
        with bar:
            while not self._is_done():
                self.advance(bar)
                if path is not None:
                    self.save(path)
        if self.best is not None:
            for value, best in zip(self.rows.values, self.best):
                value.data.copy_(best)
        self.rows.write()
        chosen = self._chosen()
        for row in self.history:
            row['selected'] = row['epoch'] == chosen

    def advance(self, bar: Any) -> None:
        r"""Runs one epoch."""
        with ResourceMeter(self.device) as meter:
            row = self._epoch(bar)
        self._record(row | {'seconds': meter.seconds})

    def _is_done(self) -> bool:
        if self.step < self.num_steps:
            return False
        if not self.can_choose or self.step >= LONGEST * self.num_steps:
            return True
        *earlier, last = [row[self.curve.key] for row in self.history]
        return last <= (1 + RISE) * max(earlier, default=0.0)

    def _epoch(self, bar: Any) -> dict[str, Any]:
        end = self.step + self.per_epoch
        if self.step < self.num_steps:
            end = min(self.num_steps, end)
        bar.total = max(bar.total, end)
        total, start = torch.zeros((), device=self.device), self.step
        for batch in self._batches(end - start):
            self.optimizer.param_groups[0]['lr'] = self._lr()
            loss, grads = self.rows.gradients(batch.to(self.device))
            for value, grad in zip(self.rows.values, grads):
                value.grad = grad
            self.optimizer.step()
            total += loss
            self.step += 1
            bar.update()
        if not torch.isfinite(total) or not _all_finite(self.rows.values):
            raise FloatingPointError(
                f'The loss is no longer finite after {self.step} steps. Lower '
                f"'lr' (got {self.unlearner.lr:.3g}), or check the model's own loss."
            )
        self.rows.write()
        row = self._facts() | {
            'epoch': len(self.history),
            'steps': self.step - start,
            'loss': float(total) / (self.step - start),
            'lr': self.optimizer.param_groups[0]['lr'],
        }
        if not self.can_choose and self.step < self.num_steps:
            return row | {self.curve.key: math.nan}  # It has no say; spare the pass.
        return row | self.curve(self.model, self.graph)

    def _batches(self, num: int) -> Iterator[Triplets]:
        while num > 0:
            for batch in self.loader:
                yield batch
                num -= 1
                if num == 0:
                    return

    def _lr(self) -> float:
        place = min(1.0, self.step / max(1, self.num_steps - 1))
        start, end = BOOST
        return self.unlearner.lr * start * (end / start) ** place

    def _record(self, row: dict[str, Any]) -> None:
        self.history.append(row)
        if self._chosen() == row['epoch']:
            self.best = [value.detach().clone() for value in self.rows.values]

    def _chosen(self) -> int:
        r"""Returns the best epoch so far, or the last one without a say."""
        ndcg = [row[self.curve.key] for row in self.history]
        if not self.can_choose:
            return len(ndcg) - 1
        return max(range(len(ndcg)), key=ndcg.__getitem__)

    def _facts(self) -> dict[str, Any]:
        touched, path = self.touched, 'model'
        if isinstance(self.rows, LinearRows):
            path = 'response' if self.rows.by_response else 'propagate'
        return {
            'num_users': touched.users.numel(),
            'num_items': touched.items.numel(),
            'num_trained': touched.trained_users.numel()
            + touched.trained_items.numel(),
            'num_pairs': self.loader.edge_index.size(1),
            'all_rows': touched.is_all,
            'smooth_start': self.is_smooth,
            'path': path,
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        tensors = {}
        for place, value in enumerate(self.rows.values):
            tensors[f'value/{place}'] = value
            if self.best is not None:
                tensors[f'best/{place}'] = self.best[place]
            for key, state in self.optimizer.state[value].items():
                tensors[f'adam/{place}/{key}'] = state
        tensors['rng/loader'] = self.loader.generator.get_state()
        tensors['rng/cpu'] = torch.get_rng_state()
        if self.device.type == 'cuda':
            tensors['rng/cuda'] = torch.cuda.get_rng_state(self.device)
        header = {
            'model': type(self.model).__name__,
            'settings': self.settings,
            'history': self.history,
            'step': self.step,
        }
        save_tensors(path, tensors, header)

    def load(self, path: str | os.PathLike[str]) -> None:
        tensors, header = load_tensors(path)
        expected = {'model': type(self.model).__name__, 'settings': self.settings}
        differing = [key for key, value in expected.items() if header.get(key) != value]
        if differing or 'step' not in header:
            raise ValueError(
                f"'{path}' belongs to another run (other {differing or 'content'}). "
                f'Use the same model, request and settings, or another file.'
            )
        self.history, self.step = header['history'], header['step']
        self.is_smooth = self.history[-1]['smooth_start']
        best = {}
        for key, tensor in tensors.items():
            kind, _, rest = key.partition('/')
            if kind == 'value':
                self.rows.values[int(rest)].data.copy_(tensor)
            elif kind == 'best':
                best[int(rest)] = tensor.to(self.device)
            elif kind == 'adam':
                place, _, name = rest.partition('/')
                value = self.rows.values[int(place)]
                # Adam's counter is kept where torch itself keeps it.
                self.optimizer.state[value][name] = tensor.to(self.device)
        self.best = [best[place] for place in sorted(best)] or None
        self.loader.generator.set_state(tensors['rng/loader'])
        torch.set_rng_state(tensors['rng/cpu'])
        if 'rng/cuda' in tensors:
            torch.cuda.set_rng_state(tensors['rng/cuda'], self.device)


def _better_start(
    drawn: _Run, smooth: _Run, path: str | os.PathLike[str] | None
) -> _Run:
    r"""Returns the run whose first epoch ends higher on the validation curve."""
    smooth.is_smooth = True
    for run in (drawn, smooth):
        run.advance(tqdm(total=0, disable=True))
    first, second = drawn.history[0], smooth.history[0]
    key = _ValidationCurve.key
    best, other = (smooth, drawn) if second[key] > first[key] else (drawn, smooth)
    best.history[0]['other_start_ndcg@20'] = other.history[0][key]
    best.history[0]['seconds'] += other.history[0]['seconds']
    if path is not None:
        best.save(path)
    return best


class _ValidationCurve:
    r"""NDCG on the validation pairs of users and items that were drawn anew."""

    key = 'touched_val_ndcg@20'

    def __init__(
        self,
        retained: HeteroData,
        touched: TouchedRows,
        seed: int,
        device: torch.device,
    ) -> None:
        pairs = schema.held_out(retained, 'val')
        own = torch.isin(pairs[0], touched.trained_users)
        own |= torch.isin(pairs[1], touched.trained_items)
        pairs = pairs[:, own]
        users = pairs[0].unique()
        perm = torch.randperm(users.numel(), generator=generator(seed))[:MAX_USERS]
        pairs = pairs[:, torch.isin(pairs[0], users[perm.to(users.device)])]
        self.num_pairs = pairs.size(1)
        self.pairs = pairs.to(device)
        self.exclude = schema.retained_edge_index(retained).to(device)

    def __call__(self, model: Any, graph: Any) -> dict[str, float]:
        if self.num_pairs == 0:
            return {self.key: math.nan}
        emb = embed(model, graph)
        metrics = ranking_metrics(*emb, self.pairs, self.exclude, ks=(20,))
        return {self.key: metrics['ndcg@20']}


def _rows_of(
    model: RecommenderLike, graph: Any, nodes: Tensor, num_users: int, shared: bool
) -> LinearRows | TableRows:
    nodes = nodes.to(next(model.parameters()).device)
    if not shared and isinstance(model, HasRowBranches):
        return LinearRows(model, graph, nodes)
    return TableRows(model, graph, nodes, num_users, shared)


def _all_finite(values: list[Tensor]) -> bool:
    return all(bool(torch.isfinite(value).all()) for value in values)
