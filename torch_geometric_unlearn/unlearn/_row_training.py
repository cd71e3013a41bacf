r"""The training of the rows of one request: every epoch of it can be written to a file
and gone on from.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import HeteroData
from tqdm.auto import tqdm

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.distributed.blocks import Blocks
from torch_geometric_unlearn.distributed.columns import holds
from torch_geometric_unlearn.loader.row_loader import RowLoader
from torch_geometric_unlearn.metrics.ranking import rank
from torch_geometric_unlearn.nn import Served
from torch_geometric_unlearn.nn.models import LinearRows, TableRows, Triplets
from torch_geometric_unlearn.nn.models.base import HasRowBranches, RecommenderLike
from torch_geometric_unlearn.train.checkpoint import (
    check_header,
    check_model,
    load_state,
    model_record,
    save_state,
)
from torch_geometric_unlearn.utils.finite import all_finite
from torch_geometric_unlearn.utils.resources import ResourceMeter
from torch_geometric_unlearn.utils.seed import (
    generator,
    random_states,
    set_random_states,
)

from ._touched_rows import TouchedRows

#: The learning rate falls from the first to the second multiple of the training's.
BOOST = (5.0, 2.0)
#: A batch is this part of one of the training: more steps for the same pairs.
BATCH_PARTS = 2
#: Training goes on while an epoch lifts the validation curve by more than this share,
#: up to this multiple of the steps.
RISE, LONGEST = 0.01, 3
#: Users that the validation curve looks at, and the pairs that it must have to choose.
MAX_USERS = 2000
MIN_PAIRS = 200


class RowTraining:
    r"""The training of one request: everything that a resume must bring back.

    Args:
        model (torch.nn.Module): The model, with the rows to train drawn anew.
        graph (Any): What it propagates over.
        retained (HeteroData): The data after the deletion.
        touched (TouchedRows): The rows to train.
        settings (dict): What tells this run from another one, in its file; the
            arguments of the method are among them.
    """

    def __init__(
        self,
        model: RecommenderLike,
        graph: Any,
        retained: HeteroData,
        touched: TouchedRows,
        settings: dict[str, Any],
    ) -> None:
        self.model, self.graph = model, graph
        self.touched, self.settings = touched, settings
        self.is_smooth = False
        self.device = next(model.parameters()).device
        seed, shared_lr = settings['seed'], settings['shared_lr']
        self.loader = RowLoader(
            schema.retained_edge_index(retained),
            schema.num_items(retained),
            touched.trained_users,
            touched.trained_items,
            max(1, settings['batch_size'] // BATCH_PARTS),
            seed,
        )
        num_users = schema.num_users(retained)
        nodes = [touched.trained_users, touched.trained_items + num_users]
        self.rows = _rows_of(
            model, self.graph, torch.cat(nodes), num_users, shared_lr > 0
        )
        own = sum(not table.is_raw for table in model.tables())
        own = len(self.rows.values) if isinstance(self.rows, LinearRows) else own
        groups: list[dict[str, Any]] = [{'params': self.rows.values[:own]}]
        if shared_lr > 0:
            groups.append({'params': self.rows.values[own:], 'lr': shared_lr})
        self.optimizer = torch.optim.Adam(groups, fused=True)
        num_batches = len(self.loader)
        has_rows = sum(value.numel() for value in self.rows.values[:own]) > 0
        least = settings['min_steps'] * (2 if touched.is_all else 1)
        self.num_steps = max(settings['num_epochs'] * num_batches, least)
        if num_batches == 0 or not has_rows:
            self.num_steps = 0
        self.per_epoch = max(1, -(-self.num_steps // settings['num_epochs']))
        self.curve = ValidationCurve(retained, touched, seed, self.device)
        self.can_choose = self.curve.num_pairs >= MIN_PAIRS
        self.step = 0
        self.history: list[dict[str, Any]] = []
        self.best: list[Tensor] | None = None

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
        finite = bool(torch.isfinite(total)) and all_finite(self.rows.values)
        if not holds(self.model, finite):
            raise FloatingPointError(
                f'The loss is no longer finite after {self.step} steps. Lower '
                f"'lr' (got {self.settings['lr']:.3g}), or check the model's own loss."
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
        return self.settings['lr'] * start * (end / start) ** place

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
        tensors: dict[str, Tensor] = {}
        divided: dict[str, Blocks] = {}
        for place, value in enumerate(self.rows.values):
            own = {f'value/{place}': value}
            if self.best is not None:
                own[f'best/{place}'] = self.best[place]
            for key, state in self.optimizer.state[value].items():
                own[f'adam/{place}/{key}'] = state
            block = self.rows.blocks[place]
            if block is not None:
                divided |= dict.fromkeys(own, block)
            tensors |= own
        tensors |= random_states(self.loader.generator, self.device)
        header = model_record(self.model) | {
            'settings': self.settings,
            'history': self.history,
            'step': self.step,
        }
        save_state(path, tensors, header, self.model, divided)

    def load(self, path: str | os.PathLike[str]) -> None:
        tensors, header = load_state(path, self.model)
        check_header(header, path)
        expected = {'model': type(self.model).__name__, 'settings': self.settings}
        differing = [key for key, value in expected.items() if header.get(key) != value]
        if differing or 'step' not in header:
            raise ValueError(
                f"'{path}' belongs to another run (other {differing or 'content'}). "
                f'Use the same model, request and settings, or another file.'
            )
        check_model(header, self.model.state_dict(), self.model, path)
        self._check_tensors(tensors, path)
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
        set_random_states(tensors, self.loader.generator, self.device)


    def _check_tensors(
        self, tensors: dict[str, Tensor], path: str | os.PathLike[str]
    ) -> None:
        known = {str(place): value for place, value in enumerate(self.rows.values)}
        for key, tensor in tensors.items():
            kind, _, rest = key.partition('/')
            place, _, name = rest.partition('/')
            if kind == 'rng':
                continue
            value = known.get(place)
            shape = torch.Size() if name == 'step' or value is None else value.shape
            if value is None or tensor.shape != shape:
                raise ValueError(
                    f"'{path}' is damaged: '{key}' fits none of the rows to train. "
                    f'Start a new run with another file.'
                )


def better_start(
    drawn: RowTraining, smooth: RowTraining, path: str | os.PathLike[str] | None
) -> RowTraining:
    r"""Returns the run whose first epoch ends higher on the validation curve."""
    smooth.is_smooth = True
    for run in (drawn, smooth):
        run.advance(tqdm(total=0, disable=True))
    first, second = drawn.history[0], smooth.history[0]
    key = ValidationCurve.key
    best, other = (smooth, drawn) if second[key] > first[key] else (drawn, smooth)
    best.history[0]['other_start_ndcg@20'] = other.history[0][key]
    best.history[0]['seconds'] += other.history[0]['seconds']
    if path is not None:
        best.save(path)
    return best


class ValidationCurve:
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
        scores = Served(model, graph).scores
        metrics = rank(scores, self.pairs, self.exclude, ks=(20,))
        return {self.key: metrics['ndcg@20']}


def _rows_of(
    model: RecommenderLike, graph: Any, nodes: Tensor, num_users: int, shared: bool
) -> LinearRows | TableRows:
    nodes = nodes.to(next(model.parameters()).device)
    if not shared and isinstance(model, HasRowBranches):
        return LinearRows(model, graph, nodes)
    return TableRows(model, graph, nodes, num_users, shared)
