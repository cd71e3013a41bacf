r"""Tensors that claim to be on a CUDA device while their values are on the CPU."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

#: What they claim, as CUDA itself would say it.
CLAIMED = torch.device('cuda:0')
# What torch's own code, which has no CUDA here, is told instead. It runs the backward
# pass for it, decomposes operators for it, and computes nothing.
INNER = torch.device('meta:0')


class ClaimedTensor(Tensor):
    r"""A tensor that claims to be on :obj:`cuda:0`, around a value on the CPU."""

    value: Tensor
    #: Whether torch has made it of a Python number, which CUDA keeps on the host.
    is_number: bool

    @staticmethod
    def __new__(cls, value: Tensor, is_number: bool = False) -> ClaimedTensor:
        strided = value.layout == torch.strided
        out = Tensor._make_wrapper_subclass(
            cls,
            value.size(),
            strides=value.stride() if strided else None,
            storage_offset=value.storage_offset() if strided else None,
            dtype=value.dtype,
            device=INNER,
        )
        out.value = value
        out.is_number = is_number
        return out

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise RuntimeError(
            f"A tensor of 'rehearse_cuda' was used after the end of its block (in "
            f'{func}). Move it to the CPU inside.'
        )

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return CLAIMED

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True

    @property
    def is_meta(self) -> bool:  # type: ignore[override]
        return False

    # To torch's own code, a sparse one looks dense, as sparse tensors can't claim.
    @property
    def layout(self) -> torch.layout:  # type: ignore[override]
        return self.value.layout

    @property
    def is_sparse(self) -> bool:  # type: ignore[override]
        return self.value.is_sparse

    @property
    def is_sparse_csr(self) -> bool:  # type: ignore[override]
        return self.value.is_sparse_csr

    @property
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, other: Tensor) -> None:
        Tensor.data.__set__(self, other)  # type: ignore[attr-defined]
        self.value = other.value  # type: ignore[attr-defined]

    def as_subclass(self, cls: type) -> Any:
        return self if cls is Tensor else super().as_subclass(cls)

    def numpy(self, *, force: bool = False) -> Any:
        if force:
            return self.detach().cpu().numpy()
        raise TypeError(
            f"can't convert {CLAIMED} device type tensor to numpy. Use Tensor.cpu() to "
            f'copy the tensor to host memory first.'
        )

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        return self.numpy()

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __repr__(self) -> str:  # type: ignore[override]
        return repr(self.cpu())[:-1] + f", device='{CLAIMED}')"

    def __format__(self, spec: str) -> str:
        return self.item().__format__(spec) if self.dim() == 0 else repr(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if id(self) not in memo:
            if self.grad_fn is not None:
                return Tensor.__deepcopy__(self, memo)  # Raises.
            with torch.no_grad():
                out = self.detach().clone()
            if isinstance(self, torch.nn.Parameter):
                out = torch.nn.Parameter(out)
            out.requires_grad_(self.requires_grad)
            out.grad = copy.deepcopy(self.grad, memo)
            memo[id(self)] = out
        return memo[id(self)]


def is_claimed(x: Any) -> bool:
    r"""Tells whether :obj:`x` is a tensor that claims to be on the device."""
    return type(x) is ClaimedTensor
