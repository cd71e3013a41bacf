r"""Erases what data hold of deleted users and items beside their interactions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import HeteroData
from torch_geometric.data.storage import EdgeStorage, NodeStorage
from torch_geometric.typing import EdgeType

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.data.request import erased_id

from ._edge_attrs import edge_attrs, select_edges

_CONTRACT = (schema.EDGE_TYPE, schema.REV_EDGE_TYPE)
#: Values that can't hold one entry per node or edge.
_SINGLE = (str, bytes, bool, int, float, complex, type(None))


class Eraser:
    r"""Erases deleted nodes from everything but the interactions, in place.

    Args:
        data (HeteroData): A shallow copy, whose values are replaced, not written to.
        gone (dict): Ids of deleted users and items, int64, by node type.
        keep (iterable): Patterns of what to leave, see
            :class:`~torch_geometric_unlearn.transforms.DropForgotten`.
    """

    def __init__(
        self, data: HeteroData, gone: Mapping[str, Tensor], keep: Iterable[str]
    ) -> None:
        self.data, self.keep = data, tuple(keep)
        self.gone: dict[str, Tensor] = {}
        for kind, ids in gone.items():
            mask = torch.zeros(int(data[kind].num_nodes), dtype=torch.bool)
            mask[ids.cpu()] = True
            self.gone[kind] = mask
        self.names = self._raw_ids()
        self.refused: list[str] = []

    def __call__(self, strict: bool = True) -> None:
        relations = [
            kind
            for kind in self.data.edge_types
            if kind not in _CONTRACT and not self._keeps('__'.join(kind))
        ]
        if any(mask.any() for mask in self.gone.values()):
            self._add_dependents(relations)
            for edge_type in relations:
                self._cut(edge_type)
            for node_type, mask in self.gone.items():
                if mask.any():
                    self._erase(node_type, mask)
        for edge_type in _CONTRACT:
            if edge_type in self.data.edge_types:
                self._check_edges(edge_type)
        for key, value in self.data._global_store.items():
            if not self._keeps(key) and _mentions(value, self.names):
                self.refused.append(f'data.{key}')
        if self.refused and strict:
            raise ValueError(
                f'A deletion would not reach {self.refused}, which may name the '
                f"deleted. Remove it, or, to leave it as it is, pass its name without "
                f"'data' as 'keep' to 'DropForgotten'."
            )

    def _keeps(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self.keep)

    def _raw_ids(self) -> set[Any]:
        out: set[Any] = set()
        for kind, mask in self.gone.items():
            ids = self.data[kind].get('raw_id')
            if ids is not None and len(ids) == mask.numel():
                out |= {_plain(ids[i]) for i in mask.nonzero().view(-1).tolist()}
        return out

    def _add_dependents(self, relations: list[EdgeType]) -> None:
        r"""Counts nodes of other types as deleted that hang on deleted ones only, such
        as the reviews of a user.
        """
        for edge_type in relations:
            edge_index = self.data[edge_type].get('edge_index')
            if edge_index is None:
                continue
            for end, kind in enumerate((edge_type[0], edge_type[2])):
                other = edge_type[2 - 2 * end]
                subjects = (schema.USER, schema.ITEM)
                if kind not in subjects or other in subjects:
                    continue
                if self._keeps(other):
                    continue
                near, far = edge_index[end].cpu(), edge_index[1 - end].cpu()
                size = int(self.data[other].num_nodes or 0)
                lost = self.gone[kind][near]
                own = far[lost].bincount(minlength=size)
                mask = (own > 0) & (own == far.bincount(minlength=size))
                self.gone[other] = self.gone.get(other, torch.zeros_like(mask)) | mask

    def _cut(self, edge_type: EdgeType) -> None:
        r"""Cuts the edges of deleted nodes with their attributes."""
        store = self.data[edge_type]
        ends = [self.gone.get(kind) for kind in (edge_type[0], edge_type[2])]
        if all(mask is None or not mask.any() for mask in ends):
            return
        if 'edge_index' not in store:
            self.refused.append(f'data[{edge_type}], which has no edge_index')
            return
        edge_index = store.edge_index
        keep = torch.ones(edge_index.size(1), dtype=torch.bool)
        for ids, mask in zip(edge_index.cpu(), ends):
            if mask is not None:
                keep &= ~mask[ids]
        keep_edges(store, keep.to(edge_index.device))
        self._check_edges(edge_type)

    def _check_edges(self, edge_type: EdgeType) -> None:
        store = self.data[edge_type]
        for key, value in store.items():
            known = isinstance(value, (*_SINGLE, Tensor, np.ndarray, list, tuple))
            unread = not known or _mentions(value, self.names)
            if unread and not self._keeps(f'{"__".join(edge_type)}.{key}'):
                self.refused.append(f'data[{edge_type}].{key}')

    def _erase(self, node_type: str, mask: Tensor) -> None:
        store = self.data[node_type]
        for key, value in list(store.items()):
            if key == 'num_nodes' or self._keeps(f'{node_type}.{key}'):
                continue
            if key == 'raw_id':
                store[key] = _renamed(value, mask)
            elif not self._erase_rows(store, key, value, mask):
                self.refused.append(f"data['{node_type}'].{key}")

    def _erase_rows(
        self, store: NodeStorage, key: str, value: Any, mask: Tensor
    ) -> bool:
        r"""Erases the entries of deleted nodes and tells whether that was possible."""
        if isinstance(value, _SINGLE):
            return not _mentions(value, self.names)
        per_node = hasattr(value, '__len__') and _length(value) == mask.numel()
        if isinstance(value, Tensor):
            if per_node:
                store[key] = _zeroed(value, mask)
            return True
        if not isinstance(value, (list, tuple, np.ndarray)):
            return False
        if not per_node:
            return not _mentions(value, self.names)
        if isinstance(value, np.ndarray):
            value = value.copy()
            value[mask.numpy()] = None if value.dtype == object else value.dtype.type()
            store[key] = value
        else:
            rows = zip(value, mask.tolist())
            store[key] = type(value)(None if lost else x for x, lost in rows)
        return True


def keep_edges(store: EdgeStorage, keep: Tensor) -> None:
    r"""Cuts the edges where :obj:`keep` is not set, with all attributes, in place."""
    for key in edge_attrs(store):
        store[key] = select_edges(store[key], keep)
    store.edge_index = store.edge_index[:, keep]


def _length(value: Any) -> int:
    return value.size(0) if isinstance(value, Tensor) and value.dim() else (
        -1 if isinstance(value, Tensor) or getattr(value, 'ndim', 1) == 0
        else len(value)
    )


def _zeroed(x: Tensor, mask: Tensor) -> Tensor:
    if x.layout != torch.strided:
        coo = x.detach().to_sparse_coo().coalesce()
        kept = ~mask.to(x.device)[coo.indices()[0]]
        values = coo.values()[kept]
        out = torch.sparse_coo_tensor(
            coo.indices()[:, kept], values, x.shape, check_invariants=False
        )
        return out.coalesce().to_sparse(layout=x.layout)
    out = x.detach().clone()
    out[mask.to(x.device)] = 0
    return out


def _renamed(ids: Any, mask: Tensor) -> list[Any]:
    r"""Returns the ids with random tokens, which tell nothing, for deleted nodes."""
    return [
        erased_id() if lost else _plain(raw)
        for raw, lost in zip(ids, mask.tolist())
    ]


def _plain(raw: Any) -> Any:
    return raw.item() if isinstance(raw, (Tensor, np.generic)) else raw


def _mentions(value: Any, names: set[Any]) -> bool:
    r"""Tells whether a value is, or a container holds, one of the ids."""
    if not names or isinstance(value, Tensor):
        return False
    if isinstance(value, Mapping):
        return _mentions([*value.keys(), *value.values()], names)
    if isinstance(value, np.ndarray) and value.dtype.kind not in 'OUS':
        return False
    if isinstance(value, (list, tuple, set, frozenset, np.ndarray)):
        return any(_mentions(x, names) for x in value)
    # A number is no name: any count or year could equal one.
    return isinstance(value, (str, bytes)) and value in names
