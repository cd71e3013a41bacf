import copy

import pytest
import torch

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.datasets import SyntheticMultimodal
from torch_geometric_unlearn.loader import TripletLoader
from torch_geometric_unlearn.metrics import embed
from torch_geometric_unlearn.nn import MGCN
from torch_geometric_unlearn.nn.models import ShardEnsemble
from torch_geometric_unlearn.nn.models.shard_ensemble import (
    group_data,
    share_item_graphs,
)
from torch_geometric_unlearn.testing import check_model
from torch_geometric_unlearn.train import fit
from torch_geometric_unlearn.transforms import ForgetUsers, ItemKNNGraph
from torch_geometric_unlearn.unlearn import TRU
from torch_geometric_unlearn.utils.seed import isolated_seed

COMBINATIONS = ['owner', 'mean_items', 'calibrated_mean']


@pytest.fixture(scope='module')
def parts():
    r"""Three trained shards and the owners of the users."""
    data = SyntheticMultimodal('tiny')[0]
    owner = torch.arange(100) % 3
    shards = []
    for k in range(3):
        with isolated_seed(7):
            shard = MGCN.from_data(data, hidden_channels=8)
        fit(shard, group_data(data, owner, k), num_epochs=5, lr=1e-2)
        shards.append(shard)
    return shards, owner


def by_hand(data, owner, group):
    r"""The data of a group, cut without the package."""
    out = copy.copy(data)
    store = out[schema.EDGE_TYPE]
    store.edge_index = store.edge_index[:, owner[store.edge_index[0]] == group]
    for key in schema.HELD_OUT:
        out[key] = out[key][:, owner[out[key][0]] == group]
    return out


def dense_scores(data, shards, owner, combination, weights):
    r"""The definition in float64, user by user."""
    num_shards = len(shards)
    users, items = [], []
    for k, shard in enumerate(shards):
        emb = embed(shard, shard.build_graph(by_hand(data, owner, k)))
        users.append(emb[0].double())
        items.append(emb[1].double())
    edge_index = data[schema.EDGE_TYPE].edge_index
    rows = []
    for user in range(owner.numel()):
        k = int(owner[user])
        if combination == 'owner':
            rows.append(items[k] @ users[k][user])
        elif combination == 'mean_items':
            scores = [items[j] @ users[k][user] for j in range(num_shards)]
            rows.append(sum(scores) / num_shards)
        else:
            liked = edge_index[1, edge_index[0] == user]
            total = torch.zeros(items[0].size(0), dtype=torch.float64)
            for j in range(num_shards):
                if liked.numel() > 0:
                    score = items[j] @ items[j][liked].mean(dim=0)
                    score = (score - score.mean()) / score.std(correction=0)
                    total += float(weights[j]) * score
            rows.append(total)
    return torch.stack(rows)


@pytest.mark.parametrize('combination', COMBINATIONS)
def test_products_are_the_scores_of_the_definition(combination, data, parts):
    shards, owner = parts
    weights = torch.tensor([0.5, 0.2, 0.3])
    ensemble = ShardEnsemble(shards, owner, combination, weights)
    user_emb, item_emb = embed(ensemble, ensemble.build_graph(data))
    expected = dense_scores(data, shards, owner, combination, weights)
    error = (user_emb.double() @ item_emb.double().t() - expected).abs().max()
    assert error < 1e-4 * expected.abs().max()
    assert user_emb.size(1) == (8 if combination == 'mean_items' else 24)


@pytest.mark.parametrize('combination', COMBINATIONS)
def test_meets_the_model_contract(combination, data, parts):
    check_model(ShardEnsemble(*parts, combination), data)


def test_calibrated_scores(data, parts):
    shards, owner = parts
    ensemble = ShardEnsemble(shards, owner, 'calibrated_mean')
    pairs = torch.tensor([[0, 4, 99, 4], [3, 3, 59, 0]])
    scores = ensemble.calibrated_scores(ensemble.build_graph(data), pairs)
    for k in range(3):
        one = torch.eye(3)[k]
        dense = dense_scores(data, shards, owner, 'calibrated_mean', one)
        expected = dense[pairs[0], pairs[1]].float()
        assert torch.allclose(scores[:, k], expected, atol=1e-4)


