import copy
import functools
import threading
import time
from types import SimpleNamespace

import pytest
import scipy.sparse
import torch
from torch import Tensor
from torch.nn import Embedding, Linear
from torch_geometric.nn import APPNP, EGConv, GCNConv, LayerNorm, SGConv, SSGConv
from torch_geometric.utils import degree

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.datasets import SyntheticMultimodal
from torch_geometric_unlearn.metrics import embed
from torch_geometric_unlearn.nn import (
    MGCN,
    MIGGT,
    EmbeddingTable,
    LightGCN,
    Recommender,
)
from torch_geometric_unlearn.nn import RecommenderAdapter as Adapter
from torch_geometric_unlearn.nn.models import InteractionGraph
from torch_geometric_unlearn.nn.models.kept import is_foreign, kept_structure
from torch_geometric_unlearn.testing import check_model, check_unlearner
from torch_geometric_unlearn.train import fit
from torch_geometric_unlearn.transforms import DropForgotten, ForgetUsers
from torch_geometric_unlearn.unlearn import TRU, EdgeDrop, Retrain, RowReset
from torch_geometric_unlearn.utils.seed import isolated_seed

USERS, ITEMS = 100, 60
NODES = USERS + ITEMS
DATA = SyntheticMultimodal('tiny')[0]
PAIRS = DATA[schema.EDGE_TYPE].edge_index
GRAPH = InteractionGraph(PAIRS, USERS, ITEMS)
MARKED = ForgetUsers([3, 17])(DATA)


def normalised(adj):
    r"""A sparse matrix with a row per target."""
    deg = degree(adj[1], NODES).clamp(min=1).rsqrt()
    value = deg[adj[0]] * deg[adj[1]]
    return torch.sparse_coo_tensor(adj.flip(0), value, (NODES, NODES)).coalesce()


class Net(torch.nn.Module):
    r"""One propagation; how it gets at the matrix is up to the subclass."""

    def __init__(self):
        super().__init__()
        self.emb = Embedding(NODES, 8)
        self.prepare()

    def prepare(self):
        pass

    def matrix(self, adj):
        return normalised(adj)

    def forward(self, adj):
        return self.emb.weight + self.matrix(adj) @ self.emb.weight


def net(name, **methods):
    return type(name, (Net,), methods)


def keeps(name, make):
    r"""A network that has made something in the constructor, and ignores the graph."""

    def prepare(self):
        self.kept = make()

    def matrix(self, adj):
        return normalised(GRAPH.adj)

    return net(name, prepare=prepare, matrix=matrix)


def buffer(self):
    self.register_buffer('kept', normalised(GRAPH.adj))


def first_matrix(self, adj):
    if self.kept is None:
        self.kept = self.compute(adj)
    return self.kept


def by_count(self, adj):
    if adj.size(1) not in self.memory:
        self.memory[adj.size(1)] = normalised(adj)
    return self.memory[adj.size(1)]


def first_degree(self, adj):
    if self.kept is None:
        self.kept = degree(adj[1], NODES)
    deg = self.kept.clamp(min=1).rsqrt()
    value = deg[adj[0]] * deg[adj[1]]
    return torch.sparse_coo_tensor(adj.flip(0), value, (NODES, NODES))


def nothing(self):
    self.kept = None


def softened(self):
    r"""In a form that no list of pairs is read from."""
    self.kept = (normalised(GRAPH.adj).to_dense() + 1e-9).unsqueeze(0).log()


class Memoised(Net):
    def forward(self, adj):
        if not hasattr(self, 'out'):
            self.out = super().forward(adj).detach()
        return self.out


class Precomputed(Net):
    r"""Propagates once."""

    def forward(self, adj):
        if not hasattr(self, 'x'):
            self.lin = None
            self.x = super().forward(adj).detach()
        return self.x + 0 * self.emb.weight


