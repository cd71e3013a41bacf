from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist


@contextmanager
def process_group(timeout: float = 1800.0) -> Iterator[None]:
    r"""Joins the processes that ``torchrun`` has started, and leaves them at the end.

    A process group that exists already is used as it is and outlives the block, as does
    one whose block raises: the process should end then, upon which ``torchrun`` ends
    the others. Without ``torchrun``, the block runs on its own, as one process.

    Args:
        timeout (float, optional): Seconds after which a process that waits for another
            one gives up. (default: :obj:`1800.0`)

    Raises:
        RuntimeError: If ``torchrun`` has started this process but neither NCCL nor gloo
            is there.

    Example:
        >>> with process_group():
        ...     processes = Processes()
        >>> processes.num_processes
        1
    """
    is_launched = 'RANK' in os.environ and 'WORLD_SIZE' in os.environ
    if not is_launched or (dist.is_available() and dist.is_initialized()):
        yield
        return
    backend = _backend()
    from torch._C._distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    wait = timedelta(seconds=timeout)
    store, rank, world_size = next(rendezvous('env://', timeout=wait))
    # A process that was started again must not find where a dead one has listened.
    attempt = os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')
    dist.init_process_group(
        backend,
        store=PrefixStore(f'attempt {attempt}', store),
        rank=rank,
        world_size=world_size,
        timeout=wait,
    )
    yield  # After an exception, leaving would wait for others, who wait for this one.
    dist.destroy_process_group()


def _backend() -> str:
    if not dist.is_available():
        raise RuntimeError(
            "This build of torch has no 'torch.distributed'. Install one that has it, "
            'or start without torchrun.'
        )
    if torch.cuda.is_available() and dist.is_nccl_available():
        torch.cuda.set_device(int(os.environ.get('LOCAL_RANK', '0')))
        return 'nccl'
    if not dist.is_gloo_available():
        raise RuntimeError(
            'This build of torch has no gloo, through which processes on CPUs talk. '
            'Install one that has it, or start without torchrun.'
        )
    return 'gloo'
