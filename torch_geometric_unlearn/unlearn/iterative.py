r"""The loop of the approximate methods: set up, then in every epoch step and measure,
and at the end select; and the two steps that several of them share.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.loader import TripletLoader
from torch_geometric_unlearn.metrics import embed
from torch_geometric_unlearn.nn.functional import reverse_bpr_loss
from torch_geometric_unlearn.nn.models import Triplets
from torch_geometric_unlearn.nn.models.base import RecommenderLike
from torch_geometric_unlearn.utils.check import check_int
from torch_geometric_unlearn.utils.plain import plain
from torch_geometric_unlearn.utils.resources import ResourceMeter

from .base import Unlearner
from .selection import MIN_PAIRS, ForgetTarget, Selector, is_finite

#: One epoch, in place: takes whether the target is met, and returns what to log.
Step = Callable[[bool], dict[str, Any]]
#: Takes the row of an epoch and returns why the run must end before it, or nothing.
Fault = Callable[[dict[str, Any]], str]

_NOT_FINITE = 'the model is no longer finite'


def iterate(
    model: RecommenderLike,
    graph: Any,
    target: ForgetTarget,
    step: Step,
    num_epochs: int,
    patience: int | None = None,
    fault: Fault | None = None,
) -> list[dict[str, Any]]:
    r"""Runs epochs on a model, leaves it in the one that
    :class:`~torch_geometric_unlearn.unlearn.selection.Selector` prefers, and returns a
    row per epoch with what the step logs, the measures of the target and the seconds.

    An epoch after which the model is not finite ends the run and is never chosen, as
    one with a :obj:`fault`; :obj:`stopped` in its row says why. Without any that can be
    chosen the model is as it was.

    Args:
        model (torch.nn.Module): The model that the step changes.
        graph (Any): What it propagates over.
        target (ForgetTarget): When the request counts as met.
        step (callable): One epoch.
        num_epochs (int): Largest number of epochs.
        patience (int, optional): Epochs without gain in retained validation NDCG to
            sit out once the target has been met; with 0, the run ends with the epoch
            that meets it, and with :obj:`None` it goes through all epochs.
        fault (callable, optional): What ends the run early.

    Raises:
        ValueError: If the embeddings of the given model are not finite.
        FloatingPointError: If the first epoch leaves the model not finite.
    """
    ndcg_key = f'retain_val_ndcg@{target.k}'
    selector = Selector(ndcg_key)
    start = {k: v.detach().clone() for k, v in model.state_dict().items()}
    history: list[dict[str, Any]] = []
    reason = ''
    for epoch in range(num_epochs):
        with ResourceMeter(next(model.parameters()).device) as meter:
            met = bool(history and history[-1]['target_met'])
            row: dict[str, Any] = {'epoch': epoch} | step(met)
            row |= target.measure(model, graph)
            if not (math.isfinite(row['miss']) and is_finite(model)):
                reason = _NOT_FINITE
            elif fault is not None:
                reason = fault(row)
            if reason:
                row['stopped'] = reason
            else:
                selector.update(model, row, epoch)
        history.append(row | {'seconds': meter.seconds})
        if reason or (patience is not None and _is_done(history, ndcg_key, patience)):
            break
    if selector.state is None and reason == _NOT_FINITE:
        model.load_state_dict(start)
        embed(model, graph)  # Says what it is if they were not finite at first either.
        raise FloatingPointError(
            f'The run ended in its first epoch, since {reason}. Lower its learning '
            f"rates, convert a model of half precision with '.float()', or go back to "
            f'an intact model.'
        )
    model.load_state_dict(selector.state or start)
    for row in history:
        row['selected'] = row['epoch'] == selector.index
    return history


def _is_done(history: list[dict[str, Any]], ndcg_key: str, patience: int) -> bool:
    first = next((i for i, row in enumerate(history) if row['target_met']), None)
    if first is None:
        return False
    ndcg = [row[ndcg_key] for row in history[first:]]
    if any(value != value for value in ndcg):  # There is no validation split.
        return True
    best = max(range(len(ndcg)), key=ndcg.__getitem__)
    return len(ndcg) - 1 - best >= patience


@dataclass
class Workspace:
    r"""What the steps of one run work on.

    Attributes:
        model (torch.nn.Module): The model, changed in place.
        data (HeteroData): The data with the request.
        retained (HeteroData): The data after the deletion.
        target (ForgetTarget): When the request counts as met.
        batch_size (int): Pairs per batch on both sides.
        seed (int): Seed of the batches.
    """

    model: RecommenderLike
    data: HeteroData
    retained: HeteroData
    target: ForgetTarget
    batch_size: int
    seed: int

    @cached_property
    def graph(self) -> Any:
        r"""What the model propagates over: the retained interactions only."""
        return self.model.build_graph(self.retained)

    @cached_property
    def forget_loader(self) -> TripletLoader:
        r"""Forgotten pairs with items that the user never interacted with."""
        forgotten = schema.forgotten_edge_index(self.data)
        num_items = schema.num_items(self.data)
        return TripletLoader(
            forgotten,
            num_items,
            min(self.batch_size, forgotten.size(1)),
            known=self.data[schema.EDGE_TYPE].edge_index,
            negative_items=torch.arange(num_items),
            seed=self.seed,
        )

    @cached_property
    def retain_loader(self) -> TripletLoader:
        r"""Retained pairs as in training."""
        pairs = schema.retained_edge_index(self.retained)
        num_items = schema.num_items(self.data)
        return TripletLoader(pairs, num_items, self.batch_size, seed=self.seed + 1)

    @property
    def device(self) -> torch.device:
        r"""Where the model lives."""
        return next(self.model.parameters()).device

    def optimizer(self, lr: float) -> torch.optim.Optimizer:
        r"""Returns Adam over all parameters that are trained, with a fresh state."""
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        return torch.optim.Adam(parameters, lr=lr, fused=True)

    def scores(
        self, batch: Triplets
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        r"""Returns the scores of positives and negatives, both :obj:`[B]`, and all
        embeddings, with gradients and in evaluation mode, so that a pair meets the
        margin that an audit will measure.
        """
        self.model.eval()
        user_emb, item_emb = self.model(self.graph)
        return *batch.scores(user_emb, item_emb), (user_emb, item_emb)


class IterativeUnlearner(Unlearner):
    r"""The base class of methods that change a model in epochs, see :meth:`iterate`.

    Everything propagates over the retained interactions only. A method implements
    :meth:`_set_up`.

    Args:
        num_epochs (int): Largest number of epochs.
        patience (int): Epochs without gain in retained validation NDCG to sit out
            once the target is met.
        batch_size (int): Pairs per batch on both sides.
        seed (int): Seed of every random choice.
    """

    def __init__(
        self, num_epochs: int, patience: int, batch_size: int, seed: int
    ) -> None:
        super().__init__(seed)
        self.num_epochs = check_int(num_epochs, 'num_epochs', 1)
        self.patience = check_int(patience, 'patience', 0)
        self.batch_size = check_int(batch_size, 'batch_size', 1)

    #: Whether it compares forgotten pairs with items that their users never touched.
    needs_negatives: bool = True

    @abstractmethod
    def _set_up(self, work: Workspace) -> tuple[Step, Fault | None]:
        r"""Returns the epoch of this method, and what ends a run early, if anything."""

    def supports(self, model: RecommenderLike, data: HeteroData) -> tuple[bool, str]:
        num_pairs = schema.held_out(data, 'val').size(1)
        if num_pairs < MIN_PAIRS and schema.forget_mask(data).any():
            return False, (
                f'it needs {MIN_PAIRS} validation pairs to tell when pairs are '
                f"forgotten (got {num_pairs}). Split with 'SplitInteractions', or use "
                f"'PartialRetrain' or 'Retrain', which need none"
            )
        pairs = schema.forgotten_edge_index(data)
        if self.needs_negatives and pairs.size(1) > 0:
            users = plain(data[schema.EDGE_TYPE].edge_index)[0]
            if (users.bincount()[pairs[0]] >= schema.num_items(data)).all():
                return False, (
                    'the users of the request have every item, so that no forgotten '
                    "pair has a negative to compare it with. Use 'PartialRetrain' or "
                    "'Retrain', which need none"
                )
        return super().supports(model, data)

    def _unlearn(
        self, model: RecommenderLike, data: HeteroData, retained: HeteroData
    ) -> tuple[RecommenderLike, list[dict[str, Any]]]:
        target = ForgetTarget(data, retained)
        work = Workspace(model, data, retained, target, self.batch_size, self.seed)
        step, fault = self._set_up(work)
        history = iterate(
            model, work.graph, target, step, self.num_epochs, self.patience, fault
        )
        return model, history


def repair(
    work: Workspace, optimizer: torch.optim.Optimizer, num_batches: int | None = None
) -> dict[str, float]:
    r"""Runs the repair step in place: the model's own full training loss on retained
    batches, all of them if :obj:`num_batches` is :obj:`None`. Returns its mean.
    """
    if num_batches == 0:
        return {'repair_loss': 0.0}
    work.model.train()
    total, count = torch.zeros((), device=work.device), 0
    for batch in islice(work.retain_loader, num_batches):
        optimizer.zero_grad(set_to_none=True)
        loss = work.model.loss(work.graph, batch.to(work.device))
        loss.backward()
        optimizer.step()
        total += loss.detach()
        count += 1
    return {'repair_loss': float(total) / count}


def joint_pass(
    work: Workspace,
    optimizer: torch.optim.Optimizer,
    form: str,
    alpha: float,
    num_batches: int,
    max_norm: float | None = None,
) -> dict[str, float]:
    r"""Runs steps on :math:`\alpha \mathcal{L}_{repair} + (1 - \alpha)
    \mathcal{L}_{reverse}` in place and returns the mean reverse loss.

    Args:
        work (Workspace): What the steps work on.
        optimizer (torch.optim.Optimizer): Takes the steps.
        form (str): Reading of the reverse loss.
        alpha (float): The weight :math:`\alpha`; at 0 no retained batch is looked at.
        num_batches (int): Number of steps; a side with fewer batches starts again.
        max_norm (float, optional): Largest norm of the gradient. (default: :obj:`None`)
    """
    parameters = [p for p in work.model.parameters() if p.requires_grad]
    total = torch.zeros((), device=work.device)
    pairs = zip(_endless(work.forget_loader), _endless(work.retain_loader))
    for forget_batch, retain_batch in islice(pairs, num_batches):
        optimizer.zero_grad(set_to_none=True)
        pos_score, neg_score, _ = work.scores(forget_batch.to(work.device))
        loss = reverse = reverse_bpr_loss(pos_score, neg_score, form)
        if alpha > 0:
            work.model.train()
            forward = work.model.loss(work.graph, retain_batch.to(work.device))
            if getattr(work.model, 'reduction', 'mean') == 'sum':
                loss = reverse * retain_batch.user.numel()
            loss = alpha * forward + (1 - alpha) * loss
        loss.backward()
        if max_norm is not None:
            torch.nn.utils.clip_grad_norm_(parameters, max_norm)
        optimizer.step()
        total += reverse.detach()
    return {'reverse_loss': float(total) / max(1, num_batches)}


def _endless(loader: TripletLoader) -> Iterator[Triplets]:
    while True:
        yield from loader