class ItemSide(Net):
    r"""Only items are made of an old matrix."""

    def prepare(self):
        self.kept = (normalised(GRAPH.adj).to_dense() * 3).unsqueeze(0).exp()

    def forward(self, adj):
        out = self.kept[0].log() @ self.emb.weight
        return torch.cat([self.emb.weight[:USERS], out[USERS:]])


class Bare(torch.nn.Module):
    r"""Has tables that are parameters of their own."""

    def __init__(self):
        super().__init__()
        self.user = torch.nn.Parameter(torch.randn(USERS, 8))
        self.item = torch.nn.Parameter(torch.randn(ITEMS, 8))
        self.kept = (dense() + 1e-9).log()[:, None]

    def forward(self):
        matrix = self.kept.exp()[:, 0]
        return self.user + matrix @ self.item, self.item + matrix.t() @ self.user


class TwoLayers(Net):
    r"""Only the second layer uses an old matrix."""

    def prepare(self):
        self.kept = (normalised(GRAPH.adj).to_dense() * 3).unsqueeze(0).exp()

    def forward(self, adj):
        x = normalised(adj) @ self.emb.weight + self.emb.weight
        return x + self.kept[0].log() @ x


def histories():
    return [PAIRS[1, PAIRS[0] == user].tolist() for user in range(USERS)]


def padded():
    rows = histories()
    width = max(map(len, rows))
    return torch.tensor([row + [0] * (width - len(row)) for row in rows])


def dense():
    out = torch.zeros(USERS, ITEMS)
    out[PAIRS[0], PAIRS[1]] = 1
    return out


FORMS = {
    'pairs': lambda: PAIRS,
    'transposed': lambda: PAIRS.t(),
    'edges': lambda: GRAPH.adj,
    'edges of one direction': lambda: GRAPH.adj[:, : PAIRS.size(1)],
    'half': lambda: PAIRS[:, ::2],
    'tuple': lambda: tuple(PAIRS),
    'row': lambda: {'row': PAIRS[0]},
    'column of edges': lambda: [GRAPH.adj[1]],
    'column with self loops': lambda: torch.cat([GRAPH.adj[0], torch.arange(NODES)]),
    'list of columns': lambda: PAIRS.tolist(),
    'list of pairs': lambda: PAIRS.t().tolist(),
    'list of tuples': lambda: [tuple(pair) for pair in PAIRS.t().tolist()],
    'set': lambda: {tuple(pair) for pair in PAIRS.t().tolist()},
    'histories': histories,
    'sets': lambda: {n: set(items) for n, items in enumerate(histories())},
    'tensors': lambda: [torch.tensor(items).long() for items in histories()],
    'some': lambda: {3: [1, 2], 17: histories()[17], 20: histories()[20]},
    'by name': lambda: {str(n): items for n, items in enumerate(histories())},
    'by raw name': lambda: {f'u{n}': items for n, items in enumerate(histories())},
    'padded': padded,
    'codes': lambda: PAIRS[0] * ITEMS + PAIRS[1],
    'set of codes': lambda: set((PAIRS[0] * ITEMS + PAIRS[1]).tolist()),
    'triples': lambda: torch.stack([torch.ones(PAIRS.size(1)), *PAIRS.flip(0)], dim=1),
    'frame': lambda: pytest.importorskip('pandas').DataFrame(
        {'user': PAIRS[0], 'rating': 0.5, 'item': PAIRS[1], 'name': 'x'}
    )[1:],
    'coo': lambda: normalised(GRAPH.adj),
    'csr': lambda: GRAPH.adj_t,
    'scipy': lambda: scipy.sparse.csr_matrix(dense().numpy()),
    'dense': dense,
    'dense of items': lambda: dense().t().contiguous(),
    'dense bool of nodes': lambda: normalised(GRAPH.adj).to_dense() > 0,
    'numpy': lambda: PAIRS.numpy(),
    'deep in containers': lambda: {'a': [{'b': (PAIRS.numpy(), None)}]},
    'data': lambda: DATA,
    'graph': lambda: SimpleNamespace(graph=GRAPH),
    'degrees': lambda: degree(GRAPH.adj[1], NODES).pow(-0.5),
    'degrees of users': lambda: PAIRS[0].bincount(minlength=USERS).clamp(max=9).sqrt(),
    'degrees of items': lambda: PAIRS[1].bincount(minlength=ITEMS).tolist(),
    'row pointers': lambda: GRAPH.adj_t.crow_indices(),
    'function': lambda: functools.partial(lambda x, pairs: x, pairs=PAIRS),
    'closure': lambda: (lambda pairs: lambda: pairs)(PAIRS),
    'frozen parameter': lambda: torch.nn.Parameter(dense(), requires_grad=False),
}

