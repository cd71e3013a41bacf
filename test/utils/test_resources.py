import sys
import time

import pytest
import torch
from torch_geometric.testing import onlyCUDA

from torch_geometric_unlearn.utils.resources import (
    ResourceMeter,
    peak_resident_memory,
)


def test_seconds():
    meter = ResourceMeter()
    assert meter.seconds == meter.peak_memory == 0
    with meter:
        time.sleep(0.05)
        assert 0.05 <= meter.elapsed < 2
    assert 0.05 <= meter.seconds < 2
    seconds = meter.seconds
    time.sleep(0.01)
    assert meter.seconds == seconds
    with meter:  # It can be used again.
        pass
    assert meter.seconds < seconds


@pytest.mark.skipif(sys.platform != 'linux', reason='the peak is reset on Linux only')
def test_peak_memory():
    num_bytes = 200 * 2**20
    with ResourceMeter() as before:
        pass
    with ResourceMeter() as meter:
        torch.zeros(num_bytes, dtype=torch.uint8).add_(1)
    with ResourceMeter() as after:
        pass
    assert meter.peak_memory - before.peak_memory > 0.9 * num_bytes
    assert meter.peak_memory - before.peak_memory < 1.5 * num_bytes
    assert peak_resident_memory() > 0
    # Where a container forbids the reset, the peak is that of the whole process.
    assert after.peak_memory <= meter.peak_memory


def test_error_inside_still_measures():
    meter = ResourceMeter()
    with pytest.raises(RuntimeError, match='inside'), meter:
        time.sleep(0.01)
        raise RuntimeError('inside')
    assert meter.seconds >= 0.01
    assert meter.peak_memory > 0


@onlyCUDA
def test_peak_memory_on_cuda():
    torch.zeros(400 * 2**20, dtype=torch.uint8, device='cuda')
    with ResourceMeter('cuda') as meter:
        torch.zeros(100 * 2**20, dtype=torch.uint8, device='cuda')
    base = torch.cuda.memory_allocated()
    assert 100 * 2**20 <= meter.peak_memory - base < 150 * 2**20