def test_graphs_hold_only_the_own_group(data, parts):
    shards, owner = parts
    graph = ShardEnsemble(shards, owner).build_graph(data)
    for k, part in enumerate(graph.shards):
        expected = by_hand(data, owner, k)[schema.EDGE_TYPE].edge_index
        assert torch.equal(part.edge_index, expected)
    assert torch.equal(graph.edge_index, data[schema.EDGE_TYPE].edge_index)
    assert torch.equal(graph.to('cpu').edge_index, graph.edge_index)


def test_group_data_keeps_reverse_edges_and_attributes(data):
    store = data[schema.EDGE_TYPE]
    store.time = torch.arange(store.edge_index.size(1))
    data[schema.REV_EDGE_TYPE].edge_index = store.edge_index.flip(0)
    owner = torch.arange(100) % 4
    view = schema.validate(group_data(data, owner, 2))
    kept = owner[store.edge_index[0]] == 2
    assert torch.equal(view[schema.EDGE_TYPE].time, kept.nonzero().view(-1))
    assert view[schema.REV_EDGE_TYPE].edge_index.size(1) == int(kept.sum())
    for key in schema.HELD_OUT:
        assert torch.equal(view[key], by_hand(data, owner, 2)[key])
    assert view['user'].num_nodes == 100
    assert 'forget_mask' not in store
    assert group_data(data, owner, 4) is None
    assert group_data(data, torch.zeros_like(owner), 0) is data


def test_item_graphs_are_built_once(data, parts, monkeypatch):
    from torch_geometric_unlearn.nn.models import mgcn
    from torch_geometric_unlearn.transforms import item_knn_graph

    shards, owner = parts
    expected = embed(shards[1], shards[1].build_graph(by_hand(data, owner, 1)))
    calls = []
    knn = (mgcn, 'feature_knn_graph'), (item_knn_graph, 'cosine_knn_graph')
    for module, name in knn:
        build = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda *a, f=build: calls.append(1) or f(*a)
        )
    graph = ShardEnsemble(shards, owner).build_graph(data)
    assert len(calls) == 2  # One per modality.
    for a, b in zip(expected, embed(shards[1], graph.shards[1])):
        assert torch.equal(a, b)
    assert data.edge_types == [schema.EDGE_TYPE]


def test_stored_item_graphs_stay(data, parts):
    shards, _ = parts
    stored = ItemKNNGraph(3)(data)
    assert share_item_graphs(shards, stored) is stored
    assert share_item_graphs([torch.nn.Linear(1, 1)], data) is data
    other = MGCN.from_data(data, hidden_channels=8, num_neighbors=4)
    assert share_item_graphs([shards[0], other], data) is data


def test_loss_is_the_weighted_sum_over_shards(data, parts):
    shards, owner = parts
    ensemble = ShardEnsemble(shards, owner)
    graph = ensemble.build_graph(data)
    batch = next(iter(TripletLoader(graph.edge_index, 60, 50)))
    expected = 0.0
    for k, shard in enumerate(shards):
        rows = owner[batch.user] == k
        part = type(batch)(*(x[rows] for x in batch))
        with torch.no_grad():
            loss = shard.loss(graph.shards[k], part)
        expected += float(rows.sum()) / 50 * float(loss)
    loss = ensemble.loss(graph, batch).detach()
    assert float(loss) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize('combination', COMBINATIONS)
def test_group_without_interactions(combination, data, parts):
    shards, owner = parts
    users = (owner == 1).nonzero().view(-1)
    marked = ForgetUsers(users)(data)
    ensemble = ShardEnsemble(shards, owner, combination)
    graph = ensemble.build_graph(marked)
    assert graph.shards[1] is None
    assert graph.to('cpu').shards[1] is None
    user_emb, item_emb = embed(ensemble, graph)
    assert torch.isfinite(user_emb @ item_emb.t()).all()
    assert not (user_emb[users] @ item_emb.t()).any()
    others = (owner != 1).nonzero().view(-1)
    assert (user_emb[others] @ item_emb.t()).std(dim=1).min() > 0
    batch = next(iter(TripletLoader(data[schema.EDGE_TYPE].edge_index, 60, 64)))
    gone = type(batch)(*(x[owner[batch.user] == 1] for x in batch))
    loss = ensemble.loss(graph, gone)
    loss.backward()
    assert float(loss.detach()) == 0
    ensemble.zero_grad()
    assert ensemble.alignment(graph)[1].tolist() == [0.0, 0.0, 0.0]