STALE = {
    'buffer': net('Buffer', prepare=buffer, matrix=lambda self, adj: self.kept),
    'first': net(
        'First',
        prepare=nothing,
        matrix=first_matrix,
        compute=lambda self, adj: normalised(adj),
    ),
    'first in a form of its own': net(
        'FirstSoft',
        prepare=nothing,
        matrix=lambda self, adj: first_matrix(self, adj).exp(),
        compute=lambda self, adj: (normalised(adj).to_dense() + 1e-9).log(),
    ),
    'degrees': net('Degrees', prepare=nothing, matrix=first_degree),
    'class attribute': net('ByCount', memory={}, matrix=by_count),
    'softened': net(
        'Soft', prepare=softened, matrix=lambda self, adj: self.kept[0].exp()
    ),
    'functools': net(
        'Cached', matrix=functools.cache(lambda self, adj: normalised(adj))
    ),
    'memoised': Memoised,
    'precomputed': Precomputed,
    'two layers': TwoLayers,
    'items': ItemSide,
    'bare parameters': Bare,
}


def adapter(module, **kwargs):
    return Adapter(module, USERS, ITEMS, **kwargs)


@pytest.mark.parametrize('form', list(FORMS))
def test_finds_every_form(form):
    module = Net()
    assert kept_structure(adapter(module), DATA) == ''
    module.kept = FORMS[form]()
    reason = kept_structure(adapter(module), DATA)
    assert "'module.kept" in reason
    assert "Derive it from the 'graph'" in reason


@pytest.mark.parametrize('form', ['histories', 'pairs', 'degrees of users'])
def test_finds_it_where_there_are_as_many_items_as_users(form):
    data = copy.copy(DATA)
    data['item'].num_nodes = USERS
    for name in schema.modalities(data):
        data['item'][f'x_{name}'] = torch.zeros(USERS, 4)
    table = EmbeddingTable(torch.randn(USERS, 4), torch.randn(USERS, 4))
    assert kept_structure(table, data) == ''
    table.kept = FORMS[form]()
    assert "'kept" in kept_structure(table, data)


@pytest.mark.parametrize('used', [False, True])
@pytest.mark.parametrize('kind', list(STALE))
def test_refuses_what_is_stale(kind, used):
    with isolated_seed(0):
        model = adapter(STALE[kind]())
    if used:
        with torch.no_grad():
            model(model.build_graph(DATA))
    before, state = copy.deepcopy(vars(model.module)), torch.get_rng_state()
    for unlearner in (EdgeDrop(), TRU(num_epochs=1)):
        with pytest.raises(ValueError, match='must keep nothing of the interactions'):
            unlearner(model, MARKED)
    assert vars(model.module).keys() == before.keys()
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(AssertionError):
        check_model(model, DATA)


