r"""What Newton-type steps share: fixed triples, curvature products, and a solver."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.data import HeteroData

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.loader import TripletLoader
from torch_geometric_unlearn.nn.models.base import RecommenderLike, named_tables
from torch_geometric_unlearn.ops.neighbor_sum import Neighbors, neighbor_dot

#: Maps a flat vector of parameters to another one.
Product = Callable[[Tensor], Tensor]


@dataclass
class FixedTriples:
    r"""Positive pairs with the same negatives for every evaluation of the loss.

    Attributes:
        user (torch.Tensor): User of every positive pair, int64 :obj:`[E]`.
        items (torch.Tensor): Its item and then its negatives, int64
            :obj:`[E, 1 + Q]`.
    """

    user: Tensor
    items: Tensor

    @classmethod
    def draw(
        cls, pairs: Tensor, known: Tensor, num_items: int, num_negatives: int, seed: int
    ) -> FixedTriples:
        r"""Draws negatives that are no known pair of their user, uniform over all
        items. Every user must have one, see :meth:`drawable_pairs`.
        """
        loader = TripletLoader(
            pairs,
            num_items,
            known=known,
            negative_items=torch.arange(num_items),
            seed=seed,
        )
        user, item = pairs.cpu()
        negative = loader.sample_negatives(user.repeat_interleave(num_negatives))
        items = torch.cat([item.unsqueeze(1), negative.view(-1, num_negatives)], dim=1)
        return cls(user.to(pairs.device), items.to(pairs.device))

    def rows(self, mask: Tensor) -> FixedTriples:
        r"""Returns the triples of some positive pairs."""
        return FixedTriples(self.user[mask], self.items[mask])

    def margins(self, user_emb: Tensor, item_emb: Tensor) -> Tensor:
        r"""Returns how far every positive is ahead of its negatives,
        :obj:`[E, Q]`.
        """
        neighbors = Neighbors(self.items, item_emb.size(0))
        query = user_emb.index_select(0, self.user)
        score = neighbor_dot(item_emb, neighbors, query)
        return score[:, :1] - score[:, 1:]

    def counts(self, num_users: int, num_items: int) -> tuple[Tensor, Tensor]:
        r"""Returns in how many triples every user and item takes part."""
        num_negatives = self.items.size(1) - 1
        weight = torch.ones_like(self.items)
        weight[:, 0] = num_negatives
        users = self.user.bincount(minlength=num_users) * num_negatives
        items = torch.zeros_like(users, dtype=torch.float64).new_zeros(num_items)
        items.index_add_(0, self.items.flatten(), weight.flatten().double())
        return users.float(), items.float()


class RankingProblem:
    r"""BPR plus the L2 regulariser of final representations, summed over fixed triples,
    as a function of some of a model's parameters (Newton's view of a recommender).

    The model acts in evaluation mode; contrastive terms are left out.

    Args:
        model (torch.nn.Module): The model.
        weight_decay (float): Weight of half the squared L2 norm per triple.
        masks (dict): By name of the parameters that may move, which of their entries,
            bool and broadcastable, or :obj:`None` for all.
    """

    def __init__(
        self,
        model: RecommenderLike,
        weight_decay: float,
        masks: dict[str, Tensor | None],
    ) -> None:
        model.eval()
        self.model = model
        self.weight_decay = weight_decay
        named = dict(model.named_parameters())
        self.parameters = {name: named[name] for name in masks}
        ones = [torch.ones_like(p) for p in self.parameters.values()]
        self.mask = _flatten(
            [x if m is None else x * m for x, m in zip(ones, masks.values())]
        )

    def gradient(self, graph: Any, *parts: FixedTriples) -> Tensor:
        r"""Returns the gradient of the loss over the triples of all parts, a flat
        vector, zero where nothing may move.
        """
        losses = [self._loss(graph, triples) for triples in parts]
        return self._flat_grad(losses, [None] * len(losses))

    def gauss_newton(self, graph: Any, triples: FixedTriples) -> Product:
        r"""Returns the product with the Gauss-Newton matrix
        :math:`\mathbf{J}^{\top} \mathbf{B} \mathbf{J}` of the loss, positive
        semi-definite, where :math:`\mathbf{J}` differentiates margins and
        representations.
        """
        outputs, weights = self._outputs(graph, triples)
        # The gradient is linear in what is fed into it from above, so that its own
        # derivative there gives products with J (double backward).
        fed = [torch.zeros_like(x, requires_grad=True) for x in outputs]
        pulled = torch.autograd.grad(
            outputs,
            list(self.parameters.values()),
            fed,
            create_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )

        def product(vector: Tensor) -> Tensor:
            parts = _unflatten(vector * self.mask, self.parameters.values())
            pushed = torch.autograd.grad(
                pulled, fed, parts, retain_graph=True, materialize_grads=True
            )
            return self._flat_grad(
                outputs, [w * x for w, x in zip(weights, pushed)], retain_graph=True
            )

        return product

    def hessian(self, graph: Any, triples: FixedTriples) -> Product:
        r"""Returns the product with the Hessian of the loss, which need not be positive
        semi-definite.
        """
        loss = self._loss(graph, triples)
        grads = torch.autograd.grad(
            loss,
            list(self.parameters.values()),
            create_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )

        def product(vector: Tensor) -> Tensor:
            given = _unflatten(vector * self.mask, self.parameters.values())
            return self._flat_grad(list(grads), given, retain_graph=True)

        return product

    def split(self, vector: Tensor) -> dict[str, Tensor]:
        r"""Returns a flat vector by parameter, in its shape."""
        return dict(zip(self.parameters, _unflatten(vector, self.parameters.values())))

    def cap(self, vector: Tensor, max_change: float) -> tuple[Tensor, int]:
        r"""Bounds the change of every row of a matrix, and of every vector as a whole,
        by :obj:`max_change` times its norm, and returns the number of those that were
        over it. What is zero may go anywhere.
        """
        parts, num_capped = [], 0
        for name, change in self.split(vector).items():
            rows = change.view(change.size(0) if change.dim() > 1 else 1, -1)
            old = self.parameters[name].detach().reshape(rows.shape).norm(dim=1)
            allowed = torch.where(old > 0, max_change * old, torch.inf)
            norm = rows.norm(dim=1)
            over = norm > allowed
            factor = torch.where(over, allowed / norm.clamp(min=1e-30), 1.0)
            parts.append(rows * factor.unsqueeze(1))
            num_capped += int(over.sum())
        return _flatten(parts), num_capped

    @torch.no_grad()
    def move(self, vector: Tensor) -> None:
        r"""Adds a flat vector to the parameters in place."""
        for name, change in self.split(vector).items():
            self.parameters[name].add_(change)

    def _loss(self, graph: Any, triples: FixedTriples) -> Tensor:
        user_emb, item_emb = self.model(graph)
        loss = F.softplus(-triples.margins(user_emb, item_emb)).sum()
        if self.weight_decay > 0:
            counts = triples.counts(user_emb.size(0), item_emb.size(0))
            for emb, count in zip((user_emb, item_emb), counts):
                norm = (count * emb.pow(2).sum(dim=-1)).sum()
                loss = torch.add(loss, norm, alpha=0.5 * self.weight_decay)
        return loss

    def _outputs(
        self, graph: Any, triples: FixedTriples
    ) -> tuple[list[Tensor], list[Tensor]]:
        user_emb, item_emb = self.model(graph)
        margin = triples.margins(user_emb, item_emb)
        slope = margin.detach().sigmoid()
        outputs, weights = [margin], [slope * (1 - slope)]
        if self.weight_decay > 0:
            counts = triples.counts(user_emb.size(0), item_emb.size(0))
            for emb, count in zip((user_emb, item_emb), counts):
                if emb.requires_grad:  # One side may be frozen.
                    outputs.append(emb)
                    weights.append(self.weight_decay * count.unsqueeze(1))
        return outputs, weights

    def _flat_grad(
        self,
        outputs: list[Tensor],
        weights: Sequence[Tensor | None],
        retain_graph: bool = False,
    ) -> Tensor:
        grads = torch.autograd.grad(
            outputs,
            list(self.parameters.values()),
            weights,
            retain_graph=retain_graph,
            allow_unused=True,
            materialize_grads=True,
        )
        return _flatten(grads) * self.mask


def conjugate_gradient(
    product: Product, target: Tensor, damping: float, max_iter: int, tol: float
) -> tuple[Tensor, dict[str, float]]:
    r"""Solves :math:`(\mathbf{H} + \mu \mathbf{I}) \mathbf{p} = \mathbf{g}` from zero.

    Stops at the relative tolerance, after :obj:`max_iter` products, or at a direction
    of negative curvature, where the solution so far is returned.

    Args:
        product (callable): The product with :math:`\mathbf{H}`.
        target (torch.Tensor): :math:`\mathbf{g}`.
        damping (float): :math:`\mu`.
        max_iter (int): Largest number of products.
        tol (float): Largest norm of the residual over that of :math:`\mathbf{g}`.

    Returns:
        (torch.Tensor, dict): The solution, and :obj:`cg_iterations`,
        :obj:`cg_residual` (relative) and :obj:`negative_curvature`.
    """
    solution = torch.zeros_like(target)
    residual, direction = target.clone(), target.clone()
    norm = float(target.norm())
    old, count, negative = norm**2, 0, False
    while count < max_iter and old**0.5 > tol * norm:
        image = product(direction) + damping * direction
        count += 1
        curvature = float(direction @ image)
        if curvature <= 0:
            negative = True
            break
        step = old / curvature
        solution += step * direction
        residual -= step * image
        new = float(residual @ residual)
        direction = residual + (new / old) * direction
        old = new
    relative = old**0.5 / norm if norm > 0 else 0.0
    return solution, {
        'cg_iterations': count,
        'cg_residual': relative,
        'negative_curvature': negative,
    }


def mean_curvature(product: Product, mask: Tensor, num_probes: int = 3) -> float:
    r"""Estimates the mean diagonal entry over :obj:`mask` by random signs (Hutchinson),
    drawn from torch's global generator.
    """
    total = 0.0
    for _ in range(num_probes):
        probe = mask * (2 * torch.randint_like(mask, 2) - 1)
        total += float(probe @ product(probe))
    return total / num_probes / max(1.0, float(mask.sum()))


def drawable_pairs(data: HeteroData, device: torch.device) -> tuple[Tensor, Tensor]:
    r"""Returns the training pairs int64 :obj:`[2, E]` and which are forgotten, bool
    :obj:`[E]`, without those of users that have every item: they have no negative, and
    no training draws them.
    """
    pairs = data[schema.EDGE_TYPE].edge_index.to(device)
    drawable = pairs[0].bincount()[pairs[0]] < schema.num_items(data)
    if not drawable.any():
        raise ValueError(
            'Every user has every item, so that no pair has a negative to compare it '
            "with. Use a method that needs none, such as 'Retrain' or 'RowReset'."
        )
    return pairs[:, drawable], schema.forget_mask(data).to(device)[drawable]


def near_nodes(data: HeteroData, pairs: Tensor, num_hops: int) -> tuple[Tensor, Tensor]:
    r"""Tells which users and items lie within some hops of the ends of :obj:`pairs`
    along the training interactions, bool :obj:`[N_user]` and :obj:`[N_item]`.
    """
    user, item = data[schema.EDGE_TYPE].edge_index
    near_user = torch.zeros(schema.num_users(data), dtype=torch.bool).to(user.device)
    near_item = torch.zeros(schema.num_items(data), dtype=torch.bool).to(user.device)
    near_user[pairs[0]] = True
    near_item[pairs[1]] = True
    for _ in range(num_hops):
        users, items = user[near_item[item]], item[near_user[user]]
        near_user[users] = True
        near_item[items] = True
    return near_user, near_item


def table_masks(
    model: RecommenderLike, near_user: Tensor, near_item: Tensor
) -> dict[str, Tensor]:
    r"""Returns the rows of the given nodes, bool :obj:`[N, 1]`, by table."""
    return {
        name: table.of(near_user, near_item).unsqueeze(1).to(table.parameter.device)
        for name, table in named_tables(model).items()
    }


def regulariser_weight(model: RecommenderLike, weight: float | None) -> float:
    r"""Returns the weight of the L2 regulariser per triple: the given one, else the
    model's own where it tells, else 1e-4.
    """
    own = getattr(model, 'weight_decay', 1e-4)
    return float(own if weight is None else weight)


def _flatten(parts: Any) -> Tensor:
    return torch.cat([x.reshape(-1) for x in parts])


def _unflatten(vector: Tensor, like: Any) -> list[Tensor]:
    like = list(like)
    parts = vector.split([x.numel() for x in like])
    return [part.view(x.shape) for part, x in zip(parts, like)]
