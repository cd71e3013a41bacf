r"""Weighted sums over a fixed number of neighbours, with gradients for the weights.

:meth:`neighbor_sum` and :meth:`neighbor_dot` are each other's gradients, so both are
differentiable any number of times, and none of them ever builds the
:math:`N \times C \times H` tensor of gathered rows.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class Neighbors:
    r"""The same number of neighbours for every node.

    Args:
        index (torch.Tensor): Neighbours, int64 :obj:`[N, C]`, repeats allowed.
        num_sources (int): Number of nodes to choose from.

    Raises:
        TypeError: If :obj:`index` is not int64.
        ValueError: If its shape is another one, or a node is out of range (where a
            look costs no wait for the device).
    """

    def __init__(self, index: Tensor, num_sources: int) -> None:
        if not isinstance(index, Tensor) or index.dtype != torch.int64:
            got = index.dtype if isinstance(index, Tensor) else type(index).__name__
            raise TypeError(f"'index' must be an int64 tensor (got {got})")
        if index.dim() != 2:
            raise ValueError(
                f"'index' must have shape [N, C] (got {list(index.shape)})"
            )
        can_look = index.is_cpu and not torch.compiler.is_compiling()
        if can_look and index.numel() > 0:
            low, high = (int(value) for value in index.aminmax())
            if low < 0 or high >= num_sources:
                raise ValueError(
                    f"'index' must hold nodes in [0, {num_sources - 1}], as there are "
                    f'{num_sources} (got {low if low < 0 else high})'
                )
        self.index = index.contiguous()
        self.num_sources = num_sources
        self._transpose: list[Tensor] | None = None

    @property
    def transpose(self) -> list[Tensor]:
        r"""The order of the entries by source, their nodes, and where each source
        starts.
        """
        if self._transpose is None:
            source, order = self.index.flatten().sort(stable=True)
            start = torch.arange(self.num_sources + 1, device=source.device)
            offset = torch.searchsorted(source, start)
            node = order.div(self.index.size(1), rounding_mode='floor')
            self._transpose = [order, node, offset]
        return self._transpose


def neighbor_sum(x: Tensor, neighbors: Neighbors, weight: Tensor) -> Tensor:
    r"""Computes :math:`\mathbf{x}^{\prime}_v = \sum_c w_{vc} \, \mathbf{x}_{s_{vc}}`.

    Args:
        x (torch.Tensor): Source features :math:`(N_{source}, H)`.
        neighbors (Neighbors): The neighbours :math:`s_{vc}` of :math:`N` nodes.
        weight (torch.Tensor): Weights :math:`w_{vc}`, :math:`(N, C)`.

    Returns:
        torch.Tensor: Features :math:`(N, H)`.
    """
    x, weight = _same_type(x, weight)
    return _sum(x, weight, neighbors.index, _transpose(neighbors))


def neighbor_dot(x: Tensor, neighbors: Neighbors, query: Tensor) -> Tensor:
    r"""Computes :math:`e_{vc} = \mathbf{q}_v^{\top} \mathbf{x}_{s_{vc}}`.

    Args:
        x (torch.Tensor): Source features :math:`(N_{source}, H)`.
        neighbors (Neighbors): The neighbours :math:`s_{vc}` of :math:`N` nodes.
        query (torch.Tensor): Queries :math:`\mathbf{q}_v`, :math:`(N, H)`.

    Returns:
        torch.Tensor: Products :math:`(N, C)`.
    """
    x, query = _same_type(x, query)
    return _dot(x, query, neighbors.index, _transpose(neighbors))


def _same_type(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(x.dtype, y.dtype)  # Under autocast they differ.
    return x.to(dtype), y.to(dtype)


def _transpose(neighbors: Neighbors) -> list[Tensor]:
    # Only gradients need it.
    return neighbors.transpose if torch.is_grad_enabled() else []


def _bag(index: Tensor, x: Tensor, offset: Tensor, weight: Tensor) -> Tensor:
    return F.embedding_bag(
        index,
        x,
        offset,
        mode='sum',
        per_sample_weights=weight,
        include_last_offset=True,
    )


def _offset(index: Tensor) -> Tensor:
    return torch.arange(index.size(0) + 1, device=index.device) * index.size(1)


# Custom operators, so that `torch.compile` needs no graph break.
@torch.library.custom_op(
    'torch_geometric_unlearn::neighbor_sum',
    mutates_args=(),
    schema='(Tensor x, Tensor weight, Tensor index, Tensor[] transpose) -> Tensor',
)
def _sum(x: Tensor, weight: Tensor, index: Tensor, transpose: list[Tensor]) -> Tensor:
    return _bag(index.flatten(), x, _offset(index), weight.flatten())


@torch.library.custom_op(
    'torch_geometric_unlearn::neighbor_transposed_sum',
    mutates_args=(),
    schema='(Tensor x, Tensor weight, Tensor index, Tensor[] transpose) -> Tensor',
)
def _transposed_sum(
    x: Tensor, weight: Tensor, index: Tensor, transpose: list[Tensor]
) -> Tensor:
    order, node, offset = transpose
    return _bag(node, x, offset, weight.flatten()[order])


@torch.library.custom_op(
    'torch_geometric_unlearn::neighbor_dot',
    mutates_args=(),
    schema='(Tensor x, Tensor query, Tensor index, Tensor[] transpose) -> Tensor',
)
def _dot(x: Tensor, query: Tensor, index: Tensor, transpose: list[Tensor]) -> Tensor:
    # The products are what a sum passes back to its weights, for which torch has a
    # kernel that gathers nothing.
    node = torch.arange(index.size(0), device=index.device)
    return torch.ops.aten._embedding_bag_per_sample_weights_backward(
        query.contiguous(),
        x.contiguous(),
        index.flatten(),
        _offset(index),
        node.repeat_interleave(index.size(1)),
        0,  # Sum.
    ).view(index.shape)


@_sum.register_fake
def _(x: Tensor, weight: Tensor, index: Tensor, transpose: list[Tensor]) -> Tensor:
    return x.new_empty(index.size(0), x.size(1))


@_transposed_sum.register_fake
def _(x: Tensor, weight: Tensor, index: Tensor, transpose: list[Tensor]) -> Tensor:
    return x.new_empty(transpose[2].size(0) - 1, x.size(1))


@_dot.register_fake
def _(x: Tensor, query: Tensor, index: Tensor, transpose: list[Tensor]) -> Tensor:
    return x.new_empty(index.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, other, index, transpose = inputs
    ctx.save_for_backward(x, other, index, *transpose)


def _sum_backward(ctx: Any, grad: Tensor) -> Any:
    x, weight, index, *transpose = ctx.saved_tensors
    return (
        _transposed_sum(grad, weight, index, transpose),
        _dot(x, grad, index, transpose),
        None,
        [None] * len(transpose),
    )


def _transposed_sum_backward(ctx: Any, grad: Tensor) -> Any:
    x, weight, index, *transpose = ctx.saved_tensors
    return (
        _sum(grad, weight, index, transpose),
        _dot(grad, x, index, transpose),
        None,
        [None] * len(transpose),
    )


def _dot_backward(ctx: Any, grad: Tensor) -> Any:
    x, query, index, *transpose = ctx.saved_tensors
    return (
        _transposed_sum(query, grad, index, transpose),
        _sum(x, grad, index, transpose),
        None,
        [None] * len(transpose),
    )


_sum.register_autograd(_sum_backward, setup_context=_setup_context)
_transposed_sum.register_autograd(
    _transposed_sum_backward, setup_context=_setup_context
)
_dot.register_autograd(_dot_backward, setup_context=_setup_context)
