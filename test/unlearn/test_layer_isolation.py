import pytest
import torch

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.unlearn.layer_isolation import (
    LeafModule,
    isolate_modules,
    leaf_modules,
    movable_rows,
)

EDGE = schema.EDGE_TYPE


def leaf(name, size, is_raw=False):
    return LeafModule(name, [name], None, is_raw, size)


def test_isolation_by_hand():
    parameters = {n: torch.ones(s) for n, s in zip('abcd', (10, 10, 20, 100))}
    grads = {n: torch.full_like(p, 4.0 - i) for i, (n, p) in enumerate(
        parameters.items())}

    def select(top_k, capacity):
        modules = [leaf('a', 10), leaf('b', 10), leaf('c', 20), leaf('d', 100, True)]
        isolate_modules(modules, grads, parameters, top_k, capacity)
        assert [m.sensitivity for m in modules] == pytest.approx([16, 9, 4, 1])
        return ''.join(m.name for m in modules if m.selected)

    assert select(1, 0.0) == 'a'
    assert select(1, 0.5) == 'ab'  # 20 of 40; the raw table does not count.
    assert select(1, 0.51) == 'abc'
    assert select(1, 1.0) == 'abc'  # A raw table enters through the top only.
    assert select(4, 0.0) == 'abcd'


def test_relative_sensitivity():
    parameters = {'a': torch.full((10,), 2.0)}
    modules = [leaf('a', 10)]
    isolate_modules(
        modules, {'a': torch.ones(10)}, parameters, 1, 0.0, sensitivity='relative'
    )
    assert modules[0].sensitivity == pytest.approx(0.25)


def test_leaf_modules_partition_the_parameters(trained):
    modules = leaf_modules(trained)
    names = [name for module in modules for name in module.parameters]
    assert sorted(names) == sorted(dict(trained.named_parameters()))
    assert [m.name for m in modules if m.is_raw] == ['features.image', 'features.text']
    assert sum(m.size for m in modules) == sum(p.numel() for p in trained.parameters())


@pytest.mark.parametrize(
    ('rows', 'users', 'items'),
    [('user', [1, 4], []), ('item', [], [2, 7]), ('both', [1, 4], [2, 7])],
)
def test_movable_rows_by_hand(rows, users, items, trained, data):
    data[EDGE].edge_index[:, :3] = torch.tensor([[4, 4, 1], [7, 2, 7]])
    data[EDGE].forget_mask = torch.arange(data[EDGE].edge_index.size(1)) < 3
    movable = movable_rows(trained, data, rows)
    assert movable['user_embedding.weight'].tolist() == users
    assert len(movable) == 4
    for name in set(movable) - {'user_embedding.weight'}:
        assert movable[name].tolist() == items
    assert movable_rows(trained, data, 'all') == {}
