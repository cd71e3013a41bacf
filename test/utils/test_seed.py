import pytest
import torch
from torch_geometric.testing import withCUDA

from torch_geometric_unlearn.utils.seed import (
    generator,
    isolated_seed,
    random_states,
    set_random_states,
)


@withCUDA
def test_generator(device):
    state = torch.get_rng_state()
    a, b, c = (generator(seed, device) for seed in (0, 0, 1))
    draws = [torch.rand(5, generator=gen, device=device) for gen in (a, b, c)]
    assert a.device == device
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert torch.equal(torch.get_rng_state(), state)
    assert generator(2**63 - 1).initial_seed() == 2**63 - 1


@pytest.mark.parametrize('seed', [-1, 2**63, 0.5, '0', None, True])
def test_bad_seed(seed):
    match = r"'seed' must be an integer in \[0, 2\*\*63\) \(got "
    with pytest.raises(ValueError, match=match):
        generator(seed)
    with pytest.raises(ValueError, match=match), isolated_seed(seed):
        pass


def test_isolated_seed():
    torch.manual_seed(11)
    first, second = torch.rand(2), torch.rand(2)
    torch.manual_seed(11)
    assert torch.equal(torch.rand(2), first)
    with isolated_seed(3):
        inside = torch.rand(4)
    assert torch.equal(torch.rand(2), second)
    with isolated_seed(3):
        assert torch.equal(torch.rand(4), inside)


def test_isolated_seed_restores_after_an_error():
    state = torch.get_rng_state()

    def fail():
        torch.rand(1)
        raise RuntimeError('inside')

    with pytest.raises(RuntimeError, match='inside'), isolated_seed(3):
        fail()
    assert torch.equal(torch.get_rng_state(), state)


@withCUDA
def test_random_states(device):
    rng = generator(3)
    states = random_states(rng, device)

    def draw():
        local = torch.rand(4, generator=rng), torch.rand(4)
        return torch.cat([*local, torch.rand(4, device=device).cpu()])

    first, second = draw(), draw()
    set_random_states(states, rng, device)
    assert torch.equal(draw(), first)
    assert torch.equal(draw(), second)
