from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.data import HeteroData

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.data.known_pairs import KnownPairs, draw_free
from torch_geometric_unlearn.metrics import embed
from torch_geometric_unlearn.nn.models.base import HasFusion, RecommenderLike
from torch_geometric_unlearn.nn.models.deletion_operators import OUT, DeletionOperators
from torch_geometric_unlearn.utils.check import check_float, check_int
from torch_geometric_unlearn.utils.finite import HALF
from torch_geometric_unlearn.utils.seed import generator

from ._second_order import near_nodes
from .base import Unlearner
from .iterative import iterate
from .selection import ForgetTarget


class GNNDelete(Unlearner):
    r"""Learns deletion operators on a frozen model, from the `"GNNDelete: A General
    Strategy for Unlearning in Graph Neural Networks"
    <https://arxiv.org/abs/2302.13406>`_ paper.

    For the representations :math:`\mathbf{z}` after the propagation of every branch,
    and after the fusion, an operator minimises, with :math:`\mathbf{z}^{\prime}` its
    output,

    .. math::
        a \, \textrm{MSE}(\mathbf{z}^{\prime}_{u, i}, \mathbf{z}_{p, q})
        + (1 - a) \, \textrm{MSE}(\mathbf{z}^{\prime}_w, \mathbf{z}_w)

    over forgotten pairs :math:`(u, i)`, random unrelated pairs :math:`(p, q)`
    (*deleted edge consistency*), and nodes :math:`w` within one hop that are no end of
    a forgotten pair (*neighbourhood influence*); :math:`\mathbf{z}` is the frozen
    model's, over the retained interactions. The result is a
    :class:`~torch_geometric_unlearn.nn.models.DeletionOperators` model, so this changes
    the architecture.

    The frozen model, and with it every original row of the deleted users and items, is
    part of the result and of its :obj:`state_dict`: whoever has the file has what was
    known of them. :class:`~torch_geometric_unlearn.unlearn.PartialRetrain` and
    :class:`~torch_geometric_unlearn.unlearn.RowReset` leave none of these rows.

    Every operator has an optimiser of its own. Ours: where the operators sit, their
    start from the identity, epochs that train them one after the other on constant
    input (since the model is frozen, this saves all propagation but one), and the
    selection of the epoch.

    Args:
        weight (float, optional): The weight :math:`a \in [0, 1]`.
            (default: :obj:`0.5`)
        lr (float, optional): Learning rate of Adam. (default: :obj:`1e-3`)
        num_epochs (int, optional): Epochs, after each of which the model is measured.
            (default: :obj:`10`)
        num_steps (int, optional): Steps per operator and epoch, each over all forgotten
            pairs. (default: :obj:`50`)
        seed (int, optional): Seed of every random choice. (default: :obj:`0`)

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> result = GNNDelete(num_steps=2)(model, ForgetUsers([3])(data))
        >>> sorted(result.model.operators)
        ['id', 'image', 'out', 'text']
    """

    def __init__(
        self,
        weight: float = 0.5,
        lr: float = 1e-3,
        num_epochs: int = 10,
        num_steps: int = 50,
        seed: int = 0,
    ) -> None:
        super().__init__(seed)
        self.weight = check_float(weight, 'weight', 0.0, 1.0)
        self.lr = check_float(lr, 'lr', 0.0)
        self.num_epochs = check_int(num_epochs, 'num_epochs', 1)
        self.num_steps = check_int(num_steps, 'num_steps', 1)

    def supports(self, model: RecommenderLike, data: HeteroData) -> tuple[bool, str]:
        ok, reason = super().supports(model, data)
        coarse = [p.dtype for p in model.parameters() if p.dtype in HALF]
        if ok and coarse:
            return False, (
                f'the model is {coarse[0]}, too coarse for steps on its embeddings. '
                f"Convert it with '.float()' and back afterwards"
            )
        return ok, reason

    @torch.no_grad()
    def _unlearn(
        self, model: RecommenderLike, data: HeteroData, retained: HeteroData
    ) -> tuple[RecommenderLike, list[dict[str, Any]]]:
        device = next(model.parameters()).device
        model.eval()
        graph: Any = model.build_graph(retained)
        original: dict[str, Tensor] = {}
        if isinstance(model, HasFusion):
            original = model.branch_embeddings(graph)
        original[OUT] = torch.cat(embed(model, graph))

        pairs = schema.forgotten_edge_index(data)
        num_users = schema.num_users(data)
        near = torch.cat(near_nodes(data, pairs, 1)).to(device)
        shift = torch.tensor([[0], [num_users]], device=device)
        ends = (pairs.to(device) + shift).flatten()
        neighbours = near.clone()
        neighbours[ends] = False
        out = DeletionOperators(
            model, near, {name: x.size(1) for name, x in original.items()}
        )
        targets = _Targets(data, ends, neighbours.nonzero().view(-1), self.seed)
        optimizers = {
            name: torch.optim.Adam(operator.parameters(), lr=self.lr, fused=True)
            for name, operator in out.operators.items()
        }

        def step(met: bool) -> dict[str, Any]:
            first, last = {}, {}
            for name, target in original.items():  # The one after the fusion is last.
                source = target
                if name == OUT and isinstance(model, HasFusion):
                    source = torch.cat(model.fuse(graph, out.branch_embeddings(graph)))
                train = optimizers[name], source, target, targets
                first[name], last[name] = self._train(out.operators[name], *train)
            return {'first_loss': first, 'last_loss': last}

        measure = ForgetTarget(data, retained)
        history = iterate(out, graph, measure, step, self.num_epochs)
        return out, history

    @torch.enable_grad()
    def _train(
        self,
        operator: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        source: Tensor,
        original: Tensor,
        targets: _Targets,
    ) -> tuple[float, float]:
        r"""Trains one operator on constant input and returns first and last loss."""
        ends, neighbours = targets.ends, targets.neighbours
        x_end, x_near, z_near = source[ends], source[neighbours], original[neighbours]
        losses = []
        for _ in range(self.num_steps):
            loss = self.weight * F.mse_loss(operator(x_end), original[targets.draw()])
            if neighbours.numel() > 0:
                influence = F.mse_loss(operator(x_near), z_near)
                loss = loss + (1 - self.weight) * influence
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        return float(losses[0]), float(losses[-1])


class _Targets:
    r"""Nodes to train on: ends of forgotten pairs, users first, and neighbours."""

    def __init__(
        self, data: HeteroData, ends: Tensor, neighbours: Tensor, seed: int
    ) -> None:
        known = data[schema.EDGE_TYPE].edge_index.cpu()
        self.num_users, self.num_items = schema.num_users(data), schema.num_items(data)
        self.known = KnownPairs(known, self.num_items)
        self.ends = ends
        self.neighbours = neighbours
        self.generator = generator(seed)

    def draw(self) -> Tensor:
        r"""Returns the ends of as many random pairs, drawn again (a hundred times at
        most) where they are interactions.
        """
        rng = self.generator
        num = self.ends.numel() // 2
        user = torch.randint(self.num_users, (num,), generator=rng)

        def draw(places: Tensor) -> Tensor:
            return torch.randint(self.num_items, places.shape, generator=rng)

        def is_taken(places: Tensor, item: Tensor) -> Tensor:
            return self.known.contains(user[places], item)

        item, _ = draw_free(num, draw, is_taken)
        return torch.cat([user, item + self.num_users]).to(self.ends.device)
