from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.loader import TripletLoader
from torch_geometric_unlearn.nn.models import Triplets
from torch_geometric_unlearn.nn.models.base import RecommenderLike
from torch_geometric_unlearn.utils.check import check_float, check_int
from torch_geometric_unlearn.utils.resources import ResourceMeter

from .base import Unlearner
from .selection import MIN_PAIRS, ForgetTarget, Selector, is_finite


@dataclass
class Workspace:
    r"""What the steps of one run share.

    Attributes:
        model (torch.nn.Module): The model, changed in place.
        graph (Any): What it propagates over: the retained interactions only.
        data (HeteroData): The data with the request.
        retained (HeteroData): The data after the deletion.
        forget_loader (TripletLoader): Forgotten pairs with items that the user never
            interacted with.
        retain_loader (TripletLoader): Retained pairs as in training.
        repair_optimizer (torch.optim.Optimizer): Adam of the repair steps.
        target (ForgetTarget): When the request counts as met.
        num_epochs (int): Largest number of epochs.
        repair_batches (int, optional): Batches of a repair step.
    """

    model: RecommenderLike
    graph: Any
    data: HeteroData
    retained: HeteroData
    forget_loader: TripletLoader
    retain_loader: TripletLoader
    repair_optimizer: torch.optim.Optimizer
    target: ForgetTarget
    num_epochs: int
    repair_batches: int | None

    @property
    def device(self) -> torch.device:
        r"""Where the model lives."""
        return next(self.model.parameters()).device

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


