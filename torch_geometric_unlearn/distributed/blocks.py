from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from torch_geometric_unlearn.utils.check import check_int

from .processes import Processes


class Blocks(Processes):
    r"""Entries of one dimension, divided among the processes in blocks as
    :meth:`torch.chunk` does: all are equal, but the last ones may be smaller, or empty.

    Args:
        total (int): Number of entries.
        dim (int): The dimension.
        group (ProcessGroup, optional): The processes; all of them if not given.
            (default: :obj:`None`)
    """

    def __init__(self, total: int, dim: int, group: Any = None) -> None:
        super().__init__(group)
        self.total, self.dim = check_int(total, 'total', 0), dim

    @property
    def largest(self) -> int:
        r"""Entries of the largest block, the first one."""
        return -(-self.total // self.num_processes)

    @property
    def sizes(self) -> list[int]:
        r"""Entries of every process."""
        ranks = range(self.num_processes)
        left = [self.total - rank * self.largest for rank in ranks]
        return [max(0, min(self.largest, size)) for size in left]

    @property
    def size(self) -> int:
        r"""Entries of this process."""
        return self.sizes[self.rank]

    @property
    def start(self) -> int:
        r"""First entry of this process."""
        return min(self.rank * self.largest, self.total)

    def take(self, x: Tensor) -> Tensor:
        r"""Returns the block of this process of what is equal on every one.
        Differentiable: the gradient is the one of the whole, on every process.
        """
        return self._map(x, self._take, self._gather)

    def gather(self, x: Tensor) -> Tensor:
        r"""Returns the whole, equal on every process, from the block of this one.
        Differentiable, if every process goes on with the same computation.
        """
        return self._map(x, self._gather, self._take)

    def reduce(self, x: Tensor) -> Tensor:
        r"""Returns the block of this process of the sum over the processes of what each
        one has of the whole.
        """
        return self._map(x, self._reduce, self._gather)

    def collect(self, x: Tensor) -> Tensor:
        r"""Returns the whole from the block of this process, where each goes on with a
        computation of its own, a part of a sum over the processes; :meth:`gather` is
        for those that all do the same.
        """
        return self._map(x, self._gather, self._reduce)

    def _map(self, x: Tensor, forward: Any, backward: Any) -> Tensor:
        return x if self.num_processes == 1 else map_linearly(x, forward, backward)

    def _take(self, x: Tensor) -> Tensor:
        return x.narrow(self.dim, self.start, self.size)

    def _gather(self, x: Tensor) -> Tensor:
        fill = self.largest - self.size
        if fill > 0:  # Blocks must be equal to be gathered.
            x = F.pad(x.movedim(self.dim, -1), (0, fill)).movedim(-1, self.dim)
        x = x.contiguous()
        out = [torch.empty_like(x) for _ in range(self.num_processes)]
        dist.all_gather(out, x, group=self.group)
        return torch.cat(out, self.dim).narrow(self.dim, 0, self.total)

    def _reduce(self, x: Tensor) -> Tensor:
        return self._parts(x.movedim(self.dim, 0)).sum(dim=0).movedim(0, self.dim)

    def _parts(self, x: Tensor) -> Tensor:
        r"""Returns the block of this process, along the first dimension, of what each
        one holds, :math:`(P, N_r, *)`.
        """
        out = x.new_empty(self.num_processes, self.size, *x.shape[1:])
        sizes = [self.size] * self.num_processes
        self._exchange(out.flatten(0, 1), x.contiguous(), sizes, self.sizes)
        return out

    def _exchange(
        self, out: Tensor, x: Tensor, received: list[int], sent: list[int]
    ) -> None:
        dist.all_to_all_single(out, x, received, sent, group=self.group)


def map_linearly(
    x: Tensor,
    forward: Callable[[Tensor], Tensor],
    backward: Callable[[Tensor], Tensor],
) -> Tensor:
    r"""Returns :obj:`forward(x)`, a linear map whose gradient is
    :obj:`backward(grad)`.
    """
    return _Linear.apply(x, forward, backward)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, forward: Any, backward: Any) -> Tensor:
        ctx.backward_map = backward
        return forward(x.detach())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return ctx.backward_map(grads[0]), None, None
