from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.data import HeteroData

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.data.request import Request
from torch_geometric_unlearn.nn.functional import bpr_loss, reverse_bpr_loss
from torch_geometric_unlearn.nn.models import Triplets
from torch_geometric_unlearn.nn.models.base import RecommenderLike, named_tables
from torch_geometric_unlearn.utils.check import check_choice, check_float, check_int
from torch_geometric_unlearn.utils.topk import PairIndex

from .masked_adam import MaskedAdam
from .modules import LeafModule, branch_names, leaf_modules
from .reverse_repair import ReverseRepair, Workspace

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


class TRU(ReverseRepair):
    r"""Targeted reverse update from the `"TRU: Targeted Reverse Update for Efficient
    Multimodal Recommendation Unlearning" <https://arxiv.org/abs/2604.02183>`_ paper.

    Keeps the reverse-repair protocol and reverses deleted influence only where it sits:

    1. The **ranking fusion gate** (:class:`RankingFusionGate`) penalises the residual
       ranking influence of deleted pairs at the parameters that fuse the branches.
    2. **Branch-wise modality scaling** (:meth:`branch_scales`) gives the stronger
       correction to branches that still carry forget-side influence.
    3. **Capacity-aware layer isolation** (:meth:`isolate_modules`) reverses only the
       modules that are most sensitive to the deletion.

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
        reach (float, optional): How far the steps of an epoch can carry a module, over
            the root mean square of its entries (in a table, that of its median row, so
            that rows which an earlier request has moved change nothing), which sets
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
            out once the target is met. (default: :obj:`1`)
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
        reach: float | str = 'auto',
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
        super().__init__(
            num_epochs, lr_repair, repair_batches, patience, batch_size, seed
        )
        self.gate = gate
        self.scaling = scaling
        self.isolation = isolation
        choices = ('auto', 'user', 'item', 'both', 'all')
        self.rows = check_choice(rows, 'rows', choices)
        self.reach = reach if reach == 'auto' else check_float(reach, 'reach', 0.0)
        if lr_reverse is not None:
            check_float(lr_reverse, 'lr_reverse', 0.0)
        self.lr_reverse = lr_reverse
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
            idle['reach'] = 'lr_reverse'
        if not self.scaling and not self.isolation:
            idle['num_probes'] = 'scaling=False and isolation=False'
        self._refuse_idle(idle)

    def _start(self, work: Workspace) -> _State:
        rows, reach = _BY_LEVEL[Request.of(work.data).level]
        rows = rows if self.rows == 'auto' else self.rows
        reach = reach if self.reach == 'auto' else float(self.reach)
        movable = self._movable_rows(work, rows) if self.isolation else {}
        modules = leaf_modules(work.model, movable)
        branches = branch_names(work.model)
        fusion = [name for name, branch in branches.items() if branch == 'fusion']
        return _State(
            lr=self._step_sizes(work, modules, reach),
            modules=modules,
            branches=branches,
            fusion=fusion or list(modules[-1].parameters),
            gate=RankingFusionGate(work.retained, self.k, self.margin),
            longest=_longest_rows(work.model),
            ndcg=work.target.retain_ndcg(work.model, work.graph),
        )

    def _step_sizes(
        self, work: Workspace, modules: list[LeafModule], reach: float
    ) -> dict[str, float]:
        r"""Returns :math:`\eta_{rev}` by parameter."""
        num_steps = self.num_passes * len(work.forget_loader)
        parameters = dict(work.model.named_parameters())
        out: dict[str, float] = {}
        for module in modules:
            values = [parameters[name].detach() for name in module.parameters]
            if module.rows is None:
                norm = sum(float(value.pow(2).sum()) for value in values)
                scale = (norm / max(1, module.size)) ** 0.5
            else:
                scale = float(values[0].pow(2).mean(dim=1).sqrt().median())
            lr = self.lr_reverse
            if lr is None:
                lr = reach * scale / num_steps
            if self.isolation and module.rows is None:
                lr *= self.shared_rate
            out |= dict.fromkeys(module.parameters, lr)
        return out

    def _guard(self, work: Workspace, state: _State, row: dict[str, Any]) -> str:
        reason = super()._guard(work, state, row)
        if reason:
            return reason
        for name, length in _longest_rows(work.model).items():
            if length > MAX_GROWTH * state.longest[name]:
                return f"a row of '{name}' has left the range of the trained model"
        ndcg = row[f'retain_val_ndcg@{work.target.k}']
        if ndcg < (1 - self.max_drop) * state.ndcg:
            return f'retained NDCG fell by more than {self.max_drop:.0%}'
        return ''

    def _reverse(self, work: Workspace, state: _State) -> dict[str, Any]:
        log = self._estimate(work, state)
        parameters = dict(work.model.named_parameters())
        masked = [p for m in state.modules if m.selected for p in m.parameters]
        rows = {name: m.rows for m in state.modules for name in m.parameters}
        totals: dict[str, Tensor] = {}
        num_steps = 0
        for _ in range(self.num_passes):
            for batch in work.forget_loader:
                batch = batch.to(work.device)
                grads, values = self._lower(work, state, batch, parameters, masked)
                for name, grad in grads.items():
                    lr = state.lr[name] * state.alpha.get(state.branches[name], 1.0)
                    state.optimizer.step(name, parameters[name], grad, lr, rows[name])
                totals = _add(totals, values)
                num_steps += 1
        return log | {name: float(value) / num_steps for name, value in totals.items()}

    def _lower(
        self,
        work: Workspace,
        state: _State,
        batch: Triplets,
        parameters: Mapping[str, Tensor],
        masked: list[str],
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        r"""Returns the gradients of reverse BPR and gate, and what to log."""
        pos_score, neg_score, embeddings = work.scores(batch)
        if not self.gate:
            loss = reverse_bpr_loss(pos_score, neg_score)
            grads = _gradients(loss, parameters, masked)
            return grads, {'reverse_loss': loss.detach()}
        weight, penalty = state.gate(batch, pos_score, embeddings)
        loss = reverse_bpr_loss(pos_score, neg_score, weight=weight)
        grads = _gradients(loss, parameters, masked, retain_graph=True)
        term = _gradients(self.gate_weight * penalty, parameters, state.fusion)
        return _add(grads, term), {
            'reverse_loss': loss.detach(),
            'gate_loss': penalty.detach(),
            'mean_gate': weight.mean(),
        }

    def _estimate(self, work: Workspace, state: _State) -> dict[str, Any]:
        r"""Measures both sides once per epoch and sets the scales and the mask; the
        forget-side gradients serve both.
        """
        parameters = dict(work.model.named_parameters())
        names = [name for name, p in parameters.items() if p.requires_grad]

        def measure(loader: Iterable[Triplets], loss: Any) -> dict[str, Tensor]:
            total: dict[str, Tensor] = {}
            for batch in islice(loader, self.num_probes):
                pos_score, neg_score, _ = work.scores(batch.to(work.device))
                total = _add(
                    total, _gradients(loss(pos_score, neg_score), parameters, names)
                )
            return total

        log: dict[str, Any] = {}
        forget_grads: dict[str, Tensor] = {}
        if self.scaling or self.isolation:
            forget_grads = measure(work.forget_loader, reverse_bpr_loss)
        if self.scaling:
            retain_grads = measure(work.retain_loader, bpr_loss)
            forget_energy = branch_energy(forget_grads, state.branches)
            retain_energy = branch_energy(retain_grads, state.branches)
            new = branch_scales(forget_energy, retain_energy, self.alpha_range)
            past = state.alpha or new
            keep = self.smoothing
            state.alpha = {b: keep * past[b] + (1 - keep) * new[b] for b in new}
            log |= {'forget_energy': forget_energy, 'retain_energy': retain_energy}
            log['alpha'] = dict(state.alpha)
        if self.isolation:
            isolate_modules(
                state.modules,
                forget_grads,
                parameters,
                self.top_k,
                self.capacity,
                self.sensitivity,
            )
            log['sensitivity'] = {m.name: m.sensitivity for m in state.modules}
            log['mask'] = {m.name: m.selected for m in state.modules}
        if self.gate:
            log['gate_modules'] = [
                m.name for m in state.modules if set(m.parameters) & set(state.fusion)
            ]
        log |= _shares(state.modules, work.model)
        return log

    def _movable_rows(self, work: Workspace, rows: str) -> dict[str, Tensor]:
        r"""Returns the rows that may move, by name of the table."""
        if rows == 'all':
            return {}
        pairs = schema.forgotten_edge_index(work.data).to(work.device)
        none = pairs.new_empty(0)
        users = pairs[0].unique() if rows in ('user', 'both') else none
        items = pairs[1].unique() if rows in ('item', 'both') else none
        num_users = schema.num_users(work.data)
        nodes = torch.cat([users, items + num_users])
        return {
            name: table.locate(nodes, num_users)[1]
            for name, table in named_tables(work.model).items()
        }


class RankingFusionGate:
    r"""The first intervention: looks at how visible a deleted pair still is.

    With :math:`\tau_u` the score of the :math:`K`-th item of user :math:`u` when the
    retained positives are masked, and :math:`T` a quarter of the standard deviation of
    the scores, the gate

    .. math::
        g_{ui} = \sigma \left( \frac{s(u, i) - \tau_u}{T} \right)

    is near 1 while the pair is inside or close to the list and near 0 once it has left.
    It weighs the reverse loss, so that forgotten pairs stop pushing, and gives the
    penalty :math:`\mathcal{L}_{gate} = \textrm{mean} \, g_{ui}
    \max(s(u, i) - \tau_u + \textrm{margin}, 0)`, whose gradient is meant for fusion
    parameters only. Gate, threshold and temperature carry no gradient. It does not ban
    an item from the lists of others. [Formulas ours.]

    Args:
        retained (HeteroData): The data after the deletion.
        k (int): Length of the list.
        margin (float): Margin of the penalty.
    """

    def __init__(self, retained: HeteroData, k: int, margin: float = 0.0) -> None:
        self.k = min(k, schema.num_items(retained))
        self.margin = margin
        self.positives = PairIndex(
            schema.retained_edge_index(retained), schema.num_users(retained)
        )

    def __call__(
        self,
        batch: Triplets,
        pos_score: Tensor,
        embeddings: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, Tensor]:
        r"""Returns the gate :obj:`[B]` and the penalty, a scalar.

        Args:
            batch (Triplets): Forget pairs with negatives.
            pos_score (torch.Tensor): Their scores :obj:`[B]`, with gradient.
            embeddings (tuple): User and item embeddings.
        """
        threshold, temperature = self.thresholds(batch.user, embeddings)
        gate = ((pos_score.detach() - threshold) / temperature).sigmoid()
        penalty = (gate * F.relu(pos_score - threshold + self.margin)).mean()
        return gate, penalty

    @torch.no_grad()
    def thresholds(
        self, user: Tensor, embeddings: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        r"""Returns :math:`\tau_u` :obj:`[B]` and :math:`T`, a scalar."""
        users, inverse = user.unique(return_inverse=True)
        scores = embeddings[0][users] @ embeddings[1].t()
        temperature = scores.std(dim=1, correction=0).mean().clamp(min=1e-12) / 4
        row, item = self.positives.lookup(users.to(self.positives.item.device))
        scores[row.to(user.device), item.to(user.device)] = -torch.inf
        threshold = scores.topk(self.k, dim=1)[0][:, -1]
        lowest = scores.masked_fill(scores == -torch.inf, torch.inf).amin(dim=1)
        threshold = torch.where(threshold == -torch.inf, lowest, threshold)
        return threshold[inverse], temperature


def branch_energy(
    grads: dict[str, Tensor], branches: dict[str, str]
) -> dict[str, float]:
    r"""Returns the mean squared gradient of every branch but the fusion.

    Args:
        grads (dict): Gradients by parameter name.
        branches (dict): Branch by parameter name.
    """
    total: dict[str, float] = {}
    size: dict[str, int] = {}
    for name, grad in grads.items():
        branch = branches[name]
        if branch != 'fusion':
            total[branch] = total.get(branch, 0.0) + float(grad.pow(2).sum())
            size[branch] = size.get(branch, 0) + grad.numel()
    return {branch: total[branch] / size[branch] for branch in total}


def branch_scales(
    forget_energy: dict[str, float],
    retain_energy: dict[str, float],
    alpha_range: tuple[float, float] = (0.25, 4.0),
) -> dict[str, float]:
    r"""The second intervention: how strongly every branch is reversed

    .. math::
        \rho(m) = \frac{E_f(m)}{E_f(m) + E_r(m)}, \qquad
        \alpha(m) = \textrm{clip} \left(
        \frac{\rho(m)}{\textrm{mean}_{m^{\prime}} \rho(m^{\prime})},
        \alpha_{min}, \alpha_{max} \right).

    The forget side is measured with the reverse loss, whose gradient is large while a
    pair is remembered and fades once it is forgotten; that of the forward loss would
    turn the rule around. A branch without forget energy gets :math:`\alpha_{min}`; if
    none has any, all do. [Formulas ours.]

    Args:
        forget_energy (dict): :math:`E_f` by branch.
        retain_energy (dict): :math:`E_r` by branch.
        alpha_range (tuple, optional): Bounds. (default: :obj:`(0.25, 4.0)`)
    """
    rho = {}
    for branch, forget in forget_energy.items():
        total = forget + retain_energy.get(branch, 0.0)
        rho[branch] = forget / total if total > 0 else 0.0
    low, high = alpha_range
    mean = sum(rho.values()) / max(1, len(rho))
    if mean == 0:
        return dict.fromkeys(rho, low)
    return {branch: min(high, max(low, r / mean)) for branch, r in rho.items()}


def isolate_modules(
    modules: list[LeafModule],
    grads: dict[str, Tensor],
    parameters: Mapping[str, Tensor],
    top_k: int,
    capacity: float,
    sensitivity: str = 'energy',
) -> None:
    r"""The third intervention: selects the modules that the reverse step may touch.

    The sensitivity is :math:`S(l) = \|\nabla_l \mathcal{L}_{rev}\|^2 / |\theta_l|`, or
    over :math:`\|\theta_l\|^2` if relative, on the rows that may move. ID tables whose
    rows are confined to the request come first, then the others by sensitivity. The
    first :obj:`top_k` modules are selected, then the next ones until the selection
    holds a share :obj:`capacity` of the parameters that may move. Raw feature
    tables hold nearly all parameters: they count for nothing there, and enter through
    the :obj:`top_k` only. Modules without a row that may move are never selected.
    [Formulas ours.]

    Args:
        modules (list): The modules; :obj:`sensitivity` and :obj:`selected` are set.
        grads (dict): Gradients of the reverse loss by parameter name.
        parameters (dict): Parameters by name.
        top_k (int): Modules that are always selected.
        capacity (float): Share :math:`\kappa` to cover, in :math:`[0, 1]`.
        sensitivity (str, optional): :obj:`'energy'` or :obj:`'relative'`.
            (default: :obj:`'energy'`)
    """
    for module in modules:
        module.selected = False
        module.sensitivity = 0.0
        if module.size == 0:
            continue
        energy, norm = 0.0, 0.0
        for name in module.parameters:
            grad, value = grads.get(name), parameters[name].detach()
            if grad is None:
                continue
            energy += float(_movable(grad, module.rows).pow(2).sum())
            norm += float(_movable(value, module.rows).pow(2).sum())
        scale = norm if sensitivity == 'relative' else float(module.size)
        module.sensitivity = energy / scale if scale > 0 else 0.0
    movable = [module for module in modules if module.size > 0]
    # A mean square over a module says little about a table beside a single slope that
    # all nodes share; rows of the request are what the deletion is about.
    movable.sort(
        key=lambda module: (
            module.rows is not None and not module.is_raw,
            module.sensitivity,
        ),
        reverse=True,
    )
    wanted = capacity * sum(module.size for module in movable if not module.is_raw)
    covered = 0
    for place, module in enumerate(movable):
        if place >= top_k and (covered >= wanted or module.is_raw):
            continue
        module.selected = True
        covered += 0 if module.is_raw else module.size


def _movable(x: Tensor, rows: Tensor | None) -> Tensor:
    return x if rows is None else x[rows]


def _longest_rows(model: RecommenderLike) -> dict[str, float]:
    r"""Returns the norm of the longest row of every table."""
    return {
        name: float(table.parameter.detach().norm(dim=1).max())
        for name, table in named_tables(model).items()
    }


@dataclass
class _State:
    lr: dict[str, float]
    modules: list[LeafModule]
    branches: dict[str, str]
    fusion: list[str]
    gate: RankingFusionGate
    longest: dict[str, float]
    ndcg: float
    optimizer: MaskedAdam = field(default_factory=MaskedAdam)
    alpha: dict[str, float] = field(default_factory=dict)


def _gradients(
    loss: Tensor,
    parameters: Mapping[str, Tensor],
    names: list[str],
    retain_graph: bool = False,
) -> dict[str, Tensor]:
    grads = torch.autograd.grad(
        loss,
        [parameters[name] for name in names],
        retain_graph=retain_graph,
        allow_unused=True,
    )
    return {
        name: torch.zeros_like(parameters[name]) if grad is None else grad
        for name, grad in zip(names, grads)
    }


def _add(a: dict[str, Tensor], b: dict[str, Tensor]) -> dict[str, Tensor]:
    both = a.keys() & b.keys()
    return a | b | {name: a[name] + b[name] for name in both}


def _shares(modules: list[LeafModule], model: RecommenderLike) -> dict[str, float]:
    total = sum(p.numel() for p in model.parameters())
    raw = sum(t.parameter.numel() for t in model.tables() if t.is_raw)
    chosen = [module for module in modules if module.selected]
    share = sum(m.size for m in chosen) / total
    plain = sum(m.size for m in chosen if not m.is_raw) / max(1, total - raw)
    return {'touched_share': share, 'touched_share_without_raw': plain}