def test_alignment_equals_dense_kernels(data, parts):
    shards, owner = parts
    ensemble = ShardEnsemble(shards, owner)
    graph = ensemble.build_graph(data)
    centre = torch.eye(60, dtype=torch.float64) - 1 / 60
    kernels = []
    for shard, part in zip(shards, graph.shards):
        emb = embed(shard, part)[1].double()
        kernels.append(centre @ emb @ emb.t() @ centre)
    inner = torch.tensor([[float((a * b).sum()) for b in kernels] for a in kernels])
    expected = inner / (inner.diag().sqrt().outer(inner.diag().sqrt()))
    alignment = ensemble.alignment(graph)
    assert torch.allclose(alignment, expected, atol=1e-4)
    assert torch.allclose(alignment.diag(), torch.ones(3))
    assert alignment[0, 1] < 1


def test_alignment_sees_no_rotation(data):
    class Rotated(torch.nn.Module):
        def __init__(self, turn):
            super().__init__()
            self.emb = torch.nn.Parameter(torch.arange(180.0).view(60, 3).sin() @ turn)

        def forward(self, graph):
            return self.emb.new_zeros(100, 3), self.emb

    turn, _ = torch.linalg.qr(torch.arange(9.0).view(3, 3).cos())
    models = [Rotated(torch.eye(3)), Rotated(turn)]
    ensemble = ShardEnsemble(models, torch.arange(100) % 2)
    graph = type('Graph', (), {'shards': [0, 0]})()
    assert torch.allclose(ensemble.alignment(graph), torch.ones(2, 2), atol=1e-5)


def test_state_can_be_saved_and_loaded(data, parts):
    shards, owner = parts
    weights = torch.tensor([0.0, 0.25, 0.75])
    ensemble = ShardEnsemble(shards, owner, 'calibrated_mean', weights)
    fresh = [MGCN.from_data(data, hidden_channels=8) for _ in range(3)]
    other = ShardEnsemble(fresh, torch.zeros_like(owner), 'calibrated_mean')
    other.load_state_dict(ensemble.state_dict())
    graph = ensemble.build_graph(data)
    for a, b in zip(embed(ensemble, graph), embed(other, other.build_graph(data))):
        assert torch.equal(a, b)


def test_other_methods_run_on_it(data, parts):
    ensemble = ShardEnsemble(*parts)
    result = TRU(num_epochs=1)(ensemble, ForgetUsers([3])(data))
    assert isinstance(result.model, ShardEnsemble)
    assert max(result.touched.values()) > 0


def test_bad_arguments(data, parts):
    shards, owner = parts
    for args, message in [
        (([], owner), "'shards' must hold at least one model"),
        ((shards[:2], owner), r"'owner' must name shards from 0 to 1 \(got 0 to 2\)"),
        ((shards, owner.view(2, 50)), r"'owner' must have shape \[num_users\]"),
        ((shards, owner, 'mean'), "'combination' must be one of"),
        ((shards, owner, 'owner', torch.ones(3)), "'weights' must hold 3 values"),
        ((shards, owner, 'owner', torch.ones(1)), "'weights' must hold 3 values"),
    ]:
        with pytest.raises(ValueError, match=message):
            ShardEnsemble(*args)
    with pytest.raises(TypeError, match=r"'owner' must be an int64 tensor"):
        ShardEnsemble(shards, owner.float())
    data['user'].num_nodes = 101
    with pytest.raises(ValueError, match='The model has 100 users, but the data has'):
        ShardEnsemble(shards, owner).build_graph(data)


def test_repr(parts):
    assert repr(ShardEnsemble(*parts)) == (
        "ShardEnsemble(MGCN, num_shards=3, combination='owner')"
    )
