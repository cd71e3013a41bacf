r"""A rehearsal refuses what CUDA refuses, permits what it permits, and computes the
same.
"""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer

from torch_geometric_unlearn.testing import rehearse_cuda


@pytest.fixture
def rehearsal():
    with rehearse_cuda() as rehearsal:
        yield rehearsal


@pytest.fixture
def x(rehearsal):
    x = torch.arange(6.0).view(3, 2).cuda()
    rehearsal.waits.clear()
    return x


HOST = torch.ones(3, 2)
MIXED = {
    'add': lambda x: x + HOST,
    'add to host': lambda x: HOST + x,
    'in place': lambda x: HOST.clone().add_(x),
    'out': lambda x: torch.add(x, 1, out=HOST.clone()),
    'scalar into host': lambda x: torch.tensor(1.0).add_(x.sum()),
    'device scalar with host': lambda x: HOST + x.sum(),
    'matmul': lambda x: x @ HOST.t(),
    'addmm with a scalar': lambda x: torch.addmm(torch.tensor(1.0), x, x.t()),
    'cat': lambda x: torch.cat([x, HOST]),
    'stack of scalars': lambda x: torch.stack([x.sum(), torch.tensor(1.0)]),
    'index_select': lambda x: x.index_select(0, torch.tensor([0])),
    'index_add': lambda x: x.index_add(0, torch.tensor([0]), x[:1]),
    'gather': lambda x: x.gather(0, torch.tensor([[0, 1]])),
    'embedding': lambda x: F.embedding(torch.tensor([0]), x),
    'host by device index': lambda x: HOST[x.long()[:, 0].clamp(max=2)],
    'mask of host': lambda x: HOST[x > 1],
    'value': lambda x: x.index_put_((torch.tensor([0, 1]),), HOST[:2]),
    'where': lambda x: torch.where(x > 1, x, HOST),
    'isin': lambda x: torch.isin(x, HOST),
    'searchsorted': lambda x: torch.searchsorted(x[:, 0].contiguous(), HOST[:, 0]),
    'equal': lambda x: torch.equal(x, HOST),
    'masked_fill': lambda x: x.masked_fill(HOST > 0, 0.0),
    'loss': lambda x: F.binary_cross_entropy_with_logits(x, HOST),
    'layer': lambda x: torch.nn.Linear(2, 3)(x),
    'repeats': lambda x: x.repeat_interleave(torch.tensor([1, 2, 0]), dim=0),
}


@pytest.mark.parametrize('name', MIXED)
def test_mixed_devices_are_refused(name, x):
    with pytest.raises(RuntimeError, match=r'same device'):
        MIXED[name](x)


def test_mixed_gradient_is_refused(x):
    class Mixed(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x: Tensor) -> Tensor:
            return x * 1

        @staticmethod
        def backward(ctx, grad: Tensor) -> Tensor:
            return grad * HOST

    with pytest.raises(RuntimeError, match=r'same device'):
        Mixed.apply(x.requires_grad_()).sum().backward()


ONE = torch.tensor(2.0)
PERMITTED = {
    'scalar': lambda x: x * ONE,
    'scalar first': lambda x: ONE - x,
    'in place': lambda x: x.clone().mul_(ONE),
    'comparison': lambda x: x > ONE,
    'where': lambda x: torch.where(x > 1, x, ONE),
    'masked_fill': lambda x: x.masked_fill(x > 1, ONE),
    'fill': lambda x: torch.empty_like(x).fill_(ONE),
    'host index': lambda x: x[torch.tensor([2, 0])],
    'host mask': lambda x: x[torch.tensor([True, False, True])],
    'host index to write': lambda x: x.clone().index_put_((torch.tensor([1]),), ONE),
    'number': lambda x: x.clone().index_fill_(0, x.new_tensor([1]).long(), 7.0),
    'copy': lambda x: torch.empty_like(x).copy_(HOST),
    'slice of host': lambda x: _assigned(x, (slice(1), slice(None)), HOST[:1]),
    'assignment by mask': lambda x: _assigned(x, x > 1, -torch.inf),
    'assignment by index': lambda x: _assigned(x, x.new_tensor([1]).long(), 3.0),
    'assignment by place': lambda x: _assigned(x, (0, 1), 3.0),
    'factories': lambda x: torch.stack([
        torch.zeros_like(x), x.new_ones(3, 2), torch.full((3, 2), 5.0, device=x.device),
        torch.ones(3, 2, device='cuda'), torch.tensor(HOST.tolist(), device='cuda'),
    ]),
    'vector': lambda x: x.new_ones(3) @ x,
    'sort': lambda x: torch.stack(x.sort(dim=1, descending=True)),
    'views in place': lambda x: x.clone().t_().unsqueeze_(0).squeeze_(0).resize_(4),
    'autocast': lambda x: _under_autocast(x),
}  # fmt: skip


