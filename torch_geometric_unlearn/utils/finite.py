r"""Nothing that is not finite counts: checks that name what is not."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

#: Too coarse to sum and compare scores in; they are read as float32.
HALF = (torch.float16, torch.bfloat16)


class NotFiniteError(ValueError):
    r"""What was given, or what a model gives, holds NaN or infinity."""


def all_finite(tensors: Iterable[Tensor]) -> bool:
    r"""Tells whether no tensor holds NaN or infinity."""
    return all(_is_finite(x) for x in tensors)


def check_finite(
    x: Tensor,
    name: str,
    advice: str = 'Go back to where it came from.',
    masked: bool = False,
) -> Tensor:
    r"""Returns :obj:`x` if it is finite, raises otherwise.

    Args:
        x (torch.Tensor): Any tensor.
        name (str): What the error calls it.
        advice (str, optional): The end of the error.
        masked (bool, optional): Whether :math:`-\infty` may stand for an entry that
            does not count. (default: :obj:`False`)

    Raises:
        ValueError: If it is not; says in how many rows and which is the first.
    """
    if _is_finite(x):
        return x
    rows = bad_rows(x, masked)
    if rows.numel() == 0:
        return x
    raise NotFiniteError(
        f"'{name}' must be finite (got NaN or infinity in {rows.numel():,} of "
        f'{len(x) if x.dim() else 1:,} rows, the first is row {int(rows[0])}). {advice}'
    )


def check_embeddings(
    user_emb: Tensor, item_emb: Tensor, num_columns: int | None = None
) -> tuple[Tensor, Tensor]:
    r"""Returns embeddings to compute scores with, half precision as float32; some of
    :obj:`num_columns` where they are divided by columns.

    Raises:
        ValueError: If they are not finite, or so large that their scores or the
            variance of these may not be.
    """
    advice = 'Look for the first layer whose output is not finite.'
    sides = [
        check_finite(x, name, advice)
        for x, name in ((user_emb, 'user_emb'), (item_emb, 'item_emb'))
    ]
    first, second = (x.float() if x.dtype in HALF else x for x in sides)
    if first.is_floating_point() and first.numel() > 0 and second.numel() > 0:
        largest = _largest(first) * _largest(second)
        # The variance over all items takes the square of a score that often.
        bound = (torch.finfo(first.dtype).max / (4 * second.size(0))) ** 0.5
        if largest * (num_columns or first.size(-1)) > bound:
            raise NotFiniteError(
                f"'user_emb' and 'item_emb' must be small enough for finite scores "
                f'(got entries whose products reach {largest:.3g}). Scale them down; '
                f'lists stay the same.'
            )
    return first, second


def bad_rows(x: Tensor, masked: bool = False) -> Tensor:
    r"""Returns the rows that hold NaN or infinity, int64 :obj:`[n]`."""
    bad = ~torch.isfinite(x)
    if masked:
        bad &= x != -torch.inf
    return bad.reshape(len(x) if x.dim() else 1, -1).any(dim=1).nonzero().view(-1).cpu()


def _is_finite(x: Tensor) -> bool:
    return x.numel() == 0 or not x.is_floating_point() or math.isfinite(_largest(x))


def _largest(x: Tensor) -> float:
    r"""Returns the largest magnitude; carries NaN on, and can't overflow as a sum."""
    low, high = x.detach().aminmax()
    return float(torch.stack([-low, high]).max())
