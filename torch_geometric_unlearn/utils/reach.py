r"""What an object holds."""

from __future__ import annotations

import functools
import gc
import sys
import types
import weakref
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

_PLAIN = (
    str, bytes, int, float, complex, type(None), type, types.ModuleType, types.CodeType
)
# Whatever is in these goes with its owner, so that nobody keeps it.
_WEAK = (
    weakref.ref,
    weakref.WeakKeyDictionary,
    weakref.WeakValueDictionary,
    weakref.WeakSet,
    WeakTensorKeyDictionary,
)
_Remembered = type(functools.cache(lambda: None))
# The attributes of these packages' classes hold nothing of a caller.
_KNOWN = {
    *sys.stdlib_module_names, 'numpy', 'scipy', 'torch', 'torch_geometric',
    'torch_geometric_unlearn',
}


def reachable(root: Any) -> Iterator[tuple[str, Any]]:
    r"""Yields all that an object holds, itself included, each once with the path to it:
    attributes (also those of classes that are not from a known package), containers,
    submodules, what functions have in their closures and defaults, and what
    :func:`functools.cache` remembers.

    It does not look into global variables, weak references, and the elements of arrays
    and tensors.
    """
    stack: list[tuple[str, Any]] = [('', root)]
    seen: dict[int, Any] = {}  # With the objects, whose ids are not given away so.
    while stack:
        path, value = stack.pop()
        if isinstance(value, (*_PLAIN, *_WEAK)) or id(value) in seen:
            continue
        seen[id(value)] = value
        yield path, value
        stack += _children(path, value)


def _children(path: str, value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, (Tensor, np.ndarray)):
        return []
    if isinstance(value, (dict, types.MappingProxyType)):
        keys = [(path, key) for key in value if isinstance(key, tuple)]
        return keys + [(f'{path}[{key!r:.20}]', item) for key, item in value.items()]
    if isinstance(value, (list, tuple, set, frozenset, deque)):
        return [(f'{path}[{n}]', item) for n, item in enumerate(value)]
    if isinstance(value, types.FunctionType):
        cells = zip(value.__code__.co_freevars, value.__closure__ or ())
        inside = {name: cell for name, cell in cells if gc.get_referents(cell)}
        out = [(f'{path}.<{k}>', cell.cell_contents) for k, cell in inside.items()]
        given = [value.__defaults__, value.__kwdefaults__, vars(value)]
        return out + [(path, item) for item in given]
    if isinstance(value, types.MethodType):
        return [(path, value.__self__), (path, value.__func__)]
    if isinstance(value, functools.partial):
        return [(path, x) for x in (value.func, value.args, value.keywords)]
    if isinstance(value, _Remembered):
        return [(path, item) for item in gc.get_referents(value)]
    attributes = dict(getattr(value, '__dict__', {}))
    if isinstance(value, torch.nn.Module):
        for kind in ('_parameters', '_buffers', '_modules'):
            attributes |= attributes.pop(kind, {})
    for cls in type(value).__mro__:
        for name in getattr(cls, '__slots__', ()):
            attributes.setdefault(name, getattr(value, name, None))
        if cls.__module__.partition('.')[0] not in _KNOWN:
            attributes = {**vars(cls), **attributes}
    start = f'{path}.' if path else ''
    return [(f'{start}{name}', item) for name, item in attributes.items()]
