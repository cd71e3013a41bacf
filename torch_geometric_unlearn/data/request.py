r"""What a request says: the one place that reads it, and the one that undoes it."""

from __future__ import annotations

import copy
import re
import secrets
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from . import schema

#: Graph-level keys that hold the requested ids.
REQUEST_KEYS = ('forget_users', 'forget_items', 'forget_interactions')

_ERASED = re.compile('erased-[0-9a-f]{16}')


def erased_id() -> str:
    r"""Returns what stands in an id map in place of a deleted id: a random token."""
    return f'erased-{secrets.token_hex(8)}'


def is_erased(raw: Any) -> bool:
    r"""Tells whether an entry of an id map is such a token."""
    return isinstance(raw, str) and _ERASED.fullmatch(raw) is not None


@dataclass(frozen=True)
class Request:
    r"""What is to be forgotten, as the transforms have marked it.

    Attributes:
        level (str): :obj:`'user'`, :obj:`'item'`, :obj:`'interaction'` or
            :obj:`'mixed'`; where a request was marked by hand, by what it names.
        users (torch.Tensor): Users that it names, int64 :obj:`[n]`.
        items (torch.Tensor): Items that it names, int64 :obj:`[m]`.
        pairs (torch.Tensor): Training pairs that it deletes, int64 :obj:`[2, E]`.
        named (torch.Tensor): Pairs that it names, for training or held out, int64
            :obj:`[2, p]`.
    """

    level: str
    users: Tensor
    items: Tensor
    pairs: Tensor
    named: Tensor

    @classmethod
    def of(cls, data: HeteroData) -> Request:
        r"""Reads the request of :obj:`data`, which may be none: three empty tensors."""
        deleted = schema.forgotten_edge_index(data)
        none = deleted.new_empty(0)
        users, items, pairs = (
            data[key] if key in data else None for key in REQUEST_KEYS
        )
        kinds = {'user': users, 'item': items, 'interaction': pairs}
        named = [level for level, ids in kinds.items() if ids is not None]
        by_name = named[0] if len(named) == 1 else 'mixed' if named else 'interaction'
        return cls(
            level=data.forget_level if 'forget_level' in data else by_name,
            users=none if users is None else users,
            items=none if items is None else items,
            pairs=deleted,
            named=none.view(2, 0) if pairs is None else pairs,
        )

    def names(self, pairs: Tensor, num_items: int) -> Tensor:
        r"""Tells which :obj:`pairs` int64 :obj:`[2, n]` it names one by one, bool
        :obj:`[n]`.
        """
        named = schema.pair_codes(self.named.to(pairs.device), num_items)
        return torch.isin(schema.pair_codes(pairs, num_items), named)

    @property
    def is_empty(self) -> bool:
        r"""Whether it deletes no training pair and names no node."""
        return not any(x.numel() for x in (self.users, self.items, self.pairs))

    def covers(self, pairs: Tensor) -> Tensor:
        r"""Tells which :obj:`pairs` int64 :obj:`[2, n]` belong to a user or item that
        it names, bool :obj:`[n]`.
        """
        gone = torch.isin(pairs[0], self.users.to(pairs.device))
        return gone | torch.isin(pairs[1], self.items.to(pairs.device))


def without_request(data: HeteroData) -> HeteroData:
    r"""Returns the data as it was in service, without the request, sharing all
    tensors.
    """
    out = copy.copy(data)
    for key in (*REQUEST_KEYS, 'forget_level'):
        if key in out:
            del out[key]
    for edge_type in (schema.EDGE_TYPE, schema.REV_EDGE_TYPE):
        if edge_type in out.edge_types and 'forget_mask' in out[edge_type]:
            del out[edge_type]['forget_mask']
    return out
