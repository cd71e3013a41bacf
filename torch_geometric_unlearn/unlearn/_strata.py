from __future__ import annotations

import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from torch_geometric_unlearn.data import schema

#: Strata of items, and of users within each, at most.
MAX_STRATA = 4
#: Reference pairs that a stratum should hold on average.
STRATUM_SIZE = 150


class Strata:
    r"""Compares forgotten pairs with reference pairs that are alike: those whose items
    are about as popular and whose users are about as active.

    Without strata, deleted pairs of rare items may stay too high and those of popular
    items fall too low, while the distribution over all pairs looks right; and users
    with many forgotten pairs count for more than among the reference pairs.

    Args:
        forgotten (torch.Tensor): Forgotten pairs, int64 :obj:`[2, n]`.
        reference (torch.Tensor): Pairs to compare with, int64 :obj:`[2, m]`.
        data (HeteroData): The data with the request still marked; popularity and
            activity are degrees before the deletion.
        num_strata (tuple, optional): Strata of items, and of users within each; by
            default up to 4 each, as many as leave 150 reference pairs in each on
            average. (default: :obj:`None`)
    """

    def __init__(
        self,
        forgotten: Tensor,
        reference: Tensor,
        data: HeteroData,
        num_strata: tuple[int, int] | None = None,
    ) -> None:
        n, m = forgotten.size(1), reference.size(1)
        by_item, by_user = num_strata or _num_strata(m)
        pairs = torch.cat([forgotten, reference], dim=1)
        edge_index = data[schema.EDGE_TYPE].edge_index.to(pairs.device)
        cell = pairs.new_zeros(n + m)
        for row, num in ((1, by_item), (0, by_user)):
            size = int(pairs[row].max()) + 1
            degree = edge_index[row].bincount(minlength=size)[pairs[row]]
            cell = _split(cell, degree, n, num)
        _, cell = cell.unique(return_inverse=True)
        self.cell, self.goal_cell = cell.split([n, m])
        # Where the values of a stratum lie among the quantiles of its reference pairs.
        num = int(cell.max()) + 1
        count = self.cell.bincount(minlength=num)
        goal_count = self.goal_cell.bincount(minlength=num)
        row = self.cell.sort()[0]
        rank = torch.arange(n, device=row.device) - (count.cumsum(0) - count)[row]
        place = (rank.double() + 0.5) * goal_count[row] / count[row] - 0.5
        last = goal_count[row] - 1
        place = torch.minimum(place.clamp(min=0), last.double())
        first = (goal_count.cumsum(0) - goal_count)[row]
        low = place.floor().long()
        self.weight = place - low
        self.low = first + low
        self.high = first + torch.minimum(low + 1, last)

    def sort(self, value: Tensor) -> Tensor:
        r"""Returns the values of the forgotten pairs :obj:`[n]` by stratum, ascending
        in each.
        """
        return _sort(value, self.cell)

    def goals(self, value: Tensor) -> Tensor:
        r"""Returns what :meth:`sort` would return if the values of the forgotten pairs
        had the distribution of the values of the reference pairs :obj:`[m]` in every
        stratum: evenly spaced quantiles of these, :obj:`[n]`.
        """
        value = _sort(value, self.goal_cell)
        weight = self.weight.to(value.dtype)
        return torch.lerp(value[self.low], value[self.high], weight)

    def auc(self, value: Tensor, goal: Tensor) -> float:
        r"""Returns how often a forgotten pair is above a reference pair of its stratum,
        given the values of both, the mean over forgotten pairs; ties count half.
        """
        below = torch.empty(value.numel(), dtype=torch.float64)
        for i in range(int(self.goal_cell.max()) + 1):
            inside = self.cell == i
            order = goal[self.goal_cell == i].sort()[0]
            left = torch.searchsorted(order, value[inside])
            right = torch.searchsorted(order, value[inside], right=True)
            below[inside.cpu()] = ((left + right).double() / 2 / order.numel()).cpu()
        return float(below.mean())


def _num_strata(num_reference: int) -> tuple[int, int]:
    num = int((num_reference / STRATUM_SIZE) ** 0.5)
    return (min(max(num, 1), MAX_STRATA),) * 2


def _split(cell: Tensor, degree: Tensor, num_forgotten: int, num: int) -> Tensor:
    r"""Splits every stratum into at most :obj:`num` of about as many reference pairs,
    by degree; none of them is without a reference pair.
    """
    out = cell * num
    level = torch.linspace(0, 1, num + 1, dtype=torch.float64)[1:-1]
    level = level.to(degree.device)
    for i in cell.unique():
        inside = cell == i
        goal = degree[num_forgotten:][inside[num_forgotten:]].double()
        edges = goal.quantile(level, interpolation='higher').unique()
        edges = edges[edges > goal.min()]
        out[inside] += torch.bucketize(degree[inside].double(), edges, right=True)
    return out


def _sort(value: Tensor, cell: Tensor) -> Tensor:
    order = value.detach().argsort()
    return value.index_select(0, order[cell[order].argsort(stable=True)])
