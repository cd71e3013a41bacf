import gc
import weakref

import torch

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


def test_nothing_is_kept_of_a_tensor_that_is_gone():
    class Fact:
        pass

    x, fact = torch.zeros(3), Fact()
    remembered(x)['a'] = fact
    alive = weakref.ref(fact)
    del fact
    assert alive() is not None
    del x
    gc.collect()
    assert alive() is None


def test_inference_tensors_are_not_remembered():
    with torch.inference_mode():
        x = torch.zeros(3)
        remembered(x)['a'] = 1
        assert remembered(x) == {}
