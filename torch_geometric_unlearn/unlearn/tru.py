from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from torch_geometric_unlearn.data.request import Request
from torch_geometric_unlearn.nn.functional import bpr_loss, reverse_bpr_loss
from torch_geometric_unlearn.nn.models import Triplets
from torch_geometric_unlearn.nn.models.base import RecommenderLike, named_tables
from torch_geometric_unlearn.utils.check import (
    check_bool,
    check_choice,
    check_float,
    check_int,
)

from .branch_scaling import branch_energy, branch_names, branch_scales
from .iterative import Fault, IterativeUnlearner, Step, Workspace, repair
from .layer_isolation import LeafModule, isolate_modules, leaf_modules, movable_rows
from .masked_adam import MaskedAdam
from .ranking_fusion_gate import RankingFusionGate

#: Which rows a request is about, and how far they move, by its level [ours].
_BY_LEVEL = {
    'user': ('user', 1.0),
    'item': ('item', 1.0),
    'interaction': ('user', 1 / 3),
    'mixed': ('both', 1 / 3),
}
#: A run ends when a row is longer than so many times the longest of the trained model.
MAX_GROWTH = 3.0
#: Arguments that act only where a switch is set.
_NEEDS = {
    'gate': ('k', 'gate_weight', 'margin'),
    'scaling': ('alpha_range', 'smoothing'),
    'isolation': ('rows', 'shared_rate', 'top_k', 'capacity', 'sensitivity'),
}
_Grads = dict[str, Tensor]


