r"""Names and checks of the data contract that every part of the package shares.

=========================================  =====================================
where                                      what
=========================================  =====================================
``data['user'].num_nodes``                 number of users
``data['item'].num_nodes``                 number of items
``data['item'].x_<modality>``              item features ``[I, F]``, float32
``data['user', 'interacts', 'item']``      the **training** interactions only:
                                           ``edge_index [2, E]`` int64 with unique
                                           pairs, further attributes of length
                                           ``E``, ``forget_mask [E]`` bool
``data['item', 'rev_interacts', 'user']``  optional, the same pairs flipped
``data.val_edge_label_index``              held-out pairs ``[2, *]`` int64
``data.test_edge_label_index``             held-out pairs ``[2, *]`` int64
``data.control_edge_label_index``          optional pairs ``[2, *]`` int64 that were
                                           drawn from the training pairs and are
                                           never trained on nor stopped by: what a
                                           trained pair would be without memory
``data.<split>_edge_<attr>``               optional attributes of held-out pairs such
                                           as ``val_edge_time``, of their length
``data.forget_level``                      ``user``, ``item``, ``interaction`` or
                                           ``mixed``
=========================================  =====================================
"""

from __future__ import annotations

import copy
from numbers import Integral
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from torch_geometric_unlearn.utils.plain import WRAPPERS, plain
from torch_geometric_unlearn.utils.remember import remembered

USER = 'user'
ITEM = 'item'
EDGE_TYPE = (USER, 'interacts', ITEM)
REV_EDGE_TYPE = (ITEM, 'rev_interacts', USER)
SPLITS = ('val', 'test', 'control')
CONTROL = 'control_edge_label_index'
HELD_OUT = ('val_edge_label_index', 'test_edge_label_index')
FORGET_LEVELS = ('user', 'item', 'interaction', 'mixed')


def similar_edge_type(modality: str) -> tuple[str, str, str]:
    r"""Returns the edge type of the item-item graph of a modality."""
    return (ITEM, f'similar_{modality}', ITEM)


def num_users(data: HeteroData) -> int:
    r"""Returns the number of users."""
    return int(data[USER].num_nodes)


def num_items(data: HeteroData) -> int:
    r"""Returns the number of items."""
    return int(data[ITEM].num_nodes)


def modalities(data: HeteroData) -> list[str]:
    r"""Returns the names of the item modalities, in the order they are stored."""
    return [key[2:] for key in data[ITEM].keys() if key.startswith('x_')]


def features(data: HeteroData) -> dict[str, Tensor]:
    r"""Returns the item features :obj:`[I, F]` by modality."""
    return {name: data[ITEM][f'x_{name}'] for name in modalities(data)}


def pair_codes(edge_index: Tensor, num_items: int) -> Tensor:
    r"""Returns one int64 code :obj:`u * num_items + i` per pair, shape :obj:`[E]`."""
    user, item = plain(edge_index)
    return (user * num_items).add_(item)


def sorted_codes(edge_index: Tensor, num_items: int) -> Tensor:
    r"""Returns the :meth:`pair_codes` in ascending order, shape :obj:`[E]`."""
    codes = pair_codes(edge_index, num_items)
    if not codes.is_cpu:
        return codes.sort()[0]
    codes.numpy().sort()  # In place, unlike torch's.
    return codes


def has_codes(known: Tensor, codes: Tensor) -> Tensor:
    r"""Tells which :obj:`codes` are among the :obj:`known` ones, which ascend, bool
    :obj:`[n]`.
    """
    if known.numel() == 0:
        return torch.zeros_like(codes, dtype=torch.bool)
    place = torch.searchsorted(known, codes)
    return known[place.clamp_(max=known.numel() - 1)] == codes


def forget_mask(data: HeteroData) -> Tensor:
    r"""Returns the request as a mask :obj:`[E]` (all :obj:`False` without one)."""
    store = data[EDGE_TYPE]
    if 'forget_mask' in store:
        return store.forget_mask
    return torch.zeros(
        store.edge_index.size(1), dtype=torch.bool, device=store.edge_index.device
    )


