r"""The one place that decides how :math:`\mathbf{A} \mathbf{X}` runs."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from torch_geometric_unlearn import typing
from torch_geometric_unlearn.utils.check import check_choice, check_float, check_int

from ._reference import gather_scatter
from .sparse_operator import SparseOperator


def _embedding_bag(csr: list[Tensor], x: Tensor) -> Tensor:
    rowptr, col, value = csr[:3]
    if col.numel() == 0:
        return x.new_zeros(rowptr.numel() - 1, x.size(1))
    # Detached, or it works out what its own backward pass would need.
    return F.embedding_bag(
        col,
        x.detach(),
        rowptr,
        mode='sum',
        per_sample_weights=value,
        include_last_offset=True,
    )


def _torch_csr(csr: list[Tensor], x: Tensor) -> Tensor:
    consume_beta_warning()
    rowptr, col, value = csr[:3]
    size = (rowptr.numel() - 1, x.size(0))
    matrix = torch.sparse_csr_tensor(rowptr, col, value, size, check_invariants=False)
    return matrix @ x


@cache
def consume_beta_warning() -> None:
    r"""Has torch say now, unheard, that CSR tensors are in beta and not checked, which
    it does once a process and nobody can act on. Filters are shared by all threads.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', '.*(CSR tensor|invariant check).*')
        index = torch.zeros(1, dtype=torch.long)
        torch.sparse_csr_tensor(index, index[:0], torch.empty(0), (0, 0))


def _torch_sparse(csr: list[Tensor], x: Tensor) -> Tensor:
    rowptr, col, value = csr[:3]
    if col.numel() == 0:  # It kills the process if there are no rows.
        return x.new_zeros(rowptr.numel() - 1, x.size(1))
    # Detached, or it asks for what its own backward pass would need.
    return torch.ops.torch_sparse.spmm_sum(
        None, rowptr.long(), col.long(), value, None, None, x.detach()
    )


def _torch_scatter(csr: list[Tensor], x: Tensor) -> Tensor:
    rowptr, col, value = csr[:3]
    if col.numel() == 0:
        return x.new_zeros(rowptr.numel() - 1, x.size(1))
    messages = value.unsqueeze(1) * x.detach()[col.long()]
    return torch.ops.torch_scatter.segment_sum_csr(messages, rowptr.long(), None)


def _gather_scatter(csr: list[Tensor], x: Tensor) -> Tensor:
    rowptr, col, value = csr[:3]
    return gather_scatter(rowptr, col, value, x)


def _triton(csr: list[Tensor], x: Tensor) -> Tensor:
    from ._triton import triton_csr

    return triton_csr(csr, x)


_KERNELS: dict[str, Callable[[list[Tensor], Tensor], Tensor]] = {
    'embedding_bag': _embedding_bag,
    'torch_csr': _torch_csr,
    'torch_sparse': _torch_sparse,
    'torch_scatter': _torch_scatter,
    'triton': _triton,
    'gather_scatter': _gather_scatter,
}
_BUILD = "Install it via 'pip install --no-build-isolation torch-scatter torch-sparse'"
_NEEDS = {
    'torch_sparse': f"'torch-sparse'. {_BUILD}",
    'torch_scatter': f"'torch-scatter'. {_BUILD}",
    'triton': "'triton' and a CUDA device, or the environment variable "
    "'TRITON_INTERPRET=1' for its interpreter. Install it via 'pip install triton'",
}
_forced: str | None = None


def backends() -> list[str]:
    r"""Returns the names of the kernels that can run here.

    :obj:`'triton'` needs CUDA, or runs in Triton's slow interpreter if the environment
    variable :obj:`TRITON_INTERPRET=1` is set.
    """
    interpreted = os.environ.get('TRITON_INTERPRET') == '1'
    has = {
        'torch_sparse': typing.WITH_TORCH_SPARSE,
        'torch_scatter': typing.WITH_TORCH_SCATTER,
        'triton': typing.WITH_TRITON and (torch.cuda.is_available() or interpreted),
    }
    return [name for name in _KERNELS if has.get(name, True)]


