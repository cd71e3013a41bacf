import math

import numpy as np
import pytest
import torch

from torch_geometric_unlearn.nn.functional import (
    bpr_loss,
    info_nce_loss,
    reverse_bpr_loss,
)
from torch_geometric_unlearn.nn.functional.loss import info_nce_terms


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def naive_mean(fn, pos, neg, weight=None):
    weight = [1.0] * len(pos) if weight is None else weight
    return sum(w * fn(p - n) for w, p, n in zip(weight, pos, neg)) / len(pos)


LOSSES = {
    'bpr': (bpr_loss, {}, lambda x: -math.log(sigmoid(x))),
    'swap': (reverse_bpr_loss, {'form': 'swap'}, lambda x: -math.log(sigmoid(-x))),
    'negate': (reverse_bpr_loss, {'form': 'negate'}, lambda x: math.log(sigmoid(x))),
}


@pytest.mark.parametrize('name', LOSSES)
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_against_naive_loop(name, dtype):
    fn, kwargs, term = LOSSES[name]
    pos, neg = 3 * torch.randn(2, 50, dtype=torch.float64)
    out = fn(pos.to(dtype), neg.to(dtype), **kwargs)
    expected = naive_mean(term, pos.tolist(), neg.tolist())
    assert out.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize('form', ['swap', 'negate'])
def test_weight(form):
    pos, neg, weight = torch.rand(3, 20, dtype=torch.float64)
    out = reverse_bpr_loss(pos, neg, form, weight)
    args = (LOSSES[form][2], pos.tolist(), neg.tolist(), weight.tolist())
    assert out.item() == pytest.approx(naive_mean(*args), abs=1e-12)


@pytest.mark.parametrize('name', LOSSES)
@pytest.mark.parametrize('margin', [-3.0, 0.0, 3.0])
def test_sign(name, margin):
    # One small step: BPR raises the margin, both forms of its reverse lower it.
    fn, kwargs, _ = LOSSES[name]
    gen = torch.Generator().manual_seed(0)
    pos = (torch.randn(64, generator=gen) + margin).requires_grad_()
    neg = torch.randn(64, generator=gen).requires_grad_()
    before = (pos - neg).mean().item()
    fn(pos, neg, **kwargs).backward()
    with torch.no_grad():
        after = ((pos - 0.1 * pos.grad) - (neg - 0.1 * neg.grad)).mean().item()
    assert (after > before) if name == 'bpr' else (after < before)


def test_forms_fade_where_documented():
    x = torch.tensor([10.0, -10.0], requires_grad=True)
    zero = torch.zeros(2)
    (swap,) = torch.autograd.grad(2 * reverse_bpr_loss(x, zero, 'swap'), x)
    (negate,) = torch.autograd.grad(2 * reverse_bpr_loss(x, zero, 'negate'), x)
    assert swap.tolist() == pytest.approx([1, 0], abs=1e-4)
    assert negate.tolist() == pytest.approx([0, 1], abs=1e-4)


def test_bounds_and_extremes():
    high, low = torch.full((2,), 200.0), torch.full((2,), -200.0)
    assert bpr_loss(high, low).item() == 0
    assert bpr_loss(low, high).item() == 400
    assert bpr_loss(high, high).item() == pytest.approx(math.log(2))
    assert reverse_bpr_loss(low, high).item() == 0
    assert reverse_bpr_loss(high, low).item() == 400
    assert reverse_bpr_loss(low, high, 'negate').item() == -400
    assert reverse_bpr_loss(high, low, 'negate').item() == 0


def test_unknown_form():
    match = r"'form' must be one of \('swap', 'negate'\) \(got 'flip'\)"
    with pytest.raises(ValueError, match=match):
        reverse_bpr_loss(torch.ones(1), torch.zeros(1), form='flip')


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('temperature', [0.01, 0.05, 0.2, 1.0])
def test_info_nce_against_naive_loop(dtype, temperature):
    gen = np.random.default_rng(0)
    x, y = gen.normal(size=(2, 12, 5))
    y[3] = y[7]  # The same candidate twice, as a batch may hold a user twice.
    expected = 0.0
    for b in range(12):
        row = []
        for c in range(12):
            norms = math.sqrt(sum(x[b] ** 2)) * math.sqrt(sum(y[c] ** 2))
            row.append(sum(x[b] * y[c]) / norms / temperature)
        expected -= (row[b] - np.logaddexp.reduce(row)) / 12
    args = torch.from_numpy(x).to(dtype), torch.from_numpy(y).to(dtype)
    out = info_nce_loss(*args, temperature)
    atol = 1e-5 if dtype == torch.float32 else 1e-12
    assert out.item() == pytest.approx(expected, rel=atol)


def test_info_nce_bounds():
    gen = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 30, 4, generator=gen)
    # Cosines lie in [-1, 1], so no row exceeds log(B) + 2 / temperature.
    assert 0 <= info_nce_loss(x, y, 0.2).item() <= math.log(30) + 2 / 0.2
    assert info_nce_loss(x[:1], y[:1], 0.2).item() == pytest.approx(0, abs=1e-6)
    same = x[:1].expand(30, -1)
    assert info_nce_loss(same, same, 0.2).item() == pytest.approx(math.log(30))
    scaled = info_nce_loss(100 * x, 0.01 * y, 0.2)
    assert torch.allclose(scaled, info_nce_loss(x, y, 0.2), atol=1e-5)


def test_info_nce_gradient_reaches_both_views():
    x = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    y = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, y: info_nce_loss(x, y, 0.2), (x, y))
    zero = torch.zeros(2, 3, requires_grad=True)  # A vector without a direction.
    info_nce_loss(zero, y[:2].detach().float(), 0.2).backward()
    assert zero.grad.isfinite().all()


@pytest.mark.parametrize('temperature', [0.2, 0.01])
def test_info_nce_terms_of_some_anchors(temperature):
    gen = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 7, 4, generator=gen)
    parts = [
        info_nce_terms(x[part], y, temperature, part.start)
        for part in (slice(0, 3), slice(3, 7), slice(7, 7))
    ]
    assert [part.numel() for part in parts] == [3, 4, 0]
    mean = info_nce_loss(x, y, temperature)
    assert torch.allclose(torch.cat(parts).mean(), mean, atol=1e-6)
