import pytest
import torch
from torch_geometric.data import Data, HeteroData
from torch_geometric.transforms import ToUndirected

from torch_geometric_unlearn.data import schema, validate

EDGE, REV = schema.EDGE_TYPE, schema.REV_EDGE_TYPE


def make_data():
    data = HeteroData()
    data['user'].num_nodes = 3
    data['item'].num_nodes = 4
    data['item'].x_image = torch.randn(4, 5)
    data['item'].x_text = torch.randn(4, 2)
    data[EDGE].edge_index = torch.tensor([[0, 0, 1, 2], [0, 1, 1, 2]])
    data[EDGE].time = torch.tensor([4, 3, 2, 1])
    data.val_edge_label_index = torch.tensor([[0, 1], [2, 2]])
    data.test_edge_label_index = torch.tensor([[2], [0]])
    return data


def test_validate_returns_the_same_object():
    data = make_data()
    assert validate(data) is data
    assert schema.modalities(data) == ['image', 'text']
    assert schema.num_users(data) == 3
    assert schema.num_items(data) == 4


def test_looks_again_at_what_has_been_written_to():
    data = validate(make_data())
    data['item'].x_image[1, 2] = float('nan')
    with pytest.raises(ValueError, match='must be finite'):
        validate(data)
    data['item'].x_image[1, 2] = 0.0
    validate(data)[EDGE].edge_index[:, 0] = data[EDGE].edge_index[:, 1]
    with pytest.raises(ValueError, match='must hold unique pairs'):
        validate(data)
    data = validate(make_data())
    data['item'].num_nodes = 2  # The same pairs, fewer items.
    with pytest.raises(ValueError, match='one row per item'):
        validate(data)


def test_accessors():
    data = make_data()
    assert schema.pair_codes(data[EDGE].edge_index, 4).tolist() == [0, 1, 5, 10]
    assert not schema.forget_mask(data).any()
    data[EDGE].forget_mask = torch.tensor([True, False, False, False])
    assert schema.retained_edge_index(data).tolist() == [[0, 1, 2], [1, 1, 2]]
    assert schema.forgotten_edge_index(data).tolist() == [[0], [0]]
    assert torch.equal(schema.held_out(data, 'val'), data.val_edge_label_index)
    del data.val_edge_label_index
    assert schema.held_out(data, 'val').shape == (2, 0)
    with pytest.raises(ValueError, match="'split' must be one of"):
        schema.held_out(data, 'train')


def zero_feature_row(data):
    data['item'].x_text[1] = 0.0


def shared_feature_vector(data):
    data['item'].x_image[1] = data['item'].x_image[0]


def nodes_without_edges(data):
    data['user'].num_nodes = 9  # Item 3 has no training edge either.


def single_modality(data):
    del data['item'].x_image


def no_modality(data):
    del data['item'].x_image, data['item'].x_text


def one_user(data):
    data['user'].num_nodes = 1
    data[EDGE].edge_index = torch.tensor([[0, 0, 0, 0], [0, 1, 2, 3]])
    del data.val_edge_label_index, data.test_edge_label_index


def one_interaction(data):
    data[EDGE].edge_index = torch.tensor([[0], [0]])
    data[EDGE].time = torch.tensor([1])


def no_held_out(data):
    del data.val_edge_label_index, data.test_edge_label_index


def empty_held_out(data):
    data.val_edge_label_index = torch.empty(2, 0, dtype=torch.int64)


def reverse_edges(data):
    data[REV].edge_index = data[EDGE].edge_index.flip(0)


def reverse_edges_in_another_order(data):
    data[REV].edge_index = data[EDGE].edge_index.flip(0)[:, [2, 0, 3, 1]]


def other_edge_types(data):
    data['user', 'follows', 'user'].edge_index = torch.tensor([[0], [1]])


def empty_request(data):
    data[EDGE].forget_mask = torch.zeros(4, dtype=torch.bool)
    data.forget_level = 'user'


@pytest.mark.parametrize(
    'change',
    [
        zero_feature_row,
        shared_feature_vector,
        nodes_without_edges,
        single_modality,
        no_modality,
        one_user,
        one_interaction,
        no_held_out,
        empty_held_out,
        reverse_edges,
        reverse_edges_in_another_order,
        other_edge_types,
        empty_request,
    ],
)
def test_validate_accepts(change):
    data = make_data()
    change(data)
    validate(data)


