from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import HeteroData
from tqdm.auto import tqdm

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.data.digest import data_digest
from torch_geometric_unlearn.distributed.columns import (
    columns_of,
    divided,
    holds,
    shared_digest,
)
from torch_geometric_unlearn.loader import TripletLoader
from torch_geometric_unlearn.metrics.ranking import rank
from torch_geometric_unlearn.nn import Served
from torch_geometric_unlearn.nn.models.base import RecommenderLike
from torch_geometric_unlearn.utils.check import (
    check_bool,
    check_choice,
    check_float,
    check_int,
)
from torch_geometric_unlearn.utils.finite import NotFiniteError, all_finite
from torch_geometric_unlearn.utils.resources import ResourceMeter
from torch_geometric_unlearn.utils.seed import (
    check_seed,
    isolated_seed,
    random_states,
    set_random_states,
)

from .checkpoint import (
    check_header,
    check_model,
    exists,
    load_state,
    model_record,
    save_state,
)

#: Receives the model and the history row of the epoch; returns True to stop.
Callback = Callable[[RecommenderLike, dict[str, float]], 'bool | None']


@dataclass
class FitResult:
    r"""What a training run has shown.

    Attributes:
        history (list): One row per epoch: :obj:`epoch` (from 0), :obj:`loss` (sum over
            the steps), :obj:`lr`, :obj:`seconds`, and the validation metrics.
        best_epoch (int): Epoch whose parameters the model now holds.
        best_metric (float): Validation metric of that epoch (NaN without a
            validation split).
        seconds (float): Wall time of all epochs, evaluations included.
        peak_memory (int): Peak memory in bytes, see
            :class:`~torch_geometric_unlearn.utils.resources.ResourceMeter`.
    """

    history: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = -1
    best_metric: float = float('nan')
    seconds: float = 0.0
    peak_memory: int = 0


