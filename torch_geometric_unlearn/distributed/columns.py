from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from torch_geometric_unlearn.utils.check import check_int
from torch_geometric_unlearn.utils.digest import tensor_digest
from torch_geometric_unlearn.utils.seed import generator

from .blocks import Blocks

#: Rows that one seed draws, so that initial values don't depend on the processes.
BLOCK = 65_536


class Columns(Blocks):
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

    #: Whether every process has equally many.
    is_even = True

    def __init__(self, num_columns: int, group: Any = None) -> None:
        super().__init__(check_int(num_columns, 'num_columns', 1), 1, group)
        if self.is_even and self.total % self.num_processes != 0:
            raise ValueError(
                f"'num_columns' must be a multiple of the {self.num_processes} "
                f'processes (got {self.total}). Change either.'
            )

    @property
    def num_columns(self) -> int:
        r"""Columns of a whole table."""
        return self.total

    @property
    def width(self) -> int:
        r"""Columns of this process."""
        return self.size

    def __repr__(self) -> str:
        end = self.start + self.width
        return f'{self.__class__.__name__}({self.start}:{end} of {self.num_columns})'

    def sum(self, x: Tensor) -> Tensor:
        r"""Returns the sum over the processes, equal on every one; its gradient is
        that of the sum itself. Differentiable, if every process goes on with the same
        computation.
        """
        return self._map(x, self._sum, lambda grad: grad)

    def replicate(self, *parameters: Tensor) -> tuple[Tensor, ...]:
        r"""Returns parameters that are equal on every process, for a computation that
        each does on a part of its own: their gradients are summed over the processes,
        so that they stay equal.
        """
        if self.num_processes == 1:
            return parameters
        return _Replicate.apply(self.group, *parameters)

    def seed(self) -> int:
        r"""Draws a seed from torch's global generator; every process returns that of
        the first one.
        """
        return int(self.share(int(torch.randint(2**62, ())))[0])

    @torch.no_grad()
    def xavier_uniform_(self, x: Tensor) -> Tensor:
        r"""Fills columns :math:`(N, H / P)` of a table in place, as
        :meth:`torch.nn.init.xavier_uniform_` does for the whole one, by a seed from
        :meth:`seed`: whole rows are drawn in blocks from a seed each, of which every
        process keeps its columns, so that the whole does not depend on the number of
        processes.
        """
        bound = (6 / (x.size(0) + self.num_columns)) ** 0.5
        return self._fill(x, lambda x, rng: x.uniform_(-bound, bound, generator=rng))

    @torch.no_grad()
    def normal_(self, x: Tensor, std: float) -> Tensor:
        r"""Fills columns of a table in place from a normal distribution, as
        :meth:`xavier_uniform_` does from a uniform one.
        """
        return self._fill(x, lambda x, rng: x.normal_(0, std, generator=rng))

    def _fill(
        self, x: Tensor, draw: Callable[[Tensor, torch.Generator], Any]
    ) -> Tensor:
        seed = self.seed()
        for block, rows in enumerate(x.split(BLOCK)):
            whole = torch.empty(rows.size(0), self.num_columns)
            draw(whole, generator(seed + block))
            rows.copy_(self.take(whole))
        return x

    def _sum(self, x: Tensor) -> Tensor:
        out = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(out, group=self.group)
        return out


class UnevenColumns(Columns):
    r"""Columns whose number comes with the data, so that the last processes may hold
    fewer of them. Every process must hold some.
    """

    is_even = False

    def __init__(self, num_columns: int, group: Any = None) -> None:
        super().__init__(num_columns, group)
        if self.sizes[-1] == 0:
            raise ValueError(
                f'Of {self.total} columns, none are left for the last of the '
                f'{self.num_processes} processes. Start fewer.'
            )


class ColumnParallel(ABC):
    r"""A model of which every process holds some columns.

    Attributes:
        columns (Columns): Those of its ID tables.
    """

    columns: Columns

    @abstractmethod
    def divided(self) -> dict[str, Blocks]:
        r"""Returns of which block a parameter or buffer consists, by name; all others
        are equal on every process.
        """


def columns_of(model: Any) -> Columns | None:
    r"""Returns which columns of a model this process holds, :obj:`None` for a model
    that is not divided.
    """
    return model.columns if isinstance(model, ColumnParallel) else None


def divided(model: Any) -> dict[str, Blocks]:
    r"""Returns of which block a parameter or buffer of a model consists, by name."""
    return model.divided() if isinstance(model, ColumnParallel) else {}


def whole_state(model: Any) -> Iterator[tuple[str, Tensor]]:
    r"""Iterates over the parameters and buffers of a model by name, as wholes; every
    process that holds a block takes part.
    """
    parts = divided(model)
    for name, x in model.state_dict().items():
        yield name, parts[name].gather(x) if name in parts else x


def shared_digest(model: Any) -> str:
    r"""Returns a hash of what every process holds as a whole of a model that is
    divided.
    """
    parts, state = divided(model), model.state_dict()
    return tensor_digest(x for name, x in state.items() if name not in parts)


def holds(model: Any, flag: bool) -> bool:
    r"""Tells whether :obj:`flag` is set, on every process that holds columns of the
    model.
    """
    columns = columns_of(model)
    return flag if columns is None else not columns.any(not flag)


class _Replicate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, group: Any, *parameters: Tensor) -> tuple[Tensor, ...]:
        ctx.group = group
        return tuple(x.view_as(x) for x in parameters)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        total = torch.cat([grad.flatten() for grad in grads])
        dist.all_reduce(total, group=ctx.group)
        parts = total.split([grad.numel() for grad in grads])
        return None, *(part.view_as(grad) for part, grad in zip(parts, grads))
