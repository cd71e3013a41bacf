r"""The one place that decides how :math:`\mathbf{A} \mathbf{X}` runs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from torch_geometric_unlearn import typing
from torch_geometric_unlearn.utils.check import check_choice

from ._reference import gather_scatter
from .sparse_operator import SparseOperator


def _embedding_bag(rowptr: Tensor, col: Tensor, value: Tensor, x: Tensor) -> Tensor:
    if col.numel() == 0:
        return x.new_zeros(rowptr.numel() - 1, x.size(1))
    return F.embedding_bag(
        col, x, rowptr, mode='sum', per_sample_weights=value, include_last_offset=True
    )


def _torch_csr(rowptr: Tensor, col: Tensor, value: Tensor, x: Tensor) -> Tensor:
    _consume_beta_warning()
    size = (rowptr.numel() - 1, x.size(0))
    matrix = torch.sparse_csr_tensor(rowptr, col, value, size, check_invariants=False)
    return matrix @ x


@cache
def _consume_beta_warning() -> None:
    # torch says once per process that CSR tensors are in beta; users can't act on it.
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', '.*CSR tensor support is in beta.*')
        index = torch.zeros(1, dtype=torch.long)
        torch.sparse_csr_tensor(
            index, index[:0], torch.empty(0), (0, 0), check_invariants=False
        )


def _torch_sparse(rowptr: Tensor, col: Tensor, value: Tensor, x: Tensor) -> Tensor:
    if col.numel() == 0:  # It kills the process if there are no rows.
        return x.new_zeros(rowptr.numel() - 1, x.size(1))
    # Detached, or it asks for what its own backward pass would need.
    return torch.ops.torch_sparse.spmm_sum(
        None, rowptr.long(), col.long(), value, None, None, x.detach()
    )


_KERNELS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    'embedding_bag': _embedding_bag,
    'torch_csr': _torch_csr,
    'torch_sparse': _torch_sparse,
    'gather_scatter': gather_scatter,
}
_forced: str | None = None


def backends() -> list[str]:
    r"""Returns the names of the kernels that this installation can run."""
    return [k for k in _KERNELS if k != 'torch_sparse' or typing.WITH_TORCH_SPARSE]


def backend(device: torch.device | str = 'cpu') -> str:
    r"""Returns the name of the kernel that :meth:`spmm` runs on :obj:`device`."""
    if _forced is not None:
        return _forced
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
        raise ImportError(
            "The 'torch_sparse' kernel requires 'torch-sparse'. Install it via "
            "'pip install --no-build-isolation torch-scatter torch-sparse'."
        )
    if name == 'torch_sparse':
        import torch_sparse  # noqa: F401
    previous, _forced = _forced, name
    try:
        yield
    finally:
        _forced = previous


# A custom operator, so that `torch.compile` sees one opaque node and needs no graph
# break, whatever kernel runs inside.
@torch.library.custom_op(
    'torch_geometric_unlearn::spmm',
    mutates_args=(),
    schema='(Tensor x, Tensor rowptr, Tensor col, Tensor value, '
    'Tensor rowptr_t, Tensor col_t, Tensor value_t) -> Tensor',
)
def _spmm(
    x: Tensor,
    rowptr: Tensor,
    col: Tensor,
    value: Tensor,
    rowptr_t: Tensor,
    col_t: Tensor,
    value_t: Tensor,
) -> Tensor:
    return _KERNELS[backend(x.device)](rowptr, col, value, x)


@_spmm.register_fake
def _(x: Tensor, rowptr: Tensor, *args: Tensor) -> Tensor:
    return x.new_empty(rowptr.size(0) - 1, x.size(1))


def _setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1:])


def _backward(ctx: Any, grad_out: Tensor) -> Any:
    rowptr, col, value, rowptr_t, col_t, value_t = ctx.saved_tensors
    grad = _spmm(grad_out.contiguous(), rowptr_t, col_t, value_t, rowptr, col, value)
    return (grad, *[None] * 6)


_spmm.register_autograd(_backward, setup_context=_setup_context)


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
        ValueError: If :obj:`x` has the wrong number of rows.
    """
    if x.dim() != 2 or x.size(0) != operator.size[0]:
        raise ValueError(
            f"'x' must have shape [{operator.size[0]}, H] for {operator} "
            f'(got {list(x.shape)})'
        )
    dtype = torch.promote_types(x.dtype, operator.value.dtype)
    if dtype != operator.value.dtype:
        operator = operator.to(dtype)
    out = _spmm(
        x.to(dtype).contiguous(),
        operator.rowptr,
        operator.col,
        operator.value,
        operator.rowptr_t,
        operator.col_t,
        operator.value_t,
    )
    return out.to(x.dtype)
