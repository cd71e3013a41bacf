r"""The parts of :obj:`torch.cuda` that a rehearsal answers for."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor

from ._claimed import CLAIMED


class _AnyGenerator(type(torch._C.Generator)):  # type: ignore[misc]
    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, torch._C.Generator)


class ClaimedGenerator(torch._C.Generator, metaclass=_AnyGenerator):
    r"""Stands in for :class:`torch.Generator`: it makes the same ones on the CPU, and
    others that claim to be on the device.
    """

    _made: ClassVar[Any] = weakref.WeakSet()

    def __new__(cls, device: Any = 'cpu') -> Any:
        if torch.device(device).type == 'cpu':
            return torch._C.Generator()
        out = super().__new__(cls)
        cls._made.add(out)
        return out

    def __init__(self, device: Any = 'cpu') -> None:
        pass

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return CLAIMED


def check_generators(values: Iterable[Any], arrives: bool) -> None:
    r"""Raises as CUDA does if there is a generator that is not on the device of the
    result.

    Args:
        values (iterable): The arguments of an operator.
        arrives (bool): Whether the result is on the claimed device.

    Raises:
        RuntimeError: If it is on another one.
    """
    value: Any
    for value in values:
        if isinstance(value, torch._C.Generator):
            # Operators get another object of Python around the same generator.
            own = {made._cdata for made in ClaimedGenerator._made}
            is_own = value._cdata in own  # type: ignore[attr-defined]
            if is_own != arrives:
                types = ('cpu', CLAIMED.type)
                raise RuntimeError(
                    f"Expected a '{types[arrives]}' device type for generator but "
                    f"found '{types[is_own]}'"
                )


def runtime(note_wait: Callable[[str], None]) -> dict[str, Any]:
    r"""Returns functions of :obj:`torch.cuda` by name. There is one device, whose
    random numbers are those of the CPU and which holds no memory of its own.
    """

    def set_rng_state(state: Tensor, device: Any = 'cuda') -> None:
        torch.set_rng_state(state)

    return {
        'is_available': lambda: True,
        'device_count': lambda: 1,
        'current_device': lambda: 0,
        'get_device_name': lambda device=None: 'rehearsal',
        'get_device_capability': lambda device=None: (0, 0),
        'is_bf16_supported': lambda *args, **kwargs: True,
        'synchronize': lambda device=None: note_wait('torch.cuda.synchronize'),
        'reset_peak_memory_stats': lambda device=None: None,
        'max_memory_allocated': lambda device=None: 0,
        'memory_allocated': lambda device=None: 0,
        'empty_cache': lambda: None,
        'get_rng_state': lambda device='cuda': torch.get_rng_state(),
        'set_rng_state': set_rng_state,
    }
