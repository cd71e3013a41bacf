import copy

import pytest
import torch
from torch_geometric import EdgeIndex
from torch_geometric.data import Data, HeteroData
from torch_geometric.transforms import RandomLinkSplit

from torch_geometric_unlearn.data import from_hetero, schema, validate
from torch_geometric_unlearn.datasets import SyntheticMultimodal
from torch_geometric_unlearn.nn import MGCN
from torch_geometric_unlearn.testing._snapshot import assert_same, snapshot
from torch_geometric_unlearn.train import fit
from torch_geometric_unlearn.transforms import ForgetUsers
from torch_geometric_unlearn.unlearn import EdgeDrop

NAMES = {'user': 'customer', 'item': 'product', 'interaction': 'buys'}
BUYS = ('customer', 'buys', 'product')
BACK = ('product', 'bought_by', 'customer')


def shop():
    r"""The interactions of a tiny data set under a shop's names, with more around."""
    tiny = SyntheticMultimodal('tiny')[0]
    pairs = [tiny[schema.EDGE_TYPE].edge_index]
    pairs += [schema.held_out(tiny, split) for split in ('val', 'test')]
    pairs = torch.cat(pairs, dim=1)
    data = HeteroData()
    data['customer'].num_nodes = 100
    data['customer'].age = torch.arange(100)
    data['product'].x = tiny['item'].x_image
    data['product'].x_text = tiny['item'].x_text.double()
    data['product'].raw_id = list(range(60))
    data['brand'].num_nodes = 5
    data[BUYS].edge_index = pairs
    data[BUYS].time = torch.arange(pairs.size(1))
    order = torch.randperm(pairs.size(1))
    data[BACK].edge_index = pairs.flip(0)[:, order]
    data['product', 'of', 'brand'].edge_index = torch.tensor([[0, 1], [4, 2]])
    data['brand', 'near', 'brand'].edge_index = torch.tensor([[0], [1]])
    data['product', 'sold_with', 'product'].edge_index = torch.tensor([[0], [1]])
    data.name = 'shop'
    return data


def test_names_of_the_contract():
    data = shop()
    before = snapshot(data)
    out = from_hetero(data, **NAMES, modality='image')
    assert_same(before, snapshot(data), 'The graph')
    assert set(data.node_types) == {'customer', 'product', 'brand'}

    assert set(out.node_types) == {'user', 'item', 'brand'}
    assert set(out.edge_types) == {
        schema.EDGE_TYPE,
        schema.REV_EDGE_TYPE,
        ('item', 'of', 'brand'),
        ('brand', 'near', 'brand'),
        ('item', 'sold_with', 'item'),
    }
    assert torch.equal(out[schema.EDGE_TYPE].edge_index, data[BUYS].edge_index)
    assert torch.equal(out[schema.EDGE_TYPE].time, data[BUYS].time)
    assert torch.equal(out[schema.REV_EDGE_TYPE].edge_index, data[BACK].edge_index)
    assert out['user'].num_nodes == 100
    assert out['item'].num_nodes == 60
    assert torch.equal(out['user'].age, data['customer'].age)
    assert out['item'].raw_id == data['product'].raw_id
    assert schema.modalities(out) == ['text', 'image']
    assert torch.equal(out['item'].x_image, data['product'].x)
    assert torch.equal(out['item'].x_text, data['product'].x_text.float())
    assert 'x' not in out['item']
    assert out.name == 'shop'
    assert validate(out) is out


@pytest.mark.parametrize('change', ['half', 'sparse', 'gradient', 'wrapped', 'int32'])
def test_converts_what_the_contract_asks_for(change):
    data = shop()
    x, pairs = data['product'].x, data[BUYS].edge_index
    if change == 'half':
        data['product'].x = x.half()
    elif change == 'sparse':
        data['product'].x = x.to_sparse()
    elif change == 'gradient':
        data['product'].x = x.clone().requires_grad_()
    elif change == 'wrapped':
        data[BUYS].edge_index = EdgeIndex(pairs, sparse_size=(100, 60))
    else:
        data[BUYS].edge_index = pairs.int()
    out = from_hetero(data, **NAMES)
    expected = x.half().float() if change == 'half' else x
    assert torch.equal(out['item'].x_content, expected)
    assert torch.equal(out[schema.EDGE_TYPE].edge_index, pairs)
    assert schema.REV_EDGE_TYPE in out.edge_types


def as_set(pairs):
    return set(map(tuple, pairs.t().tolist()))


