r"""Wall time and peak memory of a block of work."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from pathlib import Path

import torch


class ResourceMeter:
    r"""Measures wall time in seconds and peak memory in bytes of a :obj:`with` block.

    On CUDA, peak memory is what torch has allocated on the device, and the device is
    synchronised before both time stamps. On the CPU it is the peak resident memory of
    the process, reset on entry where the system allows it (Linux), else since the
    start of the process.

    Args:
        device (torch.device, optional): Where the work runs.
            (default: :obj:`'cpu'`)
    """

    def __init__(self, device: torch.device | str = 'cpu') -> None:
        self.device = torch.device(device)
        self.seconds = 0.0
        self.peak_memory = 0

    def __enter__(self) -> ResourceMeter:
        for meter in _active:  # The reset below would hide their peak so far.
            meter._note_peak()
        _active.append(self)
        if self.device.type == 'cuda':
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            with suppress(OSError):
                Path('/proc/self/clear_refs').write_text('5')
        self._start = self._now()
        return self

    def __exit__(self, *args: object) -> None:
        self.seconds = self._now() - self._start
        self._note_peak()
        _active.remove(self)

    @property
    def elapsed(self) -> float:
        r"""Seconds since the block was entered."""
        return self._now() - self._start

    def _note_peak(self) -> None:
        if self.device.type == 'cuda':
            peak = torch.cuda.max_memory_allocated(self.device)
        else:
            peak = peak_resident_memory()
        self.peak_memory = max(self.peak_memory, peak)

    def _now(self) -> float:
        if self.device.type == 'cuda':
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


_active: list[ResourceMeter] = []


def peak_resident_memory() -> int:
    r"""Returns the peak resident memory of this process in bytes (0 if unknown)."""
    with suppress(OSError):
        for line in Path('/proc/self/status').read_text().splitlines():
            if line.startswith('VmHWM:'):
                return int(line.split()[1]) * 1024
    with suppress(ImportError):
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == 'darwin' else peak * 1024
    return 0
