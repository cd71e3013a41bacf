r"""Randomness that comes only from seeds which the caller can set."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

_lock = threading.RLock()


def _renew() -> None:
    global _lock
    _lock = threading.RLock()


if hasattr(os, 'register_at_fork'):  # The thread that held it is not in the child.
    os.register_at_fork(after_in_child=_renew)


@contextmanager
def one_at_a_time() -> Iterator[None]:
    r"""Runs the block in one thread of the process at a time; blocks may be nested.

    Unlearning, training and audits that train draw from torch's global generators,
    which all threads share, and so wait for each other here. Reading a model doesn't.
    """
    with _lock:
        yield


def check_seed(seed: Any, name: str = 'seed') -> int:
    r"""Returns :obj:`seed` as a plain integer.

    Raises:
        ValueError: If it is no integer in :math:`[0, 2^{63})`.
    """
    is_int = isinstance(seed, Integral) and not isinstance(seed, bool)
    if not is_int or not 0 <= seed < 2**63:
        raise ValueError(f"'{name}' must be an integer in [0, 2**63) (got {seed!r})")
    return int(seed)


def generator(seed: int, device: torch.device | str = 'cpu') -> torch.Generator:
    r"""Returns a :class:`torch.Generator` on :obj:`device`, seeded with :obj:`seed`.

    Raises:
        ValueError: If :obj:`seed` is no integer in :math:`[0, 2^{63})`.
    """
    return torch.Generator(device).manual_seed(check_seed(seed))


@contextmanager
def isolated_seed(seed: int) -> Iterator[None]:
    r"""Seeds torch's global generators inside the block and restores them after it.

    For code that draws from the global generators, as :obj:`torch.nn.init` does. Other
    threads that come here wait for the end of the block. Those that draw from the
    global generators without it are not held off, and would take part of its numbers.
    """
    seed = check_seed(seed)
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    with one_at_a_time(), torch.random.fork_rng(devices=list(devices)):
        torch.manual_seed(seed)
        yield


def random_states(rng: torch.Generator, device: torch.device) -> dict[str, Tensor]:
    r"""Returns what :meth:`set_random_states` brings back: the states of a generator
    and of torch's global ones, by name.
    """
    states = {'rng/loader': rng.get_state(), 'rng/cpu': torch.get_rng_state()}
    if device.type == 'cuda':
        states['rng/cuda'] = torch.cuda.get_rng_state(device)
    return states


def set_random_states(
    states: Mapping[str, Tensor], rng: torch.Generator, device: torch.device
) -> None:
    r"""Sets a generator and torch's global ones to what :meth:`random_states` found."""
    rng.set_state(states['rng/loader'])
    torch.set_rng_state(states['rng/cpu'])
    if 'rng/cuda' in states and device.type == 'cuda':
        torch.cuda.set_rng_state(states['rng/cuda'], device)
