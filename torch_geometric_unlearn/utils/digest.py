r"""Digests of values by their whole content, the same in every process."""

from __future__ import annotations

import dis
import sys
from collections.abc import Iterable
from contextlib import suppress
from functools import cache, cached_property
from hashlib import sha256
from pathlib import Path
from types import (
    BuiltinFunctionType,
    CodeType,
    FunctionType,
    GetSetDescriptorType,
    MappingProxyType,
    MemberDescriptorType,
    MethodType,
    ModuleType,
)
from typing import Any

import numpy as np
import torch
from torch import Tensor

_PLAIN = (type(None), bool, int, float, complex, str, bytes, type(...))
_LIBRARIES = {'site-packages', 'dist-packages'}
#: Entries of classes that say nothing of what they do.
_NO_CONTENT = {
    '__abstractmethods__',
    '__annotate__',
    '__annotate_func__',
    '__annotations__',
    '__annotations_cache__',
    '__dict__',
    '__doc__',
    '__firstlineno__',
    '__module__',
    '__orig_bases__',
    '__parameters__',
    '__slotnames__',
    '__static_attributes__',
    '__weakref__',
    '_abc_impl',
}


def content_digest(value: Any, name: str = 'value') -> str:
    r"""Returns a hash of everything that :obj:`value` consists of.

    Tensors and arrays count by their values, containers by their entries, objects by
    their class and what they would be pickled by, functions by their code, defaults,
    enclosed variables and the globals that they read, and classes by their functions.
    Where code belongs to an installed package, name and version stand for it.

    Args:
        value (Any): The value.
        name (str, optional): What an error calls it. (default: :obj:`'value'`)

    Raises:
        TypeError: If a part has no content to compare, such as an open file; names it.
    """
    content = _Content()
    content.add(value, name)
    return content.digest.hexdigest()


def tensor_digest(tensors: Iterable[Tensor]) -> str:
    r"""Returns a hash of types, shapes and contents of tensors on any device."""
    digest = sha256()
    for tensor in tensors:
        digest.update(f'{tensor.dtype} {list(tensor.shape)}'.encode())
        digest.update(_tensor_bytes(tensor))
    return digest.hexdigest()[:16]