def _assigned(x: Tensor, key, value) -> Tensor:
    x = x.clone()
    x[key] = value
    return x


def _under_autocast(x: Tensor) -> Tensor:
    with torch.autocast(x.device.type, torch.bfloat16, enabled=False):
        return x @ x.t()


@pytest.mark.parametrize('name', PERMITTED)
def test_the_rest_is_permitted_and_the_same(name, x):
    out = PERMITTED[name](x)
    assert out.is_cuda
    assert out.device == torch.device('cuda:0')
    out, x = out.cpu(), x.cpu()
    assert type(out) is type(x) is Tensor
    # The factories name the device.
    if name == 'factories':
        assert out[:, 0, 0].tolist() == [0, 1, 5, 1, 1]
        return
    expected = PERMITTED[name](x)
    assert torch.equal(out, expected)
    assert out.stride() == expected.stride()


WAITS = {
    'item': lambda x: x.sum().item(),
    'float': lambda x: float(x.sum()),
    'bool': lambda x: bool((x > 1).any()),
    'tolist': lambda x: x.tolist(),
    'print': lambda x: f'{x}',
    'format': lambda x: f'{x.sum():.3f}',
    'cpu': lambda x: x.cpu(),
    'to the device': lambda x: HOST.to(x.device),
    'tensor of a list': lambda x: torch.tensor([1.0, 2.0], device=x.device),
    'copy': lambda x: x.copy_(HOST),
    'nonzero': lambda x: x.nonzero(),
    'where': lambda x: torch.where(x > 1),
    'mask': lambda x: x[x > 1],
    'masked_select': lambda x: x.masked_select(x > 1),
    'write by mask': lambda x: _assigned(x, x > 4, x.new_ones(1)),
    'write a number by index': lambda x: _assigned(x, x.long()[:1, 0], 1.0),
    'host index': lambda x: x[torch.tensor([0])],
    'place by tensor': lambda x: x[x.long()[0, 1]],
    'unique': lambda x: x.unique(),
    'equal': lambda x: torch.equal(x, x),
    'allclose': lambda x: torch.allclose(x, x),
    'bincount': lambda x: x.long().flatten().bincount(),
    'repeat': lambda x: x.repeat_interleave(x.long()[:, 0], dim=0),
    'one_hot': lambda x: F.one_hot(x.long()),
    'isin': lambda x: torch.isin(x, torch.zeros(50, device=x.device)),
    'cholesky': lambda x: torch.linalg.cholesky(x.t() @ x),
    'synchronize': lambda x: torch.cuda.synchronize(),
}


@pytest.mark.parametrize('name', WAITS)
def test_waits_are_noted(name, x, rehearsal):
    WAITS[name](x)
    assert rehearsal.waits
    assert all(not wait.in_step for wait in rehearsal.waits)
    assert rehearsal.waits[-1].place.startswith('test_rehearse_cuda.py:')


FREE = {
    'arithmetic': lambda x: (x * 2).sum(),
    'to the device, not blocking': lambda x: HOST.to(x.device, non_blocking=True),
    'same device': lambda x: x.to('cuda'),
    'number by mask': lambda x: _assigned(x, x > 1, 0.0),
    'number by slice': lambda x: _assigned(x, slice(1), 0.0),
    'device index': lambda x: x[x.long()[:1, 0]],
    'repeat': lambda x: x.repeat_interleave(x.long()[:, 0], dim=0, output_size=6),
    'shape': lambda x: (x.size(0), x.dtype, x.device, len(x), x.requires_grad),
    'isin few': lambda x: torch.isin(x, torch.zeros(2, device=x.device)),
    'topk': lambda x: x.topk(1),
}


@pytest.mark.parametrize('name', FREE)
def test_nothing_else_waits(name, x, rehearsal):
    FREE[name](x)
    assert rehearsal.waits == []


def test_the_same_device_is_no_copy(x):
    assert x.to('cuda') is x
    assert x.to(x.device) is x
    model = torch.nn.Linear(2, 2).cuda()
    weight = model.weight
    assert model.cuda().weight is weight


