import copy
import pickle
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch.nn import Embedding, Linear
from torch_geometric.data import Data
from torch_geometric.nn import LightGCN, SAGEConv
from torch_geometric.testing import withCUDA
from torch_geometric.utils import to_undirected

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.metrics import embed, evaluate_request
from torch_geometric_unlearn.nn import EmbeddingTable, RecommenderAdapter, Table
from torch_geometric_unlearn.nn.models import InteractionGraph, Triplets
from torch_geometric_unlearn.testing import check_model, check_unlearner
from torch_geometric_unlearn.train import fit
from torch_geometric_unlearn.transforms import ForgetInteractions, ForgetUsers
from torch_geometric_unlearn.unlearn import TRU, EdgeDrop, MMRecUn, Retrain, RowReset
from torch_geometric_unlearn.utils.seed import isolated_seed

SIZES = (100, 60)
BATCH = Triplets(*torch.tensor([[3, 3, 70], [5, 6, 59], [7, 0, 2]]))


class TwoTower(torch.nn.Module):
    def __init__(self, data, has_item_table=True):
        super().__init__()
        self.user = Embedding(SIZES[0], 8)
        self.item = Embedding(SIZES[1], 8) if has_item_table else None
        image, text = data['item'].x_image, data['item'].x_text
        self.image, self.text = Linear(image.size(1), 8), Linear(text.size(1), 8)
        self.mix = torch.nn.Parameter(torch.tensor([0.6, 0.4]))
        self.register_buffer('x_image', image)
        self.register_buffer('x_text', text)

    def forward(self):
        image, text = self.image(self.x_image), self.text(self.x_text)
        out = self.mix[0] * image + self.mix[1] * text
        return self.user.weight, out if self.item is None else out + self.item.weight


class ContentOnly(torch.nn.Module):
    r"""No table at all: users are the mean of their items."""

    def __init__(self, data):
        super().__init__()
        self.lin = Linear(16, 8)
        self.register_buffer('x', data['item'].x_image)

    def forward(self, graph):
        item = self.lin(self.x)
        user, index = graph.edge_index
        out = item.new_zeros(SIZES[0], 8).index_add(0, user, item[index])
        return out / user.bincount(minlength=SIZES[0]).clamp(min=1).view(-1, 1), item


def lightgcn(data):
    return RecommenderAdapter(LightGCN(sum(SIZES), 16, 2), *SIZES, weight_decay=1e-3)


def two_tower(data, **kwargs):
    branches = {'image': ['image'], 'text': ['text'], 'fusion': ['mix']}
    return RecommenderAdapter(TwoTower(data), *SIZES, branches=branches, **kwargs)


def content_only(data):
    return RecommenderAdapter(
        ContentOnly(data), *SIZES, embed=lambda module, graph: module(graph)
    )


BUILDERS = [lightgcn, two_tower, content_only]


@pytest.mark.parametrize('build', BUILDERS)
def test_meets_the_contract(build, data):
    check_model(build(data), data)


@pytest.mark.parametrize('layers', [0, 1, 3])
def test_equals_lightgcn(layers, data):
    module = LightGCN(sum(SIZES), 16, layers)
    model = RecommenderAdapter(module, *SIZES)
    pairs = data[schema.EDGE_TYPE].edge_index
    both = to_undirected(torch.stack([pairs[0], pairs[1] + SIZES[0]]))
    weight = torch.randn(sum(SIZES), 16)

    expected = module.get_embedding(both)
    (expected * weight).sum().backward()
    grad, module.embedding.weight.grad = module.embedding.weight.grad, None
    user_emb, item_emb = model(model.build_graph(data))
    out = torch.cat([user_emb, item_emb])
    (out * weight).sum().backward()
    assert user_emb.shape == (SIZES[0], 16)
    assert torch.allclose(out, expected, atol=1e-6, rtol=0)
    assert torch.allclose(module.embedding.weight.grad, grad, atol=1e-5, rtol=0)