def fit(
    model: RecommenderLike,
    data: HeteroData,
    *,
    num_epochs: int = 1000,
    batch_size: int = 2048,
    lr: float = 1e-3,
    lr_decay: float = 0.96,
    lr_decay_epochs: int = 50,
    lr_min: float = 0.0,
    negatives: str = 'rejected',
    eval_every: int = 1,
    patience: int = 20,
    metric: str = 'recall@20',
    metric_decimals: int = 4,
    seed: int = 999,
    optimizer: torch.optim.Optimizer | None = None,
    callbacks: Sequence[Callback] = (),
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 1,
    resume: bool = False,
    autocast: bool = False,
    compile: dict[str, Any] | None = None,
) -> FitResult:
    r"""Trains a recommender in place by its own loss and keeps the epoch that is best
    on the validation split, by the protocol of the MMRec benchmarks.

    Adam without weight decay; the learning rate after :math:`e` epochs is
    :obj:`lr * lr_decay ** (e / lr_decay_epochs)`. An evaluated epoch counts as better
    if its metric, rounded to :obj:`metric_decimals`, is strictly greater; training
    stops when more than :obj:`patience` evaluations in a row were not. Without a
    validation split all epochs run, and the last one is kept. Interactions marked as
    forgotten are not used, nor are test and control pairs. Everything runs on the
    device of the model.

    Args:
        model (torch.nn.Module): A model that meets the model contract.
        data (HeteroData): The data.
        num_epochs (int, optional): Largest number of epochs. (default: :obj:`1000`)
        batch_size (int, optional): Positive pairs per step. (default: :obj:`2048`)
        lr (float, optional): Learning rate. (default: :obj:`1e-3`)
        lr_decay (float, optional): Factor on it. (default: :obj:`0.96`)
        lr_decay_epochs (int, optional): Epochs per factor. (default: :obj:`50`)
        lr_min (float, optional): Floor of the learning rate. (default: :obj:`0.0`)
        negatives (str, optional): :obj:`'rejected'` for negatives among the items of
            the training pairs, redrawn where the user knows them; :obj:`'uniform'`
            for any item. (default: :obj:`'rejected'`)
        eval_every (int, optional): Epochs between evaluations; the last epoch is always
            evaluated. (default: :obj:`1`)
        patience (int, optional): Evaluations without gain to sit out.
            (default: :obj:`20`)
        metric (str, optional): :obj:`'recall@K'` or :obj:`'ndcg@K'`.
            (default: :obj:`'recall@20'`)
        metric_decimals (int, optional): Decimals that count. (default: :obj:`4`)
        seed (int, optional): Seed of batches and of torch's generator during training.
            (default: :obj:`999`)
        optimizer (torch.optim.Optimizer, optional): What steps all trained parameters,
            at the learning rates of this run, and keeps its state beyond it; see
            :meth:`~torch_geometric_unlearn.nn.models.grow.grow`. Its state remembers
            what it was trained on: after a deletion, take a new one. Adam without
            weight decay if not given. (default: :obj:`None`)
        callbacks (sequence, optional): Called with model and history row after every
            epoch; a true result stops the training. (default: :obj:`()`)
        checkpoint (str or Path, optional): File to keep the state of the run in.
            (default: :obj:`None`)
        checkpoint_every (int, optional): Epochs between writes.
            (default: :obj:`1`)
        resume (bool, optional): Whether to go on from :obj:`checkpoint` if it exists.
            On the CPU the result equals that of an uninterrupted run. Model, data
            (features and held-out pairs included) and settings must be the same;
            :obj:`num_epochs`, :obj:`patience` and :obj:`callbacks` may change.
            (default: :obj:`False`)
        autocast (bool, optional): Whether to run the loss in bfloat16 where that is
            safe. On generated data it moved test Recall@20 by at most 0.002 (MGCN,
            three seeds). (default: :obj:`False`)
        compile (dict, optional): Arguments of :meth:`torch.compile` for the loss;
            :obj:`{}` for its defaults, :obj:`{'mode': 'reduce-overhead'}` for CUDA
            graphs. Changes results by rounding. (default: :obj:`None`)

    Returns:
        FitResult: The course of the training.

    Raises:
        ValueError: If an argument is out of range, the optimizer steps something else
            than the trained parameters of the model, or the checkpoint belongs to
            another model, other data or other settings.
        FileExistsError: If :obj:`checkpoint` exists and :obj:`resume` is not set.
        FloatingPointError: If loss, parameters or embeddings are no longer finite.

    Example:
        >>> data = SyntheticMultimodal('tiny')[0]
        >>> model = MGCN.from_data(data, hidden_channels=16)
        >>> result = fit(model, data, num_epochs=2)
        >>> len(result.history)
        2
    """
    num_epochs = check_int(num_epochs, 'num_epochs', 1)
    patience = check_int(patience, 'patience', 0)
    checkpoint_every = check_int(checkpoint_every, 'checkpoint_every', 1)
    lr = check_float(lr, 'lr', 1e-12)
    lr_decay = check_float(lr_decay, 'lr_decay', 1e-12, 1.0)
    lr_decay_epochs = check_int(lr_decay_epochs, 'lr_decay_epochs', 1)
    lr_min = check_float(lr_min, 'lr_min', 0.0)
    check_choice(negatives, 'negatives', ('rejected', 'uniform'))
    eval_every = check_int(eval_every, 'eval_every', 1)
    resume, autocast = check_bool(resume, 'resume'), check_bool(autocast, 'autocast')
    batch_size = check_int(batch_size, 'batch_size', 1)
    metric_decimals = check_int(metric_decimals, 'metric_decimals', 0)
    seed = check_seed(seed)
    ks = (10, 20) if metric in _METRICS else (_parse_metric(metric),)
    data = schema.validate(data)
    if checkpoint is not None and exists(checkpoint) and not resume:
        raise FileExistsError(
            f"'{checkpoint}' exists. Pass resume=True to go on from it, or remove it."
        )
    settings = {
        'batch_size': batch_size,
        'lr': lr,
        'lr_decay': lr_decay,
        'lr_decay_epochs': lr_decay_epochs,
        'lr_min': lr_min,
        'negatives': negatives,
        'eval_every': eval_every,
        'metric': metric,
        'metric_decimals': metric_decimals,
        'seed': seed,
        'autocast': autocast,
        'compile': None if compile is None else repr(sorted(compile.items())),
    }
    if optimizer is not None:
        kind = {**optimizer.defaults, 'lr': 'of this run'}
        settings['optimizer'] = f'{type(optimizer).__name__} {kind}'
    if checkpoint is not None:
        # Everything of it, as a model may read everything.
        settings['data'] = data_digest(data)
    columns = columns_of(model)
    if columns is not None:
        if compile is not None:
            raise ValueError(
                "'compile' can't act on a model that is divided by columns, whose loss "
                'talks to other processes. Leave it out.'
            )
        same = {'the data': data_digest(data), 'the settings': f'{settings}'}
        columns.check_same(same | {'the shared layers': shared_digest(model)})
    device = next(model.parameters()).device
    graph = model.build_graph(data)
    train_pairs = schema.retained_edge_index(data)
    num_items = schema.num_items(data)
    pool: dict[str, Tensor] = {}
    if negatives == 'uniform':
        known = train_pairs.new_empty(2, 0)
        pool = {'known': known, 'negative_items': torch.arange(num_items)}
    loader = TripletLoader(train_pairs, num_items, batch_size, seed=seed, **pool)
    run = _Run(model, loader, settings, optimizer)
    if compile is not None:
        run.loss = torch.compile(run.loss, **compile)
    validation = schema.held_out(data, 'val').to(device)
    exclude = train_pairs.to(device)
    with torch.enable_grad(), isolated_seed(seed), ResourceMeter(device) as meter:
        if checkpoint is not None and exists(checkpoint):
            run.load(checkpoint)
            graph = model.build_graph(data)  # Of that state.
        spent = run.result.seconds
        start = len(run.result.history)
        bar = tqdm(range(start, num_epochs), disable=None, desc='fit', initial=start)
        for epoch in bar:
            if run.num_bad > patience or run.stopped:
                break
            began = meter.elapsed
            run.set_lr(max(lr_min, lr * lr_decay ** (epoch / lr_decay_epochs)))
            row = {'epoch': float(epoch), 'loss': run.train_epoch(graph, autocast)}
            due = (epoch + 1) % eval_every == 0 or epoch + 1 == num_epochs
            if validation.size(1) > 0 and due:
                try:
                    scores = Served(model, graph).scores
                    row |= rank(scores, validation, exclude, ks=ks)
                except NotFiniteError as error:
                    raise FloatingPointError(
                        f'The model is no longer finite in epoch {epoch}: {error}'
                    ) from error
            row |= {'lr': run.lr, 'seconds': meter.elapsed - began}
            run.record(row, metric, metric_decimals)
            run.result.seconds = spent + meter.elapsed
            run.stopped = any([callback(model, row) for callback in callbacks])
            if columns is not None:
                run.stopped = columns.any(run.stopped)
            last = epoch + 1 == num_epochs or run.stopped or run.num_bad > patience
            if checkpoint is not None and (
                last or (epoch + 1) % checkpoint_every == 0
            ):
                run.save(checkpoint)
            shown = {metric: row[metric]} if metric in row else {}
            bar.set_postfix({'loss': row['loss'], **shown})
        if run.best_state is not None:
            model.load_state_dict(run.best_state)
        else:
            run.result.best_epoch = len(run.result.history) - 1
        model.zero_grad(set_to_none=True)
    run.result.seconds = spent + meter.seconds
    run.result.peak_memory = meter.peak_memory
    return run.result


