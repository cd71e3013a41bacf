r"""Graphs of PyG with other names, and their link splits, as data."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import HeteroData
from torch_geometric.data.storage import EdgeStorage

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.utils.plain import plain

EdgeType = tuple[str, str, str]

#: What a link split adds to the edges that it supervises.
_SPLIT_KEYS = tuple(
    f'{side}edge_label{end}' for side in ('', 'pos_', 'neg_') for end in ('', '_index')
)


def from_hetero(
    data: HeteroData | Sequence[HeteroData],
    *,
    user: str = schema.USER,
    item: str = schema.ITEM,
    interaction: str = schema.EDGE_TYPE[1],
    modality: str = 'content',
) -> HeteroData:
    r"""Builds a data object from a graph with names of its own, or from the three that
    :class:`torch_geometric.transforms.RandomLinkSplit` returns.

    User and item nodes, the interactions and their reverse get the names of the data
    contract. The reverse edges are those from items to users that hold the same pairs.
    Everything else that is attached stays under its name, with the types of its ends
    renamed. Item features :obj:`x` become ``x_<modality>``; these and others are
    converted to dense float32.

    Of a link split, the training interactions are the edges of the validation graph,
    which hold all of them with their attributes, and the held-out pairs are the
    supervised ones of the validation and of the test graph. Negatives, which carry the
    label 0, are left out: the losses and metrics here draw their own.

    Args:
        data (HeteroData or sequence): The graph, left as it is, or the training,
            validation and test graph of a link split.
        user (str, optional): Its node type of users. (default: :obj:`'user'`)
        item (str, optional): Its node type of items. (default: :obj:`'item'`)
        interaction (str, optional): The relation from users to items.
            (default: :obj:`'interacts'`)
        modality (str, optional): What :obj:`x` of the items is.
            (default: :obj:`'content'`)

    Returns:
        HeteroData: A new object that shares the tensors which need no conversion.

    Raises:
        TypeError: If :obj:`data` is something else, or a tensor has the wrong type.
        ValueError: If a type is absent, a name would occur twice, the three graphs are
            no split of one, or the result breaks the data contract.

    Example:
        >>> from torch_geometric.data import HeteroData
        >>> graph = HeteroData()
        >>> graph['customer'].num_nodes = 2
        >>> graph['product'].x = torch.rand(3, 4)
        >>> graph['customer', 'buys', 'product'].edge_index = torch.tensor(
        ...     [[0, 0, 1], [0, 2, 1]])
        >>> shop = from_hetero(
        ...     graph, user='customer', item='product', interaction='buys')
        >>> shop['item'].x_content.shape
        torch.Size([3, 4])
    """
    parts: list[Any] = list(data) if isinstance(data, (list, tuple)) else [data]
    if len(parts) not in (1, 3) or not all(isinstance(x, HeteroData) for x in parts):
        kinds = [type(x).__name__ for x in parts]
        raise TypeError(
            f"'data' must be a 'HeteroData' object, or the three of a link split, "
            f'(train, val, test) (got {kinds})'
        )
    _check_names(user, item, interaction, modality)
    source = (user, interaction, item)
    for part in parts:
        _check_types(part, user, item, source)
    # The edges of the validation graph are all training interactions.
    base = parts[min(1, len(parts) - 1)]
    if len(parts) == 1 and any(key in base[source] for key in _SPLIT_KEYS):
        raise ValueError(
            f"data[{source}] is a part of a link split, since it holds "
            f"'edge_label_index'. Pass all three of them: "
            f"'from_hetero((train, val, test), ...)'."
        )
    nodes = {user: schema.USER, item: schema.ITEM}
    out = HeteroData()
    for key, value in base._global_store.items():
        out[key] = value
    for node_type in base.node_types:
        name = nodes.get(node_type, node_type)
        _check_free(name, out.node_types, node_type)
        for key, value in base[node_type].items():
            out[name][key] = value
    for node_type, name in nodes.items():
        out[name].num_nodes = _num_nodes(base, node_type)
    _convert_features(out, modality)
    for edge_type in base.edge_types:
        src, relation, dst = edge_type
        renamed = (nodes.get(src, src), relation, nodes.get(dst, dst))
        if edge_type == source:
            renamed = schema.EDGE_TYPE
        elif (src, dst) == (item, user) and _is_reverse(base, edge_type, source):
            renamed = schema.REV_EDGE_TYPE
        _check_free(renamed, out.edge_types, edge_type)
        is_split = renamed in (schema.EDGE_TYPE, schema.REV_EDGE_TYPE)
        for key, value in base[edge_type].items():
            if not (is_split and key in _SPLIT_KEYS):
                out[renamed][key] = _as_pairs(value) if key == 'edge_index' else value
    if len(parts) == 3:
        _check_split(parts, source)
        for name, part in zip(('val', 'test'), parts[1:]):
            out[f'{name}_edge_label_index'] = _positives(part[source], source)
    return schema.validate(out)


def _check_names(user: str, item: str, interaction: str, modality: str) -> None:
    given = {'user': user, 'item': item, 'interaction': interaction}
    for name, value in given.items():
        if not isinstance(value, str):
            raise TypeError(f"'{name}' must be a name (got {value!r})")
    if user == item:
        raise ValueError(f"'user' and 'item' must differ (got '{user}' for both)")
    is_name = isinstance(modality, str) and modality.isidentifier()
    if not is_name or modality.startswith('x_'):
        raise ValueError(
            f"'modality' must be a plain word such as 'image' (got {modality!r}). The "
            f"features are stored as 'x_<modality>'."
        )


def _check_types(data: HeteroData, user: str, item: str, source: EdgeType) -> None:
    for argument, node_type in (('user', user), ('item', item)):
        if node_type not in data.node_types:
            raise ValueError(
                f"'{argument}' must be one of the node types {data.node_types} (got "
                f"'{node_type}')"
            )
    if source not in data.edge_types:
        raise ValueError(
            f"'interaction' must name the relation from '{user}' to '{item}' (got "
            f"'{source[1]}' among the edge types {data.edge_types})"
        )


def _check_free(name: Any, taken: Sequence[Any], source: Any) -> None:
    if name in taken:
        raise ValueError(
            f"'data' would hold {name!r} twice, the second time from {source!r}. "
            f'Rename or remove one of both before.'
        )


def _num_nodes(data: HeteroData, node_type: str) -> int:
    with warnings.catch_warnings():  # PyG warns where it can't tell.
        warnings.simplefilter('ignore')
        size = data[node_type].num_nodes
    if size is None:
        raise ValueError(
            f"data['{node_type}'].num_nodes must be given where there are no features "
            f'to tell it (got none)'
        )
    return int(size)


def _convert_features(out: HeteroData, modality: str) -> None:
    store, name = out[schema.ITEM], f'x_{modality}'
    if 'x' in store:
        if name in store:
            raise ValueError(
                f"The item features 'x' would become '{name}', which exists already. "
                f"Pass another 'modality'."
            )
        store[name] = store.x
        del store.x
    for key, x in list(store.items()):
        if key.startswith('x_') and isinstance(x, Tensor) and not x.is_complex():
            store[key] = x.detach().to_dense().float()


def _as_pairs(edge_index: Any) -> Any:
    edge_index = plain(edge_index)
    is_small = isinstance(edge_index, Tensor) and edge_index.dtype == torch.int32
    return edge_index.long() if is_small else edge_index


def _codes(data: HeteroData, edge_index: Tensor, item: str) -> Tensor:
    return schema.pair_codes(_as_pairs(edge_index), _num_nodes(data, item)).sort()[0]


def _is_reverse(data: HeteroData, edge_type: EdgeType, source: EdgeType) -> bool:
    r"""Tells whether edges from items to users are the interactions, flipped."""
    forward, reverse = data[source].edge_index, data[edge_type].edge_index
    reverse = plain(reverse).flip(0)
    item = source[2]
    return torch.equal(_codes(data, forward, item), _codes(data, reverse, item))


def _positives(store: EdgeStorage, source: EdgeType) -> Tensor:
    if 'pos_edge_label_index' in store:
        return _as_pairs(store.pos_edge_label_index)
    if 'edge_label_index' not in store:
        raise ValueError(
            f"data[{source}] must hold the 'edge_label_index' of a link split in the "
            f"validation and the test graph (got {list(store.keys())}). Name the "
            f"relation as 'edge_types' of 'RandomLinkSplit'."
        )
    pairs = _as_pairs(store.edge_label_index)
    return pairs[:, store.edge_label > 0] if 'edge_label' in store else pairs


def _check_split(parts: Sequence[HeteroData], source: EdgeType) -> None:
    item = source[2]
    train, val, test = (_codes(p, p[source].edge_index, item) for p in parts)
    sizes = [[_num_nodes(part, kind) for kind in source[::2]] for part in parts]
    known = torch.isin(train, val).all() and torch.isin(val, test).all()
    if sizes[0] != sizes[1] or sizes[1] != sizes[2] or not known:
        raise ValueError(
            f"'data' must be (train, val, test) of one link split, where each graph "
            f'has the nodes and the edges of the one before (got {train.numel()}, '
            f'{val.numel()} and {test.numel()} edges). Keep their order.'
        )
