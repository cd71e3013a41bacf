import pytest
import torch

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.nn import MGCN
from torch_geometric_unlearn.testing import check_model, check_unlearner
from torch_geometric_unlearn.testing.check_transform import check_transform
from torch_geometric_unlearn.transforms import (
    DropForgotten,
    ForgetInteractions,
    ForgetItems,
    ForgetUsers,
    ItemKNNGraph,
    SplitInteractions,
)
from torch_geometric_unlearn.unlearn import EdgeDrop


@pytest.mark.parametrize(
    'transform',
    [
        ForgetUsers([3]),
        ForgetItems(ratio=0.1),
        ForgetInteractions(ratio=0.1),
        DropForgotten(),
        SplitInteractions(),
        ItemKNNGraph(k=3),
    ],
    ids=lambda transform: type(transform).__name__,
)
def test_our_transforms_meet_the_contract(transform, data):
    check_transform(transform, data)
    check_transform(DropForgotten(), transform(data))


@pytest.mark.parametrize('kwargs', [{}, {'train_features': False}, {'num_layers': 0}])
def test_our_model_meets_the_contract(kwargs, data):
    check_model(MGCN.from_data(data, hidden_channels=8, **kwargs), data)


class InPlace(ForgetUsers):
    def __call__(self, data):
        data['user', 'interacts', 'item'].edge_index[0, 0] += 1
        return super().__call__(data)


class Shifting(ForgetUsers):
    def forward(self, data):
        data['user'].num_nodes += 1
        return data


def test_check_transform_catches(data):
    with pytest.raises(AssertionError, match='input of a transform must stay as it'):
        check_transform(InPlace([3]), data)
    with pytest.raises(AssertionError, match="number of 'user' nodes must not change"):
        check_transform(Shifting([3]), data)


class Stale(MGCN):
    r"""Keeps its first graph, and so the deleted interactions."""

    def build_graph(self, data):
        if not hasattr(self, 'cache'):
            self.cache = super().build_graph(data)
        return self.cache


class Undecided(MGCN):
    def forward(self, graph):
        user_emb, item_emb = super().forward(graph)
        return user_emb + torch.rand(()), item_emb


def test_check_model_catches(data):
    with pytest.raises(AssertionError, match='exactly the interactions that are not'):
        check_model(Stale.from_data(data, hidden_channels=8), data)
    with pytest.raises(AssertionError, match='Two forward passes'):
        check_model(Undecided.from_data(data, hidden_channels=8), data)


class Vandal(EdgeDrop):
    def __call__(self, model, data):
        with torch.no_grad():
            next(model.parameters()).add_(1)
        return super().__call__(model, data)


class Forgetful(EdgeDrop):
    r"""Forgets to delete the edges."""

    def __call__(self, model, data):
        result = super().__call__(model, data)
        result.data[schema.EDGE_TYPE].edge_index = data[schema.EDGE_TYPE].edge_index
        return result


class Erratic(EdgeDrop):
    def _unlearn(self, model, data, retained):
        with torch.no_grad():
            next(model.parameters()).add_(torch.empty(()).normal_().item())
        torch.manual_seed(0)
        return model, []


class Unseeded(EdgeDrop):
    calls = 0

    def _unlearn(self, model, data, retained):
        self.calls += 1
        with torch.no_grad():
            next(model.parameters()).add_(self.calls)
        return model, []


def test_check_unlearner_catches(data):
    marked = ForgetUsers([3])(data)
    model = MGCN.from_data(data, hidden_channels=8)
    check_unlearner(Erratic(), model, marked)  # The base class seeds it.
    with pytest.raises(AssertionError, match='The same seed must give the same'):
        check_unlearner(Unseeded(), model, marked)
    with pytest.raises(AssertionError, match='must be gone in forward direction'):
        check_unlearner(Forgetful(), model, marked)
    with pytest.raises(AssertionError, match='model of a request must stay as it was'):
        check_unlearner(Vandal(), model, marked)
