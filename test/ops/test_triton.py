import os

import pytest
import torch
from torch_geometric.testing import withCUDA

from torch_geometric_unlearn.ops import SparseOperator
from torch_geometric_unlearn.ops._reference import dense_spmm

pytest.importorskip('triton', reason='triton is not installed')


def make_case(num_rows, num_cols, counts, device='cpu', dtype=torch.float32):
    gen = torch.Generator().manual_seed(0)
    target = torch.arange(num_rows).repeat_interleave(torch.tensor(counts))
    source = torch.randint(num_cols, (target.numel(),), generator=gen)
    weight = torch.randn(target.numel(), generator=gen, dtype=dtype)
    operator = SparseOperator(
        torch.stack([source, target]), weight, (num_cols, num_rows)
    )
    x = torch.randn(num_cols, 20, generator=gen, dtype=dtype)
    return operator.to(device), x.to(device)


COUNTS = {
    'empty': [0, 0, 0],
    'at_the_border': [8, 9, 16, 17, 7],
    'skewed': [0, 300, 1, 0, 25, 2],
    'one_row': [40],
}


@pytest.mark.parametrize('name', COUNTS)
def test_split_rows_covers_every_entry_once(name):
    from torch_geometric_unlearn.ops._triton import split_rows

    counts = COUNTS[name]
    rowptr = torch.tensor([0, *counts]).cumsum(0).int()
    pointer, target, long_rows, bounds = split_rows(rowptr, length=8)
    assert pointer[0] == 0
    assert pointer[-1] == sum(counts)
    assert 0 <= pointer.diff().min() <= pointer.diff().max() <= 8
    assert long_rows.tolist() == [row for row, n in enumerate(counts) if n > 8]
    parts = [-(-n // 8) for n in counts if n > 8]
    assert bounds.diff().tolist() == parts
    places = (-1 - target[target < 0]).tolist()
    assert places == list(range(sum(parts)))
    owned = {int(row): n for row, n in zip(target, pointer.diff()) if row >= 0}
    assert owned == {row: n for row, n in enumerate(counts) if n <= 8}


@withCUDA
@pytest.mark.parametrize('name', COUNTS)
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize('with_start', [False, True])
def test_kernel_against_dense(device, name, dtype, with_start):
    from torch_geometric_unlearn.ops._triton import split_rows, triton_csr

    interpreted = os.environ.get('TRITON_INTERPRET') == '1'
    if torch.device(device).type == 'cpu' and not interpreted:
        pytest.skip('a compiled kernel runs on CUDA only')
    counts = COUNTS[name]
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    operator, x = make_case(len(counts), 30, counts, device, wide)
    x = x.to(dtype)
    start = torch.randn(len(counts), 20, device=device).to(dtype)
    csr = [operator.rowptr, operator.col, operator.value]
    csr += split_rows(operator.rowptr, length=8)
    out = triton_csr(csr, x, start if with_start else None)
    expected = dense_spmm(operator, x) + (start.double() if with_start else 0)
    assert out.dtype == dtype
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2}
    scale = expected.abs().max().clamp(min=1)
    assert ((out.double() - expected).abs().max() / scale) < tolerance[dtype]
    again = triton_csr(csr, x, start if with_start else None)
    assert torch.equal(out, again)
