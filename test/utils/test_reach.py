import functools
import gc
import weakref
from types import SimpleNamespace

import torch

from torch_geometric_unlearn.utils.reach import reachable


class Slotted:
    __slots__ = ('inside',)


class Owner:
    shared = None

    @functools.cache  # noqa: B019
    def remembers(self):
        return self.made


def paths(root, target):
    return [path for path, value in reachable(root) if value is target]


def test_every_way_to_hold():
    target = torch.zeros(3)
    slotted = Slotted()
    slotted.inside = target
    module = torch.nn.Sequential(torch.nn.ReLU())
    module[0].register_buffer('x', target)
    hooked = torch.nn.ReLU()
    hooked.register_forward_hook(lambda *_, x=target: None)
    owner = Owner()
    owner.made = target

    def closure():
        return target

    class Bound:
        def __init__(self):
            self.value = target

        def method(self):
            pass

    for root, path in [
        ({'a': [(0, target)]}, "['a'][0][1]"),
        ({(target, 1): None}, '[0]'),
        (SimpleNamespace(a=SimpleNamespace(b=target)), 'a.b'),
        (slotted, 'inside'),
        (module, '0.x'),
        (closure, '.<target>'),
        (lambda x=target: x, '[0]'),
        (functools.partial(print, target), '[0]'),
        (Bound().method, 'value'),
        (owner, 'made'),
    ]:
        assert paths(root, target) == [path]
    assert len(paths(hooked, target)) == 1
    del owner.made
    assert paths(Owner(), target) == []
    owner.made = target
    owner.remembers()
    assert len(paths(Owner(), target)) == 1  # All of the class remember it.
    Owner.remembers.cache_clear()
    Owner.shared = target
    assert paths(Owner(), target) == ['shared']
    Owner.shared = None


def test_what_is_not_held():
    target = torch.zeros(3)
    by_key = weakref.WeakKeyDictionary({target: target})
    for root in (weakref.ref(target), [by_key], torch.nn.Sequential, gc):
        assert paths(root, target) == []


def test_each_once_and_no_end():
    circle = [torch.zeros(1)]
    circle.append(circle)
    assert [path for path, _ in reachable(circle)] == ['', '[0]']
