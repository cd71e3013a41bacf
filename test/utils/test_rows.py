import pytest
import torch

from torch_geometric_unlearn.utils.rows import moderate_rows, row_norms, unit_rows


def rows(seed=0):
    return torch.randn(20, 6, generator=torch.Generator().manual_seed(seed))


def test_ordinary_rows_stay_bit_by_bit():
    x = rows() * torch.logspace(-14, 17, 20).unsqueeze(1)
    x[3] = 0
    assert moderate_rows(x) is x
    norm = x.norm(dim=1, keepdim=True)
    assert torch.equal(row_norms(x), norm.view(-1))
    assert torch.equal(unit_rows(x), x / torch.where(norm > 0, norm, 1.0))


@pytest.mark.parametrize('scale', [1e-44, 1e-38, 1e-25, 1e-20, 1e20, 1e37])
def test_extreme_rows(scale):
    x = rows()
    x[::2] *= scale
    x[4] = 0
    exact = x.double()
    norm = exact.norm(dim=1)
    assert torch.allclose(row_norms(x).double(), norm, rtol=1e-6, atol=1e-45)
    unit = exact / torch.where(norm > 0, norm, 1.0).unsqueeze(1)
    assert torch.allclose(unit_rows(x).double(), unit, atol=1e-6)
    assert torch.equal(moderate_rows(x)[1::2], x[1::2])
    assert not unit_rows(x)[4].any()
