from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from torch_geometric_unlearn.utils.check import check_float


def dropout(x: Tensor, p: float, training: bool = True) -> Tensor:
    r"""Zeroes entries with probability :obj:`p` and divides the others by one minus it.

    On the CPU, one 64-bit random number decides about four entries (so :obj:`p` is
    rounded to a multiple of :math:`2^{-16}`), which takes a quarter of the time of
    torch's own dropout there; elsewhere it is torch's.

    Args:
        x (torch.Tensor): Floating point, of any shape.
        p (float): Probability in :math:`[0, 1)`.
        training (bool, optional): Whether to drop at all. (default: :obj:`True`)

    Raises:
        ValueError: If :obj:`p` is out of range.
    """
    p = check_float(p, 'p', 0.0, 0.999)
    if not training or p == 0:
        return x
    if x.device.type != 'cpu':
        return F.dropout(x, p)
    threshold = round(p * 2**16)
    bits = torch.randint(-(2**63), 2**63 - 1, (-(-x.numel() // 4),))
    keep = bits.view(torch.int16)[: x.numel()].view(x.shape) >= threshold - 2**15
    return x * keep.to(x.dtype).mul_(2**16 / (2**16 - threshold))