def test_graph_of_both_directions():
    pairs = torch.tensor([[2, 0, 0], [1, 0, 1]])
    graph = InteractionGraph(pairs, 3, 2).to('cpu')
    dense = torch.zeros(5, 5)
    for user, item in pairs.t().tolist():
        dense[user, 3 + item] = dense[3 + item, user] = 1
    assert torch.equal(graph.adj_t.to_dense(), dense)
    assert graph.adj.size(1) == 6
    assert (dense[graph.adj[0], graph.adj[1]] == 1).all()


def test_default_loss(data):
    model = two_tower(data, weight_decay=0.3)
    graph = model.build_graph(data)
    user_emb, item_emb = (x.detach().double() for x in model(graph))
    user, pos, neg = user_emb[BATCH[0]], item_emb[BATCH[1]], item_emb[BATCH[2]]
    margin = (user * pos).sum(1) - (user * neg).sum(1)
    bpr = -margin.sigmoid().log().mean()
    norm = sum(float(x.norm() ** 2) for x in (user, pos, neg))
    expected = float(bpr) + 0.3 * 0.5 * norm / 3
    assert float(model.loss(graph, BATCH).detach()) == pytest.approx(expected, rel=1e-5)


def test_learns_and_forgets(data):
    with isolated_seed(0):
        model = lightgcn(data)
    marked = ForgetUsers(ratio=0.1)(data)
    before = evaluate_request(model, marked, ks=(5,))
    fit(model, data, num_epochs=60, lr=5e-3, batch_size=128)
    original = evaluate_request(model, marked, graph=model.build_graph(data), ks=(5,))
    assert original['retain_recall@5'] > 4 * before['retain_recall@5']
    result = TRU(batch_size=128, num_epochs=10)(model, marked)
    after = evaluate_request(result.model, marked, ks=(5,))
    assert after['forget_recall@5'] < 0.5 * original['forget_recall@5']
    assert after['retain_recall@5'] > 0.7 * original['retain_recall@5']


UNLEARNERS = [
    TRU(num_epochs=1),
    MMRecUn(num_epochs=1, row_reset=True),
    EdgeDrop(),
    RowReset(),
]


@pytest.mark.parametrize('build', BUILDERS)
@pytest.mark.parametrize('unlearner', UNLEARNERS, ids=lambda x: type(x).__name__)
def test_unlearners(unlearner, build, data):
    model, marked = build(data), ForgetUsers([3, 17])(data)
    resets = isinstance(unlearner, RowReset) or getattr(unlearner, 'row_reset', False)
    if resets and build is content_only:
        with pytest.raises(ValueError, match='has no ID table'):
            unlearner(model, marked)
    else:
        check_unlearner(unlearner, model, marked)


@pytest.mark.parametrize('build', BUILDERS)
def test_retrain(build, data):
    marked = ForgetInteractions(ratio=0.1)(data)
    check_unlearner(Retrain(build, num_epochs=1), build(data), marked)


def test_row_reset_reaches_node_tables(data):
    model = lightgcn(data)
    out = RowReset()(model, ForgetUsers([3])(data)).model
    changed = out.module.embedding.weight != model.module.embedding.weight
    assert changed.any(dim=1).nonzero().view(-1).tolist() == [3]


def test_default_branches_and_tables(data):
    model = lightgcn(data)
    assert list(model.branches()) == ['id']
    [table] = model.tables()
    assert table.rows == 'node'
    assert table.parameter is model.module.embedding.weight

    model = RecommenderAdapter(TwoTower(data), *SIZES)
    assert [table.rows for table in model.tables()] == ['user', 'item']
    model.module.item.weight.requires_grad_(False)
    model = RecommenderAdapter(model.module, *SIZES)
    assert [table.rows for table in model.tables()] == ['user']
    assert content_only(data).tables() == []


