import pytest
import torch

from torch_geometric_unlearn.audit import completion, membership
from torch_geometric_unlearn.audit.completion import completion_yardstick
from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.datasets import SyntheticMultimodal
from torch_geometric_unlearn.metrics import (
    closeness,
    embed,
    evaluate_request,
    evaluate_split,
    exposure,
)
from torch_geometric_unlearn.metrics.diagnosis import item_persistence
from torch_geometric_unlearn.metrics.exposure import item_reach
from torch_geometric_unlearn.nn import EmbeddingTable, LightGCN, Served
from torch_geometric_unlearn.transforms import ForgetUsers


class Counting:
    r"""Counts the forward passes of a model."""

    def __init__(self, model, monkeypatch):
        self.count = 0
        forward = model.forward

        def counted(graph):
            self.count += 1
            return forward(graph)

        monkeypatch.setattr(model, 'forward', counted)


@pytest.fixture(scope='module')
def shop():
    return ForgetUsers(ratio=0.3)(SyntheticMultimodal('tiny', num_users=400)[0])


@pytest.fixture
def model(shop):
    torch.manual_seed(0)
    return LightGCN.from_data(shop, hidden_channels=8)


EXTRA = torch.cartesian_prod(torch.arange(10), torch.arange(20)).t()
MEASURES = {
    'request': lambda x, data: evaluate_request(x, data),
    'split': lambda x, data: evaluate_split(x, data),
    'exposure': lambda x, data: exposure(x, data),
    'reach': lambda x, data: item_reach(x, data).tolist(),
    'completion': lambda x, data: completion(x, data, num_bootstrap=20).to_dict(),
    'membership': lambda x, data: membership(x, data, num_bootstrap=20).to_dict(),
    'persistence': lambda x, data: item_persistence(x, x, data),
    'yardstick': lambda x, data: completion_yardstick(x, data, EXTRA).to_dict(),
    'closeness': lambda x, data: closeness(x, x, data, x, x),
}


@pytest.mark.usefixtures('few_trees')
def test_measures_agree_and_run_the_model_once(shop, model, monkeypatch):
    expected = {name: repr(run(model, shop)) for name, run in MEASURES.items()}
    retained = Served.of(model, shop)  # As the original, it would be over everything.
    expected['closeness'] = repr(closeness(model, model, shop, retained, model))
    counting = Counting(model, monkeypatch)
    served = Served.of(model, shop)
    assert {n: repr(run(served, shop)) for n, run in MEASURES.items()} == expected
    assert counting.count == 1


def test_before_is_over_all_interactions(shop, model):
    before, after = Served.before(model, shop), Served.of(model, shop)
    assert before.graph.edge_index.size(1) == shop[schema.EDGE_TYPE].num_edges
    assert after.graph.edge_index.size(1) < before.graph.edge_index.size(1)
    assert Served.before(after, shop) is after
    assert Served.of(before, shop) is before
    for emb, other in zip(after.embeddings, embed(model, model.build_graph(shop))):
        assert torch.equal(emb, other)


def test_branches_and_content(data, trained):
    served = Served.of(trained, data)
    branches = trained.eval().branch_embeddings(served.graph)
    for name, (user_emb, item_emb) in served.branches.items():
        assert torch.equal(torch.cat([user_emb, item_emb]), branches[name])
        assert not user_emb.requires_grad
    assert list(served.branches) == list(branches)
    assert list(served.content) == ['image', 'text']
    table = EmbeddingTable(torch.rand(100, 4), torch.rand(60, 4))
    assert Served.of(table, data).branches == {}
    assert Served.of(table, data).content == {}


def test_modes_are_given_back(shop, model):
    model.train()
    assert len(Served.of(model, shop).embeddings) == 2
    assert model.training


def test_bad_input(shop, model, monkeypatch):
    served = Served.of(model, shop)
    with pytest.raises(ValueError, match="'graph' must be left out"):
        evaluate_request(served, shop, graph=served.graph)
    graph = Served.before(model, shop).graph
    monkeypatch.setattr(model, 'build_graph', lambda data: graph)
    with pytest.raises(ValueError, match="'build_graph' must leave out the forgotten"):
        evaluate_request(model, shop)
