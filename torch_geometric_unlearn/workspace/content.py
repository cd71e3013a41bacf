r"""The features of items that are taken down, in data and models."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.data.request import is_erased, without_request
from torch_geometric_unlearn.nn.models.base import RecommenderLike
from torch_geometric_unlearn.transforms import DropForgotten, ForgetItems

from .keys import decode

if TYPE_CHECKING:
    from .workspace import Workspace


def dropped_items(ws: Workspace, numbers: list[int]) -> list[int]:
    r"""Returns the internal ids of the items in the data in service whose features
    some requests ask to drop.
    """
    known, out = ws.versions.internal(schema.ITEM), set()
    for target in ws.book.targets(numbers):
        if target['drops_features'] and target['level'] == schema.ITEM:
            out.add(known.get(decode(schema.ITEM, target['raw'])))
    return sorted(index for index in out if index is not None)


def without_content(
    model: RecommenderLike, data: HeteroData, items: list[int]
) -> tuple[RecommenderLike, HeteroData]:
    r"""Returns a copy of a model and its data without the features of some items: zero
    in the data and in the tables of the model, which start from them, and out of all
    graphs between items that are made of features.
    """
    out = copy.deepcopy(model)
    zero_rows(out, items, schema.num_users(data))
    # With everything that names the item, of which the content is taken.
    bare = DropForgotten(keep=())(ForgetItems(items)(without_request(data)))
    rest = copy.copy(data)
    for name in schema.features(data):
        rest[schema.ITEM][f'x_{name}'] = bare[schema.ITEM][f'x_{name}']
    for edge_type in data.edge_types:
        if edge_type[0] == edge_type[2] == schema.ITEM:
            for key, value in bare[edge_type].items():
                rest[edge_type][key] = value
    return out, rest


@torch.no_grad()
def zero_rows(model: Any, items: list[int], num_users: int) -> None:
    r"""Sets the rows of some items in all tables of features to zero, in place."""
    for parameter, rows in feature_rows(model, items, num_users):
        parameter[rows] = 0


def feature_rows(
    model: Any, items: list[int], num_users: int
) -> list[tuple[Tensor, Tensor]]:
    r"""Returns the tables of features, and where the rows of some items lie in each."""
    out = []
    for table in model.tables():
        if table.is_raw:
            _, rows = table.locate(torch.tensor(items) + num_users, num_users)
            out.append((table.parameter, rows.to(table.parameter.device)))
    return out


def content_lost(before: HeteroData, after: HeteroData) -> list[int]:
    r"""Returns the items that have features in some data and none in later data."""
    num, lost = schema.num_items(before), None
    for name, x in schema.features(before).items():
        later = schema.features(after).get(name)
        if later is None:
            continue
        rows = min(num, later.size(0))
        gone = (x[:rows] != 0).any(dim=1) & (later[:rows] == 0).all(dim=1)
        lost = gone if lost is None else lost | gone
    return [] if lost is None else lost.nonzero().view(-1).tolist()


def content_erased(data: HeteroData) -> list[int]:
    r"""Returns the erased items that have no features."""
    ids, tables = data[schema.ITEM].raw_id, schema.features(data).values()
    return [
        index
        for index, raw in enumerate(ids)
        if is_erased(raw) and tables and not any(x[index].any() for x in tables)
    ]