def test_validate_accepts_to_undirected():
    data = ToUndirected()(make_data())
    assert REV in data.edge_types
    validate(data)


def set_item(name, value):
    return lambda data: data['item'].__setattr__(name, value)


def set_edge(name, value):
    return lambda data: data[EDGE].__setattr__(name, value)


def set_graph(name, value):
    return lambda data: data.__setattr__(name, value)


def set_size(node_type, value):
    return lambda data: data[node_type].__setattr__('num_nodes', value)


def pairs(*values):
    return torch.tensor(values).t().contiguous()


def drop_interactions(data):
    del data[EDGE]


def drop_edge_index(data):
    del data[EDGE].edge_index


def empty_interactions(data):
    data[EDGE].edge_index = torch.empty(2, 0, dtype=torch.int64)
    del data[EDGE].time


def second_edge_type(data):
    data['user', 'clicks', 'item'].edge_index = torch.tensor([[0], [3]])


def unknown_level(data):
    data[EDGE].forget_mask = torch.tensor([True, False, False, False])
    data.forget_level = 'planet'


def set_reverse(value):
    return lambda data: data[REV].__setattr__('edge_index', value)


@pytest.mark.parametrize(
    ('change', 'error', 'match'),
    [
        (set_size('user', 0), ValueError, r"'user'\].num_nodes must be a positive"),
        (set_size('item', -1), ValueError, r"'item'\].num_nodes must be a positive"),
        (set_size('user', 2.0), ValueError, r'positive integer \(got 2.0\)'),
        (set_size('user', True), ValueError, r'positive integer \(got True\)'),
        (
            set_item('x_text', torch.zeros(4, 2, dtype=torch.float64)),
            TypeError,
            r'x_text.* must be a float32 tensor \(got torch.float64\)',
        ),
        (set_item('x_text', [[1.0]] * 4), TypeError, r'float32 tensor \(got list\)'),
        (set_item('x_text', torch.zeros(4)), ValueError, r'\[num_items, F\].*got \[4'),
        (set_item('x_text', torch.zeros(4, 0)), ValueError, r'F >= 1 \(got \[4, 0\]'),
        (set_item('x_text', torch.zeros(5, 2)), ValueError, r'expected 4 rows \(got 5'),
        (
            set_item('x_text', torch.tensor([[0.0], [0.0], [float('nan')], [0.0]])),
            ValueError,
            r'1 of 4 rows hold NaN or infinity \(first: row 2\)',
        ),
        (
            set_item('x_text', torch.full((4, 1), -torch.inf)),
            ValueError,
            r'4 of 4 rows hold NaN or infinity \(first: row 0\)',
        ),
        (drop_interactions, ValueError, 'must hold the training interactions as'),
        (drop_edge_index, ValueError, 'must hold the training interactions as'),
        (second_edge_type, ValueError, r"'clicks', 'item'\) between users and items"),
        (
            set_edge('edge_index', torch.zeros(2, 4)),
            TypeError,
            r'must be an int64 tensor \(got torch.float32\)',
        ),
        (set_edge('edge_index', [[0], [0]]), TypeError, r'int64 tensor \(got list\)'),
        (
            set_edge('edge_index', torch.zeros(3, 4, dtype=torch.int64)),
            ValueError,
            r'must have shape \[2, num_pairs\] \(got \[3, 4\]\)',
        ),
        (
            set_edge('edge_index', pairs([0, 0], [3, 1], [0, 1], [0, 2])),
            ValueError,
            r'holds 1 user ids outside \[0, 2\] \(first: 3 at position 1\)',
        ),
        (
            set_edge('edge_index', pairs([0, 0], [0, 1], [0, -1], [0, 4])),
            ValueError,
            r'holds 2 item ids outside \[0, 3\] \(first: -1 at position 2\)',
        ),
        (
            set_edge('edge_index', pairs([0, 0], [1, 2], [1, 2], [0, 1])),
            ValueError,
            r'1 occur more than once \(first: user 1, item 2\)',
        ),
        (empty_interactions, ValueError, 'there is no training interaction to learn'),
        (set_edge('time', torch.zeros(3)), ValueError, r'have length 4.*\(got 3\)'),
        (
            set_graph('val_edge_label_index', torch.zeros(2, 1)),
            TypeError,
            "'data.val_edge_label_index' must be an int64 tensor",
        ),
        (
            set_graph('test_edge_label_index', pairs([0, 4])),
            ValueError,
            "'data.test_edge_label_index' holds 1 item ids outside",
        ),
        (
            set_graph('val_edge_label_index', pairs([1, 3], [1, 3])),
            ValueError,
            "'data.val_edge_label_index' must hold unique pairs",
        ),
        (
            set_graph('val_edge_label_index', pairs([1, 3], [2, 2])),
            ValueError,
            r'overlap with the training pairs, but 1 pairs do \(first: user 2, item 2',
        ),
        (
            set_graph('test_edge_label_index', pairs([1, 2])),
            ValueError,
            r'overlap with the training or validation pairs.*user 1, item 2',
        ),
        (set_reverse([[0], [0]]), ValueError, r'must be a tensor of shape \[2, num_p'),
        (
            set_reverse(torch.zeros(3, 4, dtype=torch.int64)),
            ValueError,
            r'must be a tensor of shape \[2, num_pairs\]',
        ),
        (set_reverse(pairs([0, 0])), ValueError, 'exactly the training pairs, flipped'),
        (
            set_reverse(pairs([0, 0], [1, 0], [1, 1], [3, 2])),
            ValueError,
            'exactly the training pairs, flipped.*ToUndirected',
        ),
        (
            set_reverse(pairs([0, 0], [1, 0], [1, 1], [9, 2])),
            ValueError,
            'rev_interacts.*holds 1 item ids outside',
        ),
        (set_edge('forget_mask', torch.zeros(4)), TypeError, 'must be a bool tensor'),
        (
            set_edge('forget_mask', [True] * 4),
            TypeError,
            r"'forget_mask' must be a bool tensor \(got list\)",
        ),
        (
            set_edge('forget_mask', torch.zeros(4, 1, dtype=torch.bool)),
            ValueError,
            r"'forget_mask' must have shape \[4\].*got \[4, 1\]",
        ),
        (
            set_edge('forget_mask', torch.zeros(3, dtype=torch.bool)),
            ValueError,
            r"'forget_mask' must have shape .4.*got .3.",
        ),
        (
            set_edge('forget_mask', torch.ones(4, dtype=torch.bool)),
            ValueError,
            "'forget_mask' deletes every training interaction",
        ),
        (unknown_level, ValueError, r"'forget_level' must be one of.*got 'planet'"),
    ],
)
def test_validate_refuses(change, error, match):
    data = make_data()
    change(data)
    with pytest.raises(error, match=match):
        validate(data)


