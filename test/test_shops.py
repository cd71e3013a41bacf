r"""Data as shops have them: every method and every audit serves a handful of users and
items, one user who has everything, pairs in PyG's wrappers, and other precisions.
"""

import copy
import warnings

import pytest
import torch
from torch_geometric import EdgeIndex, Index
from torch_geometric.data import HeteroData
from torch_geometric.nn import GCNConv
from torch_geometric.nn import LightGCN as PyGLightGCN

from torch_geometric_unlearn import audit, metrics, unlearn
from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.datasets import SyntheticMultimodal
from torch_geometric_unlearn.nn import LightGCN, RecommenderAdapter, Served
from torch_geometric_unlearn.ops import LazyPropagation, SparseOperator, spmm
from torch_geometric_unlearn.testing import check_unlearner
from torch_geometric_unlearn.testing._snapshot import snapshot
from torch_geometric_unlearn.train import fit
from torch_geometric_unlearn.transforms import (
    DropForgotten,
    ForgetInteractions,
    ForgetItems,
    ForgetUsers,
    InjectBackdoor,
    ItemKNNGraph,
    SplitInteractions,
)
from torch_geometric_unlearn.utils import topk_items
from torch_geometric_unlearn.utils.seed import isolated_seed

FEW = {'num_epochs': 1, 'batch_size': 256}
METHODS = {
    'COVA': {'num_iters': 2, 'rank': 4},
    'EdgeDrop': {},
    'FineTune': FEW,
    'GNNDelete': {'num_epochs': 1, 'num_steps': 2},
    'InfluenceFunction': {'max_iter': 3},
    'MMRecUn': FEW,
    'MultiDelete': FEW,
    'NegGrad': FEW,
    'PartialRetrain': {'min_steps': 3, **FEW},
    'Retrain': FEW,
    'RowReset': {},
    'ScaleGUN': {'max_iter': 3},
    'TRU': FEW,
    'UltraRE': {'num_shards': 8, 'grouping': 'random', **FEW},
}
NEEDS_NEGATIVES = ('MMRecUn', 'MultiDelete', 'NegGrad', 'TRU')
QUICK = {'num_bootstrap': 5}
ATTACK = {'classifiers': ('logistic',), **QUICK}
#: What looks at a model, by name.
AUDITS = {
    'completion': lambda m, d: audit.completion(m, d, num_splits=1, **QUICK),
    'membership': lambda m, d: audit.membership(m, d, original=m, **ATTACK),
    'relearn': lambda m, d: audit.relearn_time(m, d, m, max_steps=2, num_subsets=1),
    'self_check': lambda m, d: audit.self_check(m, d, **ATTACK),
    'shadow': lambda m, d: audit.shadow(m, d, build, FEW, num_epochs=2, **QUICK),
    'likelihood_ratio': lambda m, d: audit.likelihood_ratio(
        d, build, unlearn.EdgeDrop(), FEW, num_models=4, **QUICK
    ),
    'compare_membership': lambda m, d: audit.compare_membership(
        {'retrained': m, 'unlearned': m}, d, modes=('direct',), **ATTACK
    ),
    'closeness': lambda m, d: metrics.closeness(m, m, d),
    'evaluate_split': metrics.evaluate_split,
    'evaluate_request': metrics.evaluate_request,
    'exposure': metrics.exposure,
    'item_persistence': lambda m, d: metrics.item_persistence(m, m, d),
}


def build(data):
    return LightGCN.from_data(data, hidden_channels=4)


def method(name, build=build):
    extra = {'build_model': build} if name in ('Retrain', 'UltraRE') else {}
    return getattr(unlearn, name)(**METHODS[name], **extra)


def shop():
    r"""Six items and eight users; user 0 has everything, others two items each."""
    rng = torch.Generator().manual_seed(0)
    train, val, test = [], [], []
    for user in range(1, 8):
        items = torch.randperm(6, generator=rng).tolist()
        train += [(user, item) for item in items[:2]]
        val += [(user, item) for item in items[2:5]]
        (val if user > 2 else test).append((user, items[5]))
    train += [(0, item) for item in range(6)]
    data = HeteroData()
    data['user'].num_nodes, data['item'].num_nodes = 8, 6
    data['item'].x_text = torch.randn(6, 3, generator=rng)
    data[schema.EDGE_TYPE].edge_index = torch.tensor(train).t().contiguous()
    data.val_edge_label_index = torch.tensor(val).t().contiguous()
    data.test_edge_label_index = torch.tensor(test).t().contiguous()
    return data


def wrapped(data):
    r"""The same with PyG's edge indices, sorted by user and with their caches."""
    out = copy.copy(data)
    size = schema.num_users(data), schema.num_items(data)
    pairs = out[schema.EDGE_TYPE].edge_index
    pairs = EdgeIndex(pairs, sparse_size=size).fill_cache_()
    out[schema.EDGE_TYPE].edge_index = pairs
    for key in schema.HELD_OUT:
        out[key] = EdgeIndex(out[key], sparse_size=size)
    return out


