r"""What requests of a workspace name in its data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.data.request import Request, is_erased
from torch_geometric_unlearn.transforms import (
    ForgetInteractions,
    ForgetItems,
    ForgetUsers,
)

from .keys import decode
from .kinds import LEVELS

if TYPE_CHECKING:
    from .workspace import Workspace

_TRANSFORMS: dict[str, Any] = {
    'user': ForgetUsers,
    'item': ForgetItems,
    'pair': ForgetInteractions,
}


def mark(
    ws: Workspace, numbers: list[int]
) -> tuple[HeteroData, dict[tuple[int, str], str]]:
    r"""Marks what requests name in the data in service, and returns it with what was
    found of every target, by request and digest. Requests that would leave no
    interaction are left out.
    """
    data = ws.versions.get_data(ws.versions.service['data'])
    outcomes: dict[tuple[int, str], str] = {}
    named: dict[int, dict[str, list[Any]]] = {}
    known = {kind: ws.versions.internal(kind) for kind in (schema.USER, schema.ITEM)}
    num_items = schema.num_items(data)
    codes = schema.pair_codes(all_pairs(data), num_items).sort()[0]
    for target in ws.book.targets(numbers):
        level = target['level']
        raw = decode(level, target['raw'])
        ids: Any = None
        if level == 'pair':
            user, item = known['user'].get(raw[0]), known['item'].get(raw[1])
            if user is not None and item is not None:
                code = torch.tensor([user * num_items + item])
                place = int(torch.searchsorted(codes, code))
                if place < codes.numel() and codes[place] == code:
                    ids = user, item
        else:
            ids = known[level].get(raw)
        key = target['request'], target['digest']
        found = named.setdefault(target['request'], {kind: [] for kind in LEVELS})
        if ids is None and target['outcome'] == 'erased':  # By new data.
            outcomes[key] = 'erased'
        elif ids is None:
            earlier = ws.ledger.row(
                "SELECT 1 FROM target WHERE digest = ? AND outcome = 'erased'",
                target['digest'],
            )
            outcomes[key] = 'nothing_found' if earlier is None else 'already_erased'
        else:
            outcomes[key] = 'erased'
            found[level].append(ids)
    served = _possible(data, named)
    outcomes = {key: value for key, value in outcomes.items() if key[0] in served}
    marked = data
    for level, request in _TRANSFORMS.items():
        if ids := sorted({x for number in served for x in named[number][level]}):
            marked = request(ids)(marked)
    return marked, outcomes


def _possible(data: HeteroData, named: dict[int, dict[str, list[Any]]]) -> list[int]:
    r"""Returns the requests, in order, that together leave an interaction."""
    pairs, num_items = data[schema.EDGE_TYPE].edge_index, schema.num_items(data)
    codes = schema.pair_codes(pairs, num_items)

    def hits(requests: list[dict[str, list[Any]]]) -> Tensor:
        users, items, ones = (
            torch.tensor([x for found in requests for x in found[level]]).long()
            for level in LEVELS
        )
        hit = torch.isin(pairs[0], users) | torch.isin(pairs[1], items)
        ones = schema.pair_codes(ones.view(-1, 2).t(), num_items)
        return hit | torch.isin(codes, ones)

    if not hits(list(named.values())).all():
        return list(named)
    out, gone = [], torch.zeros_like(codes, dtype=torch.bool)
    for number, found in named.items():
        after = gone | hits([found])
        if not after.all():
            out.append(number)
            gone = after
    return out


def remark(before: HeteroData, after: HeteroData) -> HeteroData:
    r"""Returns data with everything marked that later data lack, node by node and pair
    by pair, held out or not.
    """
    marked, num_items = before, schema.num_items(before)
    for kind in (schema.USER, schema.ITEM):
        ids = zip(before[kind].raw_id, after[kind].raw_id)
        gone = [i for i, (old, new) in enumerate(ids) if _is_gone(old, new)]
        if gone:
            marked = _TRANSFORMS[kind](gone)(marked)
    codes = schema.pair_codes(all_pairs(after), num_items)
    pairs = all_pairs(before)
    lost = pairs[:, ~torch.isin(schema.pair_codes(pairs, num_items), codes)]
    return ForgetInteractions(lost)(marked) if lost.numel() else marked


def _is_gone(old: Any, new: Any) -> bool:
    return is_erased(new) and not is_erased(old)


def all_pairs(data: HeteroData) -> Tensor:
    r"""Returns all pairs int64 :obj:`[2, n]`, held out or not."""
    parts = [data[schema.EDGE_TYPE].edge_index]
    return torch.cat(parts + [schema.held_out(data, s) for s in schema.SPLITS], dim=1)


def erased_pairs(marked: HeteroData) -> dict[str, list[list[int]]]:
    r"""Returns what a request erases, by split, in internal ids."""
    request, num_items = Request.of(marked), schema.num_items(marked)
    out = {'train': request.pairs.tolist()}
    for split in schema.SPLITS:
        pairs = schema.held_out(marked, split)
        gone = request.covers(pairs) | request.names(pairs, num_items)
        out[split] = pairs[:, gone].tolist()
    return out


def pooled(marked: HeteroData, earlier: list[dict[str, Any]]) -> HeteroData:
    r"""Returns the data of a request together with what earlier ones have erased, whose
    gates could not be told, all marked.
    """
    if not earlier:
        return marked
    num_items = schema.num_items(marked)
    known = schema.pair_codes(all_pairs(marked), num_items)

    def pairs(split: str) -> Tensor:
        parts = [torch.tensor(part[split]).view(2, -1).long() for part in earlier]
        out = torch.cat(parts, dim=1).unique(dim=1)
        # One that came back since, with a new consent, counts as what it is now.
        return out[:, ~torch.isin(schema.pair_codes(out, num_items), known)]

    out = HeteroData()
    for kind in (schema.USER, schema.ITEM):
        out[kind].num_nodes = marked[kind].num_nodes
    for name, x in schema.features(marked).items():
        out[schema.ITEM][f'x_{name}'] = x
    store = marked[schema.EDGE_TYPE]
    old = pairs('train')
    edges = out[schema.EDGE_TYPE]
    edges.edge_index = torch.cat([store.edge_index, old], dim=1)
    mask = old.new_ones(old.size(1), dtype=torch.bool)
    edges.forget_mask = torch.cat([schema.forget_mask(marked), mask])
    for split in schema.SPLITS:
        held_out = torch.cat([schema.held_out(marked, split), pairs(split)], dim=1)
        if held_out.numel():
            out[f'{split}_edge_label_index'] = held_out
    out.forget_level = 'mixed'
    return out
