import enum
import functools
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch_geometric.transforms as T

from torch_geometric_unlearn.transforms import ForgetUsers, ItemKNNGraph
from torch_geometric_unlearn.utils.digest import content_digest, tensor_digest


class Hidden:
    r"""Its representation says nothing, as that of many a transform."""

    rate = 1

    def __init__(self, value):
        self.value = value

    def __call__(self, data):
        return data

    def __repr__(self):
        return 'Hidden()'


class Slots:
    __slots__ = ('x',)

    def __init__(self, x):
        self.x = x


@dataclass
class Record:
    x: int
    y: list = field(default_factory=list)


class Kind(enum.Enum):
    A = 1
    B = 2


def add(offset):
    return lambda data: data + offset


def nested(offset):
    def outer(data):
        def inner():
            return [value + 1 for value in (data, offset)]

        return inner()

    return outer


def defaults(value):
    def function(data, by=value, *, then=value):
        return data * by + then

    return function


def build(code, **names):
    exec(code, names)
    return names['f']


def with_rate(rate):
    return type('Rated', (Hidden,), {'rate': rate, '__module__': __name__})(0)


WRAPPED = [functools.wraps(add)(add(n)) for n in (1, 2)]
PAIRS = {
    'users': (ForgetUsers([1]), ForgetUsers([2])),
    'long_users': (ForgetUsers(range(90)), ForgetUsers([*range(89), 91])),
    'knn': (ItemKNNGraph(4), ItemKNNGraph(5)),
    'tensor': (Hidden(torch.tensor([1])), Hidden(torch.tensor([2]))),
    'tensor_type': (Hidden(torch.tensor([1])), Hidden(torch.tensor([1]).int())),
    'tensor_shape': (Hidden(torch.zeros(2, 3)), Hidden(torch.zeros(3, 2))),
    'middle_of_an_array': (
        Hidden(np.zeros(9999)),
        Hidden(np.eye(1, 9999, 5000)[0]),
    ),
    'array_of_objects': (np.array(['a', 1], object), np.array(['a', 2], object)),
    'array_order': (np.eye(3, 2), np.eye(2, 3).T + np.eye(3, 2)),
    'sparse': (torch.eye(3).to_sparse(), (2 * torch.eye(3)).to_sparse()),
    'compose': (
        T.Compose([Hidden(0), Hidden([{'a': (1,)}])]),
        T.Compose([Hidden(0), Hidden([{'a': (2,)}])]),
    ),
    'compose_order': (
        T.Compose([Hidden(0), ForgetUsers([1])]),
        T.Compose([ForgetUsers([1]), Hidden(0)]),
    ),
    'lambda': (lambda data: data + 1, lambda data: data + 2),
    'closure': (add(1), add(2)),
    'nested': (nested(1), nested(2)),
    'defaults': (defaults(1), defaults(2)),
    'wrapped': tuple(WRAPPED),
    'partial': (functools.partial(add, 1), functools.partial(add, 2)),
    'method': (Hidden(1).__call__, Hidden(2).__call__),
    'cached': (functools.cache(add(1)), functools.cache(add(2))),
    'global': (
        build('f = lambda data: data + K', K=1),
        build('f = lambda data: data + K', K=2),
    ),
    'function_of_a_global': (
        build('def g(x):\n return x\ndef f(x):\n return g(x)'),
        build('def g(x):\n return -x\ndef f(x):\n return g(x)'),
    ),
    'class_attribute': (with_rate(1), with_rate(2)),
    'slots': (Slots(1), Slots(2)),
    'dataclass': (Record(1), Record(1, [2])),
    'enum': (Kind.A, Kind.B),
    'set': ({1, 2}, {1, 3}),
    'key': ({1: 0}, {'1': 0}),
    'bool': (True, 1),
    'float': (1.0, 1),
    'namespace': (SimpleNamespace(a=1), SimpleNamespace(b=1)),
    'path': (Path('a'), Path('b')),
    'date': (datetime(2020, 1, 1), datetime(2020, 1, 2)),
    'ordered': (OrderedDict(a=1), OrderedDict(a=2)),
    'generator': (torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)),
    'numpy_generator': (np.random.default_rng(1), np.random.default_rng(2)),
    'numpy_number': (np.int64(1), np.int32(1)),
    'module': (torch.nn.Dropout(0.1), torch.nn.Dropout(0.2)),
    'builtin': (len, max),
    'bound_builtin': ([1].count, [2].count),
    'list_and_tuple': ([1], (1,)),
    'boundaries': (['ab', 'c'], ['a', 'bc']),
}


@pytest.mark.parametrize('name', PAIRS)
def test_what_differs_has_another_digest(name):
    first, second = PAIRS[name]
    assert content_digest(first) != content_digest(second)
    assert content_digest(first) == content_digest(first)
    assert content_digest([second]) == content_digest([second])


def test_what_is_equal_has_the_same_digest():
    assert content_digest(ForgetUsers([1])) == content_digest(ForgetUsers((1,)))
    assert content_digest(add(3)) == content_digest(add(3))
    assert content_digest({'a', 'b', 'c'}) == content_digest({'c', 'b', 'a'})
    x = torch.arange(6.0).view(2, 3)
    assert content_digest(x) == content_digest(x.t().contiguous().t())
    assert content_digest(Hidden([1])) == content_digest(Hidden([1]))


def test_cycles():
    def loop(value):
        out = Hidden([value])
        out.value.append(out)
        return out

    assert content_digest(loop(1)) == content_digest(loop(1)) != content_digest(loop(2))

    def recursive(x):
        return recursive(x - 1) if x else 0

    assert content_digest(recursive) == content_digest(recursive)


CODE = '''
from torch_geometric_unlearn.utils.digest import content_digest
from torch_geometric_unlearn.transforms import ForgetUsers
names = {"a", "b", "c", "d"}
class Keep:
    def __call__(self, data):
        return data if names & set(data) else ForgetUsers([1])(data)
found = content_digest([Keep(), lambda data: data in {"x", "y", "z"}])
'''


def test_the_same_in_every_process(run_code):
    names = {'__name__': '__main__'}
    exec(CODE, names)
    # The process has its own hashes of strings, on which the order of sets depends.
    check = f'assert found == {names["found"]!r}'
    assert run_code(f'__name__ = "__main__"\n{CODE}{check}') == 0


def test_what_has_no_content(tmp_path):
    with (tmp_path / 'file').open('w') as file:
        for value in (threading.Lock(), file, (i for i in [1])):
            with pytest.raises(TypeError, match=r"'steps\.value\[0\]' is a '.*no con"):
                content_digest(Hidden([value]), 'steps')
    with pytest.raises(TypeError, match="'value' is a 'Tensor'"):
        content_digest(torch.ones(1, device='meta'))


def test_tensor_digest():
    x = torch.arange(4)
    assert tensor_digest([x]) == tensor_digest([x.clone()])
    others = [x.int(), x.view(2, 2), x.flip(0), x[:3]]
    assert len({tensor_digest([x]), *(tensor_digest([y]) for y in others)}) == 5
