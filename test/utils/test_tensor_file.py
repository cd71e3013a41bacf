import math

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from torch_geometric_unlearn.utils.tensor_file import (
    from_plain,
    load_tensors,
    save_tensors,
    to_plain,
)


def test_round_trip(tmp_path):
    value = {
        ('user', 'to', 'item'): {'x': torch.arange(3), 1: [None, True, 1, 1.5, 'ü']},
        'ids': ['a', '1', 1, -(2**70), ('x', 2), '\ud800'],
        'arrays': [np.eye(2, 3), np.zeros((0, 2), np.int8), np.array(True)],
        'tensors': [torch.tensor(2.5, dtype=torch.half), torch.ones(0, 3).bool()],
        'numbers': [np.int64(4), np.float32(0.5), np.str_('b')],
        'inf': (math.inf, -math.inf),
        None: {},
    }
    tensors = {}
    plain = to_plain(value, tensors, 'data')
    save_tensors(tmp_path / 'file', tensors, {'content': plain})
    tensors, meta = load_tensors(tmp_path / 'file')
    assert all(x.data_ptr() % 16 == 0 for x in tensors.values())
    out = from_plain(meta['content'], tensors)
    assert list(out) == list(value)
    assert [type(x) for x in out['ids']] == [str, str, int, int, tuple, str]
    assert out['ids'] == value['ids']
    assert out['inf'] == value['inf']
    first, second = (x['user', 'to', 'item'] for x in (out, value))
    assert torch.equal(first['x'], second['x'])
    assert first[1] == second[1]
    assert first[1][1] is True
    for x, y in zip(out['arrays'], value['arrays']):
        assert isinstance(x, np.ndarray)
        assert (x.dtype, x.shape) == (y.dtype, y.shape)
        assert (x == y).all()
    for x, y in zip(out['tensors'], value['tensors']):
        assert (x.dtype, x.shape) == (y.dtype, y.shape)
    assert out['numbers'] == [4, 0.5, 'b']


def test_tensors_that_share_memory(tmp_path):
    x = torch.arange(12.0).view(3, 4)
    tensors = {'x': x, 'same': x, 'row': x[1], 'column': x[:, 1], 'empty': x[:0]}
    tensors |= {'empty too': x[:0], 'flipped': x.t(), 'trained': x.requires_grad_()}
    save_tensors(tmp_path / 'file', tensors, {})
    out, _ = load_tensors(tmp_path / 'file')
    assert out.keys() == tensors.keys()
    for name, value in tensors.items():
        assert torch.equal(out[name], value), name


@pytest.mark.parametrize(
    'value', [{1}, object, b'x', torch.eye(2).to_sparse(), np.array([object()]), print]
)
def test_what_can_not_be_stored(value):
    with pytest.raises(TypeError, match=r"'data\.a\[1\]' is a '.*can't be stored"):
        to_plain({'a': [0, value]}, {}, 'data')


@pytest.mark.parametrize('header', ['', '[1]', '"x"', '[' * 99_999, '{"a": '])
def test_damaged_header(tmp_path, header):
    path = tmp_path / 'file'
    save_file({'x': torch.ones(1)}, path, {'torch_geometric_unlearn': header})
    with pytest.raises(ValueError, match=r"The header of '.*file' is damaged"):
        load_tensors(path)