def test_branches_by_name(data):
    tower = TwoTower(data)
    branches = {'item_side': ['item', 'image.weight'], 'text': ['text']}
    out = RecommenderAdapter(tower, *SIZES, branches=branches).branches()
    assert list(out) == ['id', 'item_side', 'text']
    assert {id(p) for p in out['item_side']} == {
        id(tower.item.weight), id(tower.image.weight)
    }
    assert {id(p) for p in out['id']} == {
        id(tower.mix), id(tower.user.weight), id(tower.image.bias)
    }
    everything = {'all': ['user', 'item', 'image', 'text', 'mix']}
    out = RecommenderAdapter(tower, *SIZES, branches=everything).branches()
    assert list(out) == ['all']


def test_a_copy_has_its_own_parameters(data):
    module = TwoTower(data)
    tables = [Table(module.item.weight, 'item', True, torch.nn.init.zeros_)]
    model = RecommenderAdapter(module, *SIZES, tables=tables)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        [table] = other.tables()
        assert table.parameter is other.module.item.weight
        assert table.parameter is not module.item.weight
        assert table[1:] == ('item', True, torch.nn.init.zeros_, '', None)
        assert other.branches()['id'][0] is other.module.mix


def test_own_callables(data):
    class Graph(SimpleNamespace):
        def to(self, device):
            return self

    seen = []

    def build_graph(data):
        seen.append('forget_mask' in data[schema.EDGE_TYPE])
        return Graph(edge_index=data[schema.EDGE_TYPE].edge_index.flip(1), scale=2.0)

    def embed_scaled(module, graph):
        return torch.cat(module()) * graph.scale

    def loss(model, graph, batch):
        user_emb, item_emb = model(graph)
        return F.mse_loss(user_emb[batch.user], item_emb[batch.pos_item])

    module = TwoTower(data)
    model = RecommenderAdapter(module, *SIZES, embed_scaled, build_graph, loss)
    check_model(model, data)
    graph = model.build_graph(ForgetUsers([3])(data))
    assert not any(seen)
    assert not (graph.edge_index[0] == 3).any()
    assert torch.equal(model(graph)[0], 2 * module.user.weight)
    user_emb, item_emb = model(graph)
    expected = (user_emb[BATCH.user] - item_emb[BATCH.pos_item]).pow(2).mean()
    assert torch.allclose(model.loss(graph, BATCH), expected)


def test_pyg_data_as_graph(data):
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.emb = Embedding(sum(SIZES), 8)
            self.conv = SAGEConv(8, 8)

        def forward(self, edge_index):
            return self.conv(self.emb.weight, edge_index)

    by_default = RecommenderAdapter(Net(), *SIZES)
    check_model(by_default, data)

    def build_graph(data):
        pairs = data[schema.EDGE_TYPE].edge_index
        shifted = torch.stack([pairs[0], pairs[1] + SIZES[0]])
        return Data(edge_index=pairs, both=to_undirected(shifted))

    model = RecommenderAdapter(
        by_default.module, *SIZES, lambda m, graph: m(graph.both), build_graph
    )
    out, expected = (embed(m, m.build_graph(data)) for m in (model, by_default))
    for x, y in zip(out, expected):
        assert torch.allclose(x, y, atol=1e-6)


def test_autocast_and_compile(data):
    model = lightgcn(data)
    fit(model, data, num_epochs=1, autocast=True)
    graph = model.build_graph(data)
    assert torch._dynamo.explain(model)(graph).graph_break_count == 0
    compiled = torch.compile(model, backend='eager', fullgraph=True)
    for x, y in zip(compiled(graph), model(graph)):
        assert torch.allclose(x, y, atol=1e-6)


@withCUDA
def test_follows_the_module(data, device):
    for model in (lightgcn(data), two_tower(data)):
        model = model.to(device)
        graph = model.build_graph(data)
        assert graph.edge_index.device == model(graph)[0].device == device
        model.loss(graph, BATCH.to(device)).backward()