def backend(device: torch.device | str = 'cpu') -> str:
    r"""Returns the name of the kernel that :meth:`spmm` runs on :obj:`device`."""
    if _forced is not None:
        return _forced
    # By measurement on the CPU; on CUDA 'triton' must win one first.
    return 'embedding_bag' if torch.device(device).type == 'cpu' else 'torch_csr'


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    r"""Makes :meth:`spmm` run one kernel inside the block, whatever the device.

    Raises:
        ValueError: If there is no kernel of this name.
        ImportError: If it needs a package that is not installed.
    """
    global _forced
    check_choice(name, 'name', tuple(_KERNELS))
    if name not in backends():
        raise ImportError(f"The '{name}' kernel requires {_NEEDS[name]}.")
    if name in ('torch_sparse', 'torch_scatter'):
        import_module(name)  # Registers its operators with torch.
    previous, _forced = _forced, name
    try:
        yield
    finally:
        _forced = previous


def _csr(operator: SparseOperator, transpose: bool = False) -> list[Tensor]:
    suffix = '_t' if transpose else ''
    csr = [getattr(operator, name + suffix) for name in ('rowptr', 'col', 'value')]
    if backend(operator.value.device) == 'triton':
        csr += operator.row_segments(transpose)
    return csr


def _add_product(csr: list[Tensor], x: Tensor, start: Tensor) -> Tensor:
    r"""Computes :math:`\mathbf{A} \mathbf{X} + \mathbf{S}`."""
    name = backend(x.device)
    if name == 'triton':
        from ._triton import triton_csr

        return triton_csr(csr, x, start)
    return _KERNELS[name](csr, x).add_(start)


# Custom operators, so that `torch.compile` sees opaque nodes and needs no graph break,
# whatever kernel runs inside.
@torch.library.custom_op(
    'torch_geometric_unlearn::spmm',
    mutates_args=(),
    schema='(Tensor x, Tensor[] csr, Tensor[] csr_t) -> Tensor',
)
def _spmm(x: Tensor, csr: list[Tensor], csr_t: list[Tensor]) -> Tensor:
    return _KERNELS[backend(x.device)](csr, x)


@torch.library.custom_op(
    'torch_geometric_unlearn::propagate',
    mutates_args=(),
    schema='(Tensor x, int num_layers, float restart, Tensor[] csr, Tensor[] csr_t) '
    '-> Tensor',
)
def _propagate(
    x: Tensor, num_layers: int, restart: float, csr: list[Tensor], csr_t: list[Tensor]
) -> Tensor:
    start = x if restart == 1 else restart * x
    out = x.clone() if num_layers == 0 else x  # The result must be no view of `x`.
    for _ in range(num_layers):  # Horner's scheme: r X + A (r X + A (r X + ...)).
        out = _add_product(csr, out, start)
    return out


@_spmm.register_fake
def _(x: Tensor, csr: list[Tensor], csr_t: list[Tensor]) -> Tensor:
    return x.new_empty(csr[0].size(0) - 1, x.size(1))


@_propagate.register_fake
def _(
    x: Tensor, num_layers: int, restart: float, csr: list[Tensor], csr_t: list[Tensor]
) -> Tensor:
    return torch.empty_like(x)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *ctx.args, csr, csr_t = inputs[1:]
    ctx.num_tensors = len(csr)
    ctx.save_for_backward(*csr, *csr_t)


def _backward(ctx: Any, grad_out: Tensor) -> Any:
    # The transposed operator gives the gradient of either, for any number of layers,
    # since both are polynomials in one matrix.
    csr, csr_t = (
        list(ctx.saved_tensors[: ctx.num_tensors]),
        list(ctx.saved_tensors[ctx.num_tensors :]),
    )
    function = _propagate if ctx.args else _spmm
    grad = function(grad_out.contiguous(), *ctx.args, csr_t, csr)
    nothing = [None] * ctx.num_tensors
    return (grad, *[None] * len(ctx.args), nothing, nothing)


_spmm.register_autograd(_backward, setup_context=_setup_context)
_propagate.register_autograd(_backward, setup_context=_setup_context)


def spmm(operator: SparseOperator, x: Tensor) -> Tensor:
    r"""Computes :math:`\mathbf{A} \mathbf{X}` with the kernel for the device.

    Differentiable in :obj:`x`, any number of times; the operator is a constant. The
    backward pass multiplies by the stored transpose, which is the matrix itself if
    symmetric. Products are added up in the wider type of both sides.

    Args:
        operator (SparseOperator): The matrix, :math:`N_{target} \times N_{source}`.
        x (torch.Tensor): Node features :math:`(N_{source}, H)`, floating point.

    Returns:
        torch.Tensor: Node features :math:`(N_{target}, H)` in the type of :obj:`x`.

    Raises:
        TypeError: If :obj:`x` is not floating point.
        ValueError: If :obj:`x` has the wrong number of rows.
    """
    operator, x, dtype = _prepare(operator, x)
    return _spmm(x, _csr(operator), _csr(operator, True)).to(dtype)


