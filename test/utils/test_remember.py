import gc

import torch

from torch_geometric_unlearn.utils import remember
from torch_geometric_unlearn.utils.remember import remembered


def test_as_long_as_it_lives_and_is_not_written_to():
    x, other = torch.zeros(3), torch.zeros(3)
    remembered(x)['a'] = 1
    assert remembered(x) == {'a': 1}
    assert remembered(other) == {}  # Equal values are another tensor.
    x[0] = 1
    assert remembered(x) == {}
    remembered(x)['b'] = 2
    x.requires_grad_(True).sum().backward()
    assert remembered(x) == {'b': 2}
    before = len(remember._facts)
    del x
    gc.collect()
    assert len(remember._facts) == before - 1


def test_inference_tensors_are_not_remembered():
    with torch.inference_mode():
        x = torch.zeros(3)
        remembered(x)['a'] = 1
        assert remembered(x) == {}
