r"""A model as a function of some rows of its ID tables, all else being frozen."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torch_geometric_unlearn.distributed.blocks import Blocks
from torch_geometric_unlearn.distributed.columns import columns_of, divided

from .base import HasRowBranches, RecommenderLike, RowBranch, Triplets


class LinearRows:
    r"""Some ID rows of a model that tells its :obj:`row_branches`.

    As the branches are linear in the rows :math:`\mathbf{X}_R`, they are

    .. math::
        \mathbf{B} + \mathbf{P} (\mathbf{G}_R \odot \mathbf{X}_R)

    with the branch without these rows :math:`\mathbf{B}`, the response to one row each
    :math:`\mathbf{P} \in \mathbb{R}^{N \times |R|}` and the gate. Both are computed
    once, after which a step only looks at the nodes of its batch. With many rows,
    propagating them in every step is cheaper; the result is the same up to rounding.

    Args:
        model (torch.nn.Module): The model.
        graph (Any): What it propagates over.
        nodes (torch.Tensor): The rows, over users first, then items, int64
            :obj:`[R]`.
        by_response (bool, optional): Whether to use the response; if :obj:`None`, with
            up to four times as many rows as channels, where it costs less than four
            forward passes. (default: :obj:`None`)
    """

    @torch.no_grad()
    def __init__(
        self,
        model: HasRowBranches,
        graph: Any,
        nodes: Tensor,
        by_response: bool | None = None,
    ) -> None:
        self.model, self.nodes = model, nodes
        model.eval()
        x = model.node_embedding().detach()
        self.num_users = model.num_users
        self.branches = model.row_branches(graph)
        self.values = [x[nodes].requires_grad_()]
        self.blocks: list[Blocks | None] = [columns_of(model)]
        few = 0 < nodes.numel() <= 4 * x.size(1)  # No kernel takes zero columns.
        self.by_response = few if by_response is None else by_response
        if not self.by_response:
            self.x = x
            return
        x[nodes] = 0
        self.base = {name: branch(x) for name, branch in self.branches.items()}
        self.response = {
            name: _Response(branch, nodes, x) for name, branch in self.branches.items()
        }

    def gradients(self, batch: Triplets) -> tuple[Tensor, list[Tensor]]:
        r"""Returns the loss of a batch and its gradients, one per entry of
        :obj:`values`.
        """
        loss = self.model.node_loss(self.at(batch.nodes(self.num_users)))
        return loss.detach(), list(torch.autograd.grad(loss, self.values))

    def at(self, nodes: Tensor) -> dict[str, Tensor]:
        r"""Returns the branches at some nodes, :math:`(n, H)` each, with gradients."""
        (values,) = self.values
        if not self.by_response:
            x = self.x.index_copy(0, self.nodes, values)
            return {
                name: branch(x).index_select(0, nodes)
                for name, branch in self.branches.items()
            }
        out = {}
        for name, branch in self.branches.items():
            start = branch.source.start or 0
            inside = self.nodes >= start
            x = values * inside.unsqueeze(1)
            if branch.gate is not None:
                x = x * branch.gate[(self.nodes - start).clamp(min=0)]
            out[name] = self.base[name][nodes] + self.response[name].at(nodes) @ x
        return out

    @torch.no_grad()
    def write(self) -> None:
        r"""Writes the rows into the model."""
        for table in self.model.tables():
            if table.is_raw:
                continue
            inside, rows = table.locate(self.nodes, self.num_users)
            table.parameter[rows] = self.values[0][inside]


class _Response:
    r"""What a branch answers to one row each, :math:`(N, R)`, of which only those of
    the nodes are kept that answer at all.
    """

    def __init__(self, branch: RowBranch, nodes: Tensor, x: Tensor) -> None:
        parts = []
        width = x.size(1)  # As much at a time as the embeddings take.
        for start in range(0, nodes.numel(), width):
            part = nodes[start : start + width]
            one_hot = x.new_zeros(x.size(0), part.numel())
            one_hot[part, torch.arange(part.numel(), device=part.device)] = 1
            answer = branch.propagate(one_hot[branch.source])
            rows = (answer != 0).any(dim=1).nonzero().view(-1)
            parts.append((start, rows, answer[rows]))
        # The last row, of no node, stands for those that don't answer.
        none = nodes.new_tensor([x.size(0)])
        self.rows = torch.cat([none, *(rows for _, rows, _ in parts)]).unique()
        self.value = x.new_zeros(self.rows.numel(), nodes.numel())
        for start, rows, answer in parts:
            place = torch.searchsorted(self.rows, rows)
            self.value[place, start : start + answer.size(1)] = answer

    def at(self, nodes: Tensor) -> Tensor:
        r"""Returns the answers of some nodes, :math:`(n, R)`."""
        place = torch.searchsorted(self.rows, nodes)
        last = self.rows.numel() - 1
        return self.value[torch.where(self.rows[place] == nodes, place, last)]


class TableRows:
    r"""Some ID rows of any model, and on request what all nodes share, through the
    model's own loss. Running statistics, as of batch normalisation, are used and not
    moved: they are buffers of what all nodes share.

    Args:
        model (torch.nn.Module): The model.
        graph (Any): What it propagates over.
        nodes (torch.Tensor): The rows, over users first, then items, int64
            :obj:`[R]`.
        num_users (int): Number of users.
        shared (bool, optional): Whether parameters that are no table are trained as
            well, as further :obj:`values`. (default: :obj:`False`)
    """

    def __init__(
        self,
        model: RecommenderLike,
        graph: Any,
        nodes: Tensor,
        num_users: int,
        shared: bool = False,
    ) -> None:
        self.model, self.graph = model, graph
        tables = [table for table in model.tables() if not table.is_raw]
        self.parameters: list[Tensor] = [table.parameter for table in tables]
        self.rows: list[Tensor | None] = [
            table.locate(nodes, num_users)[1] for table in tables
        ]
        self.values = [
            p.detach()[rows].requires_grad_()
            for p, rows in zip(self.parameters, self.rows)
        ]
        if shared:
            known = {id(table.parameter) for table in model.tables()}
            rest = [p for p in model.parameters() if id(p) not in known]
            self.parameters += rest
            self.rows += [None] * len(rest)
            self.values += [p.detach().clone().requires_grad_() for p in rest]
        parts, named = divided(model), model.named_parameters()
        by_id = {id(p): parts.get(name) for name, p in named}
        self.blocks = [by_id[id(p)] for p in self.parameters]

    def gradients(self, batch: Triplets) -> tuple[Tensor, list[Tensor]]:
        r"""Returns the loss of a batch and its gradients, one per entry of
        :obj:`values`.
        """
        self.write()
        self.model.train()
        for module in self.model.modules():
            if getattr(module, 'running_mean', None) is not None:
                module.eval()
        loss = self.model.loss(self.graph, batch)
        grads = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        return loss.detach(), [
            torch.zeros_like(v) if g is None else g if rows is None else g[rows]
            for g, rows, v in zip(grads, self.rows, self.values)
        ]

    @torch.no_grad()
    def write(self) -> None:
        r"""Writes the rows into the model."""
        for parameter, rows, value in zip(self.parameters, self.rows, self.values):
            if rows is None:
                parameter.copy_(value)
            else:
                parameter[rows] = value
