from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import HeteroData
from torch_geometric.data.datapipes import functional_transform
from torch_geometric.transforms import BaseTransform

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.data.request import Request, without_request

from ._edge_attrs import select_edges
from ._erase import Eraser, keep_edges

#: Item content, and the graphs made of it: it holds no interactions.
CONTENT = ('item.x_*', 'item__similar_*__item')


@functional_transform('drop_forgotten')
class DropForgotten(BaseTransform):
    r"""Deletes what a request marked (functional name: :obj:`drop_forgotten`).

    Removes the marked interactions in both directions with every edge attribute, the
    held-out pairs that the request names, or whose user or item it deletes, with their
    attributes, and the request itself. Of deleted users and items it erases whatever
    else names them:

    - their edges of every other type, such as :obj:`('user', 'follows', 'user')`,
    - their entry in every attribute of the nodes: zero in tensors and arrays,
      :obj:`None` in lists, and in the id map :obj:`raw_id` a random token, since ids
      never move to other nodes,
    - likewise nodes of other types that hang on deleted ones only, such as the reviews
      of a user.

    Node ids never shift: a deleted user stays as a node without edges, so that
    embedding tables keep their rows. Data without a request is returned unchanged.

    Args:
        keep (sequence, optional): Names of what to leave as it is, as patterns of
            :mod:`fnmatch`: attributes of nodes as :obj:`'user.age'`, edge types as
            :obj:`'user__follows__user'`, their attributes as
            :obj:`'user__interacts__item.note'`, node types as :obj:`'city'`, and
            attributes of the graph by their key. The default leaves the content of
            deleted items, which holds no interactions; :obj:`()` erases it as well, and
            :obj:`('*',)` deletes nothing but interactions and held-out pairs.
            (default: :obj:`('item.x_*', 'item__similar_*__item')`)

    Raises:
        TypeError: If :obj:`keep` is a string or holds something else than strings.
        ValueError: If an attribute of the reverse edges has another length than them,
            or something that may name the deleted can't be cut, such as a dictionary
            or an adjacency matrix; lists all of it.

    Example:
        >>> data = ForgetUsers([3, 17])(SyntheticMultimodal('tiny')[0])
        >>> data = DropForgotten()(data)
        >>> bool((data['user', 'interacts', 'item'].edge_index[0] == 3).any())
        False
    """

    def __init__(self, keep: Sequence[str] = CONTENT) -> None:
        if isinstance(keep, str) or not all(isinstance(name, str) for name in keep):
            raise TypeError(
                f"'keep' must be a sequence of names (got {keep!r}). For a single one, "
                f"pass a list of length one, e.g. ['user.age']."
            )
        self.keep = tuple(keep)

    def forward(self, data: HeteroData) -> HeteroData:
        return drop_forgotten(data, self.keep)

    def __repr__(self) -> str:
        keep = '' if self.keep == CONTENT else f'keep={list(self.keep)}'
        return f'{self.__class__.__name__}({keep})'


def drop_forgotten(
    data: HeteroData, keep: Sequence[str] = CONTENT, strict: bool = True
) -> HeteroData:
    r"""Returns the data as :class:`DropForgotten` leaves them; without :obj:`strict`,
    also where something can't be cut.
    """
    data = schema.validate(data)
    if 'forget_mask' not in data[schema.EDGE_TYPE]:
        return data
    num_items, request = schema.num_items(data), Request.of(data)
    data = copy.copy(data)
    edges = data[schema.EDGE_TYPE]
    if schema.REV_EDGE_TYPE in data.edge_types:
        reverse = data[schema.REV_EDGE_TYPE]
        codes = schema.pair_codes(reverse.edge_index.flip(0), num_items)
        deleted = schema.pair_codes(request.pairs, num_items)
        keep_edges(reverse, ~torch.isin(codes, deleted))
    keep_edges(edges, ~edges.forget_mask)
    store = data._global_store
    for key in [key for key in store if key.endswith('_edge_label_index')]:
        prefix = key[: -len('label_index')]
        kept = ~(request.covers(data[key]) | request.names(data[key], num_items))
        data[key] = data[key][:, kept]
        for name in [name for name in store if name.startswith(prefix)]:
            if name != key and _is_per_pair(data[name], kept):
                data[name] = select_edges(data[name], kept)
    out = without_request(data)
    gone = {schema.USER: request.users, schema.ITEM: request.items}
    Eraser(out, gone, keep)(strict)
    return out


def _is_per_pair(value: Any, kept: Tensor) -> bool:
    is_list = hasattr(value, '__len__') and not isinstance(value, str)
    return is_list and len(value) == kept.numel()
