import pytest
import torch
from torch_geometric.explain.algorithm.utils import clear_masks, set_masks
from torch_geometric.nn import MessagePassing
from torch_geometric.testing import onlyLinux, withCUDA

from torch_geometric_unlearn.nn.conv import SampledAttentionConv


def make(num_nodes=11, num_samples=4, channels=5, **kwargs):
    torch.manual_seed(0)
    conv = SampledAttentionConv(channels, **kwargs)
    with torch.no_grad():  # Biases matter too.
        for module in (conv.query, conv.key):
            module.bias.normal_()
    x = torch.randn(num_nodes, channels, requires_grad=True)
    samples = torch.randint(num_nodes // 2, (num_nodes, num_samples))
    return conv, x, samples


def full_rows(conv, x, samples):
    r"""All rows of every node's attention in float64, node by node."""
    query, key = (
        (m.weight.detach().double(), m.bias.detach().double())
        for m in (conv.query, conv.key)
    )
    rows = []
    for v in range(samples.size(0)):
        tokens = torch.stack([x[v], *[x[s] for s in samples[v].tolist()]])
        q = tokens @ query[0].t() + query[1]
        k = tokens @ key[0].t() + key[1]
        score = (q @ k.t() / q.size(1) ** 0.5).exp()
        attention = score / score.sum(dim=1, keepdim=True)
        rows.append((1 - conv.mix) * tokens + conv.mix * (attention @ tokens))
    return torch.stack(rows)


def grads(out, conv, x):
    inputs = [x, *conv.parameters()]
    return torch.autograd.grad(out.sin().sum(), inputs, retain_graph=True)


@withCUDA
@pytest.mark.parametrize(
    'kwargs',
    [
        {},
        {'attention_channels': 1, 'mix': 0.5},
        {'attention_channels': 7, 'mix': 1.0, 'num_samples': 1},
        {'mix': 0.0},
        {'num_nodes': 3, 'num_samples': 9},
    ],
)
def test_forward_is_the_first_row_of_the_full_attention(device, kwargs):
    conv, x, samples = make(**kwargs)
    x64 = x.detach().double().requires_grad_()
    expected = full_rows(conv, x64, samples)[:, 0]
    (expected_grad,) = torch.autograd.grad(expected.sin().sum(), x64)
    conv, x = conv.to(device), x.detach().to(device).requires_grad_()
    out = conv(x, samples.to(device))
    assert torch.allclose(out.double().cpu(), expected, atol=1e-6)
    (grad,) = torch.autograd.grad(out.sin().sum(), x)
    assert torch.allclose(grad.double().cpu(), expected_grad, atol=1e-5)


@pytest.mark.parametrize('kwargs', [{}, {'attention_channels': 2, 'mix': 0.6}])
def test_paths_agree(kwargs):
    conv, x, samples = make(**kwargs)
    assert isinstance(conv, MessagePassing)
    assert conv.fuse
    fused = conv(x, samples)
    conv.fuse = False
    plain = conv(x, samples)
    assert torch.allclose(plain, fused, atol=1e-6)
    expected = grads(plain, conv, x)
    assert any(grad.abs().sum() > 0 for grad in expected[1:])
    for a, b in zip(grads(fused, conv, x), expected):
        assert torch.allclose(a, b, atol=1e-5)


def test_each_path_is_really_taken(monkeypatch):
    conv, x, samples = make()
    calls = []
    propagate = conv.propagate
    monkeypatch.setattr(
        conv, 'propagate', lambda *a, **k: calls.append(1) or propagate(*a, **k)
    )
    conv(x, samples)
    assert calls == []
    conv.fuse = False
    conv(x, samples)
    assert calls == [1]


@withCUDA
@pytest.mark.parametrize('kwargs', [{}, {'attention_channels': 2, 'mix': 0.6}])
def test_token_scores(device, kwargs):
    conv, x, samples = make(**kwargs)
    nodes = torch.tensor([3, 0, 3, 10])  # A node may be asked for twice.
    query = torch.randn(4, 5, requires_grad=True)
    x64 = x.detach().double().requires_grad_()
    query64 = query.detach().double().requires_grad_()
    rows = full_rows(conv, x64, samples)
    expected = torch.stack([
        torch.stack([query64[b] @ row for row in rows[v]])
        for b, v in enumerate(nodes.tolist())
    ])
    expected_grads = torch.autograd.grad(expected.sin().sum(), (x64, query64))
    conv = conv.to(device)
    x, query = (y.detach().to(device).requires_grad_() for y in (x, query))
    samples, nodes = samples.to(device), nodes.to(device)
    out = conv.token_scores(x, samples, nodes, query)
    assert out.shape == (4, samples.size(1) + 1)
    assert torch.allclose(out.double().cpu(), expected, atol=1e-5)
    for a, b in zip(torch.autograd.grad(out.sin().sum(), (x, query)), expected_grads):
        assert torch.allclose(a.double().cpu(), b, atol=1e-5)
    # The first column belongs to the rows that `forward` returns.
    own = (conv(x, samples)[nodes] * query).sum(dim=-1)
    assert torch.allclose(
        conv.token_scores(x, samples, nodes, query)[:, 0], own, atol=1e-6
    )


def test_token_scores_reach_the_attention():
    conv, x, samples = make()
    nodes, query = torch.tensor([1, 4]), torch.randn(2, 5)

    def loss():
        score = conv.double().token_scores(
            x.double(), samples, nodes, query.double()
        )
        return (score.logsumexp(dim=1) - score[:, 0]).sum()

    found = torch.autograd.grad(loss(), list(conv.parameters()))
    assert any(grad.abs().max() > 1e-4 for grad in found)
    for p, grad in zip(conv.parameters(), found):  # Against finite differences.
        flat = p.data.view(-1)
        for i in range(0, flat.numel(), 3):
            value = flat[i].item()
            flat[i] = value + 1e-5
            above = loss().item()
            flat[i] = value - 1e-5
            below = loss().item()
            flat[i] = value
            assert grad.view(-1)[i].item() == pytest.approx(
                (above - below) / 2e-5, abs=1e-7
            )


def test_own_token_and_repeats_count():
    conv, x, _ = make()
    # Sampling only oneself leaves the node as it is.
    own = torch.arange(11).unsqueeze(1).repeat(1, 3)
    assert torch.allclose(conv(x, own), x, atol=1e-6)
    # Without mix, nothing moves; with it, a repeated sample weighs more.
    once, twice = torch.tensor([[1]] * 11), torch.tensor([[1, 1]] * 11)
    once, twice = (conv(x, s)[0] - x[0] for s in (once, twice))
    direction = x[1] - x[0]
    assert (twice @ direction) > (once @ direction) > 0


def test_order_of_samples_does_not_matter():
    conv, x, samples = make()
    out = conv(x, samples)
    perm = torch.tensor([2, 0, 3, 1])
    assert torch.allclose(conv(x, samples[:, perm]), out, atol=1e-6)
    nodes, query = torch.tensor([2, 7]), torch.randn(2, 5)
    score = conv.token_scores(x, samples, nodes, query)
    other = conv.token_scores(x, samples[:, perm], nodes, query)
    assert torch.allclose(other[:, 1:], score[:, 1:][:, perm], atol=1e-5)


def test_large_scores_do_not_overflow():
    conv, x, samples = make()
    out = conv(x * 1e4, samples)
    assert out.isfinite().all()
    score = conv.token_scores(x * 1e4, samples, torch.tensor([0]), torch.ones(1, 5))
    assert score.isfinite().all()


def test_initial_values():
    torch.manual_seed(0)
    conv = SampledAttentionConv(64)
    assert sum(p.numel() for p in conv.parameters()) == 520
    bound = (6 / 68) ** 0.5
    for module in (conv.query, conv.key):
        assert 0.9 * bound < module.weight.abs().max() <= bound
        assert module.bias.abs().max() == 0
    before = conv.query.weight.clone()
    conv.reset_parameters()
    assert not torch.equal(conv.query.weight, before)


def test_explain_mode():
    conv, x, samples = make()
    expected = conv(x, samples)
    node = torch.arange(11)
    source = torch.cat([node.unsqueeze(1), samples], dim=1).flatten()
    edge_index = torch.stack([source, node.repeat_interleave(5)])
    mask = torch.ones(55, requires_grad=True)
    set_masks(conv, mask, edge_index, apply_sigmoid=False)
    out = conv(x, samples)
    (grad,) = torch.autograd.grad(out.square().sum(), mask)
    clear_masks(conv)
    assert torch.allclose(out, expected, atol=1e-6)
    assert (grad != 0).all()


@onlyLinux
def test_compile():
    conv, x, samples = make()
    nodes, query = torch.tensor([2, 7]), torch.randn(2, 5)

    def fn(x):
        return conv(x, samples), conv.token_scores(x, samples, nodes, query)

    torch._dynamo.reset()
    compiled = torch.compile(fn, fullgraph=True, backend='aot_eager')
    for a, b in zip(compiled(x), fn(x)):
        assert torch.allclose(a, b, atol=1e-6)
        for c, d in zip(grads(a, conv, x), grads(b, conv, x)):
            assert torch.allclose(c, d, atol=1e-6)


@pytest.mark.parametrize(
    ('args', 'match'),
    [
        ((0,), "'in_channels' must be at least 1"),
        ((4, 0), "'attention_channels' must be at least 1"),
        ((4, 4, 1.5), r"'mix' must be a finite number in \[0.0, 1.0\] \(got 1.5\)"),
    ],
)
def test_bad_arguments(args, match):
    with pytest.raises(ValueError, match=match):
        SampledAttentionConv(*args)


@pytest.mark.parametrize('fuse', [True, False])
@pytest.mark.parametrize('bad', [-1, 11, 70_000_000, -90_000_000])
def test_samples_out_of_range(fuse, bad):
    conv, x, samples = make()
    conv.fuse = fuse
    samples[3, 1] = bad
    match = r"'index' must hold nodes in \[0, 10\]"
    with pytest.raises(ValueError, match=match):
        conv(x, samples)
    with torch.no_grad(), pytest.raises(ValueError, match=match):
        conv(x, samples)
    with pytest.raises(TypeError, match="'index' must be an int64 tensor"):
        conv(x, samples.int())
    with pytest.raises(ValueError, match=r"'index' must have shape \[N, C\]"):
        conv(x, samples[:, 0])