class _Content:
    r"""Feeds values into a digest, each part with its type and length."""

    def __init__(self) -> None:
        self.digest = sha256()
        # With the values themselves, whose ids must not be given away meanwhile.
        self.seen: dict[int, tuple[int, Any]] = {}

    def write(self, *parts: Any) -> None:
        for part in parts:
            content = part.encode() if isinstance(part, str) else part
            self.digest.update(f'{memoryview(content).nbytes}:'.encode())
            self.digest.update(content)

    def add(self, value: Any, name: str) -> None:
        if type(value) in _PLAIN:
            self.write(type(value).__name__, repr(value).encode('utf-8', 'replace'))
        elif type(value) is tuple:  # Equal ones may be one object or several.
            self._entries(value, name)
        elif id(value) in self.seen:
            self.write('seen', str(self.seen[id(value)][0]))
        else:
            self.seen[id(value)] = len(self.seen), value
            self._add_new(value, name)

    def _add_new(self, value: Any, name: str) -> None:
        if isinstance(value, Tensor):
            self._tensor(value, name)
        elif type(value) is np.ndarray and not value.dtype.hasobject:
            self.write('array', repr(value.dtype), repr(value.shape))
            self.write(np.ascontiguousarray(value).tobytes())
        elif type(value) is list:
            self._entries(value, name)
        elif type(value) in (dict, MappingProxyType):
            self.write('dict', str(len(value)))
            for key, entry in value.items():
                self.add(key, f'a key of {name}')
                self.add(entry, f'{name}[{key!r}]')
        elif type(value) in (set, frozenset):
            parts = sorted(content_digest(entry, f'{name}[...]') for entry in value)
            self.write(type(value).__name__, *parts)
        elif isinstance(value, FunctionType):
            self._function(value, name)
        elif isinstance(value, CodeType):
            self._code(value, name)
        elif isinstance(value, MethodType):
            self._entries((value.__func__, value.__self__), name)
        elif isinstance(value, BuiltinFunctionType):
            self.write('builtin', value.__module__ or '', value.__qualname__)
            if not isinstance(value.__self__, ModuleType):
                self.add(value.__self__, f'{name}.__self__')
        elif isinstance(value, ModuleType):
            self._module(value)
        elif isinstance(value, type):
            self._class(value, name)
        elif isinstance(value, (property, staticmethod, classmethod, cached_property)):
            names = ('fget', 'fset', 'fdel', '__func__', 'func')
            functions = [getattr(value, key, None) for key in names]
            self.write(type(value).__name__)
            self._entries(functions, name)
        elif isinstance(value, torch.Generator):
            self.write('generator', str(value.device))
            self._tensor(value.get_state(), name)
        else:
            self._object(value, name)

    def _entries(self, values: Any, name: str) -> None:
        self.write(type(values).__name__, str(len(values)))
        for place, entry in enumerate(values):
            self.add(entry, f'{name}[{place}]')

    def _tensor(self, value: Tensor, name: str) -> None:
        self.write('tensor', str(value.layout), str(value.dtype), repr(value.shape))
        if value.is_meta:
            raise _no_content(value, name)
        if value.layout == torch.strided:
            self.write(_tensor_bytes(value))
        else:
            value = value.detach().to_sparse_coo().coalesce()
            self.write(_tensor_bytes(value.indices()), _tensor_bytes(value.values()))

    def _function(self, value: FunctionType, name: str) -> None:
        # Code that was executed without a module of its own claims to be built in.
        is_own = value.__module__ in (None, 'builtins')
        version = '' if is_own else _library(value.__module__)
        self.write('function', value.__module__ or '', value.__qualname__, version)
        cells = value.__closure__ or ()
        for cell, variable in zip(cells, value.__code__.co_freevars):
            with suppress(ValueError):  # Not filled yet.
                self.add(cell.cell_contents, f"'{variable}' of {name}")
        for part in (value.__defaults__, value.__kwdefaults__):
            self.add(part, f'a default of {name}')
        if version:
            return
        self.add(value.__code__, name)
        for variable in sorted(_globals_read(value.__code__)):
            if variable in value.__globals__:
                self.write(variable)
                self.add(value.__globals__[variable], f"'{variable}' of {name}")

    def _code(self, value: CodeType, name: str) -> None:
        sizes = (value.co_argcount, value.co_posonlyargcount, value.co_kwonlyargcount)
        self.write('code', value.co_code, repr((*sizes, value.co_flags)))
        names = (value.co_names, value.co_varnames, value.co_freevars)
        self.write(repr(names), value.co_exceptiontable if _HAS_TABLE else b'')
        self._entries(value.co_consts, name)

    def _module(self, value: ModuleType) -> None:
        version = _library(value.__name__)
        self.write('module', value.__name__, version)
        file = getattr(value, '__file__', None)
        if not version and file:
            self.write(Path(file).read_bytes())

    def _class(self, value: type, name: str) -> None:
        version = _library(value.__module__)
        self.write('class', value.__module__, value.__qualname__, version)
        if version:
            return
        for base in value.__bases__:
            self.add(base, name)
        for key, entry in sorted(vars(value).items()):
            is_slot = isinstance(entry, (GetSetDescriptorType, MemberDescriptorType))
            if key not in _NO_CONTENT and not is_slot:
                self.write(key)
                self.add(entry, f'{name}.{key}')

    def _object(self, value: Any, name: str) -> None:
        try:
            reduced = value.__reduce_ex__(4)
        except (TypeError, AttributeError, RuntimeError, NotImplementedError) as error:
            raise _no_content(value, name) from error
        self.write('object')
        if isinstance(reduced, str):  # The name of a global.
            self.write(type(value).__module__, reduced)
            self.add(getattr(value, '__wrapped__', None), name)
            return
        function, args, *rest = reduced
        self.add(function, name)
        self.add(args, name)
        if rest and isinstance(rest[0], dict):
            self.write('state', str(len(rest[0])))
            for key, entry in rest[0].items():
                self.add(key, f'a key of {name}')
                self.add(entry, f'{name}.{key}')
        elif rest:
            self.add(rest[0], name)
        for items in rest[1:3]:
            self.add(None if items is None else list(items), name)


_HAS_TABLE = sys.version_info >= (3, 11)


def _tensor_bytes(tensor: Tensor) -> Any:
    flat = tensor.detach().as_subclass(Tensor).cpu().resolve_conj().resolve_neg()
    return flat.flatten().view(torch.uint8).numpy().data


def _globals_read(code: CodeType) -> set[str]:
    names = {
        step.argval
        for step in dis.get_instructions(code)
        if step.opname in ('LOAD_GLOBAL', 'LOAD_NAME')
    }
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names |= _globals_read(constant)
    return names


@cache
def _library(module: str) -> str:
    r"""Returns the version of an installed package that stands for its code, or
    nothing.
    """
    top = module.partition('.')[0]
    if top in sys.builtin_module_names or top in sys.stdlib_module_names:
        return 'python'
    package = sys.modules.get(top) if top != '__main__' else None
    file = getattr(package, '__file__', None) or ''
    if not _LIBRARIES & set(Path(file).parts):
        return ''
    return f'{top} {getattr(package, "__version__", "")}'


def _no_content(value: Any, name: str) -> TypeError:
    return TypeError(
        f"'{name}' is a '{type(value).__name__}', which has no content to compare. "
        f"Leave it out of the state with a method '__getstate__', or make it a plain "
        f'value.'
    )