def test_numpy_is_refused(x):
    with pytest.raises(TypeError, match=r"can't convert cuda:0 device type"):
        x.numpy()
    assert x.numpy(force=True).sum() == 15


def test_generators(rehearsal):
    host, device = torch.Generator(), torch.Generator('cuda')
    assert isinstance(host, torch.Generator)
    assert (host.device.type, device.device.type) == ('cpu', 'cuda')
    with pytest.raises(RuntimeError, match=r"Expected a 'cuda' device type"):
        torch.randperm(5, generator=host, device='cuda')
    with pytest.raises(RuntimeError, match=r"Expected a 'cuda' device type"):
        torch.empty(3, device='cuda').normal_(generator=host)
    with pytest.raises(RuntimeError, match=r"Expected a 'cpu' device type"):
        torch.randperm(5, generator=device)
    x = torch.randperm(5, generator=device.manual_seed(3), device='cuda')
    assert x.is_cuda
    assert x.tolist() == torch.randperm(5, generator=host.manual_seed(3)).tolist()


def train(device: str, plant=lambda x: None) -> list[Tensor]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(4, 8), torch.nn.Dropout(), torch.nn.Linear(8, 1)
    ).to(device)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    x, y = torch.randn(16, 4).to(device), torch.randn(16, 1).to(device)
    for _ in range(3):
        optimizer.zero_grad()
        loss = F.mse_loss(model(x), y)
        plant(loss)
        loss.backward()
        optimizer.step()
    loss.item()  # After the step, one may look.
    return [p.detach().cpu() for p in copy.deepcopy(model).parameters()]


def test_training_is_the_same(rehearsal):
    for a, b in zip(train('cpu'), train('cuda')):
        assert torch.equal(a, b)
    assert not any(wait.in_step for wait in rehearsal.waits)


def test_a_wait_in_a_step_is_refused():
    with rehearse_cuda(), pytest.raises(
        RuntimeError, match=r"inside a training step: 'aten._local_scalar_dense"
    ):
        train('cuda', plant=lambda loss: loss.item())
    with rehearse_cuda(allow=['test_rehearse_cuda.py:look']) as rehearsal:

        def look(loss: Tensor) -> None:
            loss.item()

        train('cuda', plant=look)
    assert sum(wait.in_step for wait in rehearsal.waits) == 3


def test_nothing_is_left_behind():

    def state():
        return torch.cuda.is_available(), torch.Generator, Optimizer.zero_grad

    before = state()
    with rehearse_cuda():
        x = torch.ones(2).cuda()
        assert all(a != b for a, b in zip(before, state()))
    with pytest.raises(RuntimeError, match=r'same device'), rehearse_cuda():
        torch.ones(2).cuda() + torch.ones(2)
    assert before == state()
    with pytest.raises(RuntimeError, match=r'after the end of its block'):
        x + 1
    assert torch.ones(2, device='meta').is_meta


def test_what_can_not_be_followed(x):
    with pytest.raises(RuntimeError, match=r"'add' has changed the shape"):
        torch.add(x, 1, out=x.new_empty(0))


def test_an_error_is_not_hidden_by_a_wait():
    def fails(loss: Tensor) -> None:
        try:
            raise ValueError('no')
        finally:
            loss.item()

    with rehearse_cuda(), pytest.raises(ValueError, match='no'):
        train('cuda', plant=fails)


def test_data_of_a_parameter(x):
    weight = torch.nn.Parameter(x)
    assert isinstance(weight, torch.nn.Parameter)
    weight.data = x + 1
    assert weight.tolist() == [[1, 2], [3, 4], [5, 6]]
    assert weight.data.is_cuda
    assert not weight.data.requires_grad
    twin = copy.deepcopy(weight)
    assert isinstance(twin, torch.nn.Parameter)
    with torch.no_grad():
        weight.zero_()
    assert twin.sum() == 21


@pytest.mark.filterwarnings('ignore:Sparse')
def test_sparse(x):
    rowptr, col = torch.tensor([0, 1, 1, 3]).cuda(), torch.tensor([1, 0, 2]).cuda()
    value = torch.ones(3).cuda()
    size = (3, 3)
    matrix = torch.sparse_csr_tensor(rowptr, col, value, size, check_invariants=False)
    assert matrix.layout == torch.sparse_csr
    assert matrix.is_cuda
    assert (matrix @ x).tolist() == [[2, 3], [0, 0], [4, 6]]
    with pytest.raises(RuntimeError, match=r'same device'):
        matrix @ HOST