class ReverseRepair(Unlearner):
    r"""The protocol that MMRecUn and TRU share: epochs of a reverse step on the
    forgotten interactions and a repair step on the retained ones.

    Everything propagates over the retained interactions only. Every epoch is measured
    by :class:`~torch_geometric_unlearn.unlearn.selection.ForgetTarget`; once the
    target is met, reversal pauses until a repair step lifts the forgotten pairs above
    it again. The returned checkpoint is chosen by
    :class:`~torch_geometric_unlearn.unlearn.selection.Selector`. An epoch after which
    the model is not finite ends the run and is never chosen.

    Args:
        num_epochs (int): Largest number of epochs.
        lr_repair (float): Learning rate of the repair step.
        repair_batches (int, optional): Batches of the repair step, a full pass if
            :obj:`None`.
        patience (int): Epochs without gain in retained validation NDCG to sit out
            once the target is met.
        batch_size (int): Pairs per batch on both sides.
        seed (int): Seed of every random choice.
    """

    #: Whether to skip the reverse step while the target is met.
    pauses: bool = True

    def __init__(
        self,
        num_epochs: int,
        lr_repair: float,
        repair_batches: int | None,
        patience: int,
        batch_size: int,
        seed: int,
    ) -> None:
        super().__init__(seed)
        self.num_epochs = check_int(num_epochs, 'num_epochs', 1)
        self.lr_repair = check_float(lr_repair, 'lr_repair', 0.0)
        if repair_batches is not None:
            check_int(repair_batches, 'repair_batches', 0)
        self.repair_batches = repair_batches
        self.patience = check_int(patience, 'patience', 1)
        self.batch_size = check_int(batch_size, 'batch_size', 1)

    @abstractmethod
    def _start(self, work: Workspace) -> Any:
        r"""Returns the method's own state for one run."""

    @abstractmethod
    def _reverse(self, work: Workspace, state: Any) -> dict[str, Any]:
        r"""Runs one reverse step over the forgotten interactions in place and returns
        what to log.
        """

    def _is_reversing(self, state: Any, history: list[dict[str, Any]]) -> bool:
        r"""Returns whether the coming epoch has a reverse step."""
        met = bool(history and history[-1]['target_met'])
        return not (self.pauses and met)

    def _guard(self, work: Workspace, state: Any, row: dict[str, Any]) -> str:
        r"""Returns why the run must end with an earlier epoch, or an empty string."""
        if math.isfinite(row['miss']) and is_finite(work.model):
            return ''
        return 'the model is no longer finite'

    def supports(self, model: RecommenderLike, data: HeteroData) -> tuple[bool, str]:
        num_pairs = schema.held_out(data, 'val').size(1)
        if num_pairs < MIN_PAIRS and schema.forget_mask(data).any():
            return False, (
                f'it needs {MIN_PAIRS} validation pairs to tell when pairs are '
                f"forgotten (got {num_pairs}). Split with 'SplitInteractions', or use "
                f"'PartialRetrain' or 'Retrain', which need none"
            )
        return super().supports(model, data)

    def _repair(self, work: Workspace) -> dict[str, Any]:
        r"""Runs one repair step: the model's own full training loss on retained
        batches.
        """
        if work.repair_batches == 0:
            return {'repair_loss': 0.0}
        work.model.train()
        total, num_batches = torch.zeros((), device=work.device), 0
        for batch in islice(work.retain_loader, work.repair_batches):
            work.repair_optimizer.zero_grad(set_to_none=True)
            loss = work.model.loss(work.graph, batch.to(work.device))
            loss.backward()
            work.repair_optimizer.step()
            total += loss.detach()
            num_batches += 1
        return {'repair_loss': float(total) / num_batches}

    def _unlearn(
        self, model: RecommenderLike, data: HeteroData, retained: HeteroData
    ) -> tuple[RecommenderLike, list[dict[str, Any]]]:
        work = self._workspace(model, data, retained)
        state = self._start(work)
        ndcg_key = f'retain_val_ndcg@{work.target.k}'
        selector = Selector(ndcg_key)
        start = {k: v.detach().clone() for k, v in model.state_dict().items()}
        history: list[dict[str, Any]] = []
        reason = ''
        for epoch in range(work.num_epochs):
            with ResourceMeter(work.device) as meter:
                row: dict[str, Any] = {'epoch': epoch}
                reversing = self._is_reversing(state, history)
                if reversing:
                    row |= self._reverse(work, state)
                row['reversed'] = reversing
                row |= self._repair(work)
                row |= work.target.measure(work.model, work.graph)
                reason = self._guard(work, state, row)
                if reason:
                    row['stopped'] = reason
                else:
                    selector.update(model, row, epoch)
            history.append(row | {'seconds': meter.seconds})
            if reason or self._should_stop(history, ndcg_key):
                break
        if selector.state is None and not is_finite(model):
            raise FloatingPointError(
                f'{self} ended in its first epoch, since {reason}. Lower its learning '
                f'rates, or go back to an intact model.'
            )
        model.load_state_dict(selector.state or start)
        for row in history:
            row['selected'] = row['epoch'] == selector.index
        return model, history

    def _should_stop(self, history: list[dict[str, Any]], ndcg_key: str) -> bool:
        r"""Stops if retained validation NDCG has not risen for :obj:`patience` epochs
        since the target was first met.
        """
        first = next((i for i, row in enumerate(history) if row['target_met']), None)
        if first is None:
            return False
        ndcg = [row[ndcg_key] for row in history[first:]]
        if any(value != value for value in ndcg):  # There is no validation split.
            return True
        best = max(range(len(ndcg)), key=ndcg.__getitem__)
        return len(ndcg) - 1 - best >= self.patience

    def _workspace(
        self, model: RecommenderLike, data: HeteroData, retained: HeteroData
    ) -> Workspace:
        store = data[schema.EDGE_TYPE]
        forgotten = schema.forgotten_edge_index(data)
        num_items = schema.num_items(data)
        parameters = [p for p in model.parameters() if p.requires_grad]
        return Workspace(
            model=model,
            graph=model.build_graph(retained),
            data=data,
            retained=retained,
            forget_loader=TripletLoader(
                forgotten,
                num_items,
                min(self.batch_size, forgotten.size(1)),
                known=store.edge_index,
                negative_items=torch.arange(num_items),
                seed=self.seed,
            ),
            retain_loader=TripletLoader(
                schema.retained_edge_index(retained),
                num_items,
                self.batch_size,
                seed=self.seed + 1,
            ),
            repair_optimizer=torch.optim.Adam(
                parameters, lr=self.lr_repair, fused=True
            ),
            target=ForgetTarget(data, retained),
            num_epochs=self.num_epochs,
            repair_batches=self.repair_batches,
        )
