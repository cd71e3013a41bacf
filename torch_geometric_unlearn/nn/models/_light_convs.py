r"""The light graph convolutions of PyG, run by the sparse kernels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Lock
from typing import Any

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual
from torch_geometric.nn import LGConv
from torch_geometric.nn.aggr import SumAggregation

from torch_geometric_unlearn.ops import spmm

from .interaction_graph import InteractionGraph

_CODE = ('forward', 'message', 'message_and_aggregate', 'aggregate', 'update')
_AS_WRITTEN = {name: getattr(LGConv, name) for name in _CODE}
_HOOKS = [
    name
    for name in vars(LGConv())
    if name.endswith('_hooks') and name not in vars(torch.nn.Module())
]

_graph: ContextVar[InteractionGraph | None] = ContextVar('_graph', default=None)
_lock = Lock()


class _OnOps:
    r"""What :obj:`forward` of an :class:`~torch_geometric.nn.LGConv` is inside
    :meth:`light_convs_on_ops`.
    """

    def __init__(self, layer: LGConv) -> None:
        self.layer = layer
        self.num_users = 0  # Threads, or blocks in blocks.

    def __call__(
        self, x: Tensor, edge_index: Any, edge_weight: Tensor | None = None
    ) -> Tensor:
        graph = _graph.get()  # Every thread has its own.
        if (
            graph is not None
            and edge_weight is None
            and isinstance(edge_index, Tensor)
            and graph.is_intact(edge_index)
            and _is_matrix(x, graph.num_users + graph.num_items)
            and not _is_watched(x)
        ):
            return spmm(graph.normalised(x.dtype), x)
        return LGConv.forward(self.layer, x, edge_index, edge_weight)


@contextmanager
def light_convs_on_ops(module: torch.nn.Module, graph: Any) -> Iterator[None]:
    r"""Runs unmodified :class:`~torch_geometric.nn.LGConv` layers of a module inside
    the block by :meth:`~torch_geometric_unlearn.ops.spmm` where they are called on
    :obj:`graph.adj` of an :class:`InteractionGraph` without edge weights, with the same
    result up to rounding.

    All else runs as it is: subclasses, layers with other settings than the default ones
    or with hooks on their messages, an explainer's, compiled ones, other edges or edges
    that were written to, features in half precision, forward-mode differentiation and
    checkpointing of activations.
    """
    taken: list[tuple[LGConv, _OnOps]] = []
    if isinstance(graph, InteractionGraph) and not _is_compiled(module):
        with _lock:
            for layer in module.modules():
                if _is_plain(layer):
                    forward = vars(layer).setdefault('forward', _OnOps(layer))
                    forward.num_users += 1
                    taken.append((layer, forward))
    if not taken:
        yield
        return
    token = _graph.set(graph)
    try:
        yield
    finally:
        _graph.reset(token)
        with _lock:
            for layer, forward in taken:
                forward.num_users -= 1
                if forward.num_users == 0 and vars(layer).get('forward') is forward:
                    del layer.forward


def _is_plain(layer: torch.nn.Module) -> bool:
    r"""Tells whether a layer computes what :class:`LGConv` does by default."""
    if type(layer) is not LGConv:
        return False
    own = vars(layer)
    aggr: Any = layer.aggr_module
    return bool(
        own['normalize'] is True
        and layer.flow == 'source_to_target'
        and layer.node_dim == -2
        and layer.decomposed_layers == 1
        and layer.fuse
        and not layer.explain
        and type(aggr) is SumAggregation
        and not aggr._forward_hooks
        and not aggr._forward_pre_hooks
        and not any(own[name] for name in _HOOKS)
        and all(getattr(LGConv, name) is code for name, code in _AS_WRITTEN.items())
        and (isinstance(own.get('forward'), _OnOps) or 'forward' not in own)
        and not any(name in own for name in _CODE[1:])
    )


def _is_compiled(module: torch.nn.Module) -> bool:
    return torch.compiler.is_compiling() or any(
        layer._compiled_call_impl is not None or hasattr(layer, '_orig_mod')
        for layer in module.modules()
    )


def _is_matrix(x: Any, num_rows: int) -> bool:
    return (
        type(x) in (Tensor, torch.nn.Parameter)
        and x.dtype in (torch.float32, torch.float64)
        and x.layout == torch.strided
        and x.dim() == 2
        and x.size(0) == num_rows
    )


def _is_watched(x: Tensor) -> bool:
    r"""Tells whether something follows the steps of a layer which ours has not."""
    return (
        torch._C._functorch.is_functorch_wrapped_tensor(x)
        or unpack_dual(x).tangent is not None
        or torch._C._autograd._top_saved_tensors_default_hooks(True) is not None
    )
