from __future__ import annotations

import copy
import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.data import HeteroData

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.ops import LazyPropagation
from torch_geometric_unlearn.ops.lazy_propagation import PropagationUpdate
from torch_geometric_unlearn.utils.check import check_float, check_int
from torch_geometric_unlearn.utils.seed import (
    check_seed,
    generator,
    one_at_a_time,
)
from torch_geometric_unlearn.utils.topk import PairIndex

# The sigmoid is Lipschitz with 1 / 4, its derivative with 1 / (6 sqrt 3).
_SLOPE, _CURVATURE = 1 / 4, 1 / (6 * math.sqrt(3))
_USERS_PER_BLOCK = 512

#: What a fit sets, a request changes, and a state brings back.
_CHANGED = (
    'content', 'negatives', 'weight', 'gradient_bound', '_noise', '_propagation'
)
#: The names of a state.
_STATE = (
    'settings', 'edge_index', 'content', 'negatives', 'weight', 'gradient_bound',
    'noise', 'sent', 'residue', 'embedding',
)


@dataclass
class CertifiedUpdate:
    r"""What a request has done to the heads.

    Attributes:
        touched_heads (torch.Tensor): Users whose head took a Newton step, int64
            :obj:`[n]`, sorted.
        retrained_heads (torch.Tensor): Users whose head was over its budget and was
            trained anew, int64 :obj:`[m]`, sorted.
        bound (torch.Tensor): Bound on the gradient residual of every head, float64
            :obj:`[num_users]`.
        budget (float): Largest bound that is certified.
        certified (bool): Whether no head is over it.
        joint_epsilon (float): The :math:`\epsilon` of all heads together, at the same
            :math:`\delta`; no claim about them together above 1.
        propagation (list): What updating the item vectors touched: the removal, and
            the push of all residues if it was due.
    """

    touched_heads: Tensor
    retrained_heads: Tensor
    bound: Tensor
    budget: float
    certified: bool
    joint_epsilon: float
    propagation: list[PropagationUpdate]


@dataclass
class CertifiedGraph:
    r"""What :class:`CertifiedHead` scores with.

    Attributes:
        edge_index (torch.Tensor): The interactions, int64 :obj:`[2, E]`.
        item_emb (torch.Tensor): Propagated content of the items and the intercept,
            :math:`(N_{item}, H)`.
    """

    edge_index: Tensor
    item_emb: Tensor

    def to(self, device: torch.device | str) -> CertifiedGraph:
        r"""Returns the graph on another device."""
        return CertifiedGraph(self.edge_index.to(device), self.item_emb.to(device))