@pytest.mark.parametrize('disjoint', [0.0, 0.3])
@pytest.mark.parametrize('split_labels', [False, True])
@pytest.mark.parametrize('negatives', [0.0, 1.0])
def test_link_split(negatives, split_labels, disjoint):
    data = shop()
    split = RandomLinkSplit(
        num_val=0.1,
        num_test=0.2,
        edge_types=[BUYS],
        rev_edge_types=[BACK],
        neg_sampling_ratio=negatives,
        split_labels=split_labels,
        disjoint_train_ratio=disjoint,
        add_negative_train_samples=negatives > 0,
    )
    parts = split(data)
    before = [snapshot(part) for part in parts]
    out = from_hetero(parts, **NAMES)
    for old, part in zip(before, parts):
        assert_same(old, snapshot(part), 'A part of the split')

    everything = as_set(data[BUYS].edge_index)
    sets = [as_set(out[schema.EDGE_TYPE].edge_index)]
    sets += [as_set(schema.held_out(out, name)) for name in ('val', 'test')]
    assert set.union(*sets) == everything
    num = len(everything)
    assert [len(x) for x in sets] == [num - num // 10 - num // 5, num // 10, num // 5]
    # Attributes are still those of their pairs.
    time = dict(zip(map(tuple, data[BUYS].edge_index.t().tolist()), data[BUYS].time))
    store = out[schema.EDGE_TYPE]
    assert set(store.keys()) == {'edge_index', 'time'}
    for pair, value in zip(store.edge_index.t().tolist(), store.time):
        assert time[tuple(pair)] == value
    model = MGCN.from_data(out, hidden_channels=4)
    fit(model, out, num_epochs=1)
    EdgeDrop()(model, ForgetUsers([3])(out))


def test_a_part_of_a_link_split_is_not_all():
    split = RandomLinkSplit(edge_types=[BUYS], rev_edge_types=[BACK])
    parts = split(shop())
    for part in parts:
        with pytest.raises(ValueError, match=r'from_hetero\(\(train, val, test\)'):
            from_hetero(part, **NAMES)
    with pytest.raises(ValueError, match=r'of one link split.*Keep their order'):
        from_hetero(parts[::-1], **NAMES)
    with pytest.raises(ValueError, match="must hold the 'edge_label_index'"):
        from_hetero([shop()] * 3, **NAMES)
    with pytest.raises(TypeError, match=r"got \['HeteroData', 'HeteroData'\]"):
        from_hetero(parts[:2], **NAMES)


def second_way(data):
    data['customer', 'views', 'product'].edge_index = torch.tensor([[0], [1]])


def other_way_back(data):
    data['product', 'seen_by', 'customer'].edge_index = torch.tensor([[0], [1]])


@pytest.mark.parametrize(
    ('change', 'kwargs', 'match'),
    [
        (None, {'user': 'client'}, r"'user' must be one of the node types .*'client'"),
        (None, {'item': 'thing'}, "'item' must be one of the node types"),
        (None, {'interaction': 'sells'}, "'interaction' must name .*'sells'"),
        (None, {'user': 'product'}, "'user' and 'item' must differ"),
        (None, {'modality': 'x_image'}, "'modality' must be a plain word"),
        (None, {'modality': 'text'}, "would become 'x_text', which exists already"),
        (lambda d: d['user'], {}, None),
        (second_way, {}, "'views', 'item'.* which a deletion would not reach"),
        (other_way_back, {}, "'seen_by', 'user'.* which a deletion would not reach"),
        (lambda d: d['customer'].pop('num_nodes'), {}, 'num_nodes must be given'),
    ],
)
def test_refuses(change, kwargs, match):
    data = shop()
    if match is None:
        data['user'].num_nodes = 4
        match = "'data' would hold 'user' twice"
    elif change is not None:
        change(data)
        if 'num_nodes' in match:
            del data['customer'].age
    with pytest.raises(ValueError, match=match):
        from_hetero(data, **{**NAMES, **kwargs})


def test_refuses_other_objects():
    with pytest.raises(TypeError, match=r"'data' must be a 'HeteroData'.*'Data'"):
        from_hetero(Data(x=torch.ones(1)), **NAMES)
    with pytest.raises(TypeError, match="'interaction' must be a name"):
        from_hetero(shop(), user='customer', item='product', interaction=BUYS)


def test_the_defaults_change_nothing(data):
    assert_same(snapshot(data), snapshot(from_hetero(copy.copy(data))), 'The data')
