import os
import time
from functools import partial

import pytest
import torch
from torch_geometric.testing import withCUDA

from torch_geometric_unlearn.utils.seed import (
    generator,
    isolated_seed,
    one_at_a_time,
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


def test_threads_take_turns(run_in_threads):
    def draw(seed):
        with isolated_seed(seed):
            out = []
            for _ in range(5):
                out.append(torch.rand(2))
                time.sleep(2e-3)  # Lets another thread run.
                with isolated_seed(7), one_at_a_time():  # Nested blocks don't wait.
                    torch.rand(1)
        return torch.cat(out)

    expected, state = [draw(seed) for seed in (0, 1, 2)], torch.get_rng_state()
    got = run_in_threads(*(partial(draw, seed) for seed in (0, 1, 2)))
    for x, y in zip(got, expected):
        assert torch.equal(x, y)
    assert torch.equal(torch.get_rng_state(), state)


def draw_one(seed):
    with isolated_seed(seed):
        return float(torch.rand(()))


def test_an_error_lets_the_next_thread_in(run_in_threads):
    with pytest.raises(KeyError), isolated_seed(3):
        raise KeyError
    drawn = run_in_threads(lambda: draw_one(3), lambda: draw_one(3))
    assert drawn == [draw_one(3)] * 2


FORK = """
import os, threading
from torch_geometric_unlearn.utils.seed import isolated_seed
inside, done = threading.Event(), threading.Event()

def hold():
    with isolated_seed(0):
        inside.set()
        done.wait()

thread = threading.Thread(target=hold)
thread.start()
inside.wait()
child = os.fork()
if child == 0:
    with isolated_seed(1):
        os._exit(3)
status = os.waitpid(child, 0)[1]
done.set()
thread.join()
os._exit(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs forks')
def test_a_forked_process_does_not_wait_for_a_thread_of_its_parent(run_code):
    assert run_code(FORK) == 3
