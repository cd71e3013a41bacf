r"""Linear layers of models that are divided by columns."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Linear, Parameter

from .columns import Columns
from .rows import Rows


class RowLinear(Linear):
    r"""A small linear layer that every process holds as a whole and applies to rows of
    its own: gradients are summed, so that it stays equal on all of them.

    Args:
        in_channels (int): Size of the input.
        out_channels (int): Size of the output.
        columns (Columns): The processes.
        bias (bool, optional): Whether there is a bias. (default: :obj:`True`)
    """

    def __init__(
        self, in_channels: int, out_channels: int, columns: Columns, bias: bool = True
    ) -> None:
        super().__init__(in_channels, out_channels, bias)
        self.columns = columns

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, *self.columns.replicate(*self.parameters()))


class ColumnLinear(Linear):
    r"""A linear layer whose input is divided by columns, and its weight with it, from
    columns of all rows to all columns of some rows: every process multiplies its part
    of both, of which the sum over the processes is the product.

    Args:
        columns (Columns): Columns of the input.
        out_channels (int): Size of the output.

    Shapes:
        - **input:** the columns of this process :math:`(N, F_r)`
        - **output:** the rows of this process :math:`(N_r, H)`
    """

    def __init__(self, columns: Columns, out_channels: int) -> None:
        super().__init__(columns.num_columns, out_channels)
        self.columns = columns
        with torch.no_grad():
            self.weight = Parameter(columns.take(self.weight).clone())

    def forward(self, x: Tensor) -> Tensor:
        rows = Rows(x.size(0), self.columns.group)
        (bias,) = self.columns.replicate(self.bias)
        return rows.reduce(F.linear(x, self.weight)) + bias
