r"""Models and training state as one safetensors file whose header holds JSON."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch_geometric.data import HeteroData

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.nn.models.base import RecommenderLike
from torch_geometric_unlearn.utils.files import atomic_save, make_folder

_HEADER = 'torch_geometric_unlearn'


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
    flat = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
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
            meta = (f.metadata() or {}).get(_HEADER)
            tensors = {key: f.get_tensor(key) for key in f.keys()}
    except SafetensorError as error:
        raise ValueError(
            f"'{path}' is no complete safetensors file ({error}). Write it again."
        ) from error
    if meta is None:
        raise ValueError(
            f"'{path}' is a safetensors file, but not one that 'save_model' or 'fit' "
            f'has written'
        )
    return tensors, json.loads(meta)


def save_model(
    model: RecommenderLike,
    path: str | os.PathLike[str],
    meta: dict[str, Any] | None = None,
) -> None:
    r"""Saves all parameters and buffers of a model.

    Args:
        model (torch.nn.Module): The model.
        path (str or Path): The file, by custom :obj:`*.safetensors`.
        meta (dict, optional): JSON-serialisable notes to keep with it.
            (default: :obj:`None`)

    Example:
        >>> save_model(model, 'mgcn.safetensors', {'epoch': 28})
        >>> load_model(MGCN.from_data(data), 'mgcn.safetensors')
        {'epoch': 28}
    """
    header = {'model': type(model).__name__, 'meta': meta or {}}
    save_tensors(path, model.state_dict(), header)


def load_model(
    model: RecommenderLike, path: str | os.PathLike[str]
) -> dict[str, Any]:
    r"""Loads parameters and buffers into a model of the same kind and sizes.

    Args:
        model (torch.nn.Module): The model to fill; unchanged if this raises.
        path (str or Path): A file written by :meth:`save_model`.

    Returns:
        dict: The notes kept with the file.

    Raises:
        ValueError: If the file belongs to another model or is damaged.
    """
    tensors, header = load_tensors(path)
    load_state(model, tensors, header.get('model', ''), path)
    return header.get('meta', {})


def load_state(
    model: RecommenderLike,
    tensors: dict[str, Tensor],
    saved_class: str,
    path: str | os.PathLike[str],
) -> None:
    r"""Copies a state into a model after checking that it is the same model."""
    own = {k: list(v.shape) for k, v in model.state_dict().items()}
    got = {k: list(v.shape) for k, v in tensors.items()}
    if saved_class != type(model).__name__ or own != got:
        names = sorted(set(own) | set(got))
        differing = [n for n in names if own.get(n) != got.get(n)]
        detail = ''.join(
            f"; '{n}' is {got.get(n, 'missing')} in the file and "
            f'{own.get(n, "missing")} in the model'
            for n in differing[:3]
        )
        raise ValueError(
            f"'{path}' is a checkpoint of another model: a '{saved_class}' with "
            f"{len(got)} tensors, but the model is a '{type(model).__name__}' with "
            f'{len(own)}{detail}. Build the model with the sizes it was saved with.'
        )
    model.load_state_dict(tensors)


def tensor_digest(tensors: Iterable[Tensor]) -> str:
    r"""Returns a hash of types, shapes and contents of tensors on any device."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f'{tensor.dtype} {list(tensor.shape)}'.encode())
        flat = tensor.detach().as_subclass(Tensor).cpu().flatten()
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def fingerprint(data: HeteroData) -> str:
    r"""Returns a hash of sizes and retained interactions, in any order."""
    pairs = schema.retained_edge_index(data).cpu()
    codes = schema.pair_codes(pairs, schema.num_items(data)).sort()[0]
    digest = hashlib.sha256(codes.numpy().tobytes())
    digest.update(f'{schema.num_users(data)},{schema.num_items(data)}'.encode())
    return digest.hexdigest()[:16]
