from __future__ import annotations

import torch
from torch import Tensor
from torch_geometric.data import HeteroData
from torch_geometric.data.datapipes import functional_transform
from torch_geometric.data.storage import EdgeStorage
from torch_geometric.transforms import BaseTransform

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.data.request import Request, without_request

from ._edge_attrs import edge_attrs, select_edges


@functional_transform('drop_forgotten')
class DropForgotten(BaseTransform):
    r"""Deletes what a request marked (functional name: :obj:`drop_forgotten`).

    Removes the marked interactions in both directions with every edge attribute, the
    held-out pairs of deleted users and items with their attributes, and the request
    itself. Node ids never
    shift: a deleted user stays as a node without edges, so that embedding tables keep
    their rows. Data without a request is returned unchanged.

    Raises:
        ValueError: If an attribute of the reverse edges has another length than them.

    Example:
        >>> data = ForgetUsers([3, 17])(SyntheticMultimodal('tiny')[0])
        >>> data = DropForgotten()(data)
        >>> bool((data['user', 'interacts', 'item'].edge_index[0] == 3).any())
        False
    """

    def forward(self, data: HeteroData) -> HeteroData:
        data = schema.validate(data)
        store = data[schema.EDGE_TYPE]
        if 'forget_mask' not in store:
            return data
        num_items = schema.num_items(data)
        keep = ~store.forget_mask
        request = Request.of(data)
        if schema.REV_EDGE_TYPE in data.edge_types:
            reverse = data[schema.REV_EDGE_TYPE]
            codes = schema.pair_codes(reverse.edge_index.flip(0), num_items)
            gone = torch.isin(codes, schema.pair_codes(request.pairs, num_items))
            _keep_edges(reverse, ~gone)
        _keep_edges(store, keep)

        for split in schema.SPLITS:
            key = f'{split}_edge_label_index'
            if key not in data:
                continue
            kept = ~request.covers(data[key])
            data[key] = data[key][:, kept]
            for name in schema.held_out_attrs(data, split):
                name = f'{split}_edge_{name}'
                data[name] = select_edges(data[name], kept)
        return without_request(data)


def _keep_edges(store: EdgeStorage, keep: Tensor) -> None:
    for key in edge_attrs(store):
        store[key] = select_edges(store[key], keep)
    store.edge_index = store.edge_index[:, keep]
