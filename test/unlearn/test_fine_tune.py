import pytest
import torch

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.loader import TripletLoader
from torch_geometric_unlearn.transforms import (
    DropForgotten,
    ForgetInteractions,
    ForgetItems,
    ForgetUsers,
)
from torch_geometric_unlearn.unlearn import FineTune

REQUESTS = [ForgetUsers(ratio=0.1), ForgetItems([2, 4]), ForgetInteractions(ratio=0.1)]


def test_history(data, trained):
    marked = ForgetUsers(ratio=0.1)(data)
    history = FineTune(num_epochs=2, batch_size=128)(trained, marked).history
    assert [row['epoch'] for row in history] == [0, 1]
    assert sum(row['selected'] for row in history) == 1
    assert 'reversed' not in history[0]


def test_is_training_on_the_retained_pairs(data, trained):
    marked = ForgetUsers(ratio=0.1)(data)
    result = FineTune(num_epochs=1, lr=1e-2, batch_size=64, seed=3)(trained, marked)

    retained = DropForgotten()(marked)
    with torch.random.fork_rng():
        twin = type(trained).from_data(data, hidden_channels=16)
    twin.load_state_dict(trained.state_dict())
    twin.train()
    optimizer = torch.optim.Adam(twin.parameters(), lr=1e-2, fused=True)
    pairs = retained[schema.EDGE_TYPE].edge_index
    graph = twin.build_graph(retained)
    for batch in TripletLoader(pairs, 60, batch_size=64, seed=4):
        optimizer.zero_grad()
        twin.loss(graph, batch).backward()
        optimizer.step()
    for p, q in zip(result.model.parameters(), twin.parameters()):
        assert torch.allclose(p, q, atol=1e-6)


def test_forgotten_pairs_fade_slowly(data, trained):
    marked = ForgetInteractions(ratio=0.1)(data)
    unlearner = FineTune(num_epochs=8, lr=5e-3, batch_size=128, patience=8)
    history = unlearner(trained, marked).history
    assert history[-1]['repair_loss'] < history[0]['repair_loss']
    assert history[-1]['gap'] < history[0]['gap']


def test_bad_arguments():
    for kwargs, message in [
        ({'lr': -1.0}, "'lr' must be a finite number in"),
        ({'num_epochs': 0}, "'num_epochs' must be at least 1"),
        ({'patience': -1}, "'patience' must be at least 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            FineTune(**kwargs)
    assert repr(FineTune()) == (
        'FineTune(num_epochs=10, lr=0.001, patience=5, batch_size=2048, seed=0)'
    )
