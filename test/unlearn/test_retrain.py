import torch

from torch_geometric_unlearn.nn import MGCN
from torch_geometric_unlearn.train import fit
from torch_geometric_unlearn.transforms import DropForgotten, ForgetUsers
from torch_geometric_unlearn.unlearn import Retrain
from torch_geometric_unlearn.utils.seed import isolated_seed


def build(data):
    return MGCN.from_data(data, hidden_channels=8)


def test_equals_training_without_the_data(data, trained):
    marked = ForgetUsers([3, 17])(data)
    result = Retrain(build, seed=5, num_epochs=3, lr=1e-2)(trained, marked)

    with isolated_seed(5):
        expected = build(data)
    fit(expected, DropForgotten()(marked), seed=5, num_epochs=3, lr=1e-2)
    for name, value in result.model.state_dict().items():
        assert torch.equal(value, expected.state_dict()[name]), name
    assert result.exact
    assert len(result.history) == 3


def test_deleted_rows_never_move(data, trained):
    r"""A user without interactions gets no gradient, so its row stays the initial."""
    result = Retrain(build, seed=5, num_epochs=3)(trained, ForgetUsers([3])(data))
    with isolated_seed(5):
        fresh = build(data)
    assert torch.equal(
        result.model.user_embedding.weight[3], fresh.user_embedding.weight[3]
    )
    assert not torch.equal(
        result.model.user_embedding.weight[4], fresh.user_embedding.weight[4]
    )