class CertifiedHead(torch.nn.Module):
    r"""A recommender of its own with certified removal of interactions: one logistic
    head per user on linearly propagated content, after the `"Scalable and Certifiable
    Graph Unlearning: Overcoming the Approximation Error Barrier"
    <https://arxiv.org/abs/2408.09212>`_ paper.

    Item vectors :math:`\mathbf{z}_i` are the item rows of
    :math:`\sum_l w_l \mathbf{S}^l [\mathbf{0}; \mathbf{X}]` over the user-item graph,
    where :math:`\mathbf{X}` is frozen, public content, and a 1 for the intercept. The
    head of user :math:`u` minimises

    .. math::
        L_b(\mathbf{w}) = \sum_{i} \left[ \ell(y_{ui} \mathbf{w}^{\top} \mathbf{z}_i)
        + \tfrac{\lambda}{2} \|\mathbf{w}\|^2 \right]
        + \mathbf{b}_u^{\top} \mathbf{w}, \qquad
        \mathbf{b}_u \sim \mathcal{N}(\mathbf{0}, \alpha^2 \mathbf{I})

    over the user's interactions (:math:`y = 1`) and fixed negatives (:math:`y = -1`),
    :math:`\ell` the logistic loss. A request changes a head's own data and, through the
    graph, item vectors nearby; every head with either takes one Newton step
    :math:`\mathbf{w}' = \mathbf{w} + \mathbf{H}(\mathbf{w}; \mathcal{D}')^{-1}
    (\nabla L(\mathbf{w}; \mathcal{D}) - \nabla L(\mathbf{w}; \mathcal{D}'))`. The
    gradient that this leaves behind is bounded and added up over requests; a head whose
    bound exceeds :math:`\alpha \epsilon / c`, :math:`c = \sqrt{2 \ln(1.5 / \delta)}`,
    is trained anew with new noise and starts from zero.

    **Certified:** the weights of every single head are
    :math:`(\epsilon, \delta)`-indistinguishable from those trained on what is left,
    given the present item vectors. All heads together are so only at
    :obj:`joint_epsilon`, whose square adds up over users. **Not certified:** anything
    trained end to end, rankings that also use other embeddings, the choice of
    hyper-parameters, popularity counts, and the fact that a request happened. Content
    has to be public, and the noise secret: a :obj:`noise_seed` that others know voids
    the claim. As in the paper, bounds are computed from the weights themselves, and
    arithmetic counts as exact.

    Ours, as the paper classifies nodes and has no users: one head per user; the draw of
    negatives, which ignores the interactions, so that it can't reveal a deleted one (a
    drawn item counts only while the user doesn't interact with it, and a user without
    interactions keeps a head of negatives); a random projection of the features, which
    looks at no data; a constant channel beside them, which propagation turns into a
    popularity signal, and the intercept (test Recall@20 on Amazon Baby is 0.004 without
    both and 0.043 with them, against 0.050 of the most popular items); the bound. With
    :math:`\Delta = \mathbf{w}' - \mathbf{w}`, it grows by

    .. math::
        \beta = \tfrac{\gamma}{2} \sum_i \|\mathbf{z}_i\|
        (\mathbf{z}_i^{\top} \Delta)^2, \qquad \gamma = \frac{1}{6 \sqrt{3}},

    since :math:`|\sigma'(a) - \sigma'(b)| \leq \gamma |a - b|`. For rows of norm at
    most 1 this never exceeds the paper's :math:`\frac{1}{4} \|\mathbf{Z}\|_{op}
    \|\Delta\| \|\mathbf{Z} \Delta\|`, and it needs no such norms, which propagation
    doesn't keep. What the solver leaves is added as well. Approximate item vectors add
    :math:`(1 + \frac{1}{4} \|\mathbf{w}\| \max_i \|\mathbf{z}_i\|) \|\mathbf{e}\|`
    (the paper: :math:`2 \|\mathbf{e}\|`), where :math:`\mathbf{e}` is
    :meth:`LazyPropagation.residue() <torch_geometric_unlearn.ops.LazyPropagation>`;
    once :math:`\|\mathbf{e}\|` exceeds a quarter of the budget, all residues are
    pushed.

    Everything runs in float64 on the device of the data that it was fitted on.

    The state that :obj:`state_dict` returns and
    :meth:`~torch_geometric_unlearn.train.save_model` writes holds all of it: heads,
    bounds, interactions, what waits in the propagation, what was certified, and the
    generator of the noise, so that restored heads answer the next request as these
    would. Whoever reads that file knows the noise: keep it as secret. To restore, call
    :meth:`fit` with the interactions of then, and load.

    Args:
        hidden_channels (int, optional): Size of the projected content; features with
            fewer channels stay as they are. (default: :obj:`32`)
        weights (sequence, optional): Weights :math:`w_0, \ldots, w_L` of the
            propagation; odd powers bring nothing from users, which have no content, to
            items. (default: :obj:`(0.0, 0.0, 1.0)`, the paper's two hops)
        num_negatives (int, optional): Negatives per user. (default: :obj:`50`)
        weight_decay (float, optional): The weight :math:`\lambda` per example.
            (default: :obj:`1e-2`)
        alpha (float, optional): Standard deviation :math:`\alpha` of the noise.
            (default: :obj:`0.1`)
        epsilon (float, optional): The :math:`\epsilon` of the claim, at most 1, where
            the argument for Gaussian noise ends. (default: :obj:`1.0`)
        delta (float, optional): The :math:`\delta` of the claim.
            (default: :obj:`1e-4`)
        r_max (float, optional): Residues of the propagation up to this value wait, see
            :class:`~torch_geometric_unlearn.ops.LazyPropagation`.
            (default: :obj:`0.0`)
        seed (int, optional): Seed of projection and negatives, which are public.
            (default: :obj:`0`)
        noise_seed (int, optional): Seed of the noise, for tests; drawn from the
            system's entropy if :obj:`None`. (default: :obj:`None`)

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> head = CertifiedHead(hidden_channels=8).fit(data)
        >>> pair = data['user', 'interacts', 'item'].edge_index[:, :1]
        >>> update = head.forget(ForgetInteractions(pair)(data))
        >>> update.certified
        True
    """

    def __init__(
        self,
        hidden_channels: int = 32,
        weights: Sequence[float] = (0.0, 0.0, 1.0),
        num_negatives: int = 50,
        weight_decay: float = 1e-2,
        alpha: float = 0.1,
        epsilon: float = 1.0,
        delta: float = 1e-4,
        r_max: float = 0.0,
        seed: int = 0,
        noise_seed: int | None = None,
    ) -> None:
        super().__init__()
        self.hidden_channels = check_int(hidden_channels, 'hidden_channels', 1)
        self.weights = tuple(weights)
        self.num_negatives = check_int(num_negatives, 'num_negatives', 1)
        self.weight_decay = check_float(weight_decay, 'weight_decay', 1e-12)
        self.alpha = check_float(alpha, 'alpha', 1e-12)
        self.epsilon = check_float(epsilon, 'epsilon', 1e-12, 1.0)
        self.delta = check_float(delta, 'delta', 1e-12, 1.0)
        self.r_max = check_float(r_max, 'r_max', 0.0)
        self.seed = check_seed(seed)
        self._noise = generator(
            secrets.randbits(63) if noise_seed is None else noise_seed
        )
        self._propagation: LazyPropagation | None = None

    @property
    def budget(self) -> float:
        r"""The largest bound that is certified, :math:`\alpha \epsilon / c`."""
        return self.alpha * self.epsilon / math.sqrt(2 * math.log(1.5 / self.delta))

    @property
    def propagation(self) -> LazyPropagation:
        r"""The propagation behind the item vectors."""
        if self._propagation is None:
            raise ValueError(f"'{self}' must be fitted first. Call 'fit(data)'.")
        return self._propagation

    @property
    def item_emb(self) -> Tensor:
        r"""The maintained item vectors, float64 :math:`(N_{item}, H)`."""
        return _with_intercept(self.propagation)

    def fit(self, data: HeteroData) -> CertifiedHead:
        r"""Trains all heads on the interactions that are not marked as forgotten."""
        with one_at_a_time(), torch.no_grad():
            draft = self._draft()
            draft._fit(data)
            self._become(draft)
        return self

    def _draft(self) -> CertifiedHead:
        r"""Returns a copy to work on, so that what is interrupted changes nothing."""
        out = copy.copy(self)
        for name in ('weight', 'gradient_bound', '_noise', '_propagation'):
            setattr(out, name, copy.deepcopy(getattr(self, name, None)))
        return out

    def _become(self, draft: CertifiedHead) -> None:
        changed = {name: getattr(draft, name) for name in _CHANGED}
        self.__dict__.update(changed)  # In one step: no signal comes between.

    def _fit(self, data: HeteroData) -> None:
        data = schema.validate(data)
        pairs = schema.retained_edge_index(data)
        num_users, num_items = schema.num_users(data), schema.num_items(data)
        rng = generator(self.seed)
        #: Frozen content with the constant channel, float64 :math:`(N_{item}, H - 1)`.
        self.content = self._project(schema.features(data), rng).to(pairs.device)
        #: Drawn items, int64 :obj:`[num_users, num_negatives]`.
        self.negatives = _draw_distinct(
            num_users, num_items, min(self.num_negatives, num_items), rng
        ).to(pairs.device)
        self._propagation = self._propagate(pairs, num_users, self.r_max)
        #: The heads, float64 :math:`(N_{user}, H)`.
        self.weight = self.content.new_zeros(num_users, self.content.size(1) + 1)
        #: Bound on the gradient residual of every head but for the residues of the
        #: propagation, float64 :obj:`[num_users]`.
        self.gradient_bound = self.content.new_zeros(num_users)
        self._train(torch.arange(num_users, device=pairs.device), pairs)

    def build_graph(self, data: HeteroData) -> CertifiedGraph:
        r"""Returns the exact item vectors of the interactions that are not marked as
        forgotten.
        """
        data = schema.validate(data)
        self._check_sizes(data)
        pairs = schema.retained_edge_index(data).to(self.content.device)
        prop = self._propagate(pairs, self.weight.size(0), 0.0)
        return CertifiedGraph(pairs, _with_intercept(prop))

    def forward(self, graph: CertifiedGraph) -> tuple[Tensor, Tensor]:
        r"""Returns heads and item vectors, whose dot products are the scores."""
        return self.weight.float(), graph.item_emb.float()

    def bound(self) -> Tensor:
        r"""Returns the bound on the gradient residual of every head, float64
        :obj:`[num_users]`.
        """
        error = self.propagation.residue().norm()
        largest = self.item_emb.norm(dim=1).max()
        factor = 1 + _SLOPE * self.weight.norm(dim=1) * largest
        return self.gradient_bound + factor * error

    def forget(self, data: HeteroData) -> CertifiedUpdate:
        r"""Removes the marked interactions from heads and item vectors. Whatever stops
        it half-way leaves all as it was, and the request can be made again.

        Args:
            data (HeteroData): The data with a request, whose interactions must be
                those that the heads know; the next request belongs into
                :obj:`DropForgotten()(data)`.

        Raises:
            ValueError: If the heads are not fitted, or know other interactions.
        """
        with one_at_a_time(), torch.no_grad():
            data = schema.validate(data)
            self._check_sizes(data)
            draft = self._draft()
            update = draft._forget(data)
            self._become(draft)
        return update

    def _forget(self, data: HeteroData) -> CertifiedUpdate:
        device, num_items = self.content.device, self.content.size(0)
        old_pairs = self.propagation.edge_index
        store = data[schema.EDGE_TYPE].edge_index.to(device)
        codes = schema.pair_codes(store, num_items).sort()[0]
        if not torch.equal(codes, schema.pair_codes(old_pairs, num_items).sort()[0]):
            raise ValueError(
                f"'data' must hold the {old_pairs.size(1)} interactions that the heads "
                f'know (got {store.size(1)}, which differ). After a request, pass '
                f"'DropForgotten()(data)' with the next one marked; for other "
                f"interactions, call 'fit'."
            )
        forgotten = schema.forgotten_edge_index(data).to(device)
        touched = over = forgotten[0, :0]
        updates = []
        if forgotten.size(1) > 0:
            old_emb = self.item_emb
            updates.append(self.propagation.remove_edges(forgotten))
            if self.propagation.residue().norm() > self.budget / 4:
                updates.append(self.propagation.flush())
            pairs = self.propagation.edge_index
            touched = self._affected(old_emb, old_pairs, forgotten)
            self._step(touched, old_emb, old_pairs, pairs)
            over = (self.bound() > self.budget).nonzero().view(-1)
            self._train(over, pairs)
        bound = self.bound()
        return CertifiedUpdate(
            touched_heads=touched,
            retrained_heads=over,
            bound=bound,
            budget=self.budget,
            certified=bool((bound <= self.budget).all()),
            joint_epsilon=float(bound.norm()) / self.budget * self.epsilon,
            propagation=updates,
        )

    def _save_to_state_dict(
        self, destination: dict[str, Tensor], prefix: str, keep_vars: bool
    ) -> None:
        destination |= {prefix + k: v.detach() for k, v in self._state().items()}

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Tensor],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        size = len(prefix)
        own = {k[size:]: v for k, v in state_dict.items() if k[:size] == prefix}
        missing = [prefix + name for name in _STATE if name not in own]
        missing_keys += missing
        unexpected_keys += [prefix + name for name in own if name not in _STATE]
        if not missing and set(own) == set(_STATE):
            try:
                self._become(self._restored(own))
            except (RuntimeError, TypeError, ValueError) as error:
                error_msgs.append(str(error))

    def _state(self) -> dict[str, Tensor]:
        r"""Returns all that the next answer depends on, by name."""
        if self._propagation is None:
            raise ValueError(
                f"'{self}' must be fitted before its state is saved, or replaced by "
                f"that of a file. Call 'fit(data)'; for a file, with the interactions "
                f'that the saved heads knew.'
            )
        return {
            'settings': self._settings(),
            'edge_index': self.propagation.edge_index,
            'content': self.content,
            'negatives': self.negatives,
            'weight': self.weight,
            'gradient_bound': self.gradient_bound,
            'noise': self._noise.get_state(),
            **self.propagation.state(),
        }

    def _restored(self, state: Mapping[str, Tensor]) -> CertifiedHead:
        r"""Returns a copy with a state, after checking that it is of these heads."""
        settings = self._settings()
        if not torch.equal(state['settings'].cpu(), settings):
            raise ValueError(
                f"'settings' must be what the heads were certified with, "
                f"{settings.tolist()} for '{self}' (got {state['settings'].tolist()}). "
                f'Build it with the same arguments.'
            )
        if self._propagation is not None:
            device = self.content.device
            state = {name: tensor.to(device) for name, tensor in state.items()}
        out = copy.copy(self)
        for name in ('content', 'negatives', 'weight', 'gradient_bound'):
            setattr(out, name, state[name].clone())
        num_users, num_channels = out.weight.shape
        prop = out._propagate(state['edge_index'], num_users, self.r_max)
        expected = {
            'content': [out.content.size(0), num_channels - 1],
            'negatives': [num_users, out.negatives.size(1)],
            'gradient_bound': [num_users],
            **{name: list(tensor.shape) for name, tensor in prop.state().items()},
        }
        got = {name: list(state[name].shape) for name in expected}
        if got != expected:
            raise ValueError(f'The state must have shapes {expected} (got {got})')
        prop.load_state(state)
        out._propagation = prop
        out._noise = torch.Generator()
        out._noise.set_state(state['noise'].cpu())
        return out

    def _settings(self) -> Tensor:
        r"""Returns what the heads are certified for and how all was drawn."""
        numbers = [self.alpha, self.epsilon, self.delta, self.weight_decay, self.r_max]
        counts = [self.hidden_channels, self.num_negatives, *divmod(self.seed, 2**32)]
        return torch.tensor([*numbers, *counts, *self.weights], dtype=torch.float64)

    def _affected(
        self, old_emb: Tensor, old_pairs: Tensor, forgotten: Tensor
    ) -> Tensor:
        r"""Returns the users who lose an interaction or hold an item whose vector has
        changed.
        """
        changed = (self.item_emb != old_emb).any(dim=1)
        affected = changed[self.negatives].any(dim=1)
        affected[old_pairs[0, changed[old_pairs[1]]]] = True
        affected[forgotten[0]] = True
        return affected.nonzero().view(-1)

    def _step(
        self, users: Tensor, old_emb: Tensor, old_pairs: Tensor, pairs: Tensor
    ) -> None:
        r"""Takes the Newton step of every head and adds to its bound."""
        old_index = PairIndex(old_pairs, self.weight.size(0))
        index = PairIndex(pairs, self.weight.size(0))
        for block in _blocks(users, old_index):
            weight = self.weight[block]
            old = self._examples(block, old_index, old_emb)
            new = self._examples(block, index, self.item_emb)
            difference = old.gradient(weight) - new.gradient(weight)  # Noise cancels.
            step = new.newton(weight, difference)
            self.weight[block] = weight + step
            squares = (new.z @ step.unsqueeze(-1)).squeeze(-1).square()
            growth = (new.z.norm(dim=-1) * squares).sum(dim=1)
            self.gradient_bound[block] += _CURVATURE / 2 * growth

    def _train(self, users: Tensor, pairs: Tensor) -> None:
        r"""Trains heads from scratch with new noise."""
        index = PairIndex(pairs, self.weight.size(0))
        shape = users.numel(), self.weight.size(1)
        noise = torch.randn(shape, generator=self._noise, dtype=torch.float64)
        self.weight[users] = self.alpha * noise.to(self.weight.device)
        for block in _blocks(users, index):
            examples = self._examples(block, index, self.item_emb)
            weight, residual = examples.minimise(self.weight[block])
            self.weight[block], self.gradient_bound[block] = weight, residual

    def _examples(self, users: Tensor, index: PairIndex, item_emb: Tensor) -> _Examples:
        r"""Returns the examples of every user, padded with zero rows."""
        row, item = index.lookup(users)
        count, num_items = index.count[users], item_emb.size(0)
        column = torch.arange(row.numel(), device=row.device)
        column = column - (count.cumsum(0) - count)[row]
        width = int(count.max()) if count.numel() > 0 else 0
        positive = row.new_full((users.numel(), width), num_items)
        positive[row, column] = item
        negative = self.negatives[users]
        place = torch.arange(users.numel(), device=users.device).unsqueeze(1)
        liked = torch.isin(place * num_items + negative, row * num_items + item)
        negative = negative.masked_fill(liked, num_items)
        items = torch.cat([positive, negative], dim=1)
        target = item_emb.new_zeros(items.shape)
        target[:, :width] = 1
        z = torch.cat([item_emb, item_emb.new_zeros(1, item_emb.size(1))])[items]
        size = (items < num_items).sum(dim=1, keepdim=True)
        return _Examples(z, target, self.weight_decay * size)

    def _project(self, features: dict[str, Tensor], rng: torch.Generator) -> Tensor:
        r"""Returns standardised features of equal norm per modality, side by side, then
        projected, beside the constant channel; rows have norm 1 at most.
        """
        if not features:
            raise ValueError(
                "'data' must hold item features 'x_<modality>', as the heads score "
                'content. Add some to the items.'
            )
        parts = []
        for x in features.values():
            x = x.double().cpu()
            peak = float(x.abs().max())
            x = x / peak if 0 < peak < 1e-6 else x  # Well above the floor below.
            x = (x - x.mean(dim=0)) / x.std(dim=0, correction=0).clamp(min=1e-12)
            parts.append(_scaled(x))
        out = torch.cat(parts, dim=1)
        if out.size(1) > self.hidden_channels:
            shape = (out.size(1), self.hidden_channels)
            out = out @ torch.randn(shape, generator=rng, dtype=torch.float64)
        return torch.cat([_scaled(out), out.new_ones(out.size(0), 1)], dim=1) / 2**0.5

    def _propagate(
        self, pairs: Tensor, num_users: int, r_max: float
    ) -> LazyPropagation:
        x = self.content.new_zeros(num_users, self.content.size(1))
        x = torch.cat([x, self.content])
        return LazyPropagation(pairs, x, self.weights, False, r_max, num_users)

    def _check_sizes(self, data: HeteroData) -> None:
        expected = self.propagation.num_users, self.content.size(0)
        got = schema.num_users(data), schema.num_items(data)
        if got != expected:
            raise ValueError(
                f"'data' must hold {expected[0]} users and {expected[1]} items, as the "
                f'data of the fit (got {got[0]} and {got[1]}). Node ids must not shift.'
            )

    def __repr__(self) -> str:
        return (
            f'{self.__class__.__name__}(hidden_channels={self.hidden_channels}, '
            f'weights={self.weights}, num_negatives={self.num_negatives}, '
            f'weight_decay={self.weight_decay}, alpha={self.alpha}, '
            f'epsilon={self.epsilon}, delta={self.delta}, r_max={self.r_max}, '
            f'seed={self.seed})'
        )