class TRU(IterativeUnlearner):
    r"""Targeted reverse update from the `"TRU: Targeted Reverse Update for Efficient
    Multimodal Recommendation Unlearning" <https://arxiv.org/abs/2604.02183>`_ paper.

    Keeps the reverse-repair protocol and reverses deleted influence only where it sits:

    1. The **ranking fusion gate**
       (:class:`~torch_geometric_unlearn.unlearn.ranking_fusion_gate.RankingFusionGate`)
       penalises the residual ranking influence of deleted pairs at the parameters that
       fuse the branches.
    2. **Branch-wise modality scaling**
       (:meth:`~torch_geometric_unlearn.unlearn.branch_scaling.branch_scales`) gives the
       stronger correction to branches that still carry forget-side influence.
    3. **Capacity-aware layer isolation**
       (:meth:`~torch_geometric_unlearn.unlearn.layer_isolation.isolate_modules`)
       reverses only the modules that are most sensitive to the deletion.

    The reverse step of a module :math:`l` in branch :math:`b` is

    .. math::
        - \eta_{rev} \, M(l) \, \alpha(b) \, P \left[ \nabla_l \mathcal{L}_{rev}
        + [l \in F] \, \nabla_l \lambda_{gate} \mathcal{L}_{gate} \right]

    with Adam's direction :math:`P`; the scale acts on the step, since Adam divides out
    any factor on a gradient. Fusion modules :math:`F` outside of the mask move by the
    gate term alone; a model without a fusion branch uses its last module instead
    (:obj:`gate_modules` in the history).

    The paper fixes what the interventions do and their order. Ours, because it prints
    no equations: all formulas, deletion in the data layer first, Adam with separate
    states, *row isolation* (in embedding tables only :obj:`rows` move), a
    smaller rate for what all users share, every default, stopping and selection. With
    :obj:`gate`, :obj:`scaling` and :obj:`isolation` off, this is
    :class:`~torch_geometric_unlearn.unlearn.MMRecUn`.

    Pairs that are pushed down become conspicuous to a membership attack; see
    :class:`~torch_geometric_unlearn.unlearn.PartialRetrain`, which pushes nothing.

    A run ends early, with the best state so far or else the model after the deletion of
    the edges, when a row of a table has become three times as long as the longest one
    was, or retained validation NDCG has fallen by more than :obj:`max_drop`
    (:obj:`stopped` in the history says which) [ours].

    Args:
        gate (bool, optional): Whether the ranking fusion gate acts.
            (default: :obj:`True`)
        scaling (bool, optional): Whether branches are scaled. (default: :obj:`True`)
        isolation (bool, optional): Whether the reverse step is confined to sensitive
            modules. (default: :obj:`True`)
        rows (str, optional): Whose table rows may move under isolation:
            :obj:`'user'`, :obj:`'item'`, :obj:`'both'` (those in the forgotten
            interactions), :obj:`'all'` for whole tables, or :obj:`'auto'` for users in
            user- and interaction-level requests, items in item-level and both in mixed
            ones. (default: :obj:`'auto'`)
        max_shift (float, optional): How far the steps of an epoch can carry a module,
            over the root mean square of its entries (in a table, that of its median
            row, so that rows which an earlier request has moved change nothing); sets
            :math:`\eta_{rev}` for every module whatever the model's scale and the
            number of batches; if :obj:`'auto'`, 1 in user- and item-level requests and
            1/3 in others. (default: :obj:`'auto'`)
        lr_reverse (float, optional): One step size :math:`\eta_{rev}` for all modules
            instead. (default: :obj:`None`)
        lr_repair (float, optional): Step size of the repair, that of the training.
            (default: :obj:`1e-3`)
        shared_rate (float, optional): Factor on :math:`\eta_{rev}` for modules that all
            users share, under isolation. (default: :obj:`0.01`)
        num_epochs (int, optional): Largest number of epochs. (default: :obj:`5`)
        num_passes (int, optional): Reverse passes over the forgotten interactions per
            epoch. (default: :obj:`3`)
        repair_batches (int, optional): Repair batches per epoch, a full pass if
            :obj:`None`. (default: :obj:`10`)
        patience (int, optional): Epochs without gain in retained validation NDCG to sit
            out once the target is met; with 0, the run ends with the epoch that meets
            it. (default: :obj:`1`)
        max_drop (float, optional): Largest relative fall of retained validation NDCG,
            in :math:`[0, 1]`. (default: :obj:`0.2`)
        k (int, optional): Length of the lists that the gate looks at.
            (default: :obj:`20`)
        gate_weight (float, optional): Weight :math:`\lambda_{gate}`.
            (default: :obj:`1.0`)
        margin (float, optional): Margin of the gate penalty. (default: :obj:`0.0`)
        alpha_range (tuple, optional): Bounds of the branch scales.
            (default: :obj:`(0.25, 4.0)`)
        smoothing (float, optional): Weight of the past in the branch scales over
            epochs, in :math:`[0, 1)`. (default: :obj:`0.5`)
        num_probes (int, optional): Batches of each side that energies and
            sensitivities are measured on. (default: :obj:`2`)
        top_k (int, optional): Modules that are always selected. (default: :obj:`3`)
        capacity (float, optional): Share :math:`\kappa` of the capacity to cover, in
            :math:`[0, 1]`. (default: :obj:`0.3`)
        sensitivity (str, optional): :obj:`'energy'` for the mean squared gradient,
            :obj:`'relative'` for the squared gradient over the squared norm.
            (default: :obj:`'energy'`)
        batch_size (int, optional): Pairs per batch. (default: :obj:`2048`)
        seed (int, optional): Seed of every random choice. (default: :obj:`0`)

    Raises:
        ValueError: If an argument is out of range, or can't act because what it belongs
            to is switched off; if there are fewer than 20 validation pairs.
        FloatingPointError: If no epoch is finite.

    Example:
        >>> result = TRU()(model, ForgetInteractions(ratio=0.1)(data))
        >>> sorted(result.history[0]['alpha'])
        ['id', 'image', 'text']
    """

    def __init__(
        self,
        gate: bool = True,
        scaling: bool = True,
        isolation: bool = True,
        rows: str = 'auto',
        max_shift: float | str = 'auto',
        lr_reverse: float | None = None,
        lr_repair: float = 1e-3,
        shared_rate: float = 0.01,
        num_epochs: int = 5,
        num_passes: int = 3,
        repair_batches: int | None = 10,
        patience: int = 1,
        max_drop: float = 0.2,
        k: int = 20,
        gate_weight: float = 1.0,
        margin: float = 0.0,
        alpha_range: tuple[float, float] = (0.25, 4.0),
        smoothing: float = 0.5,
        num_probes: int = 2,
        top_k: int = 3,
        capacity: float = 0.3,
        sensitivity: str = 'energy',
        batch_size: int = 2048,
        seed: int = 0,
    ) -> None:
        super().__init__(num_epochs, patience, batch_size, seed)
        self.gate = check_bool(gate, 'gate')
        self.scaling = check_bool(scaling, 'scaling')
        self.isolation = check_bool(isolation, 'isolation')
        choices = ('auto', 'user', 'item', 'both', 'all')
        self.rows = check_choice(rows, 'rows', choices)
        if max_shift != 'auto':
            max_shift = check_float(max_shift, 'max_shift', 0.0)
        self.max_shift = max_shift
        if lr_reverse is not None:
            lr_reverse = check_float(lr_reverse, 'lr_reverse', 0.0)
        self.lr_reverse = lr_reverse
        self.lr_repair = check_float(lr_repair, 'lr_repair', 0.0)
        if repair_batches is not None:
            repair_batches = check_int(repair_batches, 'repair_batches', 0)
        self.repair_batches = repair_batches
        self.shared_rate = check_float(shared_rate, 'shared_rate', 0.0)
        self.num_passes = check_int(num_passes, 'num_passes', 1)
        self.max_drop = check_float(max_drop, 'max_drop', 0.0, 1.0)
        self.k = check_int(k, 'k', 1)
        self.gate_weight = check_float(gate_weight, 'gate_weight', 0.0)
        self.margin = check_float(margin, 'margin', 0.0)
        low, high = alpha_range
        if not 0 < low <= 1 <= high:
            raise ValueError(
                f"'alpha_range' must satisfy 0 < low <= 1 <= high (got {alpha_range})"
            )
        self.alpha_range = (float(low), float(high))
        self.smoothing = check_float(smoothing, 'smoothing', 0.0, 0.999)
        self.num_probes = check_int(num_probes, 'num_probes', 1)
        self.top_k = check_int(top_k, 'top_k', 1)
        self.capacity = check_float(capacity, 'capacity', 0.0, 1.0)
        self.sensitivity = check_choice(
            sensitivity, 'sensitivity', ('energy', 'relative')
        )
        self._check_acting()

    def _check_acting(self) -> None:
        r"""Raises if an argument is given that can't act."""
        idle = {
            name: f'{switch}=False'
            for switch, names in _NEEDS.items()
            if not getattr(self, switch)
            for name in names
        }
        if self.lr_reverse is not None:
            idle['max_shift'] = 'lr_reverse'
        if not self.scaling and not self.isolation:
            idle['num_probes'] = 'scaling=False and isolation=False'
        self._refuse_idle(idle)

    def _set_up(self, work: Workspace) -> tuple[Step, Fault]:
        run = _Run(self, work)
        return run.step, run.fault


