r"""What a deletion or a split has to cut along with the edges."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor
from torch_geometric.data.storage import EdgeStorage


def edge_attrs(store: EdgeStorage) -> list[str]:
    r"""Returns the keys of everything with one entry per edge but :obj:`edge_index`:
    tensors, arrays, and lists such as review texts.

    Raises:
        ValueError: If a tensor has another length.
    """
    num_edges = store.edge_index.size(1)
    keys = []
    for key, value in store.items():
        if key == 'edge_index':
            continue
        if isinstance(value, Tensor) and value.dim() > 0:
            if value.size(0) != num_edges:
                raise ValueError(
                    f'data[{store._key}].{key} must have length {num_edges}, one '
                    f'entry per edge (got {value.size(0)}). Store what is not per '
                    f'edge on the graph itself.'
                )
            keys.append(key)
        elif _is_list(value) and len(value) == num_edges:
            keys.append(key)
    return keys


def select_edges(value: Any, mask: Tensor) -> Any:
    r"""Returns the entries of an edge attribute where :obj:`mask` is set."""
    if isinstance(value, Tensor):
        return value[mask]
    if isinstance(value, np.ndarray):
        return value[mask.cpu().numpy()]
    return type(value)(x for x, kept in zip(value, mask.tolist()) if kept)


def _is_list(value: Any) -> bool:
    return type(value) in (list, tuple) or (
        isinstance(value, np.ndarray) and value.ndim > 0
    )
