import json
import math

import pytest
import torch

from torch_geometric_unlearn.audit import hold_out_users, shadow
from torch_geometric_unlearn.audit.shadow import _describe, _only, factorise
from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.datasets import SyntheticMultimodal
from torch_geometric_unlearn.nn import EmbeddingTable, Served
from torch_geometric_unlearn.transforms import ForgetItems, ForgetUsers

DATA = SyntheticMultimodal('tiny', num_users=600, num_items=300)[0]
FIT = {'num_epochs': 1}


@pytest.fixture(scope='module')
def marked():
    kept = hold_out_users(DATA, ratio=0.2)
    return ForgetUsers(ratio=0.2)(kept)


def popular(data):
    r"""Recommends the same popular items to everyone."""
    count = data[schema.EDGE_TYPE].edge_index[1].bincount(minlength=300)
    return EmbeddingTable(torch.ones(600, 1), count.float().view(-1, 1))


def personal(data):
    r"""Recommends what is close to the training pairs of a user, by shared users."""
    train = data[schema.EDGE_TYPE].edge_index
    matrix = torch.zeros(600, 300)
    matrix[train[0], train[1]] = 1
    together = matrix.t() @ matrix
    norm = together.diagonal().clamp(min=1).sqrt()
    return EmbeddingTable(matrix @ (together / norm / norm.view(-1, 1)), torch.eye(300))


def test_factorisation_against_the_dense_one():
    pairs = DATA[schema.EDGE_TYPE].edge_index
    matrix = torch.zeros(600, 300, dtype=torch.float64)
    matrix[pairs[0], pairs[1]] = 1
    _, value, right = torch.linalg.svd(matrix)
    want = right[:10].t() * value[:10].sqrt()
    out = factorise(pairs, (600, 300), 10, 0).double()
    gap = (out @ out.t() - want @ want.t()).norm() / (want @ want.t()).norm()
    assert gap < 0.05
    assert torch.equal(out.float(), factorise(pairs, (600, 300), 10, 0))
    few = factorise(pairs[:, pairs[0] < 4], (600, 300), 10, 0)
    assert (few[:, 4:] == 0).all()
    assert (few[:, :4] != 0).any()


def test_description_by_hand():
    vectors = torch.tensor([[1.0, 0], [0, 1], [2, 2]])
    pairs = torch.tensor([[5, 5, 7], [0, 1, 2]])
    lists = torch.tensor([[2, 0], [0, 1]])
    out = _describe(pairs, torch.tensor([7, 5]), vectors, lists)
    want = [[2 - 5 / 3, 2 - 4 / 3], [0.5 - 2 / 3, 0.5 - 1 / 3]]
    assert torch.allclose(out, torch.tensor(want), atol=1e-6)


def test_shadow_data_holds_its_users_only(marked):
    users = torch.tensor([0, 1, 2, 3])
    out = _only(marked, users)
    assert set(out[schema.EDGE_TYPE].edge_index[0].tolist()) <= {0, 1, 2, 3}
    gone = torch.isin(users, marked['forget_users'])
    assert not torch.isin(users[gone], out[schema.EDGE_TYPE].edge_index[0]).any()
    assert 'forget_mask' in marked[schema.EDGE_TYPE]


def test_personal_lists_give_users_away(marked):
    args = marked, personal, {'num_epochs': 1, 'lr': 1e-9}
    left = shadow(personal(DATA), *args, num_factors=20)
    assert left.intervals['auc'][0] > 0.6
    assert left.details['shadow_accuracy'] > 0.8
    assert left.details['flagged'] > 0.5
    assert left.direction == ''
    forgot = shadow(popular(DATA), *args, num_factors=20)
    assert forgot.details['flagged'] < 0.3
    assert forgot.auc < left.auc - 0.2
    served = Served.of(personal(DATA), marked)
    again = shadow(served, *args, num_factors=20)
    assert again.to_dict() == left.to_dict()
    json.dumps(left.to_dict())


def test_too_few_users_and_bad_arguments(marked):
    plain = ForgetUsers(ratio=0.2)(DATA)
    model = popular(DATA)
    with pytest.warns(UserWarning, match='0 never trained on'):
        assert math.isnan(shadow(model, plain, popular, FIT).auc)
    with pytest.raises(ValueError, match="'data' must hold a request that deletes"):
        shadow(model, ForgetItems([1])(DATA), popular)
    for kwargs, message in [
        ({'num_factors': 0}, "'num_factors' must be at least 1"),
        ({'num_epochs': 0}, "'num_epochs' must be at least 1"),
        ({'seed': -1}, "'seed' must be an integer in"),
    ]:
        with pytest.raises(ValueError, match=message):
            shadow(model, marked, popular, **kwargs)
