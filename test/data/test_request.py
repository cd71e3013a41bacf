import copy

import pytest
import torch
from torch_geometric.transforms import ToUndirected

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.data.request import Request, without_request
from torch_geometric_unlearn.metrics import embed
from torch_geometric_unlearn.testing._snapshot import assert_same, snapshot
from torch_geometric_unlearn.transforms import (
    ForgetInteractions,
    ForgetItems,
    ForgetUsers,
)

EDGE, REV = schema.EDGE_TYPE, schema.REV_EDGE_TYPE
PAIRS = ForgetInteractions(ratio=0.1)


@pytest.mark.parametrize(
    ('level', 'steps', 'users', 'items'),
    [
        ('user', [ForgetUsers([3, 17])], [3, 17], []),
        ('item', [ForgetItems([5])], [], [5]),
        ('interaction', [PAIRS], [], []),
        ('mixed', [ForgetUsers([3]), ForgetItems([5]), PAIRS], [3], [5]),
    ],
)
def test_reads_what_was_marked(level, steps, users, items, data):
    for step in steps:
        data = step(data)
    request = Request.of(data)
    assert request.level == level
    assert (request.users.tolist(), request.items.tolist()) == (users, items)
    assert torch.equal(request.pairs, data[EDGE].edge_index[:, data[EDGE].forget_mask])
    del data.forget_level  # The level follows from what is named.
    assert Request.of(data).level == level


def test_no_request(data):
    request = Request.of(data)
    assert request.is_empty
    assert request.level == 'interaction'
    assert request.users.dtype == torch.int64
    assert not request.covers(data[EDGE].edge_index).any()
    marked = copy.copy(data)
    marked.forget_users = torch.tensor([3])  # Named, without a pair.
    assert not Request.of(marked).is_empty


def test_covers_by_loops(data):
    request = Request.of(ForgetUsers([3, 17])(ForgetItems([5])(data)))
    pairs = torch.cat([data[EDGE].edge_index, schema.held_out(data, 'val')], dim=1)
    expected = [u in (3, 17) or i == 5 for u, i in pairs.t().tolist()]
    assert request.covers(pairs).tolist() == expected
    assert any(expected)


def test_without_request(data, trained):
    data = ToUndirected()(data)
    marked = PAIRS(ForgetItems([5])(ForgetUsers([3])(data)))
    marked[REV].forget_mask = marked[EDGE].forget_mask
    before = snapshot(marked)
    served = without_request(marked)
    assert_same(before, snapshot(marked), 'The data')
    assert_same(snapshot(data), snapshot(served), 'The data without the request')
    assert served[EDGE].edge_index is marked[EDGE].edge_index
    for x, y in zip(*(embed(trained, trained.build_graph(d)) for d in (data, served))):
        assert torch.equal(x, y)
