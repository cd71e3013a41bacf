import copy
import time
from functools import partial

import pytest
import torch

from torch_geometric_unlearn.audit import completion, membership
from torch_geometric_unlearn.metrics import closeness, cross_modal_cka, embed
from torch_geometric_unlearn.nn import MGCN, MIGGT, RecommenderAdapter
from torch_geometric_unlearn.testing import check_model
from torch_geometric_unlearn.transforms import ForgetUsers
from torch_geometric_unlearn.unlearn import TRU, EdgeDrop, PartialRetrain, RowReset
from torch_geometric_unlearn.utils.mode import copy_modes, evaluating


def modes(model):
    return {name: module.training for name, module in model.named_modules()}


def partly_frozen(model):
    r"""In training, but for one part."""
    model.train()
    list(model.children())[-1].eval()
    assert set(modes(model).values()) == {True, False}
    return model


def test_evaluating_restores_every_module():
    model = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.BatchNorm1d(2))
    partly_frozen(model)
    before = modes(model)
    with evaluating(model):
        assert not any(modes(model).values())
    assert modes(model) == before
    with pytest.raises(KeyError), evaluating(model):
        raise KeyError
    assert modes(model) == before


class Slow(torch.nn.Module):
    r"""Lets other threads run in the middle of its forward pass."""

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(160, 8)
        self.first, self.second = torch.nn.Dropout(), torch.nn.Dropout()

    def forward(self):
        out = self.first(self.table.weight)
        time.sleep(5e-3)
        return self.second(out)


def test_threads_look_at_one_model(data, run_in_threads):
    model = partly_frozen(RecommenderAdapter(Slow(), 100, 60).module)
    adapter = RecommenderAdapter(model, 100, 60)
    graph, users, before = adapter.build_graph(data), torch.arange(100), modes(model)
    expected = adapter.recommend(graph, users)

    def look(delay):
        time.sleep(delay)
        for _ in range(5):
            out = adapter.recommend(graph, users)
            copied = EdgeDrop()(adapter, ForgetUsers([3])(data)).model
            assert modes(copied.module) == before
        return out

    state = torch.get_rng_state()
    for out in run_in_threads(*(partial(look, n * 2e-3) for n in range(4))):
        assert all(torch.equal(x, y) for x, y in zip(out, expected))
    assert modes(model) == before
    assert torch.equal(torch.get_rng_state(), state)


def test_modes_during_a_look():
    model = partly_frozen(torch.nn.Sequential(torch.nn.ReLU(), torch.nn.ReLU()))
    before = modes(model)
    with evaluating(model):
        copied = copy.deepcopy(model)
        assert not any(modes(copied).values())
        copy_modes(model, copied)
        assert modes(copied) == before
        with evaluating(model[0]):
            pass
        assert not any(modes(model).values())
    assert modes(model) == before


def test_copy_modes():
    source = partly_frozen(torch.nn.Sequential(torch.nn.ReLU(), torch.nn.ReLU()))
    target = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.ReLU(), torch.nn.ReLU())
    copy_modes(source, target.eval())
    assert modes(target) == {'': True, '0': True, '1': False, '2': True}


@pytest.mark.parametrize(
    'look',
    [
        lambda model, data: embed(model, model.build_graph(data)),
        lambda model, data: cross_modal_cka(model, model.build_graph(data)),
        lambda model, data: model.recommend(model.build_graph(data), torch.arange(3)),
        lambda model, data: closeness(model, model, data),
        lambda model, data: membership(model, data, num_bootstrap=1),
        lambda model, data: completion(model, data),
        lambda model, data: check_model(model, data),
    ],
    ids=['embed', 'cka', 'recommend', 'closeness', 'membership', 'completion', 'check'],
)
def test_looking_at_a_model_keeps_its_modes(look, data):
    model = partly_frozen(MGCN.from_data(data, hidden_channels=8))
    before = modes(model)
    look(model, ForgetUsers(ratio=0.2)(data))
    assert modes(model) == before


@pytest.mark.parametrize(
    'unlearner',
    [
        EdgeDrop(),
        RowReset(),
        TRU(num_epochs=1),
        PartialRetrain(min_steps=1, num_epochs=1),
    ],
    ids=lambda x: type(x).__name__,
)
def test_unlearned_models_have_the_modes_of_the_original(unlearner, data):
    model = partly_frozen(MIGGT.from_data(data, hidden_channels=8, encoder_channels=8))
    before = modes(model)
    result = unlearner(model, ForgetUsers([3])(data))
    assert modes(model) == before
    assert modes(result.model) == before
