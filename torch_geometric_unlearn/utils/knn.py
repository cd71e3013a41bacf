r"""Nearest neighbours by cosine similarity, in blocks within a memory budget."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from torch_geometric_unlearn.utils.check import check_int
from torch_geometric_unlearn.utils.remember import remembered
from torch_geometric_unlearn.utils.rows import unit_rows
from torch_geometric_unlearn.utils.topk import topk_lowest_index


def feature_knn_graph(x: Tensor, k: int = 10) -> tuple[Tensor, Tensor]:
    r"""Returns :meth:`cosine_knn_graph` of a feature tensor, computed once as long as
    the tensor lives and is not written to.

    Features hold no interaction, so nothing deleted can survive here.

    Args:
        x (torch.Tensor): Features, floating point :obj:`[N, F]`.
        k (int, optional): Number of neighbours. (default: :obj:`10`)
    """
    facts = remembered(x)
    if ('knn', k) not in facts:
        facts['knn', k] = cosine_knn_graph(x, k)
    return facts['knn', k]


@torch.no_grad()
def cosine_knn_graph(
    x: Tensor,
    k: int = 10,
    memory_budget: int = 512 * 2**20,
) -> tuple[Tensor, Tensor]:
    r"""Links every row of :obj:`x` to its :obj:`k` most similar rows by cosine.

    A row is a candidate of its own. Among equal similarities the lowest index wins. An
    all-zero row has similarity 0 to everything, itself included [ours: the definition
    leaves it open].

    Args:
        x (torch.Tensor): Features, floating point :obj:`[N, F]`.
        k (int, optional): Number of neighbours, the row itself included; all rows if
            there are fewer. (default: :obj:`10`)
        memory_budget (int, optional): Bytes that one block of similarities may take.
            (default: 512 MiB)

    Returns:
        (torch.Tensor, torch.Tensor): :obj:`edge_index` int64
        :obj:`[2, N * k]` with (neighbour, row), grouped by row, most similar first, and
        the similarities :obj:`[N * k]` in the data type of :obj:`x`.
    """
    k = check_int(k, 'k', 1)
    num = x.size(0)
    k = min(k, num)
    unit = unit_rows(x)
    rows = max(1, memory_budget // max(1, 3 * num * x.element_size()))
    index, weight = [], []
    for start in range(0, num, rows):
        value, idx = topk_lowest_index(unit[start : start + rows] @ unit.t(), k)
        index.append(idx)
        weight.append(value)
    neighbour = torch.cat(index).view(-1)
    target = torch.arange(num, device=x.device).repeat_interleave(k)
    return torch.stack([neighbour, target]), torch.cat(weight).view(-1)


def content_neighbors(features: Iterable[Tensor], k: int = 10) -> Tensor | None:
    r"""Returns the :obj:`k` items closest to every item in content, by the mean of the
    cosine similarities over the modalities [ours], the item itself left out.

    Args:
        features (iterable): Features of all items, one matrix
            :math:`(N_{item}, F)` per modality.
        k (int, optional): Number of neighbours; all others if there are fewer.
            (default: :obj:`10`)

    Returns:
        torch.Tensor: Items, int64 :math:`(N_{item}, k)`; :obj:`None` without features
        or other items.
    """
    unit = [unit_rows(x) for x in features]
    if not unit:
        return None
    num_items = unit[0].size(0)
    k = min(k, num_items - 1)
    if k < 1:
        return None
    edge_index, _ = cosine_knn_graph(torch.cat(unit, dim=1), k + 1)
    near = edge_index[0].view(num_items, k + 1)
    other = near != torch.arange(num_items, device=near.device).unsqueeze(1)
    # Among equal items, the item itself may not be its own first neighbour.
    order = other.byte().argsort(dim=1, descending=True, stable=True)[:, :k]
    return near.gather(1, order)