@pytest.fixture(scope='module')
def trained():
    data = shop()
    with isolated_seed(0):
        model = build(data)
    fit(model, data, num_epochs=2, batch_size=256)
    return model


@pytest.fixture(autouse=True)
def _few_pairs():
    with warnings.catch_warnings():  # Audits say that they have few.
        warnings.simplefilter('ignore', UserWarning)
        yield


def test_all_methods_are_here():
    assert set(METHODS) == set(unlearn.__all__) - {'Unlearner', 'UnlearnResult'}


PAIRS = shop()[schema.EDGE_TYPE].edge_index
REQUESTS = [ForgetUsers([3]), ForgetItems([2]), ForgetInteractions(PAIRS[:, [3, 19]])]


@pytest.mark.parametrize('request_', REQUESTS, ids=lambda x: type(x).__name__)
@pytest.mark.parametrize('name', METHODS)
def test_a_user_with_everything_blocks_nobody(name, request_, trained):
    check_unlearner(method(name), trained, request_(shop()))


@pytest.mark.parametrize('name', METHODS)
def test_a_user_with_everything_can_go(name, trained):
    data = ForgetUsers([0])(shop())
    if name not in NEEDS_NEGATIVES:
        check_unlearner(method(name), trained, data)
        return
    ok, reason = method(name).supports(trained, data)
    assert not ok
    assert 'have every item' in reason
    assert 'PartialRetrain' in reason
    check_unlearner(method(name), trained, ForgetUsers([0, 5])(shop()))


@pytest.mark.parametrize('name', AUDITS)
def test_audits_of_a_small_shop(name, trained):
    requests = [ForgetUsers([0]), ForgetUsers([3])]
    if name not in ('shadow', 'likelihood_ratio'):
        requests += [ForgetItems([0]), ForgetInteractions(PAIRS[:, [3, 19]])]
    for request in requests:
        AUDITS[name](trained, request(shop()))


def plain_state(result):
    assert type(result.data[schema.EDGE_TYPE].edge_index) is torch.Tensor
    return result.model.state_dict()


@pytest.mark.parametrize('name', METHODS)
def test_edge_indices_of_pyg(name, trained):
    data = wrapped(shop())
    pairs = data[schema.EDGE_TYPE].edge_index
    marked = copy.copy(data)
    marked[schema.EDGE_TYPE].forget_mask = torch.arange(pairs.size(1)) == 9
    expected = copy.copy(shop())
    expected[schema.EDGE_TYPE].forget_mask = marked[schema.EDGE_TYPE].forget_mask
    got = plain_state(method(name)(trained, marked))
    for key, value in plain_state(method(name)(trained, expected)).items():
        assert torch.equal(got[key], value), key
    assert data[schema.EDGE_TYPE].edge_index is pairs  # The caller's own.
    assert isinstance(data.val_edge_label_index, EdgeIndex)
    assert 'forget_mask' not in data[schema.EDGE_TYPE]


def figures(value):
    out = getattr(value, '__dict__', value)
    return {k: v for k, v in out.items() if 'seconds' not in k}


@pytest.mark.parametrize('name', AUDITS)
def test_audits_of_edge_indices(name, trained):
    request = ForgetInteractions(PAIRS[:, 3:4])  # A single pair is the hardest.
    if name in ('shadow', 'likelihood_ratio'):
        request = ForgetUsers([3])
    got = AUDITS[name](trained, request(wrapped(shop())))
    assert repr(figures(got)) == repr(figures(AUDITS[name](trained, request(shop()))))


def test_a_single_edge():
    data = HeteroData()
    data['user'].num_nodes, data['item'].num_nodes = 2, 3
    pair = EdgeIndex([[1], [2]], sparse_size=(2, 3), sort_order='row').fill_cache_()
    data[schema.EDGE_TYPE].edge_index = pair
    data[schema.REV_EDGE_TYPE].edge_index = EdgeIndex([[2], [1]], sparse_size=(3, 2))
    model = build(data)
    graph = model.build_graph(data)
    assert type(graph.edge_index) is torch.Tensor
    items, _ = model.recommend(graph, Index([1]), k=3, exclude=pair)
    assert sorted(items[0].tolist()) == [-1, 0, 1]
    fit(model, data, num_epochs=1)
    assert schema.validate(data)[schema.EDGE_TYPE].edge_index.tolist() == [[1], [2]]
    assert DropForgotten()(data) is not data
    assert data[schema.EDGE_TYPE].edge_index is pair


def test_functions_of_edge_indices():
    pairs = EdgeIndex([[0, 2], [1, 3]], sparse_size=(4, 5), sort_order='row')
    user_emb, item_emb = torch.randn(4, 2), torch.randn(5, 2)
    ids = Index([0, 2])
    x = torch.ones(9, 1)
    for call in (
        lambda p, i: topk_items(user_emb, item_emb, i, 3, exclude=p)[0],
        lambda p, i: metrics.ranking_metrics(user_emb, item_emb, p, ks=(2,)),
        lambda p, i: spmm(SparseOperator(p, torch.ones(2), (4, 5)), user_emb),
        lambda p, i: LazyPropagation(p, x, [1, 1], num_users=4).embedding,
        lambda p, i: ForgetInteractions(p).pairs,
        lambda p, i: ForgetUsers(i).ids,
    ):
        assert repr(call(pairs, ids)) == repr(call(pairs.as_tensor(), ids.as_tensor()))


