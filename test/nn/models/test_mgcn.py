import numpy as np
import pytest
import torch
from torch_geometric.data import HeteroData
from torch_geometric.testing import onlyLinux, withCUDA

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.datasets import SyntheticMultimodal
from torch_geometric_unlearn.nn import MGCN, Triplets
from torch_geometric_unlearn.transforms import ForgetUsers, ItemKNNGraph

MODALITIES = {
    'two': {'image': 16, 'text': 12},
    'one': {'text': 5},
    'three': {'image': 4, 'audio': 20, 'text': 8},
}


def inv_sqrt(deg):
    return torch.where(deg > 0, deg.clamp(min=1e-300).pow(-0.5), 0.0)


def dense_knn(x, k):
    r"""The normalised item-item matrix, row by row from the initial features."""
    norm = x.norm(dim=1, keepdim=True)
    unit = x / torch.where(norm > 0, norm, 1.0)
    similarity = unit @ unit.t()
    kept = torch.zeros_like(similarity)
    for row in range(x.size(0)):
        order = sorted(range(x.size(0)), key=lambda j: (-float(similarity[row, j]), j))
        kept[row, order[:k]] = similarity[row, order[:k]]
    factor = inv_sqrt(kept.sum(dim=1))
    return factor.view(-1, 1) * kept * factor


class DenseMGCN:
    r"""The published formulas in dense float64, without any of our operators."""

    def __init__(self, model, data):
        self.p = {
            name: p.detach().double().cpu().clone().requires_grad_()
            for name, p in model.named_parameters()
        }
        self.model, self.num_users = model, model.num_users
        adj = torch.zeros(self.num_users, model.num_items, dtype=torch.float64)
        for user, item in data[schema.EDGE_TYPE].edge_index.t().tolist():
            adj[user, item] = 1
        self.r_hat = (
            inv_sqrt(adj.sum(1)).view(-1, 1) * adj * inv_sqrt(adj.sum(0))
        )
        k = min(model.num_neighbors, model.num_items)
        self.s_hat = {
            name: dense_knn(data['item'][f'x_{name}'].double(), k)
            for name in model.modalities
        }

    def linear(self, name, x):
        out = x @ self.p[f'{name}.weight'].t()
        return out + self.p[f'{name}.bias'] if f'{name}.bias' in self.p else out

    def encode(self):
        users, items = self.p['user_embedding.weight'], self.p['item_embedding.weight']
        layers = [(users, items)]
        for _ in range(self.model.num_layers):
            user, item = layers[-1]
            layers.append((self.r_hat @ item, self.r_hat.t() @ user))
        behaviour = sum(torch.cat(layer) for layer in layers) / len(layers)

        views, scores = {}, []
        for name in self.model.modalities:
            projected = self.linear(
                f'projection.{name}', self.p[f'features.{name}.weight']
            )
            gate = torch.sigmoid(self.linear(f'purifier.{name}', projected))
            item = self.s_hat[name] @ (items * gate)
            views[name] = torch.cat([self.r_hat @ item, item])
            hidden = torch.tanh(self.linear('attention_hidden', views[name]))
            scores.append(self.linear('attention_query', hidden).squeeze(1).exp())
        alpha = [score / sum(scores) for score in scores]
        shared = sum(a.view(-1, 1) * views[n] for a, n in zip(alpha, views))
        fused = shared
        for name, view in views.items():
            gate = torch.sigmoid(self.linear(f'preference.{name}', behaviour))
            fused = fused + gate * (view - shared)
        return behaviour, fused / (len(views) + 1)

    def loss(self, batch):
        behaviour, fused = self.encode()
        out, n = behaviour + fused, self.num_users
        total = 0.0
        triples = list(zip(*(ids.tolist() for ids in batch)))
        for user, pos, neg in triples:
            z_u, z_i, z_j = out[user], out[n + pos], out[n + neg]
            margin = z_u @ z_i - z_u @ z_j
            total = total - torch.log(torch.sigmoid(margin)) / len(triples)
            norm = (z_u**2).sum() + (z_i**2).sum() + (z_j**2).sum()
            total = total + self.model.weight_decay * norm / 2 / self.model.batch_size
        for rows in ([t[0] for t in triples], [n + t[1] for t in triples]):
            for a in rows:
                cos = torch.cosine_similarity(fused[a : a + 1], behaviour[rows])
                prob = (cos / self.model.temperature).exp()
                own = torch.cosine_similarity(fused[a], behaviour[a], dim=0)
                nce = prob.sum().log() - own / self.model.temperature
                total = total + self.model.contrastive_weight * nce / len(rows)
        return total