def retained_edge_index(data: HeteroData) -> Tensor:
    r"""Returns the training pairs :obj:`[2, *]` that are not to be forgotten; without a
    request, the tensor of :obj:`data` itself.
    """
    edge_index = plain(data[EDGE_TYPE].edge_index)
    if 'forget_mask' not in data[EDGE_TYPE]:
        return edge_index
    return edge_index[:, ~forget_mask(data)]


def forgotten_edge_index(data: HeteroData) -> Tensor:
    r"""Returns the training pairs :obj:`[2, *]` that are to be forgotten."""
    return plain(data[EDGE_TYPE].edge_index)[:, forget_mask(data)]


def held_out(data: HeteroData, split: str) -> Tensor:
    r"""Returns the held-out pairs :obj:`[2, *]` of :obj:`'val'`, :obj:`'test'` or
    :obj:`'control'`.

    Empty if :obj:`data` holds no such split.
    """
    if split not in SPLITS:
        raise ValueError(f"'split' must be one of {SPLITS} (got '{split}')")
    key = f'{split}_edge_label_index'
    if key in data:
        return plain(data[key])
    return plain(data[EDGE_TYPE].edge_index).new_empty((2, 0))


def held_out_attrs(data: HeteroData, split: str) -> list[str]:
    r"""Returns the names of the attributes that the pairs of a split have kept, such as
    :obj:`'time'` for :obj:`data.val_edge_time`.
    """
    prefix = f'{split}_edge_'
    keys = [key for key in data.keys() if key.startswith(prefix)]
    return [key[len(prefix) :] for key in keys if key != f'{prefix}label_index']


def validate(data: HeteroData) -> HeteroData:
    r"""Checks :obj:`data` against the data contract and returns it unchanged, or, where
    it holds an :class:`~torch_geometric.EdgeIndex`, an :class:`~torch_geometric.Index`
    or a tensor with gradients, a shallow copy with plain tensors in their place.

    What holds of a tensor alone is checked once, as long as it is not written to.

    Raises:
        TypeError: If :obj:`data` is no :class:`HeteroData`, or a tensor has the
            wrong data type.
        ValueError: If a part is missing, has the wrong shape, an id is negative or
            out of range, a pair occurs twice, a held-out pair is a training pair
            as well, a feature is NaN or infinite, or the reverse edges disagree.
    """
    if not isinstance(data, HeteroData):
        raise TypeError(
            f"'data' must be a 'HeteroData' object (got '{type(data).__name__}'). "
            f"To build one from a table, use 'from_frame'."
        )
    data = _with_plain_tensors(data)
    _check_sizes(data)
    for name, x in features(data).items():
        check_features(x, num_items(data), f"data['item'].x_{name}")
    _check_interactions(data)
    _check_held_out(data)
    _check_reverse(data)
    _check_request(data)
    return data


def _with_plain_tensors(data: HeteroData) -> HeteroData:
    values = [value for store in data.stores for value in store.values()]
    if not any(isinstance(x, WRAPPERS) or _has_gradient(x) for x in values):
        return data
    out = copy.copy(data)
    for store in out.stores:
        for key, value in list(store.items()):
            if _has_gradient(value):  # The same tensor as long as it is remembered.
                value = remembered(value).setdefault('detached', value.detach())
            store[key] = plain(value)
    return out


def _has_gradient(x: Any) -> bool:
    return isinstance(x, Tensor) and x.requires_grad