def test_transforms_of_edge_indices():
    for transform in (SplitInteractions(), ItemKNNGraph(2), ForgetUsers([3])):
        got, expected = transform(wrapped(shop())), transform(shop())
        assert repr(snapshot(got)) == repr(snapshot(expected))


class HandWritten(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Embedding(14, 4)
        self.conv = GCNConv(4, 4)

    def forward(self, edge_index):
        return self.conv(self.embedding.weight, edge_index)


MODULES = {'PyG': lambda: PyGLightGCN(14, 4, 2), 'hand-written': HandWritten}
HALF = (torch.float16, torch.bfloat16)
SERVES_HALF = ('COVA', 'EdgeDrop', 'Retrain', 'RowReset', 'UltraRE')


def adapter(module, dtype):
    def build(data):
        return RecommenderAdapter(MODULES[module](), 8, 6).to(dtype)

    with isolated_seed(0):
        return build, build(shop())


def scores(result):
    user_emb, item_emb = Served.of(result.model, result.data).embeddings
    return user_emb.double() @ item_emb.double().t()


@pytest.mark.parametrize('module', MODULES)
@pytest.mark.parametrize('name', METHODS)
def test_double_precision_is_single_precision(name, module):
    data = ForgetUsers([3])(shop())
    out = []
    for dtype in (torch.float32, torch.float64):
        build, model = adapter(module, dtype)
        result = method(name, build)(model, data)
        types = {p.dtype for p in result.model.parameters()}
        assert types == {dtype}
        out.append(scores(result))
    assert torch.allclose(*out, rtol=1e-3, atol=1e-3 * float(out[0].abs().max()))


@pytest.mark.parametrize('dtype', HALF)
@pytest.mark.parametrize('module', MODULES)
@pytest.mark.parametrize('name', METHODS)
def test_half_precision_is_served_or_refused(name, module, dtype):
    data = ForgetUsers([3])(shop())
    build, model = adapter(module, dtype)
    unlearner = method(name, build)
    if name not in SERVES_HALF:
        ok, reason = unlearner.supports(model, data)
        assert not ok
        assert f'it is {dtype}, too coarse' in reason
        with pytest.raises(ValueError, match=r"with '.float\(\)' and back"):
            unlearner(model, data)
        return
    result = check_unlearner(unlearner, model, data)
    assert {p.dtype for p in result.model.parameters()} == {dtype}
    if name in ('Retrain', 'UltraRE'):
        return  # They train, each in its own precision.
    expected = scores(unlearner(adapter(module, dtype)[1].float(), data))
    atol = 0.05 * float(expected.abs().max())
    assert torch.allclose(scores(result), expected, atol=atol)


def test_a_large_sum_is_not_infinite():
    model = build(shop()).half()
    with torch.no_grad():
        model.user_embedding.weight.fill_(6e4)
    unlearn.EdgeDrop()(model, ForgetUsers([3])(shop()))
    model.user_embedding.weight.data[0] = torch.inf
    with pytest.raises(ValueError, match=r"'user_embedding.weight' of the model"):
        unlearn.EdgeDrop()(model, ForgetUsers([3])(shop()))


@pytest.mark.parametrize('dtype', [torch.float64, *HALF])
@pytest.mark.parametrize('module', MODULES)
def test_audits_of_other_precisions(module, dtype):
    _, model = adapter(module, dtype)
    data = ForgetUsers([3])(shop())
    served = Served.of(model, data).embeddings
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert {emb.dtype for emb in served} == {wide}
    # The float32 model with the same numbers, or nearly so.
    single = RecommenderAdapter(MODULES[module](), 8, 6)
    single.load_state_dict({k: v.float() for k, v in model.state_dict().items()})
    for name, look in AUDITS.items():
        if name in ('shadow', 'likelihood_ratio'):
            continue  # They look at models that they train.
        if name == 'relearn' and dtype in HALF:
            with pytest.raises(ValueError, match=f"'model' must not be {dtype}, too"):
                look(model, data)
            continue
        got, expected = figures(look(model, data)), figures(look(single, data))
        assert got.keys() == expected.keys()
        for key, value in expected.items():
            if isinstance(value, float) and name.startswith('evaluate'):
                assert got[key] == pytest.approx(value, abs=0.1, nan_ok=True), key
    items, values = model.recommend(model.build_graph(data), [1, 2], k=3)
    assert items.shape == (2, 3)
    assert values.dtype == wide


def test_a_backdoor_of_edge_indices():
    tiny = SyntheticMultimodal('tiny')[0]
    plant = InjectBackdoor('interaction', num_triggers=1)(tiny)
    model = build(plant)
    expected = audit.backdoor(model, plant, k=5)
    for data, other in ((wrapped(plant), None), (plant, wrapped(plant))):
        assert repr(audit.backdoor(model, data, k=5, plant=other)) == repr(expected)
