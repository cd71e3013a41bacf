r"""Models as one safetensors file whose header holds JSON: what to check at loading."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, overload

import numpy as np
from torch import Tensor
from torch_geometric.data import HeteroData

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.data.request import Request, is_erased
from torch_geometric_unlearn.distributed.blocks import Blocks
from torch_geometric_unlearn.distributed.checkpoint import (
    has_state,
    load_columns,
    save_columns,
)
from torch_geometric_unlearn.distributed.columns import columns_of, divided
from torch_geometric_unlearn.nn.models.base import (
    Recommender,
    RecommenderLike,
    constructor_arguments,
)
from torch_geometric_unlearn.nn.models.embedding_table import EmbeddingTable
from torch_geometric_unlearn.nn.models.light_gcn import LightGCN
from torch_geometric_unlearn.nn.models.mgcn import MGCN
from torch_geometric_unlearn.nn.models.mig_gt import MIGGT
from torch_geometric_unlearn.utils.digest import content_digest, tensor_digest
from torch_geometric_unlearn.utils.seed import isolated_seed
from torch_geometric_unlearn.utils.tensor_file import load_tensors, save_tensors
from torch_geometric_unlearn.utils.versions import package_versions

#: Version of the header; 1 had a class name only.
FORMAT = 2
#: What a file is enough to build. A file names no other code to import.
_BUILT: list[type[Recommender]] = [MGCN, MIGGT, LightGCN, EmbeddingTable]


def save_model(
    model: RecommenderLike,
    path: str | os.PathLike[str],
    meta: dict[str, Any] | None = None,
    *,
    data: HeteroData | None = None,
) -> None:
    r"""Saves all parameters and buffers of a model, with its class, the arguments that
    it was built with, and versions.

    Args:
        model (torch.nn.Module): The model.
        path (str or Path): The file, by custom :obj:`*.safetensors`.
        meta (dict, optional): JSON-serialisable notes to keep with it.
            (default: :obj:`None`)
        data (HeteroData, optional): The data that the model belongs to: digests of its
            training pairs, ids and features are kept, so that :meth:`load_model` can
            tell other data. (default: :obj:`None`)

    Raises:
        TypeError: If the state of the model holds something else than tensors.
        ValueError: If it holds nothing.
        OSError: If the file can't be written.

    Example:
        >>> save_model(model, 'mgcn.safetensors', {'epoch': 28}, data=data)
        >>> load_model(MGCN.from_data(data), 'mgcn.safetensors', data=data)
        {'epoch': 28}
    """
    state = model.state_dict()
    if not state:
        raise ValueError(
            f"'model' must have parameters or buffers (got '{type(model).__name__}' "
            f'without any). Nothing of it would be saved.'
        )
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise TypeError(
                f"'{name}' in the state of the model must be a tensor to be saved (got "
                f"'{type(value).__name__}'). Keep it as a buffer."
            )
    header = model_record(model) | {'meta': meta or {}}
    if data is not None:
        header['data'] = data_record(data)
    save_state(path, state, header, model, divided(model))


@overload
def load_model(
    model: str | os.PathLike[str] | None,
    path: str | os.PathLike[str] | None = None,
    *,
    data: HeteroData | None = None,
) -> tuple[Recommender, dict[str, Any]]: ...


@overload
def load_model(
    model: RecommenderLike,
    path: str | os.PathLike[str],
    *,
    data: HeteroData | None = None,
) -> dict[str, Any]: ...


def load_model(
    model: RecommenderLike | str | os.PathLike[str] | None,
    path: str | os.PathLike[str] | None = None,
    *,
    data: HeteroData | None = None,
) -> tuple[Recommender, dict[str, Any]] | dict[str, Any]:
    r"""Loads parameters and buffers into a model of the same class, arguments, sizes
    and data types, or builds one.

    What a class keeps of its arguments is compared, for the model and for every module
    inside. A file of an earlier version has none of them; it is loaded with a warning.
    To load a half-precision file into another model, convert that model first.

    Args:
        model (torch.nn.Module, optional): The model to fill; unchanged if this raises.
            Without it, :obj:`load_model(path)` builds an :class:`MGCN`,
            :class:`MIGGT`, :class:`LightGCN` or :class:`EmbeddingTable`, on the CPU.
        path (str or Path): A file written by :meth:`save_model`.
        data (HeteroData, optional): The data to use the model with. Training pairs,
            ids and features must be those that it was saved with: rows belong to
            positions, so ids in another order would give every row to somebody else.
            After a deletion, both are the data without what was deleted. If the file
            knows its data and none is given here, there is a warning.
            (default: :obj:`None`)

    Returns:
        dict: The notes kept with the file; without :obj:`model`, the new model and the
        notes.

    Raises:
        ValueError: If the file belongs to another model or other data, is damaged,
            does not know its data although :obj:`data` is given, or, without
            :obj:`model`, holds one that only its own code can build.

    Example:
        >>> save_model(model, 'mgcn.safetensors', {'epoch': 28}, data=data)
        >>> copy, meta = load_model('mgcn.safetensors', data=data)
        >>> copy.num_layers == model.num_layers
        True
    """
    if isinstance(model, (str, os.PathLike)):
        if path is not None:
            raise TypeError(
                f"'model' must be a model if 'path' is given (got '{model}')"
            )
        model, path = None, model
    if path is None:
        raise TypeError("'path' must name the file to load (got None)")
    tensors, header = load_state(path, model)
    check_header(header, path)
    _check_data(header, data, path)
    if model is not None:
        check_model(header, tensors, model, path)
        model.load_state_dict(tensors)
        return header.get('meta', {})
    built = _build(header, tensors, path)
    check_model(header, tensors, built, path, any_type=True)
    built.load_state_dict(tensors, assign=True)
    return built, header.get('meta', {})


def save_state(
    path: str | os.PathLike[str],
    tensors: dict[str, Tensor],
    header: dict[str, Any],
    model: RecommenderLike,
    divided: Mapping[str, Blocks],
) -> None:
    r"""Writes tensors and a header in one step: into a file, or together with the other
    processes into a folder if the model is divided by columns; :obj:`divided` tells
    which of the tensors are.
    """
    columns = columns_of(model)
    if columns is None:
        save_tensors(path, tensors, header)
    else:
        save_columns(path, tensors, header, columns, divided)


def load_state(
    path: str | os.PathLike[str], model: RecommenderLike | None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    r"""Reads what :meth:`save_state` has written for such a model.

    Raises:
        FileNotFoundError: If there is nothing.
        ValueError: If it is damaged, or a model is divided and the other one is not.
    """
    columns = None if model is None else columns_of(model)
    if columns is None and has_state(path):
        raise ValueError(
            f"'{path}' holds a model that is divided by columns. Load it into one of "
            f"its class, such as a 'ColumnParallelLightGCN'."
        )
    if columns is not None and Path(path).is_file():
        raise ValueError(
            f"'{path}' is a file with a whole model. Load it into one, and divide it "
            f"with '{type(model).__name__}.from_whole'."
        )
    return load_tensors(path) if columns is None else load_columns(path, columns)


def exists(path: str | os.PathLike[str]) -> bool:
    r"""Tells whether there is a complete state, a file or a folder."""
    return Path(path).is_file() or has_state(path)


def check_header(header: dict[str, Any], path: str | os.PathLike[str]) -> None:
    r"""Raises unless a header is of a known format and has what belongs to it."""
    version = header.get('format', 1)
    if version not in (1, FORMAT):
        raise ValueError(
            f"'{path}' has the format {version!r}, which this version does not know "
            f"(at most {FORMAT}). Update 'torch_geometric_unlearn'."
        )
    kinds = {'model': str, 'meta': dict, 'data': dict}
    if version == FORMAT:
        kinds |= {'class': list, 'modules': dict}
    bad = [
        key
        for key, kind in kinds.items()
        if not isinstance(header.get(key, kind()), kind)
    ]
    if version == FORMAT and not bad:
        modules = header.get('modules', {})
        if '' not in modules or not all(map(_is_module, modules.values())):
            bad.append('modules')
        if len(header.get('class', [])) != 2:
            bad.append('class')
    if bad:
        raise ValueError(
            f"The header of '{path}' is damaged (got no valid {bad}). Save it again."
        )


def _is_module(value: Any) -> bool:
    is_pair = isinstance(value, list) and len(value) == 2
    return is_pair and isinstance(value[0], str) and isinstance(value[1], dict)


def model_record(model: RecommenderLike) -> dict[str, Any]:
    r"""Returns what a file keeps of a model besides its state."""
    is_divided = columns_of(model) is not None
    modules = {
        name: [type(module).__qualname__, constructor_arguments(module)]
        for name, module in model.named_modules()
        if not (name and is_divided)  # Parts of it are smaller on more processes.
    }
    return {
        'format': FORMAT,
        'model': type(model).__name__,
        'class': [type(model).__module__, type(model).__qualname__],
        'modules': modules,
        'versions': package_versions(),
    }


def data_record(data: HeteroData) -> dict[str, str]:
    r"""Returns what a file keeps of the data of a model: digests by part."""
    data = schema.validate(data)
    out = {'training pairs': fingerprint(data)}
    for node_type in (schema.USER, schema.ITEM):
        out[f'{node_type} ids'] = _ids_digest(data, node_type)
    for name, x in schema.features(data).items():
        out[f"features '{name}'"] = tensor_digest([x])
    return out


def check_model(
    header: dict[str, Any],
    tensors: dict[str, Tensor],
    model: RecommenderLike,
    path: str | os.PathLike[str],
    any_type: bool = False,
) -> None:
    r"""Raises unless a file with this header and state belongs to the same model.

    Args:
        header (dict): What :meth:`model_record` gave.
        tensors (dict): The saved parameters and buffers; for the state of something
            else than the model, those of :obj:`model`.
        model (torch.nn.Module): The model.
        path (str or Path): The name of the file.
        any_type (bool, optional): Whether floating point types may differ.
            (default: :obj:`False`)
    """
    own = model.state_dict()
    details = []
    for name in sorted(set(own) | set(tensors)):
        pair = [state.get(name) for state in (tensors, own)]
        shapes = ['missing' if x is None else str(list(x.shape)) for x in pair]
        types = ['missing' if x is None else _type_name(x, any_type) for x in pair]
        found = shapes if shapes[0] != shapes[1] else types
        if found[0] != found[1]:
            details.append(_differs(f"'{name}'", *found))
    saved = header.get('model', '')
    if header.get('format', 1) == 1:
        warnings.warn(
            f"'{path}' was written by an earlier version. Class name, sizes and data "
            f'types are checked, but neither the arguments of the model nor its data '
            f"can be. Save it again with 'save_model'.",
            stacklevel=3,
        )
        is_same = saved == type(model).__name__
    else:
        record = json.loads(json.dumps(model_record(model)))
        is_same = _is_same_class(header['class'], record['class'])
        if is_same:
            details += _other_arguments(header['modules'], record['modules'])
    if not is_same or details:
        raise ValueError(
            f"'{path}' is a checkpoint of another model: a '{saved}' with "
            f"{len(tensors)} tensors, but the model is a '{type(model).__name__}' with "
            f'{len(own)}{"".join("; " + text for text in details[:3])}. Build the '
            f'model as the one that was saved, with its class, arguments, sizes and '
            f'data type.'
        )


def _other_arguments(saved: dict[str, Any], own: dict[str, Any]) -> list[str]:
    r"""Returns what differs in the modules of two models of the same class."""
    out = []
    for name in [*saved, *(name for name in own if name not in saved)]:
        where = f" of '{name}'" if name else ''
        kind, arguments = saved.get(name, ['missing', {}])
        own_kind, own_arguments = own.get(name, ['missing', {}])
        if kind != own_kind:
            out.append(_differs(f"the module '{name}'", kind, own_kind))
            continue
        # Later versions of a library may keep more of its arguments.
        for key, value in arguments.items():
            if key not in own_arguments or own_arguments[key] != value:
                own_value = own_arguments.get(key, 'missing')
                out.append(_differs(f"'{key}'{where}", value, own_value))
    return out


def _type_name(x: Tensor, any_type: bool) -> str:
    return 'floating point' if any_type and x.is_floating_point() else str(x.dtype)


def _differs(what: str, saved: Any, own: Any) -> str:
    return f'{what} is {saved} in the file and {own} in the model'


def _is_same_class(saved: list[str], own: list[str]) -> bool:
    # A class of a script has another module where the script is imported.
    is_script = '__main__' in (saved[0], own[0])
    return saved[1] == own[1] and (saved[0] == own[0] or is_script)


def _check_data(
    header: dict[str, Any], data: HeteroData | None, path: str | os.PathLike[str]
) -> None:
    saved = header.get('data')
    if data is None:
        if saved is not None:
            warnings.warn(
                f"'{path}' knows the data that its model belongs to, but there is none "
                f"to compare with. Pass 'data' to notice ids in another order.",
                stacklevel=3,
            )
        return
    if saved is None:
        raise ValueError(
            f"'{path}' was saved without 'data', so nothing can be compared with it. "
            f"Save it with save_model(..., data=data), or leave 'data' out here."
        )
    own = data_record(data)
    # A model may live without features that it does not read.
    differing = [
        name
        for name, digest in saved.items()
        if digest != own.get(name, digest if name.startswith('features') else '')
    ]
    if differing:
        raise ValueError(
            f"'{path}' belongs to other data: {', '.join(differing)} differ. Rows "
            f'belong to positions, so they would be given to others. Pass the data '
            f'that the model was saved with (pairs that are marked as forgotten count '
            f'as deleted).'
        )


def _build(
    header: dict[str, Any],
    tensors: dict[str, Tensor],
    path: str | os.PathLike[str],
) -> Recommender:
    by_class = {f'{cls.__module__}.{cls.__qualname__}': cls for cls in _BUILT}
    cls = by_class.get('.'.join(map(str, header.get('class', ()))))
    if cls is None:
        names = [cls.__name__ for cls in _BUILT]
        raise ValueError(
            f"'{path}' holds a '{header.get('model', '')}', which can't be built from "
            f"it (only {names} of format {FORMAT} can). Build the model and pass it."
        )
    try:
        with isolated_seed(0):  # What is drawn is overwritten.
            return cls.from_saved(header['modules'][''][1], tensors)
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        raise ValueError(
            f"'{path}' is damaged: no '{cls.__name__}' has the arguments and tensors "
            f'in it ({error}). Save it again.'
        ) from error


def _ids_digest(data: HeteroData, node_type: str) -> str:
    r"""Returns a hash of an id map in which deleted ids are equal, marked or erased."""
    ids = data[node_type].get('raw_id')
    if ids is None:
        return ''
    ids = ids.tolist() if isinstance(ids, (Tensor, np.ndarray)) else list(ids)
    ids = [i.item() if isinstance(i, np.generic) else i for i in ids]
    request = Request.of(data)
    gone = request.users if node_type == schema.USER else request.items
    for index in gone.tolist():
        ids[index] = None
    ids = [None if is_erased(raw) else raw for raw in ids]
    return content_digest(ids, f"data['{node_type}'].raw_id")[:16]


def fingerprint(data: HeteroData) -> str:
    r"""Returns a hash of sizes and retained interactions, in any order."""
    pairs = schema.retained_edge_index(data).cpu()
    codes = schema.pair_codes(pairs, schema.num_items(data)).sort()[0]
    digest = hashlib.sha256(codes.numpy().tobytes())
    digest.update(f'{schema.num_users(data)},{schema.num_items(data)}'.encode())
    return digest.hexdigest()[:16]