def make_data(kind='two', num_users=30, num_items=25):
    gen = torch.Generator().manual_seed(7)
    data = HeteroData()
    data['user'].num_nodes, data['item'].num_nodes = num_users, num_items
    for name, channels in MODALITIES[kind].items():
        data['item'][f'x_{name}'] = torch.randn(num_items, channels, generator=gen)
    # The last user and the last two items stay isolated.
    user = torch.randint(max(1, num_users - 1), (150,), generator=gen)
    item = torch.randint(num_items - 2, (150,), generator=gen)
    data[schema.EDGE_TYPE].edge_index = torch.stack([user, item]).unique(dim=1)
    return data


def make_model(data, **kwargs):
    torch.manual_seed(3)
    defaults = {'hidden_channels': 8, 'num_neighbors': 4, 'contrastive_weight': 0.1}
    return MGCN.from_data(data, **{**defaults, 'weight_decay': 0.1, **kwargs})


def make_batch(data, size=20):
    pairs = data[schema.EDGE_TYPE].edge_index[:, :size]
    gen = torch.Generator().manual_seed(1)
    neg = torch.randint(data['item'].num_nodes, (pairs.size(1),), generator=gen)
    return Triplets(pairs[0], pairs[1], neg)


def check_against_reference(model, data, device='cpu'):
    reference = DenseMGCN(model, data)
    batch = make_batch(data)
    with torch.no_grad():
        expected = sum(reference.encode())
    expected_loss = reference.loss(batch)
    expected_loss.backward()
    for dtype, atol in ((torch.float32, 2e-6), (torch.float64, 1e-6)):
        model = model.to(device, dtype)
        graph = model.build_graph(data)
        if dtype == torch.float64:  # The operators themselves are built in float32.
            for name in ('user_item', 'item_to_user'):
                setattr(graph, name, getattr(graph, name).to(dtype))
            graph.similar = {n: op.to(dtype) for n, op in graph.similar.items()}
        out = torch.cat(model(graph)).detach().double().cpu()
        assert torch.allclose(out, expected, atol=atol)
        model.zero_grad()
        loss = model.loss(graph, batch.to(device))
        loss.backward()
        assert loss.item() == pytest.approx(expected_loss.item(), abs=2 * atol)
        for name, p in model.named_parameters():
            grad = reference.p[name].grad
            if grad is None:  # The last bias of a softmax over one modality.
                assert p.grad is None or p.grad.abs().max() < atol
            else:
                assert torch.allclose(p.grad.double().cpu(), grad, atol=atol), name


@withCUDA
@pytest.mark.parametrize('kind', MODALITIES)
@pytest.mark.parametrize('num_layers', [0, 2])
def test_against_dense_reference(device, kind, num_layers):
    data = make_data(kind)
    model = make_model(data, num_layers=num_layers)
    assert model.modalities == list(MODALITIES[kind])
    check_against_reference(model, data.to(device), device)


def zero_feature_row(data):
    data['item'].x_image[3] = 0


def shared_feature_vector(data):
    data['item'].x_text[:] = torch.tensor([1.0, 2.0] + [0.0] * 10)


def mostly_isolated(data):
    data[schema.EDGE_TYPE].edge_index = torch.tensor([[2, 2, 9], [0, 1, 1]])


def one_edge(data):
    data[schema.EDGE_TYPE].edge_index = torch.tensor([[2], [0]])


@pytest.mark.parametrize(
    'change', [zero_feature_row, shared_feature_vector, mostly_isolated, one_edge]
)
def test_awkward_data(change):
    data = make_data()
    change(data)
    check_against_reference(make_model(data), data)


def test_one_user_and_few_items():
    data = make_data(num_users=1, num_items=5)
    data[schema.EDGE_TYPE].edge_index = torch.tensor([[0, 0], [0, 3]])
    check_against_reference(make_model(data, num_neighbors=10), data)