_METRICS = ('recall@10', 'recall@20', 'ndcg@10', 'ndcg@20')


def _parse_metric(metric: str) -> int:
    name, _, k = metric.partition('@')
    if name not in ('recall', 'ndcg') or not k.isdigit() or int(k) < 1:
        raise ValueError(
            f"'metric' must be 'recall@K' or 'ndcg@K' with K >= 1 (got '{metric}')"
        )
    return int(k)


class _Run:
    r"""The state of a training run: everything that a resume must bring back."""

    def __init__(
        self,
        model: RecommenderLike,
        loader: TripletLoader,
        settings: dict[str, Any],
        optimizer: torch.optim.Optimizer | None,
    ) -> None:
        self.model = model
        self.loss: Callable[..., Tensor] = model.loss
        self.loader = loader
        self.settings = settings
        self.parameters = {
            name: p for name, p in model.named_parameters() if p.requires_grad
        }
        self.device = next(model.parameters()).device
        trained = list(self.parameters.values())
        self.optimizer = optimizer or torch.optim.Adam(trained, fused=True)
        stepped = [p for group in self.optimizer.param_groups for p in group['params']]
        if {id(p) for p in stepped} != {id(p) for p in trained}:
            raise ValueError(
                f"'optimizer' must step exactly the {len(trained)} trained parameters "
                f'of the model (got {len(stepped)}, some of another one or too few). '
                f'Make it from the parameters with requires_grad.'
            )
        self.result = FitResult()
        self.best_state: dict[str, Tensor] | None = None
        self.num_bad = 0
        self.stopped = False

    @property
    def lr(self) -> float:
        return self.optimizer.param_groups[0]['lr']

    def set_lr(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group['lr'] = lr

    def train_epoch(self, graph: Any, autocast: bool) -> float:
        self.model.train()
        total = torch.zeros((), device=self.device)
        for batch in self.loader:
            self.optimizer.zero_grad(set_to_none=True)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=autocast):
                loss = self.loss(graph, batch.to(self.device))
            loss.backward()
            self.optimizer.step()
            total += loss.detach()
        # The last step is in no loss.
        finite = bool(torch.isfinite(total)) and all_finite(self.parameters.values())
        if not holds(self.model, finite):
            raise FloatingPointError(
                f'The loss or a parameter is no longer finite in epoch '
                f'{len(self.result.history)}. '
                f"Lower 'lr' (got {self.lr:.3g}), or check the scale of the features."
            )
        return float(total)

    def record(self, row: dict[str, float], metric: str, decimals: int) -> None:
        result = self.result
        result.history.append(row)
        if metric not in row:
            return
        best = result.best_metric
        if best != best or round(row[metric], decimals) > round(best, decimals):
            result.best_epoch, result.best_metric = int(row['epoch']), row[metric]
            state = self.model.state_dict()
            self.best_state = {k: v.detach().clone() for k, v in state.items()}
            self.num_bad = 0
        else:
            self.num_bad += 1

    def save(self, path: str | os.PathLike[str]) -> None:
        tensors = {f'model/{k}': v for k, v in self.model.state_dict().items()}
        for key, value in (self.best_state or {}).items():
            tensors[f'best/{key}'] = value
        for name, parameter in self.parameters.items():
            state = self.optimizer.state[parameter]
            for key, value in state.items():
                if value is None:  # As SGD keeps it without momentum.
                    continue
                tensors[f'adam/{key}/{name}'] = value
        tensors |= random_states(self.loader.generator, self.device)
        header = model_record(self.model) | {
            'settings': self.settings,
            'trained': list(self.parameters),
            'result': asdict(self.result),
            'num_bad': self.num_bad,
            'stopped': self.stopped,
        }
        names = divided(self.model)
        own = {key: key.rpartition('/')[2] for key in tensors}
        parts = {key: names[name] for key, name in own.items() if name in names}
        save_state(path, tensors, header, self.model, parts)

    def load(self, path: str | os.PathLike[str]) -> None:
        tensors, header = load_state(path, self.model)
        if 'settings' not in header:
            raise ValueError(
                f"'{path}' holds a model but no training state; it was written by "
                f"'save_model'. Load it with 'load_model' and start a new run."
            )
        check_header(header, path)
        groups: dict[str, dict[str, Tensor]] = {'model': {}, 'best': {}, 'adam': {}}
        for key, value in tensors.items():
            group, _, name = key.partition('/')
            groups.setdefault(group, {})[name] = value
        settings = self.settings | {'trained': list(self.parameters)}
        saved = header['settings'] | {'trained': header.get('trained')}
        differing = {
            key: (saved.get(key), value)
            for key, value in settings.items()
            if saved.get(key) != value
        }
        if differing and header['model'] == type(self.model).__name__:
            detail = ', '.join(
                f'{key}: {old} in the file, {new} now'
                for key, (old, new) in differing.items()
            )
            raise ValueError(
                f"'{path}' belongs to a run with other settings or data ({detail}). "
                f'Use the same, or another file.'
            )
        for state in (groups['model'], groups['best'] or groups['model']):
            check_model(header, state, self.model, path)
        self._check_optimizer(groups['adam'], path)
        try:
            set_random_states(tensors, self.loader.generator, self.device)
            self.result = FitResult(**header['result'])
            self.num_bad, self.stopped = header['num_bad'], header['stopped']
        except (LookupError, TypeError, RuntimeError) as error:
            raise ValueError(
                f"'{path}' is damaged ({error}). Start a new run with another file."
            ) from error
        self.model.load_state_dict(groups['model'])
        self.best_state = {
            k: v.to(self.device) for k, v in groups['best'].items()
        } or None
        # A fused kernel counts its steps on the device, all others count on the CPU.
        counts = any(
            group.get('fused') or group.get('capturable')
            for group in self.optimizer.param_groups
        )
        for key, value in groups['adam'].items():
            kind, _, name = key.partition('/')
            value = value if kind == 'step' and not counts else value.to(self.device)
            self.optimizer.state[self.parameters[name]][kind] = value

    def _check_optimizer(
        self, state: dict[str, Tensor], path: str | os.PathLike[str]
    ) -> None:
        for key, value in state.items():
            kind, _, name = key.partition('/')
            parameter = self.parameters.get(name)
            shapes = {'step': torch.Size()}
            if parameter is None or value.shape != shapes.get(kind, parameter.shape):
                raise ValueError(
                    f"'{path}' is damaged: the optimizer's '{key}' fits no parameter "
                    f'of the model. Start a new run with another file.'
                )
