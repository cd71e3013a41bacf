from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from torch_geometric_unlearn.utils.check import check_int
from torch_geometric_unlearn.utils.seed import generator

from .processes import Processes

#: Rows that one seed draws, so that initial values don't depend on the processes.
BLOCK = 65_536


class Columns(Processes):
    r"""Which columns of every embedding table a process holds, and how partial results
    come together.

    Of :math:`P` processes, the one of rank :math:`r` holds the columns :math:`r H / P`
    to :math:`(r + 1) H / P`. What acts on every column alike, as propagation does,
    needs no communication; a score is a sum over columns, so that a step adds up one
    number per score. A single process is the same code, in which nothing is sent.

    Args:
        num_columns (int): Columns :math:`H` of a whole table.
        group (ProcessGroup, optional): The processes; all of them if not given.
            (default: :obj:`None`)

    Raises:
        ValueError: If :obj:`num_columns` can't be divided among the processes, or this
            process is none of :obj:`group`.

    Example:
        >>> columns = Columns(64)
        >>> columns.start, columns.width, columns.num_processes
        (0, 64, 1)
    """

    def __init__(self, num_columns: int, group: Any = None) -> None:
        super().__init__(group)
        self.num_columns = check_int(num_columns, 'num_columns', 1)
        if self.num_columns % self.num_processes != 0:
            raise ValueError(
                f"'num_columns' must be a multiple of the {self.num_processes} "
                f'processes (got {self.num_columns}). Change either.'
            )

    @property
    def width(self) -> int:
        r"""Columns of this process."""
        return self.num_columns // self.num_processes

    @property
    def start(self) -> int:
        r"""First column of this process."""
        return self.rank * self.width

    def __repr__(self) -> str:
        end = self.start + self.width
        return f'{self.__class__.__name__}({self.start}:{end} of {self.num_columns})'

    def take(self, x: Tensor) -> Tensor:
        r"""Returns the columns of this process, :math:`(N, H / P)`, of a whole table
        :math:`(N, H)`.
        """
        return x[:, self.start : self.start + self.width]

    def gather(self, x: Tensor) -> Tensor:
        r"""Returns the whole table :math:`(N, H)`, equal on every process, from the
        columns of this one, :math:`(N, H / P)`. Differentiable, if every process goes
        on with the same computation.
        """
        return x if self.num_processes == 1 else _Gather.apply(x, self)

    def sum(self, x: Tensor) -> Tensor:
        r"""Returns the sum over the processes, equal on every one; its gradient is
        that of the sum itself. Differentiable, if every process goes on with the same
        computation.
        """
        return x if self.num_processes == 1 else _Sum.apply(x, self)

    @torch.no_grad()
    def xavier_uniform_(self, x: Tensor) -> Tensor:
        r"""Fills columns :math:`(N, H / P)` of a table in place, as
        :meth:`torch.nn.init.xavier_uniform_` does for the whole one, by a seed that
        torch's global generator draws: whole rows are drawn in blocks from a seed each,
        of which every process keeps its columns, so that the whole does not depend on
        the number of processes.
        """
        bound = (6 / (x.size(0) + self.num_columns)) ** 0.5
        seed = int(torch.randint(2**62, ()))
        for block, rows in enumerate(x.split(BLOCK)):
            whole = torch.empty(rows.size(0), self.num_columns)
            whole.uniform_(-bound, bound, generator=generator(seed + block))
            rows.copy_(self.take(whole))
        return x


def columns_of(model: Any) -> Columns | None:
    r"""Returns which columns of a model this process holds, :obj:`None` for a model
    that is not divided.
    """
    found = getattr(model, 'columns', None)
    return found if isinstance(found, Columns) else None


def holds(model: Any, flag: bool) -> bool:
    r"""Tells whether :obj:`flag` is set, on every process that holds columns of the
    model.
    """
    columns = columns_of(model)
    return flag if columns is None else not columns.any(not flag)


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, columns: Columns) -> Tensor:
        out = x.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(out, group=columns.group)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, columns: Columns) -> Tensor:
        ctx.columns = columns
        x = x.detach().contiguous()
        out = [torch.empty_like(x) for _ in range(columns.num_processes)]
        dist.all_gather(out, x, group=columns.group)
        return torch.cat(out, dim=1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.columns.take(grads[0]), None