@pytest.mark.parametrize('kind', MODALITIES)
def test_num_parameters_and_branches(kind):
    data = make_data(kind)
    model = make_model(data)

    def count(num_users, num_items, channels, hidden):
        square = hidden * hidden + hidden
        out = (num_users + num_items) * hidden + square + hidden  # IDs, attention.
        for size in channels:  # Table, projection, purifier, preference.
            out += num_items * size + size * hidden + hidden + 2 * square
        return out

    assert count(19_445, 7_050, (4096, 384), 64) == 33_587_392
    channels = list(MODALITIES[kind].values())
    params = dict(model.named_parameters())
    assert sum(p.numel() for p in params.values()) == count(30, 25, channels, 8)

    branches = model.branches()
    assert list(branches) == ['id', *MODALITIES[kind], 'fusion']
    ids = [id(p) for ps in branches.values() for p in ps]
    assert len(ids) == len(set(ids))
    assert set(ids) == {id(p) for p in params.values()}
    prefixes = {'id': ('user_embedding', 'item_embedding')}
    prefixes['fusion'] = ('attention_hidden', 'attention_query', 'preference')
    for name in MODALITIES[kind]:
        parts = ('features', 'projection', 'purifier')
        prefixes[name] = tuple(f'{part}.{name}.' for part in parts)
    for branch, expected in prefixes.items():
        names = {n for n in params if n.startswith(expected)}
        assert {id(params[n]) for n in names} == {id(p) for p in branches[branch]}

    tables = model.tables()
    assert [t.rows for t in tables] == ['user', 'item'] + ['item'] * len(channels)
    assert [t.is_raw for t in tables] == [False, False] + [True] * len(channels)
    assert tables[2].parameter is model.features[model.modalities[0]].weight


def test_initial_values():
    data = SyntheticMultimodal('tiny')[0]
    model = MGCN.from_data(data)
    bound = (6 / (100 + 64)) ** 0.5
    assert 0.95 * bound < model.user_embedding.weight.abs().max() <= bound
    assert torch.equal(model.features['image'].weight, data['item'].x_image)
    with torch.no_grad():
        model.features['image'].weight.zero_()
    assert data['item'].x_image.abs().sum() > 0  # It is a copy.


def test_frozen_features():
    data = make_data()
    model = make_model(data, train_features=False)
    assert not model.features['image'].weight.requires_grad
    assert model.features['text'].weight.requires_grad is False
    model.loss(model.build_graph(data), make_batch(data)).backward()
    assert model.features['image'].weight.grad is None
    assert model.projection['image'].weight.grad.abs().sum() > 0


def test_training_and_evaluation_mode_agree():
    data = make_data()
    model = make_model(data)
    graph = model.build_graph(data)
    out = torch.cat(model.train()(graph))
    assert torch.equal(out, torch.cat(model.eval()(graph)))


def test_nominal_batch_size_divides_the_regulariser():
    data = make_data()
    graph = make_model(data).build_graph(data)
    losses = [
        make_model(data, batch_size=b, weight_decay=w).loss(graph, make_batch(data))
        for b, w in ((10, 0.0), (10, 1.0), (40, 1.0))
    ]
    ratio = (losses[1] - losses[0]) / (losses[2] - losses[0])
    assert ratio.item() == pytest.approx(4, rel=1e-3)


def test_build_graph_ignores_marked_edges(data):
    model = make_model(data)
    marked = ForgetUsers([3, 17])(data)
    mask = marked[schema.EDGE_TYPE].forget_mask
    graph = model.build_graph(marked)
    assert mask.any()
    assert torch.equal(graph.edge_index, data[schema.EDGE_TYPE].edge_index[:, ~mask])
    assert graph.user_item.num_entries == 2 * int((~mask).sum())
    assert not torch.isin(graph.edge_index[0], torch.tensor([3, 17])).any()

    cut = data.clone()
    cut[schema.EDGE_TYPE].edge_index = graph.edge_index
    expected = model(model.build_graph(cut))
    for out, other in zip(model(graph), expected):
        assert torch.equal(out, other)


def test_build_graph_uses_stored_item_graph():
    data = make_data()
    model = make_model(data)
    stored = ItemKNNGraph(k=4, modalities=['text'])(data)
    plain, graph = model.build_graph(data), model.build_graph(stored)
    assert torch.equal(plain.similar['text'].value, graph.similar['text'].value)
    edges = torch.tensor([[0, 1, 2], [1, 1, 0]])
    store = stored['item', 'similar_text', 'item']
    store.edge_index, store.edge_weight = edges, torch.tensor([1.0, 3.0, 1.0])
    graph = model.build_graph(stored)
    assert graph.similar['text'].num_entries == 3
    assert graph.similar['image'].num_entries == 25 * 4
    # Degrees are 1 (item 0), 4 (item 1) and 0 (item 2, so its edge vanishes).
    assert graph.similar['text'].edge_weight.tolist() == [0, 0.5, 0.75]


