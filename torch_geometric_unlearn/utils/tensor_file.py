r"""Named tensors with a JSON header in one safetensors file: data only, so that no file
can run code when it is read.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .files import atomic_save, make_folder

_HEADER = 'torch_geometric_unlearn'
_PLAIN = (type(None), bool, int, float, str)


def save_tensors(
    path: str | os.PathLike[str], tensors: dict[str, Tensor], meta: dict[str, Any]
) -> None:
    r"""Writes named tensors and a JSON-serialisable header in one atomic step.

    Args:
        path (str or Path): The file, by custom :obj:`*.safetensors`.
        tensors (dict): Tensors by name, on any device.
        meta (dict): The header.
    """
    header = {_HEADER: json.dumps(meta)}
    flat, storages = {}, set()
    for name, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous()
        storage = value.untyped_storage().data_ptr()
        # The format knows no tensors that share memory.
        flat[name] = value.clone() if storage in storages else value
        storages.add(storage)
    content = save(flat, metadata=header)
    make_folder(os.path.dirname(os.fspath(path)) or '.')
    atomic_save(lambda file: file.write(content), path, len(content))


def load_tensors(
    path: str | os.PathLike[str],
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    r"""Reads what :meth:`save_tensors` has written, onto the CPU.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, or not one of ours.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no checkpoint '{path}'")
    try:
        with safe_open(str(path), framework='pt') as f:
            text = (f.metadata() or {}).get(_HEADER)
            # Copies lie at aligned addresses, on which the last bits of sums depend.
            tensors = {key: f.get_tensor(key).clone() for key in f.keys()}
    except SafetensorError as error:
        raise ValueError(
            f"'{path}' is no complete safetensors file ({error}). Write it again."
        ) from error
    if text is None:
        raise ValueError(
            f"'{path}' is a safetensors file, but not one that "
            f"'torch_geometric_unlearn' has written"
        )
    try:
        meta = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"The header of '{path}' is damaged ({error})") from error
    if not isinstance(meta, dict):
        raise ValueError(f"The header of '{path}' is damaged (got {text[:40]!r})")
    return tensors, meta


def to_plain(value: Any, tensors: dict[str, Tensor], name: str) -> Any:
    r"""Returns a nested value as JSON; its tensors and arrays go into :obj:`tensors`.

    Raises:
        TypeError: If it holds anything else than numbers, strings, tensors, arrays,
            lists, tuples and dictionaries; names it.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if type(value) in _PLAIN:
        return value
    if type(value) is list:
        return [to_plain(v, tensors, f'{name}[{i}]') for i, v in enumerate(value)]
    if type(value) is tuple:
        return {'tuple': to_plain(list(value), tensors, name)}
    if type(value) is dict:
        keys = to_plain(list(value), tensors, f'the keys of {name}')
        entries = [to_plain(v, tensors, f'{name}.{k}') for k, v in value.items()]
        return {'dict': [keys, entries]}
    if type(value) is Tensor and value.layout == torch.strided:
        tensors[str(len(tensors))] = value
        return {'tensor': str(len(tensors) - 1)}
    if type(value) is np.ndarray and value.dtype.kind in 'biuf':
        array = np.ascontiguousarray(value.astype(value.dtype.newbyteorder('=')))
        tensors[str(len(tensors))] = torch.from_numpy(array).reshape(value.shape)
        return {'array': str(len(tensors) - 1)}
    raise TypeError(
        f"'{name}' is a '{type(value).__name__}', which can't be stored. Convert it to "
        f'numbers, strings, tensors, arrays, or lists, tuples and dictionaries of them.'
    )


def from_plain(value: Any, tensors: dict[str, Tensor]) -> Any:
    r"""Returns what :meth:`to_plain` was given."""
    if isinstance(value, list):
        return [from_plain(entry, tensors) for entry in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == 'tuple':
        return tuple(from_plain(content, tensors))
    if kind == 'dict':
        keys, entries = (from_plain(part, tensors) for part in content)
        return dict(zip(keys, entries))
    tensor = tensors[content]
    return tensor if kind == 'tensor' else tensor.numpy()