class _Examples(NamedTuple):
    r"""The examples of a block of users; a zero row adds nothing to any derivative."""

    z: Tensor  # [B, R, H]
    target: Tensor  # [B, R], 1 or 0.
    decay: Tensor  # [B, 1], weight decay times the number of examples.

    def margin(self, weight: Tensor) -> Tensor:
        return (self.z @ weight.unsqueeze(-1)).squeeze(-1)

    def loss(self, weight: Tensor) -> Tensor:
        margin = self.margin(weight)
        loss = (F.softplus(margin) - self.target * margin).sum(dim=1)
        return loss + 0.5 * (self.decay * weight.square()).sum(dim=1)

    def gradient(self, weight: Tensor) -> Tensor:
        error = self.margin(weight).sigmoid() - self.target
        return (error.unsqueeze(1) @ self.z).squeeze(1) + self.decay * weight

    def newton(self, weight: Tensor, rhs: Tensor) -> Tensor:
        r"""Returns the Hessian's inverse at :obj:`weight` times :obj:`rhs`."""
        p = self.margin(weight).sigmoid()
        hessian = self.z.mT @ ((p * (1 - p)).unsqueeze(-1) * self.z)
        hessian.diagonal(dim1=1, dim2=2).add_(self.decay)
        factor = torch.linalg.cholesky(hessian)
        return torch.cholesky_solve(rhs.unsqueeze(-1), factor).squeeze(-1)

    def minimise(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        r"""Returns the minimisers with linear term :obj:`noise`, by Newton's method
        with halved steps, and the gradient norms that are left.
        """

        def objective(weight: Tensor) -> Tensor:
            return self.loss(weight) + (noise * weight).sum(dim=1)

        weight = torch.zeros_like(noise)
        gradient = self.gradient(weight) + noise
        for _ in range(50):
            if not (gradient.norm(dim=1) > 1e-11).any():
                break
            step = self.newton(weight, gradient)
            value, descent = objective(weight), (gradient * step).sum(dim=1)
            slack = 1e-13 * (1 + value.abs())  # For rounding next to the minimum.
            size = torch.ones_like(value)
            for _ in range(30):
                trial = weight - size.unsqueeze(1) * step
                short = objective(trial) > value - 1e-4 * size * descent + slack
                if not short.any():
                    break
                size = torch.where(short, size / 2, size)
            weight = weight - size.unsqueeze(1) * step
            gradient = self.gradient(weight) + noise
        return weight, gradient.norm(dim=1)


def _blocks(users: Tensor, index: PairIndex) -> tuple[Tensor, ...]:
    # Users with similar numbers of examples share a block, so that little is padding.
    users = users[index.count[users].argsort(stable=True)]
    return users.split(_USERS_PER_BLOCK) if users.numel() > 0 else ()


def _with_intercept(propagation: LazyPropagation) -> Tensor:
    out = propagation.embedding[propagation.num_users :]
    return torch.cat([out, out.new_ones(out.size(0), 1)], dim=1)


def _scaled(x: Tensor) -> Tensor:
    r"""Returns :obj:`x` with a maximal row norm of 1."""
    return x / x.norm(dim=1).max().clamp(min=1e-12)


def _draw_distinct(
    num_rows: int, num_items: int, size: int, rng: torch.Generator
) -> Tensor:
    r"""Draws :obj:`size` different items for every row."""
    rows = torch.arange(num_rows).split(_USERS_PER_BLOCK)
    return torch.cat(
        [
            torch.rand(block.numel(), num_items, generator=rng).topk(size)[1]
            for block in rows
        ]
    )