class _Run:
    r"""One run of TRU on one request."""

    def __init__(self, tru: TRU, work: Workspace) -> None:
        rows, max_shift = _BY_LEVEL[Request.of(work.data).level]
        rows = rows if tru.rows == 'auto' else tru.rows
        movable = movable_rows(work.model, work.data, rows) if tru.isolation else {}
        self.tru = tru
        self.work = work
        self.parameters = dict(work.model.named_parameters())
        self.modules = leaf_modules(work.model, movable)
        self.branches = branch_names(work.model)
        fusion = [name for name, b in self.branches.items() if b == 'fusion']
        self.fusion = fusion or list(self.modules[-1].parameters)
        self.gate = RankingFusionGate(work.retained, tru.k, tru.margin)
        self.alpha: dict[str, float] = {}
        if tru.max_shift != 'auto':
            max_shift = float(tru.max_shift)
        self.lr = self.step_sizes(max_shift)
        self.optimizer = MaskedAdam()
        self.repair_optimizer = work.optimizer(tru.lr_repair)
        self.longest = _longest_rows(work.model)
        self.ndcg = work.target.retain_ndcg(work.model, work.graph)

    def step(self, met: bool) -> dict[str, Any]:
        r"""Runs one epoch: reversal, unless the target is met, and then repair."""
        row: dict[str, Any] = {}
        if not met:
            grads = self.probe()
            if self.tru.scaling:
                row |= self.scale_branches(*grads)
            if self.tru.isolation:
                row |= self.isolate_layers(grads[0])
            if self.tru.gate:
                row['gate_modules'] = [
                    m.name for m in self.modules if set(m.parameters) & set(self.fusion)
                ]
            row |= _shares(self.modules, self.work.model) | self.reverse()
        row['reversed'] = not met
        return row | repair(self.work, self.repair_optimizer, self.tru.repair_batches)

    def fault(self, row: dict[str, Any]) -> str:
        r"""Returns why the run must end with an earlier epoch, or an empty string."""
        for name, length in _longest_rows(self.work.model).items():
            if length > MAX_GROWTH * self.longest[name]:
                return f"a row of '{name}' has left the range of the trained model"
        max_drop = self.tru.max_drop
        if row[f'retain_val_ndcg@{self.work.target.k}'] < (1 - max_drop) * self.ndcg:
            return f'retained NDCG fell by more than {max_drop:.0%}'
        return ''

    def probe(self) -> tuple[_Grads, _Grads]:
        r"""Returns gradients on a few batches, by parameter: of the reverse loss on the
        forget side and of the forward loss on the retain side, each where needed.
        """
        tru, work = self.tru, self.work
        names = [name for name, p in self.parameters.items() if p.requires_grad]

        def measure(loader: Iterable[Triplets], loss: Any) -> _Grads:
            total: _Grads = {}
            for batch in islice(loader, tru.num_probes):
                pos_score, neg_score, _ = work.scores(batch.to(work.device))
                total = _add(total, self.gradients(loss(pos_score, neg_score), names))
            return total

        forget: _Grads = {}
        if tru.scaling or tru.isolation:  # One measurement serves both.
            forget = measure(work.forget_loader, reverse_bpr_loss)
        retain = measure(work.retain_loader, bpr_loss) if tru.scaling else {}
        return forget, retain

    def scale_branches(self, forget: _Grads, retain: _Grads) -> dict[str, Any]:
        r"""Branch-wise modality scaling: sets the scales, smoothed over epochs."""
        forget_energy = branch_energy(forget, self.branches)
        retain_energy = branch_energy(retain, self.branches)
        new = branch_scales(forget_energy, retain_energy, self.tru.alpha_range)
        past, keep = self.alpha or new, self.tru.smoothing
        self.alpha = {b: keep * past[b] + (1 - keep) * new[b] for b in new}
        log = {'forget_energy': forget_energy, 'retain_energy': retain_energy}
        return log | {'alpha': dict(self.alpha)}

    def isolate_layers(self, forget: _Grads) -> dict[str, Any]:
        r"""Capacity-aware layer isolation: sets the mask."""
        tru = self.tru
        settings = tru.top_k, tru.capacity, tru.sensitivity
        isolate_modules(self.modules, forget, self.parameters, *settings)
        return {
            'sensitivity': {m.name: m.sensitivity for m in self.modules},
            'mask': {m.name: m.selected for m in self.modules},
        }

    def reverse(self) -> dict[str, float]:
        r"""Runs the gated, scaled, masked reverse step over the forgotten pairs."""
        masked = [p for m in self.modules if m.selected for p in m.parameters]
        rows = {name: m.rows for m in self.modules for name in m.parameters}
        totals: _Grads = {}
        num_steps = 0
        for _ in range(self.tru.num_passes):
            for batch in self.work.forget_loader:
                grads, values = self.lower(batch.to(self.work.device), masked)
                for name, grad in grads.items():
                    lr = self.lr[name] * self.alpha.get(self.branches[name], 1.0)
                    parameter = self.parameters[name]
                    self.optimizer.step(name, parameter, grad, lr, rows[name])
                totals = _add(totals, values)
                num_steps += 1
        return {name: float(value) / num_steps for name, value in totals.items()}

    def lower(self, batch: Triplets, masked: list[str]) -> tuple[_Grads, _Grads]:
        r"""Returns the gradients of reverse BPR and of the ranking fusion gate, whose
        penalty reaches the fusion parameters only, and what to log.
        """
        pos_score, neg_score, embeddings = self.work.scores(batch)
        if not self.tru.gate:
            loss = reverse_bpr_loss(pos_score, neg_score)
            return self.gradients(loss, masked), {'reverse_loss': loss.detach()}
        weight, penalty = self.gate(batch, pos_score, embeddings)
        loss = reverse_bpr_loss(pos_score, neg_score, weight=weight)
        grads = self.gradients(loss, masked, retain_graph=True)
        term = self.gradients(self.tru.gate_weight * penalty, self.fusion)
        return _add(grads, term), {
            'reverse_loss': loss.detach(),
            'gate_loss': penalty.detach(),
            'mean_gate': weight.mean(),
        }

    def step_sizes(self, max_shift: float) -> dict[str, float]:
        r"""Returns :math:`\eta_{rev}` by parameter."""
        tru = self.tru
        num_steps = tru.num_passes * len(self.work.forget_loader)
        out: dict[str, float] = {}
        for module in self.modules:
            values = [self.parameters[name].detach() for name in module.parameters]
            if module.rows is None:
                norm = sum(float(value.pow(2).sum()) for value in values)
                scale = (norm / max(1, module.size)) ** 0.5
            else:
                scale = float(values[0].pow(2).mean(dim=1).sqrt().median())
            lr = max_shift * scale / num_steps
            if tru.lr_reverse is not None:
                lr = tru.lr_reverse
            if tru.isolation and module.rows is None:
                lr *= tru.shared_rate
            out |= dict.fromkeys(module.parameters, lr)
        return out

    def gradients(
        self, loss: Tensor, names: list[str], retain_graph: bool = False
    ) -> _Grads:
        r"""Returns the gradients of a loss by name, zero where it does not reach."""
        grads = torch.autograd.grad(
            loss,
            [self.parameters[name] for name in names],
            retain_graph=retain_graph,
            allow_unused=True,
        )
        return {
            name: torch.zeros_like(self.parameters[name]) if grad is None else grad
            for name, grad in zip(names, grads)
        }


def _longest_rows(model: RecommenderLike) -> dict[str, float]:
    r"""Returns the norm of the longest row of every table."""
    return {
        name: float(table.parameter.detach().norm(dim=1).max())
        for name, table in named_tables(model).items()
    }


def _add(a: _Grads, b: _Grads) -> _Grads:
    both = a.keys() & b.keys()
    return a | b | {name: a[name] + b[name] for name in both}


def _shares(modules: list[LeafModule], model: RecommenderLike) -> dict[str, float]:
    total = sum(p.numel() for p in model.parameters())
    raw = sum(t.parameter.numel() for t in model.tables() if t.is_raw)
    chosen = [module for module in modules if module.selected]
    share = sum(m.size for m in chosen) / total
    plain = sum(m.size for m in chosen if not m.is_raw) / max(1, total - raw)
    return {'touched_share': share, 'touched_share_without_raw': plain}