def check_features(x: Tensor, num_rows: int, name: str) -> None:
    r"""Raises unless :obj:`x` is a finite float32 matrix with :obj:`num_rows` rows.

    Raises:
        TypeError: If :obj:`x` is no dense float32 tensor.
        ValueError: If its shape is wrong, or a value is NaN or infinite.
    """
    if not isinstance(x, Tensor) or x.dtype != torch.float32:
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(
            f"'{name}' must be a float32 tensor (got {got}). Convert it, e.g. with "
            f"'x.float()'."
        )
    if x.layout != torch.strided:
        raise TypeError(
            f"'{name}' must be a dense tensor (got {x.layout}). Convert it with "
            f"'x.to_dense()'."
        )
    if x.dim() != 2 or x.size(1) == 0:
        raise ValueError(
            f"'{name}' must have shape [num_items, F] with F >= 1 "
            f'(got {list(x.shape)})'
        )
    if x.size(0) != num_rows:
        raise ValueError(
            f"'{name}' must have one row per item: expected {num_rows} rows "
            f'(got {x.size(0)})'
        )
    facts = remembered(x)
    if 'finite' in facts:
        return
    bad = ~torch.isfinite(x).all(dim=1)
    if bad.any():
        raise ValueError(
            f"'{name}' must be finite, but {int(bad.sum())} of {num_rows} rows hold "
            f'NaN or infinity (first: row {int(bad.nonzero()[0])}). '
            f'Replace these values, e.g. by the mean over the other rows.'
        )
    facts['finite'] = True


def check_pairs(edge_index: Tensor, num_users: int, num_items: int, name: str) -> None:
    r"""Raises unless :obj:`edge_index` holds unique, valid (user, item) pairs.

    Raises:
        TypeError: If :obj:`edge_index` is no int64 tensor.
        ValueError: If its shape is not :obj:`[2, *]`, an id is negative or out of
            range, or a pair occurs twice.
    """
    if not isinstance(edge_index, Tensor) or edge_index.dtype != torch.int64:
        is_tensor = isinstance(edge_index, Tensor)
        got = edge_index.dtype if is_tensor else type(edge_index).__name__
        raise TypeError(f"'{name}' must be an int64 tensor (got {got})")
    if edge_index.dim() != 2 or edge_index.size(0) != 2:
        raise ValueError(
            f"'{name}' must have shape [2, num_pairs] (got {list(edge_index.shape)})"
        )
    facts, fact = remembered(edge_index), ('pairs', num_users, num_items)
    if fact in facts:
        return
    for row, (kind, size) in enumerate([('user', num_users), ('item', num_items)]):
        ids = edge_index[row]
        if ids.numel() and (ids.min() < 0 or ids.max() >= size):
            bad = (ids < 0) | (ids >= size)
            first = int(bad.nonzero()[0])
            raise ValueError(
                f"'{name}' holds {int(bad.sum())} {kind} ids outside [0, {size - 1}] "
                f'(first: {int(ids[first])} at position {first}). Ids must be '
                f"0-based and dense; 'from_frame' maps any ids to such ones."
            )
    codes = sorted_codes(edge_index, num_items)
    if (codes[1:] == codes[:-1]).any():
        codes, counts = codes.unique(return_counts=True)
        code = int(codes[counts > 1][0])
        raise ValueError(
            f"'{name}' must hold unique pairs, but {int((counts > 1).sum())} occur "
            f'more than once (first: user {code // num_items}, '
            f'item {code % num_items}). Remove the duplicates.'
        )
    facts[fact] = True


def _check_sizes(data: HeteroData) -> None:
    for node_type in (USER, ITEM):
        if node_type not in data.node_types:
            raise ValueError(
                f"'data' must hold the node types 'user' and 'item' "
                f'(got {data.node_types})'
            )
        size = data[node_type].get('num_nodes')
        if not isinstance(size, Integral) or isinstance(size, bool) or size < 1:
            raise ValueError(
                f"data['{node_type}'].num_nodes must be a positive integer "
                f'(got {size})'
            )


