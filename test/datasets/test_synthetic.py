import pytest
import torch

from torch_geometric_unlearn.data import schema, validate
from torch_geometric_unlearn.datasets import SyntheticMultimodal


def all_pairs(data):
    train = data[schema.EDGE_TYPE].edge_index
    return torch.cat(
        [train, data.val_edge_label_index, data.test_edge_label_index], dim=1
    )


def cooccurrence(data):
    edge_index = data[schema.EDGE_TYPE].edge_index
    dense = torch.zeros(schema.num_users(data), schema.num_items(data))
    dense[edge_index[0], edge_index[1]] = 1.0
    return (dense.t() @ dense).fill_diagonal_(0)


@pytest.fixture(scope='module')
def small():
    return SyntheticMultimodal('small')[0]


@pytest.mark.parametrize('seed', [0, 1, 2])
def test_synthetic_meets_the_contract(seed):
    dataset = SyntheticMultimodal('tiny', seed=seed)
    assert len(dataset) == 1
    data = dataset[0]
    validate(data)
    assert schema.num_users(data) == 100
    assert schema.num_items(data) == 60
    assert schema.modalities(data) == ['image', 'text']
    assert data['item'].x_image.shape == (60, 16)
    assert data['item'].x_text.shape == (60, 12)
    assert 'raw_id' not in data['user']


def test_synthetic_is_reproducible_and_isolated():
    state = torch.get_rng_state()
    first = SyntheticMultimodal('tiny', seed=3)[0]
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    second = SyntheticMultimodal('tiny', seed=3)[0]
    other = SyntheticMultimodal('tiny', seed=4)[0]
    for key, value in schema.features(first).items():
        assert torch.equal(value, schema.features(second)[key])
        assert not torch.equal(value, schema.features(other)[key])
    assert torch.equal(all_pairs(first), all_pairs(second))
    assert not torch.equal(
        first[schema.EDGE_TYPE].edge_index[:, :500],
        other[schema.EDGE_TYPE].edge_index[:, :500],
    )


def test_synthetic_modalities_leave_interactions_alone():
    first = SyntheticMultimodal('tiny')[0]
    second = SyntheticMultimodal('tiny', modalities={'audio': 3})[0]
    assert schema.modalities(second) == ['audio']
    assert second['item'].x_audio.shape == (60, 3)
    assert torch.equal(all_pairs(first), all_pairs(second))


@pytest.mark.parametrize(
    ('num_users', 'num_items'), [(20, 20), (20, 300), (300, 20), (150, 90)]
)
def test_synthetic_minimum_degrees_at_custom_sizes(num_users, num_items):
    data = SyntheticMultimodal(num_users=num_users, num_items=num_items)[0]
    pairs = all_pairs(data)
    assert pairs[0].bincount(minlength=num_users).min() >= 5
    assert pairs[1].bincount(minlength=num_items).min() >= 5
    assert pairs.unique(dim=1).size(1) == pairs.size(1)


def test_synthetic_num_interactions():
    data = SyntheticMultimodal('small', num_interactions=40_000)[0]
    assert 40_000 <= all_pairs(data).size(1) <= 42_000


def test_synthetic_is_sparse_and_skewed(small):
    pairs = all_pairs(small)
    assert 15_000 < pairs.size(1) < 18_000
    users, items = pairs[0].bincount(), pairs[1].bincount()
    assert 6 <= users.median() <= 7
    assert users.max() > 50
    top = items.sort(descending=True)[0][:100].sum() / items.sum()
    assert 0.3 < top < 0.6


@pytest.mark.parametrize('name', ['image', 'text'])
def test_synthetic_features_carry_taste(small, name):
    x = small['item'][f'x_{name}']
    x = torch.nn.functional.normalize(x - x.mean(dim=0))
    neighbor = (x @ x.t()).fill_diagonal_(-2).topk(10).indices
    shared = cooccurrence(small)
    mean = shared.sum() / (1000 * 999)
    assert shared.gather(1, neighbor).mean() > 2 * mean


def test_synthetic_interactions_carry_taste(small):
    edge_index = small[schema.EDGE_TYPE].edge_index
    train = torch.zeros(2000, 1000)
    train[edge_index[0], edge_index[1]] = 1.0
    popularity = train.sum(dim=0)
    # Two users who share items share more of them: one step of item-item scoring.
    score = train @ (cooccurrence(small) / popularity.clamp(min=1).sqrt())

    def recall(score):
        top = score.masked_fill(train > 0, -torch.inf).topk(20).indices
        truth = torch.zeros(2000, 1000)
        truth[small.test_edge_label_index[0], small.test_edge_label_index[1]] = 1.0
        return (truth.gather(1, top).sum(dim=1) / truth.sum(dim=1)).mean()

    assert recall(score) > 1.3 * recall(popularity.expand(2000, -1))


def test_synthetic_applies_transform():
    def mark(data):
        data.seen = True
        return data

    dataset = SyntheticMultimodal('tiny', transform=mark)
    assert dataset[0].seen
    assert str(dataset) == 'SyntheticMultimodal()'


@pytest.mark.parametrize(
    ('kwargs', 'error', 'match'),
    [
        ({'size': 'huge'}, ValueError, "'size' must be one of"),
        ({'seed': -1}, ValueError, "'seed' must be an integer in"),
        ({'seed': 0.5}, ValueError, "'seed' must be an integer in"),
        ({'num_users': 3}, ValueError, "'num_users' must be at least 20"),
        ({'num_items': 3}, ValueError, "'num_items' must be at least 20"),
        ({'num_items': 50.0}, TypeError, "'num_items' must be an integer"),
        ({'num_interactions': 10}, ValueError, r'must be in \[500, 3000\] for 100'),
        ({'num_interactions': 5000}, ValueError, r'must be in \[500, 3000\] for 100'),
        ({'num_interactions': 1e3}, TypeError, "'num_interactions' must be an int"),
        ({'modalities': 'image'}, TypeError, "one modality, pass \\('image',\\)"),
        ({'modalities': 7}, TypeError, "'modalities' must be a sequence"),
        ({'modalities': ()}, ValueError, 'must name at least one modality'),
        ({'modalities': ('a', 'a')}, ValueError, "unique names \\(got 'a' twice"),
        ({'modalities': ('a b',)}, TypeError, "must hold names such as 'image'"),
        ({'modalities': (3,)}, TypeError, "must hold names such as 'image'"),
        ({'modalities': {'a': 0}}, ValueError, r"modalities\['a'\]' must be at le"),
    ],
)
def test_synthetic_refuses(kwargs, error, match):
    with pytest.raises(error, match=match):
        SyntheticMultimodal(**{'size': 'tiny', **kwargs})
