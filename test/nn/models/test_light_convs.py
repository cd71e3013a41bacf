r"""PyG's light graph convolutions inside an adapter: on the kernels wherever that gives
the same, and as they are everywhere else.
"""

import copy
import pickle

import pytest
import torch
from torch.nn import Embedding, ModuleList
from torch.utils.checkpoint import checkpoint
from torch_geometric.nn import LGConv, LightGCN
from torch_geometric.nn import Sequential as PyGSequential

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.loader import TripletLoader
from torch_geometric_unlearn.nn import RecommenderAdapter
from torch_geometric_unlearn.nn.models import InteractionGraph, _light_convs

SIZES = (100, 60)
NODES = sum(SIZES)


class Stack(torch.nn.Module):
    r"""A hand-written one: the sum of two convolutions with something in between."""

    def __init__(self, conv=LGConv, **kwargs):
        super().__init__()
        self.emb = Embedding(NODES, 8)
        self.convs = ModuleList([conv(**kwargs), conv(**kwargs)])

    def forward(self, edge_index):
        x = self.convs[0](self.emb.weight, edge_index)
        return x + self.convs[1](x.tanh(), edge_index=edge_index)


class Alternating(Stack):
    def forward(self, edge_index):
        middle = edge_index.size(1) // 2
        x = self.convs[0](self.emb.weight, edge_index[:, :middle])
        return self.convs[1](x, edge_index)


class Weighted(LightGCN):
    def get_embedding(self, edge_index, edge_weight=None):
        weight = 1 / (1 + edge_index[0] % 3).to(self.embedding.weight.dtype)
        return super().get_embedding(edge_index, weight)


class Doubled(LGConv):
    def message(self, x_j, edge_weight):
        return 2 * super().message(x_j, edge_weight)


