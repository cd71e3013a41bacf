import pytest
import torch
from torch_geometric.testing import onlyLinux, withCUDA

from torch_geometric_unlearn.nn.functional import dropout


def draw(x, p, seed=0):
    torch.manual_seed(seed)
    return dropout(x, p)


@pytest.mark.parametrize(('p', 'training'), [(0.0, True), (0.5, False), (0, False)])
def test_identity(p, training):
    x = torch.randn(3, 5)
    state = torch.get_rng_state()
    assert dropout(x, p, training) is x
    assert torch.equal(torch.get_rng_state(), state)


@withCUDA
@pytest.mark.parametrize('p', [0.01, 0.3, 0.5, 0.9])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_share_and_scale(device, p, dtype):
    num = 400_003
    x = torch.rand(num, dtype=dtype, device=device) + 1
    out = draw(x, p)
    dropped = out == 0
    deviation = (num * p * (1 - p)) ** 0.5
    assert abs(int(dropped.sum()) - num * p) < 5 * deviation
    if device.type == 'cpu':
        p = round(p * 2**16) / 2**16
    kept = out[~dropped] / x[~dropped]
    assert out.dtype == dtype
    # The scale fits the probability that was drawn with, so that means are kept.
    rtol = 4 * torch.finfo(dtype).eps
    assert torch.allclose(kept, torch.full_like(kept, 1 / (1 - p)), rtol=rtol, atol=0)


def test_mean_is_kept():
    x = torch.ones(2**20, dtype=torch.float64)
    for p in (0.001, 0.3, 0.5):
        error = draw(x, p).mean() - 1
        assert abs(error) < 5 * (p / (1 - p) / 2**20) ** 0.5


@withCUDA
@pytest.mark.parametrize('p', [0.2, 0.5])
def test_entries_are_decided_independently(device, p):
    num_words = 50_000
    out = draw(torch.ones(num_words * 4, device=device), p)
    kept = (out != 0).double()
    lanes = kept.view(-1, 4)  # The four entries that share a random number.
    rate = lanes.mean(dim=0)
    bound = 5 / num_words**0.5
    assert ((rate - (1 - p)).abs() < bound * (p * (1 - p)) ** 0.5).all()
    correlation = torch.corrcoef(lanes.t()) - torch.eye(4, device=device)
    assert correlation.abs().max() < bound
    for distance in (1, 2, 3, 4, 5, 8, 64):
        pair = torch.stack([kept[:-distance], kept[distance:]])
        assert abs(torch.corrcoef(pair)[0, 1]) < bound
    # All patterns of four come as often as independent entries would show them.
    pattern = (lanes.long() * torch.tensor([8, 4, 2, 1], device=device)).sum(dim=1)
    count = pattern.bincount(minlength=16).double()
    ones = torch.tensor([bin(i).count('1') for i in range(16)], device=device)
    expected = num_words * (1 - p) ** ones.double() * p ** (4 - ones).double()
    chi_squared = ((count - expected) ** 2 / expected).sum()
    assert chi_squared < 45  # 15 degrees of freedom: one seed in 10,000.


@withCUDA
def test_seed_decides(device):
    x = torch.ones(1001, device=device)
    first, second, other = draw(x, 0.5, 1), draw(x, 0.5, 1), draw(x, 0.5, 2)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    torch.manual_seed(1)
    assert not torch.equal(dropout(x, 0.5), dropout(x, 0.5))


@withCUDA
@pytest.mark.parametrize(
    'shape', [(), (0,), (1,), (5,), (3, 7), (2, 3, 5), (4, 0), (64, 4)]
)
def test_shapes(device, shape):
    x = torch.randn(shape, device=device).abs() + 1
    out = draw(x, 0.5)
    assert out.shape == x.shape
    assert ((out == 0) | torch.isclose(out, 2 * x)).all()


def test_every_place_is_dropped_at_times():
    x = torch.ones(3, 7)
    kept = torch.stack([draw(x, 0.5, seed) for seed in range(200)]).mean(dim=0) / 2
    assert kept.min() > 0.3
    assert kept.max() < 0.7


@withCUDA
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16])
def test_gradient_and_strides(device, dtype):
    base = torch.rand(6, 11, device=device).add(1).to(dtype).requires_grad_()
    x = base.t()  # Not contiguous.
    out = draw(x, 0.25)
    (grad,) = torch.autograd.grad(out.sum(), x)
    scale = torch.where(out == 0, 0.0, 4 / 3).to(dtype)
    assert out.dtype == grad.dtype == dtype
    assert torch.allclose(grad, scale, rtol=1e-2 if dtype == torch.bfloat16 else 1e-6)
    assert torch.allclose(out, x * grad)
    assert 0 < int((grad == 0).sum()) < x.numel()


def test_derivatives():
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: draw(x, 0.5).tanh(), (x,))
    assert torch.autograd.gradgradcheck(lambda x: draw(x, 0.5).tanh(), (x,))


@onlyLinux
def test_compile():
    torch._dynamo.reset()
    compiled = torch.compile(dropout, fullgraph=True, backend='aot_eager')
    x = torch.randn(13, 3)
    torch.manual_seed(0)
    assert torch.equal(compiled(x, 0.5), draw(x, 0.5))


@pytest.mark.parametrize('p', [-0.1, 1.0, float('nan')])
def test_bad_probability(p):
    with pytest.raises(ValueError, match=r"'p' must be a finite number in \[0.0, 0.9"):
        dropout(torch.ones(2), p)
