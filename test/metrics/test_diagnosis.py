import copy
import math

import pytest
import torch

from torch_geometric_unlearn.audit._features import PairFeatures
from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.metrics.diagnosis import (
    cross_modal_cka,
    item_persistence,
    layer_shift,
)
from torch_geometric_unlearn.nn import EmbeddingTable, Served
from torch_geometric_unlearn.transforms import ForgetUsers


def test_item_persistence_counts_as_a_loop_does(data, trained):
    marked = ForgetUsers([3, 5])(data)
    other = copy.deepcopy(trained)
    with torch.no_grad():
        other.item_embedding.weight.mul_(-1)
    out = item_persistence(trained, other, marked, k=5)
    edges = data[schema.EDGE_TYPE].edge_index.t().tolist()
    forgotten = {i for u, i in edges if u in (3, 5)}
    popularity = [sum(i == item for _, i in edges) for item in range(60)]
    assert out['popularity'].tolist() == popularity
    assert set(out['is_forget'].nonzero().view(-1).tolist()) == forgotten
    items, _ = other.recommend(
        other.build_graph(marked),
        torch.tensor([u for u in range(100) if u not in (3, 5)]),
        k=5,
    )
    shown = [float((items == item).any(dim=1).double().mean()) for item in range(60)]
    assert out['reach_after'].tolist() == pytest.approx(shown)
    forget = out['summary']['forget']
    assert forget['num_items'] == len(forgotten)
    after = sum(shown[i] for i in forgotten) / len(forgotten)
    assert forget['after'] == pytest.approx(after)
    assert forget['drop'] == pytest.approx(1 - after / forget['before'])
    share = sum(u in (3, 5) for u, i in edges if i == min(forgotten))
    wanted = share / popularity[min(forgotten)]
    assert float(out['deleted_share'][min(forgotten)]) == pytest.approx(wanted)


def test_item_persistence_without_a_request(data, trained):
    forget = item_persistence(trained, trained, data)['summary']['forget']
    assert forget['num_items'] == 0
    assert math.isnan(forget['drop'])


def test_cka_equals_the_gram_matrix_form(data, trained):
    graph = trained.build_graph(data)
    names, matrix = cross_modal_cka(trained, graph)
    assert names == ['id', 'image', 'text', 'fused']
    assert torch.equal(matrix, matrix.t())
    assert matrix.diagonal().tolist() == [1.0] * 4
    branches = trained.branch_embeddings(graph)
    center = torch.eye(60).double() - 1 / 60

    def gram(name):
        x = branches[name][100:].detach().double()
        return center @ x @ x.t() @ center

    a, b = gram('id'), gram('text')
    wanted = float((a * b).sum() / (a.norm() * b.norm()))
    assert float(matrix[0, 2]) == pytest.approx(wanted, abs=1e-6)
    assert cross_modal_cka(trained, graph, 'user', fused=False)[1].shape == (3, 3)


class OnlyBranches(EmbeddingTable):
    r"""Shows its branches, and does not fuse."""

    def branch_embeddings(self, graph):
        whole = torch.cat(self(graph))
        return {'one': whole, 'other': -whole}


def test_branches_without_fusion_are_looked_at(data):
    model = OnlyBranches(torch.randn(100, 4), torch.randn(60, 4))
    names, matrix = cross_modal_cka(model, model.build_graph(data), fused=False)
    assert names == ['one', 'other']
    assert torch.allclose(matrix, torch.ones_like(matrix), atol=1e-6)
    features = PairFeatures(Served.of(model, data), data)
    assert {'one_score', 'other_score'} <= set(features.names)


def test_cka_needs_branches(data, trained):
    model = EmbeddingTable(torch.randn(100, 4), torch.randn(60, 4))
    with pytest.raises(ValueError, match='branch_embeddings'):
        cross_modal_cka(model, model.build_graph(data))
    with pytest.raises(ValueError, match="'nodes' must be one of"):
        cross_modal_cka(trained, trained.build_graph(data), 'edges')


def test_layer_shift_is_relative_to_the_original(trained):
    moved, goal = copy.deepcopy(trained), copy.deepcopy(trained)
    with torch.no_grad():
        moved.item_embedding.weight.mul_(1.5)
        goal.item_embedding.weight.mul_(0.75)
    rows = {row['module']: row for row in layer_shift(trained, moved, goal)}
    row = rows['item_embedding']
    assert row['shift'] == pytest.approx(0.5)
    assert row['retrained_shift'] == pytest.approx(0.25)
    assert row['cosine'] == pytest.approx(-1)
    assert rows['user_embedding']['shift'] == 0
    assert math.isnan(layer_shift(trained, moved)[0]['retrained_shift'])
