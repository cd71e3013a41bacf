r"""What a caller does with its lists and tensors afterwards changes no request."""

import numpy as np
import pytest
import torch
from torch_geometric import Index

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.loader import TripletLoader
from torch_geometric_unlearn.nn import EmbeddingTable, ShardEnsemble
from torch_geometric_unlearn.transforms import (
    ForgetInteractions,
    ForgetItems,
    ForgetUsers,
    ItemKNNGraph,
)


def changed(ids):
    r"""Overwrites ids in place."""
    if isinstance(ids, Index):
        ids = ids.as_tensor()
    ids[0] = ids[1]


@pytest.mark.parametrize(
    'ids',
    [
        torch.tensor([3, 5]),
        torch.tensor([3, 5], dtype=torch.int32),
        Index([3, 5]),
        np.array([3, 5]),
        np.array([3, 5], dtype='uint32'),
        [3, 5],
    ],
    ids=lambda x: f'{type(x).__name__} {getattr(x, "dtype", "")}',
)
@pytest.mark.parametrize('kind', [ForgetUsers, ForgetItems])
def test_nodes(data, kind, ids):
    name = f'{kind.node_type}s'
    data[kind.node_type].raw_id = list(range(data[kind.node_type].num_nodes))
    ids = ids.clone() if isinstance(ids, torch.Tensor) else ids.copy()
    requests = [kind(ids), kind(**{f'raw_{name}': ids})]
    row = int(kind.node_type == schema.ITEM)
    expected = data[schema.EDGE_TYPE].edge_index[row]
    expected = torch.isin(expected, torch.tensor([3, 5]))
    changed(ids)
    for request in requests:
        out = request(data)
        assert out[f'forget_{name}'].tolist() == [3, 5]
        assert torch.equal(out[schema.EDGE_TYPE].forget_mask, expected)


def test_pairs(data):
    edge_index = data[schema.EDGE_TYPE].edge_index
    for name in ('user', 'item'):
        data[name].raw_id = list(range(data[name].num_nodes))
    pairs = edge_index[:, 4:6].clone()
    lists = [list(pair) for pair in pairs.t().tolist()]
    requests = [ForgetInteractions(pairs), ForgetInteractions(lists)]
    requests.append(ForgetInteractions(raw_pairs=lists))
    changed(pairs.t())
    changed(lists)
    lists[1][0] = 99
    for request in requests:
        mask = request(data)[schema.EDGE_TYPE].forget_mask
        assert mask.nonzero().view(-1).tolist() == [4, 5]


def test_marks_are_no_part_of_the_request(data):
    request = ForgetUsers([3])
    first = request(data)
    first.forget_users.fill_(7)
    first[schema.EDGE_TYPE].forget_mask.fill_(False)
    assert request(data).forget_users.tolist() == [3]


def test_other_arguments(data):
    modalities = ['image']
    knn = ItemKNNGraph(3, modalities)
    modalities.append('text')
    assert schema.similar_edge_type('text') not in knn(data).edge_types

    pairs = data[schema.EDGE_TYPE].edge_index.clone()
    known, items = pairs.clone(), torch.arange(60)
    first, second = (TripletLoader(pairs, 60, 64, known, items) for _ in range(2))
    expected = [torch.stack(batch) for batch in first]
    for tensor in (pairs, known, items):
        tensor.zero_()
    got = [torch.stack(batch) for batch in second]
    assert all(torch.equal(*both) for both in zip(got, expected))

    users, items = torch.ones(4, 2), torch.ones(3, 2)
    owner = torch.tensor([0, 0, 0, 0])
    table = EmbeddingTable(users, items)
    ensemble = ShardEnsemble([table], owner, weights=torch.ones(1))
    users.zero_()
    owner.fill_(9)
    assert table.user_embedding.weight.min() == 1
    assert ensemble.owner.tolist() == [0] * 4