class Own(Recommender):
    r"""A foreign model that meets the contract and has a layer of its own choice."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.emb = layer, Embedding(NODES, 8)

    def build_graph(self, data):
        return InteractionGraph(schema.retained_edge_index(data), USERS, ITEMS)

    def forward(self, graph):
        return self.layer(self.emb.weight, graph.adj).split([USERS, ITEMS])

    def loss(self, graph, batch):
        pos, neg = batch.scores(*self(graph))
        return -(pos - neg).sigmoid().log().mean()

    def branches(self):
        return {'id': list(self.parameters())}

    def tables(self):
        return []


LAYERS = {
    'GCN': lambda cached: GCNConv(8, 8, cached=cached),
    'APPNP': lambda cached: APPNP(2, 0.1, cached=cached),
    'SGC': lambda cached: SGConv(8, 8, 2, cached=cached),
    'SSGC': lambda cached: SSGConv(8, 8, 0.1, 2, cached=cached),
    'EGC': lambda cached: EGConv(8, 8, num_heads=2, cached=cached),
}


class Layered(Net):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, adj):
        return self.layer(self.emb.weight, adj)


@pytest.mark.parametrize('name', list(LAYERS))
def test_cached_layers_of_pyg(name):
    with isolated_seed(0):
        cached = Layered(LAYERS[name](True))
    plain = copy.deepcopy(cached)
    plain.layer.cached = False
    with torch.no_grad():
        cached(GRAPH.adj)  # What an earlier use has left is of no effect.
    models = adapter(cached), adapter(plain)
    for model in models:
        check_model(model, DATA)
        fit(model, DATA, num_epochs=1, batch_size=256)
    for unlearner in [EdgeDrop()] + [TRU(num_epochs=1)] * (name == 'GCN'):
        first, second = (unlearner(model, MARKED) for model in models)
        graph = first.model.build_graph(first.data)
        for x, y in zip(embed(first.model, graph), embed(second.model, graph)):
            assert torch.equal(x, y)
    models[0].module.layer = LAYERS[name](True)  # Found whenever a graph is built.
    models[0].build_graph(DATA)
    assert not models[0].module.layer.cached

    own = Own(LAYERS[name](True))
    with pytest.raises(ValueError, match=r"'layer' is a layer with 'cached=True'"):
        EdgeDrop()(own, MARKED)
    with pytest.raises(AssertionError):
        check_model(own, DATA)
    check_model(Own(LAYERS[name](False)), DATA)


class Builder(Own):
    r"""Leaves in itself what it builds."""

    def build_graph(self, data):
        graph = super().build_graph(data)
        self.kept = (normalised(graph.adj).to_dense() + 1e-9).log()
        return graph

    def forward(self, graph):
        x = self.emb.weight
        return (x + self.kept.exp() @ x).split([USERS, ITEMS])


@pytest.mark.parametrize('used', [False, True])
def test_refuses_what_a_graph_leaves_in_the_model(used):
    model = Builder(torch.nn.Identity())
    if used:
        model.build_graph(DATA)
    with pytest.raises(ValueError, match='its embeddings follow a graph that it has'):
        EdgeDrop()(model, MARKED)


class Attention(torch.nn.Module):
    r"""Treats all nodes alike, without any edge."""

    def __init__(self, features=None):
        super().__init__()
        self.emb, self.norm = Embedding(NODES, 8), LayerNorm(8)
        self.lin = Linear(8 if features is None else features.size(1), 8)
        self.features = features

    def forward(self):
        x = self.norm(self.emb.weight)
        x = x + (x @ x.t()).softmax(dim=1) @ x
        return x if self.features is None else x + self.lin(self.features)


class Wide(torch.nn.Module):
    r"""Has weights with as many rows as there are users, items or nodes."""

    def __init__(self, width):
        super().__init__()
        self.emb, self.lin = Embedding(NODES, width), Linear(width, width)
        self.conv, self.out = GCNConv(width, width), Linear(width, 8)

    def forward(self, adj):
        return self.out(self.conv(self.lin(self.emb.weight).relu(), adj))


class Refreshing(Net):
    r"""Keeps the matrix of the graph that it has seen last."""

    def matrix(self, adj):
        if getattr(self, 'adj', None) is not adj:
            self.adj, self.kept = adj, normalised(adj)
        return self.kept


def knn(self):
    generator = torch.Generator().manual_seed(0)
    self.kept = torch.randint(ITEMS, (2, 10 * ITEMS), generator=generator)
    self.register_buffer('x', torch.randn(ITEMS, 8, generator=generator))


def candidates(self):
    self.kept = torch.randint(ITEMS, (USERS, 50))


SOUND = {
    'random items': lambda: adapter(net('WithCandidates', prepare=candidates)()),
    'table': lambda: EmbeddingTable(torch.randn(USERS, 4), torch.randn(ITEMS, 4)),
    'matrix factorisation': lambda: adapter(
        Net(), embed=lambda module, graph: module.emb.weight
    ),
    'graph': lambda: adapter(Net()),
    'normalisation and attention over all': lambda: adapter(Attention()),
    'with features of users': lambda: adapter(Attention(torch.randn(NODES, 5))),
    'as wide as users': lambda: adapter(Wide(USERS)),
    'as wide as items': lambda: adapter(Wide(ITEMS)),
    'as wide as nodes': lambda: adapter(Wide(NODES)),
    'refreshing': lambda: adapter(Refreshing()),
    'item graph': lambda: adapter(net('WithItems', prepare=knn)()),
    'own': lambda: Own(GCNConv(8, 8)),
    'MGCN': lambda: MGCN.from_data(DATA, hidden_channels=8),
}


@pytest.mark.parametrize('name', list(SOUND))
def test_accepts_what_keeps_nothing(name):
    with isolated_seed(0):
        model = SOUND[name]()
    assert kept_structure(model, DATA) == ''
    model(model.build_graph(DATA))
    assert kept_structure(model, DATA) == ''
    result = EdgeDrop()(model, MARKED)
    EdgeDrop()(result.model, ForgetUsers([8])(result.data))


def test_refuses_a_callable_that_holds_the_original():
    module = Net()
    model = adapter(module, embed=lambda _, graph: module(graph.adj))
    with pytest.raises(ValueError, match=r"parameter of the original in '_embed\.<mod"):
        TRU(num_epochs=1)(model, MARKED)
    graph = model.build_graph(DATA)
    for given in (
        {'embed': lambda module, _: module(graph.adj)},
        {'loss': lambda model, _, batch: model.module(graph.adj).sum()},
    ):
        with pytest.raises(ValueError, match=r"<graph>.* holds interactions that are"):
            EdgeDrop()(adapter(Net(), **given), MARKED)


def test_fails_over_another_graph():
    weight = normalised(GRAPH.adj).values()

    def embed_weighted(module, graph):
        value = weight.to(module.emb.weight)
        matrix = torch.sparse_coo_tensor(graph.adj, value, (NODES, NODES))
        return matrix @ module.emb.weight

    with pytest.raises(ValueError, match='it fails over a graph with fewer inter'):
        EdgeDrop()(adapter(Net(), embed=embed_weighted), MARKED)


class Kept(Net):
    def prepare(self):
        self.kept, self.count = None, 0

    def forward(self, adj):
        return self.emb.weight + self.kept @ self.emb.weight


def rebuild(module, graph):
    module.kept = normalised(graph.adj)
    module.count += 1


class KeptBuffer(Kept):
    def prepare(self):
        self.register_buffer('kept', normalised(torch.empty(2, 0).long()))
        self.count = 0


@pytest.mark.parametrize('kind', [Kept, KeptBuffer])
def test_rebuild(kind):
    with isolated_seed(0):
        plain, kept = Net(), kind()
    kept.load_state_dict(plain.state_dict(), strict=False)
    models = adapter(plain), adapter(kept, rebuild=rebuild)
    check_model(models[1], DATA)
    results = [check_unlearner(TRU(num_epochs=1), m, MARKED) for m in models]
    for x, y in zip(*(embed(r.model, r.model.build_graph(r.data)) for r in results)):
        assert torch.equal(x, y)
    # Up to date at once, and made anew only for another graph.
    left = schema.retained_edge_index(MARKED)
    expected = normalised(InteractionGraph(left, USERS, ITEMS).adj).to_dense()
    for unlearner in (RowReset(), EdgeDrop()):
        model = unlearner(models[1], MARKED).model
        assert torch.equal(model.module.kept.to_dense(), expected)
    graphs = [model.build_graph(x) for x in (DATA, DropForgotten()(MARKED))]
    start = model.module.count
    expected = [adapter(plain)(graph)[0] for graph in graphs]
    for n in (0, 0, 1, 1, 0):
        assert torch.equal(model(graphs[n])[0], expected[n])
    assert model.module.count == start + 3
    graphs[0].edge_index[:] = graphs[0].edge_index.clone()  # It was written to.
    model(graphs[0])
    with torch.inference_mode():
        model(graphs[1])
    model(graphs[1])[0].sum().backward()
    assert model.module.count == start + 5
    with pytest.raises(TypeError, match="'rebuild' must be callable"):
        adapter(kept, rebuild=3)


def test_a_rebuild_that_forgets_something_is_refused():
    module = Kept()
    module.kept = normalised(GRAPH.adj)
    idle = adapter(module, rebuild=lambda module, graph: None)
    with pytest.raises(ValueError, match=r"'module\.kept' holds"):
        EdgeDrop()(idle, MARKED)
    model = adapter(module, rebuild=rebuild)
    EdgeDrop()(model, MARKED)
    module.history = histories()
    with pytest.raises(ValueError, match=r"'module\.history' holds"):
        EdgeDrop()(model, MARKED)


def test_threads_share_a_module_that_is_rebuilt(run_in_threads):
    with isolated_seed(0):
        model = adapter(Kept(), rebuild=rebuild)
    graphs = [model.build_graph(x) for x in (DATA, DropForgotten()(MARKED))]
    expected = [model(graph)[0] for graph in graphs]

    def look(n):
        return all(torch.equal(model(graphs[n])[0], expected[n]) for _ in range(20))

    assert all(run_in_threads(lambda: look(0), lambda: look(1)))


def test_threads_that_look_and_unlearn_do_not_wait_for_each_other(run_in_threads):
    with isolated_seed(0):
        model = adapter(Kept(), rebuild=rebuild)
    graph = model.build_graph(DATA)
    inside, looked = threading.Event(), threading.Event()

    def unlearn():
        with isolated_seed(0):
            inside.set()
            time.sleep(0.05)  # The other one waits in its forward pass by now.
            return embed(model, graph)

    def look():
        inside.wait()
        out = embed(model, graph)
        looked.set()
        return out

    first, second = run_in_threads(unlearn, look)
    assert looked.is_set()
    assert torch.equal(first[0], second[0])


class FromData(Net):
    def __init__(self, data):
        super().__init__()
        pairs = schema.retained_edge_index(data)
        self.kept = normalised(InteractionGraph(pairs, USERS, ITEMS).adj)

    def matrix(self, adj):
        return self.kept


def test_retraining_may_build_on_what_is_left():
    model = adapter(FromData(DATA))
    retrain = Retrain(lambda data: adapter(FromData(data)), num_epochs=1)
    result = retrain(model, MARKED)
    assert Tensor.is_coalesced(result.model.module.kept)
    wrong = Retrain(lambda _: adapter(FromData(DATA)), num_epochs=1)
    with pytest.raises(ValueError, match=r"'module.kept' holds interactions that are"):
        wrong(model, MARKED)


def test_models_of_the_package_need_no_check(data):
    r"""They keep nothing, and a check costs as much as a small request."""
    for model in (
        MGCN.from_data(data, hidden_channels=4),
        MIGGT.from_data(data, hidden_channels=4, encoder_channels=8),
        LightGCN.from_data(data, hidden_channels=4),
        EmbeddingTable(torch.zeros(100, 2), torch.zeros(60, 2)),
    ):
        assert not is_foreign(model)
    model.conv = GCNConv(2, 2, cached=True)
    assert is_foreign(model)
