r"""How similar two representations, lists, rows of scores or samples are."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torch_geometric_unlearn.utils.check import check_float, check_int
from torch_geometric_unlearn.utils.finite import check_finite
from torch_geometric_unlearn.utils.topk import topk_lowest_index

#: Rows per block; a block holds a few matrices of scores and some of list x list.
BLOCK = 256


def linear_cka(x: Tensor, y: Tensor) -> float:
    r"""Returns the linear centred kernel alignment from the `"Similarity of Neural
    Network Representations Revisited" <https://arxiv.org/abs/1905.00414>`_ paper,
    with centred columns

    .. math::
        \textrm{CKA}(X, Y) = \frac{\|Y^{\top} X\|_F^2}
        {\|X^{\top} X\|_F \, \|Y^{\top} Y\|_F}.

    Neither rotation nor scale changes it, so models from different seeds compare. A
    change of few rows hardly does either: look at the rows in question as well. With
    hardly more rows than columns it is high for any two models, so compare it with that
    of a second retrained model only.

    Args:
        x (torch.Tensor): Representations :math:`(N, H_1)`.
        y (torch.Tensor): Representations of the same nodes :math:`(N, H_2)`.

    Returns:
        float: In :math:`[0, 1]`; NaN if all rows of one side are equal, or there are
        fewer than two.

    Raises:
        ValueError: If both are no matrices with the same number of rows, or not
            finite.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 2.0]])
        >>> round(linear_cka(x, 3 * x), 6)
        1.0
    """
    if x.dim() != 2 or y.dim() != 2 or x.size(0) != y.size(0):
        raise ValueError(
            f"'x' and 'y' must be matrices with the same number of rows (got "
            f'{list(x.shape)} and {list(y.shape)}). Select the same nodes on both '
            f'sides.'
        )
    check_finite(x, 'x')
    check_finite(y, 'y')
    if x.size(0) < 2:
        return math.nan
    # Equal rows leave rounding errors after centring, which are no variation.
    if bool((x == x[0]).all()) or bool((y == y[0]).all()):
        return math.nan
    x, y = x.double(), y.double().to(x.device)
    x, y = x - x.mean(dim=0), y - y.mean(dim=0)
    x, y = x / x.norm(), y / y.norm()  # Against overflow at extreme scales.
    norm = (x.t() @ x).norm() * (y.t() @ y).norm()
    return float((y.t() @ x).norm().square() / norm)


def jaccard_at_k(first: Tensor, second: Tensor, k: int = 20) -> Tensor:
    r"""Returns :math:`|A \cap B| / |A \cup B|` of the first :obj:`k` items of two
    lists, row by row.

    Args:
        first (torch.Tensor): Lists of unique items, int64 :obj:`[n, m]`,
            :math:`m \geq k`; :obj:`-1` where no item is left.
        second (torch.Tensor): The other lists, of the same shape.
        k (int, optional): Items to look at. (default: :obj:`20`)

    Returns:
        torch.Tensor: Values in :math:`[0, 1]`, float64 :obj:`[n]`; 1 for two empty
        lists [ours].

    Raises:
        ValueError: If the lists differ in shape, are shorter than :obj:`k`, or hold an
            item twice.
    """
    common, size_a, size_b = _list_sizes(first, second, k)
    union = size_a + size_b - common
    return torch.where(union > 0, common / union.clamp(min=1), 1.0)


def overlap_at_k(first: Tensor, second: Tensor, k: int = 20) -> Tensor:
    r"""Returns the share of common items in the first :obj:`k` of two lists, row by
    row; lists that end earlier count with the length of the longer one [ours].

    Args:
        first (torch.Tensor): As for :meth:`jaccard_at_k`.
        second (torch.Tensor): The other lists, of the same shape.
        k (int, optional): Items to look at. (default: :obj:`20`)

    Returns:
        torch.Tensor: Values in :math:`[0, 1]`, float64 :obj:`[n]`.
    """
    common, size_a, size_b = _list_sizes(first, second, k)
    longer = torch.maximum(size_a, size_b)
    return torch.where(longer > 0, common / longer.clamp(min=1), 1.0)


def rank_biased_overlap(
    first: Tensor, second: Tensor, p: float = 0.9, k: int = 100
) -> Tensor:
    r"""Returns the rank-biased overlap from the `"A Similarity Measure for Indefinite
    Rankings" <https://doi.org/10.1145/1852102.1852106>`_ paper, row by row, with
    :math:`X_d = |A_{1:d} \cap B_{1:d}|`

    .. math::
        \textrm{RBO} = (1 - p) \sum_{d=1}^{K} p^{d-1} \frac{X_d}{d}
        + p^K \frac{X_K}{K}.

    The last term carries the agreement at depth :math:`K` on to infinity, so that equal
    lists give 1. A list that ends earlier does so from its end [ours].

    Args:
        first (torch.Tensor): As for :meth:`jaccard_at_k`.
        second (torch.Tensor): The other lists, of the same shape.
        p (float, optional): Persistence: how slowly the weight of a place fades.
            (default: :obj:`0.9`)
        k (int, optional): Depth; the length of the lists if they are shorter.
            (default: :obj:`100`)

    Returns:
        torch.Tensor: Values in :math:`[0, 1]`, float64 :obj:`[n]`.

    Raises:
        ValueError: If the lists differ in shape or hold an item twice, or an argument
            is out of range.
    """
    check_float(p, 'p', 0.0, 1.0)
    if p in (0.0, 1.0):
        raise ValueError(f"'p' must be in (0, 1) (got {p}). The usual value is 0.9.")
    k = min(check_int(k, 'k', 1), first.size(-1))
    _check_lists(first, second, k)
    return _by_block(_rank_biased_overlap, first[:, :k], second[:, :k], p)


def _rank_biased_overlap(first: Tensor, second: Tensor, p: float) -> Tensor:
    k, device = first.size(1), first.device
    place = torch.arange(k, device=device)
    match = _matches(first, second)
    # An item enters the common part at the deeper of its two places.
    enters = torch.maximum(place, match.int().argmax(dim=2))
    common = torch.zeros(first.shape, dtype=torch.double, device=device)
    common.scatter_add_(1, enters, match.any(dim=2).double())
    agreement = common.cumsum(dim=1) / (place + 1)
    length = torch.minimum((first >= 0).sum(dim=1), (second >= 0).sum(dim=1))
    last = agreement.gather(1, (length - 1).clamp(min=0).unsqueeze(1))
    agreement = torch.where(place < length.unsqueeze(1), agreement, last)
    weight = (1 - p) * p ** place.double()
    out = agreement @ weight + last.squeeze(1) * p**k
    both_empty = (first < 0).all(dim=1) & (second < 0).all(dim=1)
    return torch.where(both_empty, 1.0, out)


def kendall_tau_top(first: Tensor, second: Tensor, k: int = 50) -> Tensor:
    r"""Returns Kendall's :math:`\tau_b` between two rows of scores, over the union of
    the :obj:`k` best items of both.

    Args:
        first (torch.Tensor): Scores :obj:`[n, N]`; :math:`-\infty` where an item is no
            candidate, the same ones on both sides.
        second (torch.Tensor): The other scores, of the same shape.
        k (int, optional): Items of either side. (default: :obj:`50`)

    Returns:
        torch.Tensor: Values in :math:`[-1, 1]`, float64 :obj:`[n]`; NaN where one side
        does not vary.

    Raises:
        ValueError: If the scores differ in shape, one is NaN or :math:`\infty`, or
            :obj:`k` is below 1.
    """
    _check_scores(first, second)
    check_int(k, 'k', 1)
    return _by_block(_kendall_tau, first, second, k)


def _kendall_tau(first: Tensor, second: Tensor, k: int) -> Tensor:
    union = _top_union(first, second, k)
    width = int(union.sum(dim=1).max())
    # Members of the union to the front, so that rows share a small width.
    item = union.int().argsort(dim=1, descending=True, stable=True)[:, :width]
    valid = union.gather(1, item)
    pair = valid.unsqueeze(2) & valid.unsqueeze(1)
    a, b = (_signs(x.gather(1, item)) for x in (first, second))
    agreement = (a * b).masked_fill(~pair, 0).sum(dim=(1, 2), dtype=torch.double)
    untied = [
        x.abs().masked_fill(~pair, 0).sum(dim=(1, 2), dtype=torch.double)
        for x in (a, b)
    ]
    return agreement / (untied[0] * untied[1]).sqrt()


def _signs(scores: Tensor) -> Tensor:
    left, right = scores.unsqueeze(2), scores.unsqueeze(1)
    return (left > right).to(torch.int8) - (left < right).to(torch.int8)


def jensen_shannon(first: Tensor, second: Tensor, k: int | None = None) -> Tensor:
    r"""Returns the Jensen-Shannon divergence between two rows of scores in bits, as
    softmax distributions whose temperature is the standard deviation of the row.

    Args:
        first (torch.Tensor): As for :meth:`kendall_tau_top`.
        second (torch.Tensor): The other scores, of the same shape.
        k (int, optional): If given, only the union of the :obj:`k` best items of both
            counts, with the temperature of the whole row [ours].
            (default: :obj:`None`)

    Returns:
        torch.Tensor: Values in :math:`[0, 1]`, float64 :obj:`[n]`.

    Raises:
        ValueError: If the scores differ in shape, one is NaN or :math:`\infty`, or
            :obj:`k` is below 1.
    """
    _check_scores(first, second)
    if k is not None:
        check_int(k, 'k', 1)
    return _by_block(_jensen_shannon, first, second, k)


def _jensen_shannon(first: Tensor, second: Tensor, k: int | None) -> Tensor:
    union = None if k is None else _top_union(first, second, k)
    p, q = (_distribution(x.double(), union) for x in (first, second))
    middle = (p + q) / 2
    middle = middle.clamp_(min=torch.finfo(middle.dtype).tiny)  # Where both are zero.
    out = torch.xlogy(p, p / middle) + torch.xlogy(q, q / middle)
    return (out.sum(dim=1) / (2 * math.log(2))).clamp(0.0, 1.0)


def _distribution(scores: Tensor, union: Tensor | None) -> Tensor:
    gone = scores == -torch.inf
    count = (~gone).sum(dim=1, keepdim=True).clamp(min=1)
    mean = scores.masked_fill(gone, 0.0).sum(dim=1, keepdim=True) / count
    centred = (scores - mean).masked_fill(gone, 0.0)
    spread = (centred.square().sum(dim=1, keepdim=True) / count).sqrt()
    logits = centred / torch.where(spread > 0, spread, 1.0)
    if union is not None:
        gone = gone | ~union
    out = logits.masked_fill(gone, -torch.inf).softmax(dim=1)
    return out.masked_fill(gone.all(dim=1, keepdim=True), 0.0)


def ks_statistic(first: Tensor, second: Tensor) -> float:
    r"""Returns the two-sample Kolmogorov-Smirnov statistic, the largest distance
    between the two empirical distribution functions.

    Args:
        first (torch.Tensor): Values :obj:`[n]`.
        second (torch.Tensor): Values :obj:`[m]`.

    Returns:
        float: In :math:`[0, 1]`; NaN if a sample is empty.

    Raises:
        ValueError: If a value is not finite.

    Example:
        >>> ks_statistic(torch.tensor([0.0, 1.0]), torch.tensor([2.0, 3.0]))
        1.0
    """
    check_finite(first, 'first')
    check_finite(second, 'second')
    if first.numel() == 0 or second.numel() == 0:
        return math.nan
    first = first.flatten().double().sort()[0]
    second = second.flatten().double().to(first.device).sort()[0]
    at = torch.cat([first, second])
    below = [
        torch.searchsorted(x, at, right=True).double() / x.numel()
        for x in (first, second)
    ]
    return float((below[0] - below[1]).abs().max())


def _top_union(first: Tensor, second: Tensor, k: int) -> Tensor:
    union = torch.zeros_like(first, dtype=torch.bool)
    for scores in (first, second):
        index = topk_lowest_index(scores, min(k, scores.size(1)))[1]
        union.scatter_(1, index, True)
    return union & (first > -torch.inf) & (second > -torch.inf)


def _check_lists(first: Tensor, second: Tensor, k: int) -> None:
    if first.dim() != 2 or first.shape != second.shape or first.size(1) < k:
        raise ValueError(
            f"'first' and 'second' must be lists of the same shape [n, m] with "
            f'm >= {k} (got {list(first.shape)} and {list(second.shape)}). Lower k or '
            f'ask for longer lists.'
        )
    for name, lists in (('first', first), ('second', second)):
        if lists.is_floating_point():
            raise ValueError(
                f"'{name}' must hold items as integers (got {lists.dtype}), such as "
                f"the first result of 'topk_items'"
            )
        items = lists[:, :k].sort(dim=1)[0]
        twice = (items[:, 1:] == items[:, :-1]) & (items[:, 1:] >= 0)
        if twice.any():
            row = int(twice.any(dim=1).nonzero()[0])
            raise ValueError(
                f"'{name}' must hold every item once per list (got item "
                f'{int(items[:, 1:][twice][0])} twice in row {row}). Keep its best '
                f'place only.'
            )


def _check_scores(first: Tensor, second: Tensor) -> None:
    if first.dim() != 2 or first.shape != second.shape:
        raise ValueError(
            f"'first' and 'second' must be scores of the same shape [n, num_items] "
            f'(got {list(first.shape)} and {list(second.shape)}). Score the same users '
            f'and items with both models.'
        )
    check_finite(first, 'first', masked=True)
    check_finite(second, 'second', masked=True)


def _list_sizes(
    first: Tensor, second: Tensor, k: int
) -> tuple[Tensor, Tensor, Tensor]:
    check_int(k, 'k', 1)
    _check_lists(first, second, k)
    first, second = first[:, :k], second[:, :k]
    common = _by_block(lambda a, b: _matches(a, b).sum(dim=(1, 2)), first, second)
    size_a, size_b = ((x >= 0).sum(dim=1).double() for x in (first, second))
    return common.double(), size_a, size_b


def _matches(first: Tensor, second: Tensor) -> Tensor:
    r"""Tells which places of two lists hold the same item, bool :obj:`[n, k, k]`."""
    return (first.unsqueeze(2) == second.unsqueeze(1)) & (first >= 0).unsqueeze(2)


def _by_block(
    measure: Callable[..., Tensor], first: Tensor, second: Tensor, *args: Any
) -> Tensor:
    r"""Returns a measure of the rows of two matrices, a block of rows at a time."""
    if first.size(0) == 0:
        return first.new_empty(0, dtype=torch.double)
    blocks = zip(first.split(BLOCK), second.split(BLOCK))
    return torch.cat([measure(a, b, *args) for a, b in blocks])