@pytest.mark.parametrize(
    ('kwargs', 'error', 'message'),
    [
        ({'module': LightGCN}, TypeError, r"\(got 'LightGCN'\). Pass the built model"),
        ({'module': torch.nn.ReLU()}, ValueError, "a parameter that requires"),
        ({'embed': 'sum'}, TypeError, r"'embed' must be callable \(got 'str'\)"),
        ({'num_users': 0}, ValueError, "'num_users' must be at least 1"),
        ({'weight_decay': -1.0}, ValueError, "'weight_decay' must be a finite number"),
        ({'branches': {'a': 'user'}}, TypeError, r"Write \['user'\]"),
        ({'branches': {'a': ['use']}}, ValueError, r"got 'use' in 'a'"),
        (
            {'branches': {'a': ['image'], 'b': ['image.bias']}},
            ValueError,
            r"at most once \(got 'image.bias' in 'a' and 'b'\)",
        ),
        (
            {'tables': [Table(torch.empty(100, 8), 'user')]},
            ValueError,
            r"got one of shape \[100, 8\] that is not",
        ),
        ({'num_users': 60}, ValueError, r"\(got 60 of both\), since 'item' could"),
    ],
)
def test_bad_arguments(kwargs, error, message, data):
    arguments = {'module': TwoTower(data), 'num_users': 100, 'num_items': 60} | kwargs
    with pytest.raises(error, match=message):
        RecommenderAdapter(**arguments)


def test_bad_tables(data):
    module = TwoTower(data)
    for rows, message in [
        ('item', "'user.weight' must have 60 rows to be a table of 'item' rows"),
        ('users', "'rows' must be one of"),
    ]:
        with pytest.raises(ValueError, match=message):
            RecommenderAdapter(module, *SIZES, tables=[Table(module.user.weight, rows)])
    given = RecommenderAdapter(module, 60, 60, tables=[])  # Then nothing is ambiguous.
    assert given.tables() == []


@pytest.mark.parametrize(
    ('out', 'message'),
    [
        (torch.ones(3, 4), r'got a tensor of shape \[3, 4\]'),
        ((torch.ones(100, 4), torch.ones(60, 5)), r'got 2 values: .*\[60, 5\]'),
        ({'user': 1}, "got a 'dict'"),
        ((torch.ones(100, 4), None), "a 'NoneType'"),
    ],
)
def test_bad_embeddings(out, message, data):
    model = RecommenderAdapter(TwoTower(data), *SIZES, embed=lambda module, graph: out)
    with pytest.raises(ValueError, match=message):
        model(model.build_graph(data))


def test_bad_graphs(data):
    def build(result):
        return RecommenderAdapter(TwoTower(data), *SIZES, build_graph=lambda _: result)

    pairs = data[schema.EDGE_TYPE].edge_index
    with pytest.raises(TypeError, match=r"got 'dict' without \['edge_index', 'to'\]"):
        build({}).build_graph(data)
    for wrong in (pairs.flip(0), pairs[:, 1:], pairs.repeat(1, 2), None):
        model = build(SimpleNamespace(edge_index=wrong, to=None))
        with pytest.raises(ValueError, match='must hold exactly the'):
            model.build_graph(data)
    with pytest.raises(ValueError, match='must hold exactly'):
        build(Data(edge_index=pairs)).build_graph(ForgetUsers([3])(data))


def test_other_data(data):
    model = RecommenderAdapter(LightGCN(150, 4, 1), 100, 50)
    with pytest.raises(ValueError, match='has 100 users and 50 items, but the data'):
        model.build_graph(data)
    table = EmbeddingTable(torch.ones(100, 4), torch.ones(50, 4))
    with pytest.raises(ValueError, match='has 100 users and 50 items, but the data'):
        table.build_graph(data)


def test_prints_itself(data):
    assert repr(two_tower(data)) == (
        "RecommenderAdapter(TwoTower, 100, 60, "
        "branches=['id', 'image', 'text', 'fusion'])"
    )