@pytest.mark.parametrize(
    ('args', 'match'),
    [
        ((3, 2, {}), "'features' must hold at least one modality"),
        ((3, 2, {'image': torch.ones(3, 4)}), 'expected 2 rows'),
        ((3, 2, {'image': torch.full((2, 4), np.nan)}), r"features\['image'\]' must"),
        ((0, 2, {'image': torch.ones(2, 4)}), "'num_users' must be at least 1"),
        ((3, 2, {'image': torch.ones(2, 4)}, 0), "'hidden_channels' must be at least"),
        ((3, 2, {'image': torch.ones(2, 4)}, 8, -1), "'num_layers' must be at least"),
    ],
)
def test_bad_arguments(args, match):
    with pytest.raises(ValueError, match=match):
        MGCN(*args)


def test_data_that_does_not_fit_the_model(data):
    model = make_model(data)
    match = 'has 100 users and 60 items, but the data has 30 and 25'
    with pytest.raises(ValueError, match=match):
        model.build_graph(make_data())
    other = data.clone()
    other['item'].x_text = torch.randn(60, 7)
    with pytest.raises(ValueError, match=r"needs 'x_text' with 12 channels \(got 7\)"):
        model.build_graph(other)
    del other['item'].x_text
    match = r"needs the modalities \['image', 'text'\], but the items carry \['image'\]"
    with pytest.raises(ValueError, match=match):
        model.build_graph(other)
    del other['item'].x_image
    with pytest.raises(ValueError, match='at least one modality'):
        MGCN.from_data(other)


@onlyLinux
def test_compile():
    data = make_data()
    model = make_model(data)
    graph = model.build_graph(data)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend='eager')
    for out, expected in zip(compiled(graph), model(graph)):
        assert torch.allclose(out, expected, atol=1e-6)


@withCUDA
def test_graph_follows_the_model(device):
    data = make_data()
    model = make_model(data).to(device)
    graph = model.build_graph(data)
    assert graph.edge_index.device == graph.user_item.value.device == device
    assert graph.similar['image'].value.device == device
    assert torch.cat(model(graph)).device == device


def test_repr():
    assert str(make_model(make_data())) == (
        "MGCN(30, 25, modalities=['image', 'text'], hidden_channels=8, num_layers=2)"
    )


@pytest.mark.parametrize(('name', 'overlap'), [('image', 0.98), ('text', 0.99)])
def test_published_item_graph(real_data, name, overlap):
    folder = real_data / 'amazon_baby'
    x = torch.from_numpy(np.load(folder / f'{name}_feat.npy')).float()
    with np.load(folder / f'{name}_knn10.npz') as published:
        neighbors = torch.from_numpy(published['neighbors']).long()
        weight = torch.from_numpy(published['norm_weight']).double()
    num_items = x.size(0)
    data = HeteroData()
    data['user'].num_nodes, data['item'].num_nodes = 1, num_items
    data['item'][f'x_{name}'] = x
    data[schema.EDGE_TYPE].edge_index = torch.tensor([[0], [0]])
    model = MGCN.from_data(data, hidden_channels=1)
    operator = model.build_graph(data).similar[name]
    assert operator.num_entries == 10 * num_items

    source, target = operator.edge_index
    ours = target * num_items + source
    row = torch.arange(num_items).view(-1, 1)
    theirs, order = (row * num_items + neighbors).view(-1).sort()
    place = torch.searchsorted(theirs, ours).clamp(max=theirs.numel() - 1)
    shared = theirs[place] == ours
    assert shared.double().mean() > overlap
    expected = weight.view(-1)[order][place[shared]]
    error = (operator.edge_weight[shared].double() - expected).abs().mean()
    assert error < 2e-3  # The features are fitted to the published graph.


@pytest.mark.parametrize('name', ['keys', 'a.b', ''])
def test_names_that_no_modality_can_have(name):
    with pytest.raises(ValueError, match="can't name a modality"):
        MGCN(2, 2, {name: torch.ones(2, 3)})


def test_stored_graph_without_weights(data):
    model = MGCN.from_data(data, hidden_channels=4)
    data['item', 'similar_image', 'item'].edge_index = torch.zeros(2, 3).long()
    with pytest.raises(ValueError, match=r"must hold 'edge_index' and 'edge_weight'"):
        model.build_graph(data)