class Sequential(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.emb = Embedding(NODES, 8)
        layers = [(LGConv(), 'x, edge_index -> x'), (LGConv(), 'x, edge_index -> x')]
        self.layers = PyGSequential('x, edge_index', layers)

    def forward(self, edge_index):
        return self.layers(self.emb.weight, edge_index)


class Checkpointed(Stack):
    def forward(self, edge_index):
        args = self.emb.weight, edge_index
        return checkpoint(self.convs[0], *args, use_reentrant=False)


def hooked():
    module = Stack()
    module.convs[0].register_message_forward_hook(lambda layer, inputs, out: 3 * out)
    return module


def patched():
    module = Stack()
    module.convs[0].message = lambda x_j, edge_weight: x_j
    return module


def hooked_outside():
    module = Stack()
    module.convs[0].register_forward_hook(lambda layer, inputs, out: 3 * out)
    return module


def alpha():
    return LightGCN(NODES, 8, 2, alpha=torch.tensor([0.5, 0.3, 0.2]))


#: Modules, and how many layers of theirs the kernels run.
MODULES = {
    'no layer': (lambda: LightGCN(NODES, 8, 0), 0),
    'three layers': (lambda: LightGCN(NODES, 8, 3), 3),
    'weights of layers': (alpha, 2),
    'stack': (Stack, 2),
    'sequential': (Sequential, 2),
    'hook on a layer': (hooked_outside, 2),
    'named sum': (lambda: Stack(aggr='sum'), 2),
    'one on other edges': (Alternating, 1),
    'one with a hook on messages': (hooked, 1),
    'one with messages of its own': (patched, 1),
    'edge weights': (lambda: Weighted(NODES, 8, 2), 0),
    'subclass of the layer': (lambda: Stack(Doubled), 0),
    'mean': (lambda: Stack(aggr='mean'), 0),
    'not normalised': (lambda: Stack(normalize=False), 0),
    'other flow': (lambda: Stack(flow='target_to_source'), 0),
    'decomposed': (lambda: Stack(decomposed_layers=2), 0),
    'checkpointed': (Checkpointed, 0),
}


@pytest.fixture
def on_ops(monkeypatch):
    r"""The types of the features that the kernels were called with."""
    calls, spmm = [], _light_convs.spmm

    def counted(operator, x):
        calls.append(x.dtype)
        return spmm(operator, x)

    monkeypatch.setattr(_light_convs, 'spmm', counted)
    return calls


def embedding(module, adj):
    if isinstance(module, LightGCN):
        return module.get_embedding(adj)
    return module(adj)


def both_ways(module, model, graph):
    r"""Embeddings and gradients of the unmodified module, and of the adapter."""
    out = []
    for run in (lambda: embedding(module, graph.adj), lambda: torch.cat(model(graph))):
        module.zero_grad()
        x = run()
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        (weight * x).sum().backward()
        out += [x.detach(), next(module.parameters()).grad.clone()]
    return out


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize('name', list(MODULES))
def test_equal(name, dtype, data, on_ops):
    build, num_on_ops = MODULES[name]
    module = build().to(dtype)
    before = [dict(vars(layer)) for layer in module.modules()]
    model = RecommenderAdapter(module, *SIZES)
    graph = model.build_graph(data)
    expected, expected_grad, got, grad = both_ways(module, model, graph)
    half = dtype == torch.bfloat16
    assert on_ops == [] if half else on_ops == [dtype] * num_on_ops
    atol = {torch.float32: 1e-6, torch.float64: 1e-14, torch.bfloat16: 0}[dtype]
    assert torch.allclose(got, expected, atol=atol, rtol=atol)
    assert torch.allclose(grad, expected_grad, atol=10 * atol, rtol=10 * atol)
    assert [set(vars(layer)) for layer in module.modules()] == [set(v) for v in before]


def test_explained(data, on_ops):
    module = Stack()
    model = RecommenderAdapter(module, *SIZES)
    graph = model.build_graph(data)
    layer = module.convs[0]
    layer.explain = True
    layer._edge_mask = torch.linspace(-1, 1, graph.adj.size(1))
    assert torch.allclose(torch.cat(model(graph)), module(graph.adj), atol=1e-6)
    assert len(on_ops) == 1


def test_training_equals_that_of_pyg(data, on_ops):
    module = LightGCN(NODES, 8, 2).double()  # Adam blows rounding up.
    model = RecommenderAdapter(copy.deepcopy(module), *SIZES, weight_decay=0.1)
    graph = model.build_graph(data)
    optimizers = [torch.optim.Adam(m.parameters(), lr=0.01) for m in (module, model)]
    for batch in list(TripletLoader(graph.edge_index, SIZES[1], 256)):
        nodes = batch.nodes(SIZES[0])
        x = module.get_embedding(graph.adj)
        user, pos, neg = x[nodes].chunk(3)
        margin = (user * pos).sum(1) - (user * neg).sum(1)
        norm = x[nodes].pow(2).sum() / nodes.numel() * 3
        losses = [
            -margin.sigmoid().log().mean() + 0.05 * norm,
            model.loss(graph, batch),
        ]
        assert float(losses[1].detach()) == pytest.approx(float(losses[0].detach()))
        for loss, optimizer in zip(losses, optimizers):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert len(on_ops) == 6
    expected, got = module.embedding.weight, model.module.embedding.weight
    assert torch.allclose(got, expected, atol=1e-10)


def test_own_loss_runs_on_ops(data, on_ops):
    def loss(model, graph, batch):
        nodes = batch.nodes(SIZES[0]).view(3, -1)
        pairs = torch.cat([nodes[[0, 1]], nodes[[0, 2]]], dim=1)
        ranks = model.module(graph.adj, pairs).chunk(2)  # As PyG's example does.
        return model.module.recommendation_loss(*ranks, pairs.unique())

    module = LightGCN(NODES, 8, 2)
    model = RecommenderAdapter(module, *SIZES, loss=loss)
    graph = model.build_graph(data)
    batch = next(iter(TripletLoader(graph.edge_index, SIZES[1], 256)))
    got = model.loss(graph, batch)
    assert len(on_ops) == 2
    assert torch.allclose(got, loss(model, graph, batch), atol=1e-6)
    assert len(on_ops) == 2  # A call from outside is the module's own.


def test_edges_that_were_written_to(data, on_ops):
    module = Stack()
    model = RecommenderAdapter(module, *SIZES)
    for change in ('write', 'replace'):
        graph = model.build_graph(data)
        model(graph)
        assert len(on_ops) == 2
        if change == 'write':
            graph.adj[:, :100] = graph.adj[:, 100:200].clone()
        else:
            graph.adj = graph.adj[:, 100:].clone()
        assert torch.equal(torch.cat(model(graph)), module(graph.adj))
        assert len(on_ops) == 2
        on_ops.clear()


def test_under_function_transforms(data, on_ops):
    model = RecommenderAdapter(Stack(), *SIZES)
    graph, weight = model.build_graph(data), model.module.emb.weight.detach()

    def total(weight):
        state = {'module.emb.weight': weight}
        return torch.func.functional_call(model, state, (graph,))[0].sum()

    _, tangent = torch.func.jvp(total, (weight,), (weight,))
    expected = (torch.func.grad(total)(weight) * weight).sum()
    assert torch.allclose(tangent, expected, rtol=1e-4)
    assert on_ops == []


def test_compiled_layers_stay_as_they_are(data, on_ops):
    module = Stack()
    module.convs[0].compile(backend='eager')
    model = RecommenderAdapter(module, *SIZES)
    graph = model.build_graph(data)
    expected = Stack()
    expected.load_state_dict(module.state_dict())
    assert torch.allclose(torch.cat(model(graph)), expected(graph.adj), atol=1e-6)
    assert on_ops == []


def test_threads_and_copies(data, run_in_threads):
    r"""Every thread has its own graph, and a copy or file taken meanwhile works."""
    module = Stack()
    model = RecommenderAdapter(module, *SIZES)
    pairs = data[schema.EDGE_TYPE].edge_index
    graphs = [InteractionGraph(pairs[:, i::2], *SIZES) for i in range(2)]
    expected = [torch.cat(model(graph)) for graph in graphs]

    def run(graph):
        return [torch.cat(model(graph)) for _ in range(50)]

    got = run_in_threads(*(lambda g=g: run(g) for g in graphs))
    for outs, right in zip(got, expected):
        assert all(torch.equal(out, right) for out in outs)
    assert not any('forward' in vars(layer) for layer in module.convs)
    with _light_convs.light_convs_on_ops(module, graphs[0]):
        copies = [copy.deepcopy(module), pickle.loads(pickle.dumps(module))]
    for other in copies:
        assert torch.equal(other(graphs[1].adj), module(graphs[1].adj))
        again = RecommenderAdapter(other, *SIZES)
        assert torch.equal(torch.cat(again(graphs[1])), expected[1])


def test_nothing_stays_after_an_error(data):
    module = Stack()
    graph = RecommenderAdapter(module, *SIZES).build_graph(data)
    with (
        pytest.raises(KeyError),
        _light_convs.light_convs_on_ops(module, graph),
        _light_convs.light_convs_on_ops(module, graph),
    ):
        raise KeyError
    assert not any('forward' in vars(layer) for layer in module.convs)