def layer_mean(operator: SparseOperator, x: Tensor, num_layers: int) -> Tensor:
    r"""Propagates :obj:`num_layers` times and returns the mean over all layers, the
    input included, as LightGCN does

    .. math::
        \frac{1}{L + 1} \sum_{l=0}^{L} \mathbf{A}^l \mathbf{X}.

    Computed as :math:`\mathbf{X} + \mathbf{A} (\mathbf{X} + \mathbf{A} (\ldots))`,
    so that no layer is kept, neither forward nor backward.

    Args:
        operator (SparseOperator): A square matrix, :math:`N \times N`.
        x (torch.Tensor): Node features :math:`(N, H)`, floating point.
        num_layers (int): Number of propagations :math:`L`, at least 0.

    Returns:
        torch.Tensor: Node features :math:`(N, H)` in the type of :obj:`x`.

    Raises:
        TypeError: If :obj:`x` is not floating point.
        ValueError: If :obj:`x` has the wrong number of rows, the matrix is not square,
            or :obj:`num_layers` is negative.
    """
    _check_square(operator, num_layers)
    operator, x, dtype = _prepare(operator, x)
    out = _propagate(x, num_layers, 1.0, _csr(operator), _csr(operator, True))
    return (out / (num_layers + 1)).to(dtype)


def diffuse(
    operator: SparseOperator,
    x: Tensor,
    num_layers: int,
    alpha: float,
    beta: float,
    dropout: float = 0.0,
) -> Tensor:
    r"""Propagates :obj:`num_layers` times with a restart at the input

    .. math::
        \mathbf{X}^{(k)} = \beta \mathbf{A}^{\prime} \mathbf{X}^{(k-1)}
        + \alpha \mathbf{X}^{(0)},

    where :math:`\mathbf{A}^{\prime}` is :math:`\mathbf{A}` with every entry
    dropped with probability :obj:`dropout` and the others divided by one minus it: one
    draw from torch's global generator for all layers, which treats both directions
    of an edge alone. As in :meth:`layer_mean`, no layer is kept.

    Args:
        operator (SparseOperator): A square matrix, :math:`N \times N`.
        x (torch.Tensor): Node features :math:`(N, H)`, floating point.
        num_layers (int): Number of propagations, at least 0.
        alpha (float): Weight of the input.
        beta (float): Weight of the neighbours.
        dropout (float, optional): Probability in :math:`[0, 1)` of dropping an entry.
            (default: :obj:`0.0`)

    Returns:
        torch.Tensor: Node features :math:`(N, H)` in the type of :obj:`x`.

    Raises:
        TypeError: If :obj:`x` is not floating point.
        ValueError: If :obj:`x` has the wrong number of rows, the matrix is not square,
            :obj:`num_layers` is negative, or :obj:`dropout` is out of range.
    """
    _check_square(operator, num_layers)
    dropout = check_float(dropout, 'dropout', 0.0, 0.999)
    operator, x, dtype = _prepare(operator, x)
    value = operator.value * beta
    if dropout > 0:
        keep = torch.rand_like(value) >= dropout
        value = value * keep / (1 - dropout)
    csr, csr_t = _csr(operator), _csr(operator, True)
    csr[2], csr_t[2] = value, value[operator.transpose_order]
    return _propagate(x, num_layers, float(alpha), csr, csr_t).to(dtype)


def check_floating(x: Tensor) -> None:
    r"""Raises a :class:`TypeError` unless :obj:`x` is a floating point tensor, to which
    products are converted.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(
            f"'x' must be a floating point tensor (got {got}). Convert it with "
            f"'.float()'."
        )


def _check_square(operator: SparseOperator, num_layers: int) -> None:
    num_layers = check_int(num_layers, 'num_layers', 0)
    if operator.size[0] != operator.size[1]:
        raise ValueError(f"'operator' must be square (got {operator})")


def _prepare(
    operator: SparseOperator, x: Tensor
) -> tuple[SparseOperator, Tensor, torch.dtype]:
    check_floating(x)
    if x.dim() != 2 or x.size(0) != operator.size[0]:
        raise ValueError(
            f"'x' must have shape [{operator.size[0]}, H] for {operator} "
            f'(got {list(x.shape)})'
        )
    dtype = torch.promote_types(x.dtype, operator.value.dtype)
    if dtype != operator.value.dtype:
        operator = operator.to(dtype)
    return operator, x.to(dtype).contiguous(), x.dtype