def test_validate_refuses_other_objects():
    with pytest.raises(TypeError, match=r"'HeteroData' object \(got 'Data'\)"):
        validate(Data())
    data = HeteroData()
    data['user'].num_nodes = 3
    with pytest.raises(ValueError, match=r"node types 'user' and 'item' \(got \['use"):
        validate(data)


def test_gradients_of_features_stay_with_the_caller(data):
    x = data['item'].x_image.clone().requires_grad_()
    for features in (x, x * 1, torch.nn.Parameter(x.detach())):
        data['item'].x_image = features
        out = validate(data)
        assert out['item'].x_image.data_ptr() == features.data_ptr()
        assert not out['item'].x_image.requires_grad
        assert data['item'].x_image is features
        # The same tensor again, so that what is remembered of it holds.
        assert validate(data)['item'].x_image is out['item'].x_image
    with torch.no_grad():
        data['item'].x_image[3, 1] = torch.nan
    with pytest.raises(ValueError, match="x_image' must be finite"):
        validate(data)


@pytest.mark.parametrize(
    ('change', 'match'),
    [
        (lambda x: x.half(), r"float16\). Convert it, e.g. with 'x.float\(\)'"),
        (lambda x: x.bfloat16(), 'must be a float32 tensor'),
        (lambda x: x.double(), 'must be a float32 tensor'),
        (lambda x: x.long(), 'must be a float32 tensor'),
        (lambda x: x.to_sparse(), r"must be a dense tensor .*with 'x.to_dense\(\)'"),
        (lambda x: x.to_sparse_csr(), 'must be a dense tensor'),
        (lambda x: x.numpy(), 'must be a float32 tensor'),
    ],
)
@pytest.mark.filterwarnings('ignore:Sparse CSR')
def test_refuses_features_of_other_kinds(data, change, match):
    data['item'].x_image = change(data['item'].x_image)
    with pytest.raises(TypeError, match=match):
        validate(data)
