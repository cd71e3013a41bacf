from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.data import HeteroData

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.nn.functional import bpr_loss, reverse_bpr_loss
from torch_geometric_unlearn.nn.models import Table, Triplets
from torch_geometric_unlearn.utils.check import check_choice, check_float, check_int
from torch_geometric_unlearn.utils.topk import PairIndex

from ._plan import Plan, plan_for
from .calibration import NeverSeen
from .masked_adam import MaskedAdam
from .modules import LeafModule, branch_names, leaf_modules
from .reverse_repair import ReverseRepair, Workspace
from .row_reset import lacks_id_table, reset_rows

_ROWS = ('auto', 'user', 'item', 'both', 'others', 'all')


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
    smaller rate for what all users share, every default, stopping and selection. The
    paper's reverse step is :obj:`target='lowest'`; with it, and :obj:`gate`,
    :obj:`scaling` and :obj:`isolation` off, this is
    :class:`~torch_geometric_unlearn.unlearn.MMRecUn`. As the pairs that it pushes down
    become conspicuous to a membership attack, the default has another target.

    Args:
        target (str, optional): Where forgotten pairs are to go: :obj:`'lowest'`, by
            reverse BPR under the gate, until the lists are free of them, or
            :obj:`'never_seen'`, by :class:`~torch_geometric_unlearn.unlearn.NeverSeen`
            instead of reverse BPR and gate, which also stops them from becoming
            conspicuously low. With it, rows of deleted users and items are drawn anew
            first; if that meets the target, a repair step ends the run. Else all epochs
            are run, with the repair before the reverse step, which has the last word;
            deleted items, and deleted users where items have rows, stay as drawn
            [ours]. (default: :obj:`'never_seen'`)
        gate (bool, optional): Whether the ranking fusion gate acts.
            (default: :obj:`True`)
        scaling (bool, optional): Whether branches are scaled. (default: :obj:`True`)
        isolation (bool, optional): Whether the reverse step is confined to sensitive
            modules. (default: :obj:`True`)
        rows (str, optional): Whose table rows may move under isolation:
            :obj:`'user'`, :obj:`'item'`, :obj:`'both'` (those in the forgotten
            interactions), :obj:`'others'` for all items that are not deleted,
            :obj:`'all'` for whole tables, or :obj:`'auto'` for what the table below
            says. (default: :obj:`'auto'`)
        reach (float, optional): How far the steps of an epoch can carry a module, over
            the root mean square of its entries, which sets :math:`\eta_{rev}` for every
            module whatever the model's scale and the number of batches; see below.
            (default: :obj:`'auto'`)
        lr_reverse (float, optional): One step size :math:`\eta_{rev}` for all modules
            instead. (default: :obj:`None`)
        lr_repair (float, optional): Step size of the repair, that of the training.
            (default: :obj:`1e-3`)
        shared_rate (float, optional): Factor on :math:`\eta_{rev}` for modules that all
            users share, under isolation; see below. (default: :obj:`'auto'`)
        num_epochs (int, optional): Largest number of epochs; see below.
            (default: :obj:`'auto'`)
        num_passes (int, optional): Reverse passes over the forgotten interactions per
            epoch, in batches, or at once with :obj:`target='never_seen'`; see below.
            (default: :obj:`'auto'`)
        repair_batches (int, optional): Repair batches per epoch, a full pass if
            :obj:`None`, or what the table below says if :obj:`'auto'`.
            (default: :obj:`'auto'`)
        patience (int, optional): Epochs without gain in retained validation NDCG to sit
            out once the target is met. (default: :obj:`1`)
        k (int, optional): Length of the lists that the gate looks at.
            (default: :obj:`20`)
        gate_weight (float, optional): Weight :math:`\lambda_{gate}`.
            (default: :obj:`1.0`)
        margin (float, optional): Margin of the gate penalty. (default: :obj:`0.0`)
        alpha_range (tuple, optional): Bounds of the branch scales.
            (default: :obj:`(0.25, 4.0)`)
        anchor (float, optional): Weight of holding retained pairs at their scores, with
            :obj:`target='never_seen'`; see below. (default: :obj:`'auto'`)
        final_rate (float, optional): Share of the step sizes that is left in the last
            epoch, with :obj:`target='never_seen'`; see below.
            (default: :obj:`'auto'`)
        smoothing (float, optional): Weight of the past in the branch scales over
            epochs, in :math:`[0, 1)`. (default: :obj:`0.5`)
        num_probes (int, optional): Batches of each side that the energies are measured
            on. (default: :obj:`2`)
        top_k (int, optional): Modules that are always selected. (default: :obj:`3`)
        capacity (float, optional): Share :math:`\kappa` of the capacity to cover, in
            :math:`[0, 1]`; see below. (default: :obj:`'auto'`)
        sensitivity (str, optional): :obj:`'energy'` for the mean squared gradient,
            :obj:`'relative'` for the squared gradient over the squared norm.
            (default: :obj:`'energy'`)
        batch_size (int, optional): Pairs per batch. (default: :obj:`2048`)
        seed (int, optional): Seed of every random choice. (default: :obj:`0`)

    What is :obj:`'auto'` depends on the request, which decides what holds the memory
    [ours; chosen on validation data of Amazon Baby]. *Without item table* is a model
    like :class:`~torch_geometric_unlearn.nn.MIGGT`, where modules that all share must
    carry what rows would; *other* are interaction-level and mixed requests.
    :obj:`capacity` is 0.3 for *lowest* and 1 for *never seen*.

    ====================  ======  =====  ======  ======  ======  ======  ======  =====
    level                 rows    reach  shared  epochs  passes  repair  anchor  final
    ====================  ======  =====  ======  ======  ======  ======  ======  =====
    *lowest*
    user                  user    1      0.01    5       3       10
    item                  item    1      0.01    5       3       10
    interaction           user    1/3    0.01    5       3       10
    mixed                 both    1/3    0.01    5       3       10
    *never seen*
    user                  item    0.2    0.01    5       6       5       1       0.1
    item                  others  3      0.01    8       6       5       0.3     0.3
    other                 both    0.6    0.01    5       6       2       1       0.1
    *without item table*
    user                  user    3      0.01    5       6       5       0.3     0.1
    item                  both    0.1    1       10      9       2       0.3     0.1
    other                 both    1      0.1     10      9       2       0.3     0.3
    ====================  ======  =====  ======  ======  ======  ======  ======  =====

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> result = TRU()(model, ForgetInteractions(ratio=0.1)(data))
        >>> sorted(result.history[0]['alpha'])
        ['id', 'image', 'text']
    """

    def __init__(
        self,
        target: str = 'never_seen',
        gate: bool = True,
        scaling: bool = True,
        isolation: bool = True,
        rows: str = 'auto',
        reach: float | str = 'auto',
        lr_reverse: float | None = None,
        lr_repair: float = 1e-3,
        shared_rate: float | str = 'auto',
        num_epochs: int | str = 'auto',
        num_passes: int | str = 'auto',
        repair_batches: int | str | None = 'auto',
        patience: int = 1,
        k: int = 20,
        gate_weight: float = 1.0,
        margin: float = 0.0,
        alpha_range: tuple[float, float] = (0.25, 4.0),
        anchor: float | str = 'auto',
        final_rate: float | str = 'auto',
        smoothing: float = 0.5,
        num_probes: int = 2,
        top_k: int = 3,
        capacity: float | str = 'auto',
        sensitivity: str = 'energy',
        batch_size: int = 2048,
        seed: int = 0,
    ) -> None:
        super().__init__(1, lr_repair, None, patience, batch_size, seed)
        self.target = check_choice(target, 'target', ('lowest', 'never_seen'))
        self.pauses = target == 'lowest'  # Else, step sizes are annealed.
        self.repairs_first = target == 'never_seen'
        self.final_rate = _or_auto(check_float, final_rate, 'final_rate', 0.0, 1.0)
        self.rows = check_choice(rows, 'rows', _ROWS)
        self.reach = _or_auto(check_float, reach, 'reach', 0.0)
        self.shared_rate = _or_auto(check_float, shared_rate, 'shared_rate', 0.0)
        self.num_epochs = _or_auto(check_int, num_epochs, 'num_epochs', 1)
        self.num_passes = _or_auto(check_int, num_passes, 'num_passes', 1)
        self.repair_batches = repair_batches  # type: ignore[assignment]
        if repair_batches is not None:
            _or_auto(check_int, repair_batches, 'repair_batches', 0)
        self.capacity = _or_auto(check_float, capacity, 'capacity', 0.0, 1.0)
        self.anchor = _or_auto(check_float, anchor, 'anchor', 0.0)
        if lr_reverse is not None:
            check_float(lr_reverse, 'lr_reverse', 0.0)
        self.lr_reverse = lr_reverse
        self.gate = gate
        self.scaling = scaling
        self.isolation = isolation
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
        self.sensitivity = check_choice(
            sensitivity, 'sensitivity', ('energy', 'relative')
        )

    def _start(self, work: Workspace) -> _State:
        plan = self._plan(work)
        work.num_epochs = plan.num_epochs
        work.repair_batches = plan.repair_batches
        if self.target == 'never_seen' and not lacks_id_table(work.model):
            reset_rows(work.model, work.data)  # Before step sizes follow the rows.
        rows = self._movable_rows(work, plan.rows) if self.isolation else {}
        modules = leaf_modules(work.model, rows)
        branches = branch_names(work.model)
        fusion = [name for name, branch in branches.items() if branch == 'fusion']
        state = _State(
            plan=plan,
            lr=self._step_sizes(work, modules, plan),
            modules=modules,
            branches=branches,
            fusion=fusion or list(modules[-1].parameters),
        )
        if self.target == 'lowest':
            state.gate = RankingFusionGate(work.retained, self.k, self.margin)
            return state
        state.never_seen = NeverSeen(
            work.model,
            work.graph,
            work.data,
            work.target.reference,
            plan.anchor,
            self.seed,
        )
        state.needs_reversal = not self._measure(work, state)['target_met']
        if not state.needs_reversal:
            work.num_epochs = 1
        return state

    def _is_reversing(self, state: _State, history: list[dict[str, Any]]) -> bool:
        return state.needs_reversal and super()._is_reversing(state, history)

    def _plan(self, work: Workspace) -> Plan:
        r"""Returns what the caller has left open, by the kind of the request."""
        level = work.data.forget_level if 'forget_level' in work.data else 'mixed'
        tables: list[Table] = getattr(work.model, 'tables', list)()
        has_item_rows = any(
            table.rows != schema.USER and not table.is_raw for table in tables
        )
        plan = plan_for(self.target, level, has_item_rows)
        given = {f.name: getattr(self, f.name) for f in fields(plan)}
        return replace(plan, **{k: v for k, v in given.items() if v != 'auto'})

    def _step_sizes(
        self, work: Workspace, modules: list[LeafModule], plan: Plan
    ) -> dict[str, float]:
        r"""Returns :math:`\eta_{rev}` by parameter."""
        num_steps = plan.num_passes
        num_steps *= len(work.forget_loader) if self.target == 'lowest' else 1
        parameters = dict(work.model.named_parameters())
        out: dict[str, float] = {}
        for module in modules:
            norm = sum(
                float(_movable(parameters[name].detach(), module.rows).pow(2).sum())
                for name in module.parameters
            )
            lr = plan.reach * (norm / max(1, module.size)) ** 0.5 / num_steps
            lr = lr if self.lr_reverse is None else self.lr_reverse
            if self.isolation and module.rows is None:
                lr *= plan.shared_rate
            out |= dict.fromkeys(module.parameters, lr)
        return out

    def _reverse(self, work: Workspace, state: _State) -> dict[str, Any]:
        # Aiming at the level of never-seen pairs, what is measured first stays.
        if state.never_seen is None or not state.estimates:
            state.estimates = self._estimate(work, state)
        log = dict(state.estimates)
        parameters = dict(work.model.named_parameters())
        masked = [p for m in state.modules if m.selected for p in m.parameters]
        rows = {name: m.rows for m in state.modules for name in m.parameters}
        totals: dict[str, Tensor] = {}
        num_steps = 0
        for _ in range(state.plan.num_passes):
            directions = self._directions(work, state, parameters, masked)
            for grads, values in directions:
                for name, grad in grads.items():
                    lr = state.lr[name] * state.alpha.get(state.branches[name], 1.0)
                    state.optimizer.step(name, parameters[name], grad, lr, rows[name])
                totals = _add(totals, values)
                num_steps += 1
        state.epoch += 1
        if state.never_seen is not None:
            decay = state.plan.final_rate ** (1 / max(1, state.plan.num_epochs - 1))
            state.lr = {name: lr * decay for name, lr in state.lr.items()}
        return log | {name: float(value) / num_steps for name, value in totals.items()}

    def _directions(
        self,
        work: Workspace,
        state: _State,
        parameters: Mapping[str, Tensor],
        masked: list[str],
    ) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
        r"""Yields the gradients of every step of a pass by parameter, and what to log:
        one step over all forgotten pairs towards never-seen ones, else one per batch.
        """
        if state.never_seen is not None:
            loss = state.never_seen()
            grads = _gradients(loss, parameters, masked)
            yield grads, {'reverse_loss': loss.detach()}
            return
        for batch in work.forget_loader:
            yield self._lower(work, state, batch.to(work.device), parameters, masked)

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
        assert state.gate is not None
        weight, penalty = state.gate(batch, pos_score, embeddings)
        loss = reverse_bpr_loss(pos_score, neg_score, weight=weight)
        grads = _gradients(loss, parameters, masked, retain_graph=True)
        term = _gradients(self.gate_weight * penalty, parameters, state.fusion)
        return _add(grads, term), {
            'reverse_loss': loss.detach(),
            'gate_loss': penalty.detach(),
            'mean_gate': weight.mean(),
        }

    def _repair(self, work: Workspace) -> dict[str, Any]:
        if self.target == 'lowest' or 'forget_items' not in work.data:
            return super()._repair(work)
        # A deleted item stays as it was drawn; as a negative it would learn who likes
        # what is near it.
        nodes = work.data['forget_items'].to(work.device)
        shift = {schema.ITEM: 0, 'node': schema.num_users(work.data)}
        kept = [
            (table.parameter, nodes + shift[table.rows])
            for table in getattr(work.model, 'tables', list)()
            if table.rows in shift and not table.is_raw
        ]
        drawn = [parameter.detach()[rows] for parameter, rows in kept]
        log = super()._repair(work)
        with torch.no_grad():
            for (parameter, rows), values in zip(kept, drawn):
                parameter[rows] = values
        return log

    def _should_stop(self, history: list[dict[str, Any]], ndcg_key: str) -> bool:
        return self.target == 'lowest' and super()._should_stop(history, ndcg_key)

    def _measure(self, work: Workspace, state: _State) -> dict[str, Any]:
        if state.never_seen is None:
            return super()._measure(work, state)
        row = state.never_seen.measure()
        last = state.epoch == work.num_epochs or not state.needs_reversal
        if row['target_met'] or last:
            ranks = super()._measure(work, state)  # The expensive part.
            slack = max(work.target.tolerance, 2 * state.never_seen.level_error(ranks))
            ranked = ranks['forget_level'] <= ranks['reference_level'] + slack
            row = ranks | row | {'target_met': row['target_met'] * float(ranked)}
        return row

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

        log: dict[str, Any] = {'plan': asdict(state.plan)}
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
                state.plan.capacity,
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
        tables = getattr(work.model, 'tables', None)
        if rows == 'all' or tables is None:
            return {}
        pairs = schema.forgotten_edge_index(work.data).to(work.device)
        none = pairs.new_empty(0)
        users = pairs[0].unique() if rows in ('user', 'both') else none
        items = pairs[1].unique() if rows in ('item', 'both') else none
        if rows == 'others':
            items = torch.arange(schema.num_items(work.data), device=work.device)
        if self.target == 'never_seen' and 'forget_items' in work.data:
            gone = work.data['forget_items'].to(work.device)
            items = items[~torch.isin(items, gone)]  # They stay as they are drawn.
        nodes = torch.cat([users, items + schema.num_users(work.data)])
        by_type = {schema.USER: users, schema.ITEM: items, 'node': nodes}
        names = {id(p): name for name, p in work.model.named_parameters()}
        return {
            # Raw features are content, not memory.
            names[id(table.parameter)]: none
            if table.is_raw and self.target == 'never_seen'
            else by_type[table.rows]
            for table in tables()
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


def _or_auto(check: Any, value: Any, name: str, *bounds: float) -> Any:
    return value if value == 'auto' else check(value, name, *bounds)


def _movable(x: Tensor, rows: Tensor | None) -> Tensor:
    return x if rows is None else x[rows]


@dataclass
class _State:
    plan: Plan
    lr: dict[str, float]
    modules: list[LeafModule]
    branches: dict[str, str]
    fusion: list[str]
    gate: RankingFusionGate | None = None
    never_seen: NeverSeen | None = None
    optimizer: MaskedAdam = field(default_factory=MaskedAdam)
    alpha: dict[str, float] = field(default_factory=dict)
    epoch: int = 0
    needs_reversal: bool = True
    estimates: dict[str, Any] = field(default_factory=dict)


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


def _shares(modules: list[LeafModule], model: torch.nn.Module) -> dict[str, float]:
    total = sum(p.numel() for p in model.parameters())
    raw = sum(t.parameter.numel() for t in getattr(model, 'tables', list)() if t.is_raw)
    chosen = [module for module in modules if module.selected]
    share = sum(m.size for m in chosen) / total
    plain = sum(m.size for m in chosen if not m.is_raw) / max(1, total - raw)
    return {'touched_share': share, 'touched_share_without_raw': plain}
