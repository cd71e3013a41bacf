import pytest
import torch
from sklearn.neighbors import NearestNeighbors
from torch_geometric.data.datapipes import DatasetAdapter

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.datasets import SyntheticMultimodal
from torch_geometric_unlearn.transforms import DropForgotten, ForgetItems, ItemKNNGraph


@pytest.mark.parametrize('k', [1, 5, 10])
def test_against_sklearn(data, k):
    out = ItemKNNGraph(k)(data)
    for name in ('image', 'text'):
        x = data['item'][f'x_{name}'].double().numpy()
        model = NearestNeighbors(n_neighbors=k, metric='cosine').fit(x)
        distance, index = model.kneighbors(x)
        store = out['item', f'similar_{name}', 'item']
        assert store.edge_index[0].view(60, k).tolist() == index.tolist()
        expected = torch.arange(60).repeat_interleave(k)
        assert torch.equal(store.edge_index[1], expected)
        similarity = torch.from_numpy(1 - distance).float().view(-1)
        assert torch.allclose(store.edge_weight, similarity, atol=1e-6)
    assert schema.validate(out) is out


def test_input_is_unchanged(data):
    out = ItemKNNGraph()(data)
    assert data.edge_types == [schema.EDGE_TYPE]
    assert len(out.edge_types) == 3
    assert torch.equal(
        out[schema.EDGE_TYPE].edge_index, data[schema.EDGE_TYPE].edge_index
    )


def test_modalities(data):
    out = ItemKNNGraph(modalities=['text'])(data)
    assert schema.similar_edge_type('text') in out.edge_types
    assert schema.similar_edge_type('image') not in out.edge_types
    assert ItemKNNGraph(modalities=[])(data).edge_types == data.edge_types


def test_more_neighbours_than_items(data):
    store = ItemKNNGraph(k=100)(data)['item', 'similar_image', 'item']
    assert store.edge_index.size(1) == 60 * 60


def test_graph_survives_a_deletion(data):
    # It comes from content only, and node ids don't shift.
    out = ItemKNNGraph(k=3)(data)
    dropped = DropForgotten()(ForgetItems([2])(out))
    for name in ('image', 'text'):
        store = dropped['item', f'similar_{name}', 'item']
        expected = out['item', f'similar_{name}', 'item'].edge_index
        assert torch.equal(store.edge_index, expected)


def test_functional_name_and_repr():
    (out,) = DatasetAdapter(SyntheticMultimodal('tiny')).item_knn_graph(k=2)
    assert out['item', 'similar_image', 'item'].edge_weight.numel() == 120
    assert str(ItemKNNGraph(5)) == 'ItemKNNGraph(k=5)'


@pytest.mark.parametrize(
    ('kwargs', 'error', 'match'),
    [
        ({'k': 0}, ValueError, r"'k' must be at least 1 \(got 0\)"),
        ({'k': 2.0}, TypeError, r"'k' must be an integer \(got 2.0\)"),
        ({'modalities': ['audio']}, ValueError, r"names 'audio', but the items carry"),
        ({'num_neighbors': 5}, TypeError, "unexpected keyword argument"),
    ],
)
def test_bad_arguments(data, kwargs, error, match):
    with pytest.raises(error, match=match):
        ItemKNNGraph(**kwargs)(data)


def test_a_string_is_no_list_of_modalities():
    with pytest.raises(TypeError, match="must be a sequence of names"):
        ItemKNNGraph(modalities='image')
