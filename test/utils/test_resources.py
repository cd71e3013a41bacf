import time
from pathlib import Path

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


@pytest.fixture
def resettable_peak():
    try:
        Path('/proc/self/clear_refs').write_text('5')
    except OSError:
        pytest.skip('this system does not reset the peak memory of a process')


def test_peak_memory(resettable_peak):
    num_bytes = 200 * 2**20
    with ResourceMeter() as before:
        pass
    with ResourceMeter() as meter:
        torch.zeros(num_bytes, dtype=torch.uint8).add_(1)
    with ResourceMeter() as after:
        pass
    assert 0.9 < (meter.peak_memory - before.peak_memory) / num_bytes < 1.5
    assert 0.9 < (meter.peak_memory - after.peak_memory) / num_bytes < 1.5
    assert after.peak_memory > 10 * 2**20  # Bytes, not kilobytes.


def test_nested_meters(resettable_peak):
    num_bytes = 200 * 2**20
    with ResourceMeter() as outer:
        torch.zeros(num_bytes, dtype=torch.uint8).add_(1)
        with ResourceMeter() as inner:
            pass
    assert outer.peak_memory - inner.peak_memory > 0.9 * num_bytes
    assert outer.seconds > inner.seconds


def test_peak_resident_memory():
    assert peak_resident_memory() > 10 * 2**20


def test_error_inside_still_measures():
    meter = ResourceMeter()

    def fail():
        time.sleep(0.01)
        raise RuntimeError('inside')

    with pytest.raises(RuntimeError, match='inside'), meter:
        fail()
    assert meter.seconds >= 0.01
    assert meter.peak_memory > 0


@onlyCUDA
def test_peak_memory_on_cuda():
    torch.zeros(400 * 2**20, dtype=torch.uint8, device='cuda')
    with ResourceMeter('cuda') as meter:
        torch.zeros(100 * 2**20, dtype=torch.uint8, device='cuda')
    base = torch.cuda.memory_allocated()
    assert 100 * 2**20 <= meter.peak_memory - base < 150 * 2**20