def _check_interactions(data: HeteroData) -> None:
    for src, rel, dst in data.edge_types:
        between = {src, dst} == {USER, ITEM}
        if between and (src, rel, dst) not in (EDGE_TYPE, REV_EDGE_TYPE):
            raise ValueError(
                f"'data' holds the edge type {(src, rel, dst)} between users and "
                f'items, which a deletion would not reach. Remove it, or rename it '
                f'to {EDGE_TYPE} or, if it holds the same pairs flipped, to '
                f'{REV_EDGE_TYPE}.'
            )
    if EDGE_TYPE not in data.edge_types or 'edge_index' not in data[EDGE_TYPE]:
        raise ValueError(
            f"'data' must hold the training interactions as data[{EDGE_TYPE}]."
            f'edge_index (got the edge types {data.edge_types})'
        )
    store = data[EDGE_TYPE]
    name = f'data[{EDGE_TYPE}].edge_index'
    check_pairs(store.edge_index, num_users(data), num_items(data), name)
    num_edges = store.edge_index.size(1)
    if num_edges == 0:
        raise ValueError(
            f"'{name}' is empty: there is no training interaction to learn from. "
            f"Check the split, e.g. with 'SplitInteractions'."
        )
    for key, value in store.items():
        if key in ('edge_index', 'forget_mask') or not isinstance(value, Tensor):
            continue
        if value.dim() > 0 and value.size(0) != num_edges:
            raise ValueError(
                f"data[{EDGE_TYPE}].{key} must have length {num_edges}, one entry "
                f'per training interaction (got {value.size(0)}). Store what is not '
                f'per interaction on the graph itself.'
            )


def _check_held_out(data: HeteroData) -> None:
    items = num_items(data)
    keys = [key for key in (*HELD_OUT, CONTROL) if key in data]
    if not keys:
        return
    seen = [sorted_codes(data[EDGE_TYPE].edge_index, items)]
    where = 'training'
    for key in keys:
        check_pairs(data[key], num_users(data), items, f'data.{key}')
        codes = pair_codes(data[key], items)
        leaked = torch.stack([has_codes(known, codes) for known in seen]).any(dim=0)
        if leaked.any():
            code = int(codes[leaked][0])
            raise ValueError(
                f"'data.{key}' must not overlap with the {where} pairs, but "
                f'{int(leaked.sum())} pairs do (first: user {code // items}, item '
                f'{code % items}). Held-out pairs would leak into the model.'
            )
        where = 'training or validation' if where == 'training' else 'other'
        seen.append(codes.sort()[0])
        split = key.partition('_')[0]
        for name in held_out_attrs(data, split):
            length = len(data[f'{split}_edge_{name}'])
            if length != codes.numel():
                raise ValueError(
                    f"'data.{split}_edge_{name}' must have length {codes.numel()}, one "
                    f'entry per pair (got {length}). Cut it along with the pairs.'
                )


def _check_reverse(data: HeteroData) -> None:
    if REV_EDGE_TYPE not in data.edge_types:
        return
    items = num_items(data)
    reverse = data[REV_EDGE_TYPE].edge_index
    name = f'data[{REV_EDGE_TYPE}].edge_index'
    if not isinstance(reverse, Tensor) or reverse.dim() != 2 or reverse.size(0) != 2:
        raise ValueError(f"'{name}' must be a tensor of shape [2, num_pairs]")
    check_pairs(reverse.flip(0), num_users(data), items, name)
    forward = pair_codes(data[EDGE_TYPE].edge_index, items).sort()[0]
    if not torch.equal(forward, pair_codes(reverse.flip(0), items).sort()[0]):
        raise ValueError(
            f"'{name}' must hold exactly the training pairs, flipped. Rebuild it, "
            f"e.g. with 'torch_geometric.transforms.ToUndirected'."
        )


def _check_request(data: HeteroData) -> None:
    store = data[EDGE_TYPE]
    if 'forget_mask' not in store:
        return
    mask = store.forget_mask
    num_edges = store.edge_index.size(1)
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"'forget_mask' must be a bool tensor (got {got})")
    if mask.dim() != 1 or mask.numel() != num_edges:
        raise ValueError(
            f"'forget_mask' must have shape [{num_edges}], one entry per training "
            f'interaction (got {list(mask.shape)})'
        )
    if mask.all():
        raise ValueError(
            "'forget_mask' deletes every training interaction: nothing would be "
            'left to recommend from. Withdraw the model instead of unlearning.'
        )
    if 'forget_level' in data and data.forget_level not in FORGET_LEVELS:
        raise ValueError(
            f"'forget_level' must be one of {FORGET_LEVELS} "
            f"(got '{data.forget_level}')"
        )
