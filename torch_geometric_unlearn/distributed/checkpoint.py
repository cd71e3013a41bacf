r"""States of models that are divided by columns, saved by some processes and loaded by
any other number of them, on :mod:`torch.distributed.checkpoint`, which takes its time
to import, so that only those who save wait for it.

A state is a folder. The file ``state.safetensors`` holds the header and what every
process has, and names the folder with the columns, which is complete before it is
named; so a kill leaves the old state or the new one.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from torch_geometric_unlearn.utils.files import make_folder
from torch_geometric_unlearn.utils.tensor_file import load_tensors, save_tensors

from .blocks import Blocks
from .columns import Columns

_STATE, _COLUMNS = 'state.safetensors', 'columns'


def has_state(path: str | os.PathLike[str]) -> bool:
    r"""Tells whether a folder holds a complete state."""
    return (Path(path) / _STATE).is_file()


def save_columns(
    path: str | os.PathLike[str],
    tensors: dict[str, Tensor],
    meta: dict[str, Any],
    columns: Columns,
    divided: Mapping[str, Blocks],
) -> None:
    r"""Writes a state; all processes call it together.

    Args:
        path (str or Path): The folder, which all processes reach.
        tensors (dict): Tensors by name.
        meta (dict): The header, JSON-serialisable.
        columns (Columns): The processes.
        divided (dict): Of which block a tensor consists, by name, if it has that
            dimension; all else is the same on every process.

    Raises:
        ValueError: If :obj:`path` is a file.
    """
    from torch.distributed.checkpoint.state_dict_saver import save

    root = Path(path)
    if columns.any(root.is_file()):
        raise ValueError(
            f"'{path}' is a file, but a model that is divided by columns is kept in a "
            f'folder. Choose another name.'
        )
    make_folder(str(root))
    old = {entry.name for entry in root.glob(f'{_COLUMNS}-*')}
    number = max((int(name.rpartition('-')[2]) for name in old), default=-1) + 1
    name = f'{_COLUMNS}-{columns.share(number)[0]}'
    parts = {
        key: divided[key]
        for key, x in tensors.items()
        if key in divided and x.dim() > divided[key].dim
    }
    whole = {key: _divided(tensors[key], part) for key, part in parts.items()}
    with torch.no_grad(), _quiet():
        save(whole, checkpoint_id=str(root / name), **_among(columns))
    if columns.rank == 0:
        rest = {key: x for key, x in tensors.items() if key not in parts}
        rest['columns'] = torch.tensor(columns.num_columns)
        dims = {key: part.dim for key, part in parts.items()}
        header = {'header': meta, 'columns': name, 'dims': dims}
        save_tensors(root / _STATE, rest, header)
        for entry in old:
            shutil.rmtree(root / entry, ignore_errors=True)
    columns.share(None)  # Nobody goes on before it is there.


def load_columns(
    path: str | os.PathLike[str], columns: Columns
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    r"""Reads what :meth:`save_columns` has written, on any number of processes: the
    columns of this one, and all else. All processes call it together.

    Raises:
        FileNotFoundError: If there is no complete state.
        ValueError: If it is damaged, or of tables with another number of columns.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata
    from torch.distributed.checkpoint.state_dict_loader import load

    root = Path(path)
    tensors, meta = load_tensors(root / _STATE)
    num_columns = int(tensors.pop('columns', torch.tensor(0)))
    if num_columns != columns.num_columns or 'header' not in meta:
        raise ValueError(
            f"'{path}' must be of tables with {columns.num_columns} columns (got "
            f'{num_columns})'
        )
    folder = str(root / meta['columns'])
    try:
        known = FileSystemReader(folder).read_metadata().state_dict_metadata
        whole: dict[str, Any] = {}
        for key, entry in known.items():
            assert isinstance(entry, TensorStorageMetadata)
            # Earlier states have tables only.
            size, dim = list(entry.size), meta.get('dims', {}).get(key, 1)
            own = Blocks(size[dim], dim, columns.group)
            size[dim] = own.size
            empty = torch.empty(size, dtype=entry.properties.dtype)
            whole[key] = _divided(empty, own)
        with _quiet():
            load(whole, checkpoint_id=folder, **_among(columns))
    except (
        OSError, LookupError, TypeError, CheckpointException, RuntimeError
    ) as error:
        raise ValueError(
            f"The columns in '{folder}' are damaged or gone ({error}). Go back to "
            f'another state.'
        ) from error
    for key, x in whole.items():
        tensors[key] = x if columns.num_processes == 1 else x.to_local()
    return tensors, meta['header']


def _among(columns: Columns) -> dict[str, Any]:
    return {'process_group': columns.group, 'no_dist': columns.num_processes == 1}


@contextmanager
def _quiet() -> Iterator[None]:
    r"""Without the remark that one process is alone, which is known."""
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', '.*assuming the intent is to')
        yield


def _divided(x: Tensor, block: Blocks) -> Tensor:
    r"""Returns a block as a part of the whole."""
    x = x.detach()
    if block.num_processes == 1:
        return x
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor, Shard

    group: Any = block.group or dist.group.WORLD
    mesh = DeviceMesh.from_group(group, x.device.type)
    size = list(x.shape)
    size[block.dim] = block.total
    return DTensor.from_local(
        x.contiguous(),
        mesh,
        [Shard(block.dim)],
        run_check=False,
        shape=torch.Size(size),
        stride=torch.empty(size, device='meta').stride(),
    )
