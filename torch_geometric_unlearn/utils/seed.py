r"""Randomness that comes only from seeds which the caller can set."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def generator(seed: int, device: torch.device | str = 'cpu') -> torch.Generator:
    r"""Returns a :class:`torch.Generator` on :obj:`device`, seeded with :obj:`seed`.

    Raises:
        ValueError: If :obj:`seed` is no integer in :math:`[0, 2^{63})`.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise ValueError(f"'seed' must be an integer in [0, 2**63) (got {seed!r})")
    return torch.Generator(device).manual_seed(seed)


@contextmanager
def isolated_seed(seed: int) -> Iterator[None]:
    r"""Seeds torch's global generators inside the block and restores them after it.

    For code that draws from the global generators, as :obj:`torch.nn.init` does.
    """
    generator(seed)  # Checks the seed.
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=list(devices)):
        torch.manual_seed(seed)
        yield
