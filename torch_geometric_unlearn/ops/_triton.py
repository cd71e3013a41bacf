r"""Row-split CSR kernels in Triton.

Long rows are cut into segments of bounded length, so that no program of a skewed graph
works much longer than the others. A segment that is a whole row writes to the result;
the parts of a longer one go to a buffer and are added up by a second kernel, in a fixed
order, so that the same input gives the same bits. Everything is added up in float32, or
in float64 for input of that type.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

#: Entries per segment at most.
SEGMENT = 512


def split_rows(rowptr: Tensor, length: int = SEGMENT) -> list[Tensor]:
    r"""Cuts the rows of a CSR matrix into segments.

    Args:
        rowptr (torch.Tensor): Row pointers :obj:`[N + 1]`.
        length (int, optional): Entries per segment at most. (default: :obj:`512`)

    Returns:
        list: Segment pointers :obj:`[S + 1]`; target of every segment :obj:`[S]`, a
        row, or :math:`-1 - p` for place :math:`p` of the buffer; rows of more than one
        segment :obj:`[L]`; and the bounds of their places in the buffer
        :obj:`[L + 1]`. All in the type of :obj:`rowptr`.
    """
    count = rowptr.diff().long()
    parts = (count + length - 1).div(length, rounding_mode='floor').clamp(min=1)
    row = torch.arange(count.numel(), device=rowptr.device).repeat_interleave(parts)
    first = parts.cumsum(0) - parts
    within = torch.arange(row.numel(), device=rowptr.device) - first[row]
    pointer = rowptr[row].long() + within * length
    pointer = torch.cat([pointer, rowptr[-1:].long()])

    is_long = parts > 1
    in_buffer = is_long[row]
    place = in_buffer.long().cumsum(0) - 1
    target = torch.where(in_buffer, -1 - place, row)
    bounds = torch.cat([parts.new_zeros(1), parts[is_long].cumsum(0)])
    long_rows = is_long.nonzero().view(-1)
    return [t.to(rowptr.dtype) for t in (pointer, target, long_rows, bounds)]


@triton.jit
def _segment_kernel(  # type: ignore[no-untyped-def]
    pointer_ptr,
    target_ptr,
    col_ptr,
    value_ptr,
    x_ptr,
    start_ptr,
    out_ptr,
    buffer_ptr,
    num_channels,
    SUM: tl.constexpr,
    HAS_START: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    segment = tl.program_id(0)
    channel = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    in_row = channel < num_channels
    begin = tl.load(pointer_ptr + segment)
    end = tl.load(pointer_ptr + segment + 1)
    total = tl.zeros([BLOCK_H], dtype=SUM)
    for block in range(begin, end, BLOCK_E):
        entry = block + tl.arange(0, BLOCK_E)
        valid = entry < end
        col = tl.load(col_ptr + entry, mask=valid, other=0).to(tl.int64)
        value = tl.load(value_ptr + entry, mask=valid, other=0.0).to(SUM)
        rows = tl.load(
            x_ptr + col[:, None] * num_channels + channel[None, :],
            mask=valid[:, None] & in_row[None, :],
            other=0.0,
        ).to(SUM)
        total += tl.sum(value[:, None] * rows, axis=0)
    target = tl.load(target_ptr + segment).to(tl.int64)
    if target >= 0:
        place = target * num_channels + channel
        if HAS_START:
            total += tl.load(start_ptr + place, mask=in_row, other=0.0).to(SUM)
        tl.store(out_ptr + place, total, mask=in_row)
    else:
        place = (-1 - target) * num_channels + channel
        tl.store(buffer_ptr + place, total, mask=in_row)


@triton.jit
def _combine_kernel(  # type: ignore[no-untyped-def]
    row_ptr,
    bound_ptr,
    buffer_ptr,
    start_ptr,
    out_ptr,
    num_channels,
    SUM: tl.constexpr,
    HAS_START: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    index = tl.program_id(0)
    channel = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    in_row = channel < num_channels
    place = tl.load(row_ptr + index).to(tl.int64) * num_channels + channel
    total = tl.zeros([BLOCK_H], dtype=SUM)
    if HAS_START:
        total += tl.load(start_ptr + place, mask=in_row, other=0.0).to(SUM)
    begin = tl.load(bound_ptr + index)
    end = tl.load(bound_ptr + index + 1)
    buffer_ptr += begin.to(tl.int64) * num_channels
    for _ in range(begin, end):
        total += tl.load(buffer_ptr + channel, mask=in_row, other=0.0)
        buffer_ptr += num_channels
    tl.store(out_ptr + place, total, mask=in_row)


def triton_csr(
    csr: list[Tensor], x: Tensor, start: Tensor | None = None
) -> Tensor:
    r"""Computes :math:`\mathbf{A} \mathbf{X}`, plus :obj:`start` if given, in one pass.

    Args:
        csr (list): Row pointers, columns and values of the matrix, then the result of
            :meth:`split_rows`.
        x (torch.Tensor): Node features :math:`(N_{source}, H)`, float32, float16 or
            bfloat16.
        start (torch.Tensor, optional): Summand :math:`(N_{target}, H)`.
            (default: :obj:`None`)

    Returns:
        torch.Tensor: Node features :math:`(N_{target}, H)` in the type of :obj:`x`.
    """
    rowptr, col, value, pointer, target, long_rows, bounds = csr
    num_rows, num_channels = rowptr.numel() - 1, x.size(1)
    out = x.new_empty(num_rows, num_channels)
    if num_rows == 0 or num_channels == 0:
        return out
    block = min(128, triton.next_power_of_2(num_channels))
    num_blocks = triton.cdiv(num_channels, block)
    num_parts = target.numel() - (num_rows - long_rows.numel())
    wide = x.dtype == torch.float64
    buffer_dtype = torch.float64 if wide else torch.float32
    buffer = x.new_empty(num_parts, num_channels, dtype=buffer_dtype)
    options = {
        'SUM': tl.float64 if wide else tl.float32,
        'HAS_START': start is not None,
        'BLOCK_H': block,
    }
    start = x if start is None else start.contiguous()
    _segment_kernel[(target.numel(), num_blocks)](
        pointer,
        target,
        col,
        value,
        x,
        start,
        out,
        buffer,
        num_channels,
        BLOCK_E=16,
        **options,
    )
    if long_rows.numel() > 0:
        _combine_kernel[(long_rows.numel(), num_blocks)](
            long_rows,
            bounds,
            buffer,
            start,
            out,
            num_channels,
            **options,
        )
    return out
