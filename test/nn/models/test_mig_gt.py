import copy
import inspect

import pytest
import torch
from torch_geometric.data import HeteroData
from torch_geometric.testing import onlyLinux, withCUDA

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.metrics import evaluate_split
from torch_geometric_unlearn.nn import MIGGT, Triplets
from torch_geometric_unlearn.nn.models import mig_gt
from torch_geometric_unlearn.testing import check_model
from torch_geometric_unlearn.train import fit
from torch_geometric_unlearn.transforms import ForgetUsers
from torch_geometric_unlearn.unlearn.branch_scaling import branch_names
from torch_geometric_unlearn.utils.seed import isolated_seed

MODALITIES = {
    'two': {'image': 16, 'text': 12},
    'one': {'text': 5},
    'audio': {'audio': 8},
    'three': {'image': 4, 'audio': 20, 'text': 8},
}
DROPOUTS = ('feature', 'hidden', 'user', 'item', 'edge', 'out')
NO_DROPOUT = {f'{name}_dropout': 0.0 for name in DROPOUTS}


class DenseMIGGT:
    r"""The published formulas in dense float64: every node's whole attention, losses
    pair by pair, and none of our operators.
    """

    def __init__(self, model, data, alpha=0.1, beta=0.9, mix=0.1):
        self.p = {
            name: p.detach().double().cpu().clone().requires_grad_()
            for name, p in model.named_parameters()
        }
        self.b = {name: b.double().cpu() for name, b in model.named_buffers()}
        self.model, self.num_users = model, model.num_users
        self.alpha, self.beta, self.mix = alpha, beta, mix
        num_nodes = model.num_users + model.num_items
        adj = torch.eye(num_nodes, dtype=torch.float64)
        for user, item in data[schema.EDGE_TYPE].edge_index.t().tolist():
            adj[user, self.num_users + item] = adj[self.num_users + item, user] = 1
        deg = adj.sum(dim=1)
        self.adj = adj / (deg.view(-1, 1) * deg).sqrt()
        self.x = {}
        for name in model.modalities:
            x = data['item'][f'x_{name}'].double().cpu()
            if name == 'image':
                x = x @ self.b['projection_image']
                x = torch.stack([row / (row.norm() + 1e-8) for row in x])
            self.x[name] = x

    def norm(self, name, x, training):
        mean, var = self.b[f'{name}.running_mean'], self.b[f'{name}.running_var']
        if training:
            mean, var = x.mean(dim=0), ((x - x.mean(dim=0)) ** 2).mean(dim=0)
        out = (x - mean) / (var + 1e-5).sqrt()
        return out * self.p[f'{name}.weight'] + self.p[f'{name}.bias']

    def encode(self, name, training):
        x = self.x[name]
        for layer in ('1', '2'):
            key = f'encoder.{name}'
            x = x @ self.p[f'{key}.linear{layer}.weight'].t()
            x = x + self.p[f'{key}.linear{layer}.bias']
            x = self.norm(f'{key}.bn{layer}', x, training)
            x = torch.where(x > 0, x, self.p[f'{key}.prelu{layer}.weight'] * x)
        return x

    def propagate(self, x, hops):
        out = x
        for _ in range(hops):
            out = self.beta * (self.adj @ out) + self.alpha * x
        gamma = self.beta**hops + self.alpha * sum(self.beta**i for i in range(hops))
        return out / gamma

    def rows(self, samples, training=False):
        r"""All tokens of all nodes after the transformer; only the first if unused."""
        users = self.p['user_embedding.weight']
        channels = users.size(1)
        no_items = users.new_zeros(self.model.num_items, channels)
        total = self.propagate(
            torch.cat([users, no_items]), self.model.num_hops['id']
        )
        for name in self.x:
            items = self.encode(name, training)
            start = torch.cat([users.new_zeros(self.num_users, channels), items])
            total = total + self.propagate(start, self.model.num_hops[name])
        if not self.model.use_transformer:
            return total.unsqueeze(1)
        own = torch.arange(total.size(0)).unsqueeze(1)
        tokens = total[torch.cat([own, samples.cpu()], dim=1)]
        query, key = (
            tokens @ self.p[f'transformer.{name}.weight'].t()
            + self.p[f'transformer.{name}.bias']
            for name in ('query', 'key')
        )
        score = (query @ key.transpose(1, 2)) / query.size(2) ** 0.5
        return (1 - self.mix) * tokens + self.mix * (score.softmax(dim=2) @ tokens)

    def loss(self, samples, batch, training=False):
        rows = self.rows(samples, training)
        z = rows[:, 0]
        total = 0.5 * self.model.weight_decay * (z**2).sum()
        for user, pos, neg in zip(*(ids.tolist() for ids in batch)):
            pos, neg = pos + self.num_users, neg + self.num_users
            margin = z[user] @ z[neg] - z[user] @ z[pos]
            total = total + torch.log1p(margin.exp())
            if self.model.use_transformer:
                score = torch.stack([z[user] @ row for row in rows[pos]])
                total = total + score.exp().sum().log() - score[0]
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
    r"""A small model in which no parameter or statistic has its initial value."""
    defaults = {
        'hidden_channels': 8,
        'encoder_channels': 12,
        'num_samples': 3,
        'projection_channels': {'image': 6},
        'weight_decay': 0.1,
    }
    with isolated_seed(3):
        model = MIGGT.from_data(data, **defaults | kwargs)
        for p in model.parameters():
            p.data += 0.2 * torch.randn_like(p)
        for name, b in model.named_buffers():
            if name.endswith('running_mean'):
                b += 0.3 * torch.randn_like(b)
            if name.endswith('running_var'):
                b += torch.rand_like(b)
    return model.eval()


def make_batch(data, size=20):
    pairs = data[schema.EDGE_TYPE].edge_index[:, :size]
    gen = torch.Generator().manual_seed(1)
    neg = torch.randint(data['item'].num_nodes, (pairs.size(1),), generator=gen)
    neg[0] = pairs[1, 0]  # Negatives are not rejected.
    return Triplets(pairs[0], pairs[1], neg)


def check_against_reference(model, data, training=False, device='cpu', **kwargs):
    batch = make_batch(data)
    for dtype, tol in ((torch.float32, 1e-5), (torch.float64, 1e-6)):
        model = copy.deepcopy(model).to(device, dtype)
        reference = DenseMIGGT(model, data, **kwargs)
        graph = model.build_graph(data)  # The operator is built in float32.
        assert graph.features[model.modalities[0]].dtype == dtype
        seen = []
        model.transformer.register_forward_pre_hook(
            lambda module, args, seen=seen: seen.append(args[1])
        )
        model.train(training)
        state = copy.deepcopy(model.state_dict())
        out = torch.cat(model(graph)).detach().double().cpu()
        samples = seen[-1] if seen else graph.samples
        expected = reference.rows(samples, training)[:, 0]
        assert (out - expected).abs().max() < tol * expected.abs().max()
        if not training:
            assert samples is graph.samples

        model.load_state_dict(state)
        loss = model.loss(graph, batch.to(device))
        samples = seen[-1] if seen else graph.samples
        expected = reference.loss(samples, batch, training)
        assert loss.item() == pytest.approx(expected.item(), rel=tol)
        loss.backward()
        expected.backward()
        largest = max(p.grad.abs().max() for p in reference.p.values())
        for name, p in model.named_parameters():
            grad = reference.p[name].grad
            error = (p.grad.double().cpu() - grad).abs().max()
            assert error < tol * largest, name


@withCUDA
@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('kind', MODALITIES)
def test_against_dense_reference(device, kind, training):
    data = make_data(kind)
    model = make_model(data, **NO_DROPOUT)
    assert model.modalities == list(MODALITIES[kind])
    check_against_reference(model, data.to(device), training, device)


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize(
    'kwargs',
    [
        {'num_hops': {'id': 2, 'text': 2, 'image': 0}},
        {'num_hops': 0},
        {'num_hops': {'id': 3}},
        {'alpha': 0.3, 'beta': 0.5},
        {'mix': 0.6, 'attention_channels': 3, 'num_samples': 7},
        {'projection_channels': {'image': 40}},
        {'weight_decay': 0.0},
        {'num_samples': 1, 'hidden_channels': 1},
    ],
)
def test_other_settings_against_dense_reference(kwargs, training):
    data = make_data()
    model = make_model(data, **NO_DROPOUT | kwargs)
    own = {k: v for k, v in kwargs.items() if k in ('alpha', 'beta', 'mix')}
    check_against_reference(model, data, training, **own)


@pytest.mark.parametrize('training', [False, True])
def test_ablation_without_transformer(training):
    data = make_data()
    model = make_model(data, use_transformer=False, **NO_DROPOUT)
    reference, graph = DenseMIGGT(model, data), model.build_graph(data)
    model.train(training)
    state = copy.deepcopy(model.state_dict())
    out = torch.cat(model(graph))
    model.load_state_dict(state)
    expected = reference.rows(graph.samples, training)[:, 0]
    assert torch.allclose(out.double(), expected, atol=1e-5)
    branches = model.branch_embeddings(graph)
    assert torch.allclose(out, sum(branches.values()), atol=1e-5)
    batch = make_batch(data)
    model.load_state_dict(state)
    loss = model.loss(graph, batch)
    expected = reference.loss(graph.samples, batch, training)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    assert all(p.grad is None for p in model.transformer.parameters())
    expected.backward()
    for name, p in model.named_parameters():
        if not name.startswith('transformer'):
            grad = reference.p[name].grad
            assert torch.allclose(p.grad.double(), grad, atol=1e-4, rtol=1e-4), name


def test_awkward_data():
    data = make_data()
    data['item'].x_image[3] = 0  # Has no direction.
    data[schema.EDGE_TYPE].edge_index = torch.tensor([[2, 2, 9], [0, 1, 1]])
    check_against_reference(make_model(data, **NO_DROPOUT), data, training=True)
    data = make_data(num_users=1, num_items=5)
    data[schema.EDGE_TYPE].edge_index = torch.tensor([[0, 0], [0, 3]])
    check_against_reference(make_model(data, **NO_DROPOUT), data)


def test_order_of_magnitude_at_the_start():
    r"""With weights near zero, BPR is log 2 per pair and TUR log(C + 1)."""
    data = make_data()
    model = make_model(data, num_samples=10)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    loss = model.loss(model.build_graph(data), make_batch(data, size=20))
    assert loss.item() == pytest.approx(20 * (0.693147 + 2.397895), rel=1e-5)


def test_losses_are_sums():
    data = make_data()
    model = make_model(data)
    graph, batch = model.build_graph(data), make_batch(data)
    twice = Triplets(*(torch.cat([x, x]) for x in batch))
    empty = Triplets(*(x[:0] for x in batch))
    norm = model.loss(graph, empty)  # Over all nodes, whatever the batch.
    z = torch.cat(model(graph))
    assert norm.item() == pytest.approx(0.05 * z.square().sum().item(), rel=1e-5)
    once = model.loss(graph, batch) - norm
    assert (model.loss(graph, twice) - norm).item() == pytest.approx(
        2 * once.item(), rel=1e-5
    )
    assert model.reduction == 'sum'


@pytest.mark.parametrize('kind', MODALITIES)
@pytest.mark.parametrize('kwargs', [{}, {'use_transformer': False, 'num_hops': 0}])
def test_contract(kind, kwargs):
    data = make_data(kind)
    check_model(make_model(data, **kwargs), data)


# Users, published settings by dataset, and the size of the model.
PUBLISHED = {
    'Baby': {
        'num_users': 19_445, 'num_parameters': 1_707_212,
        'lr': 1e-2, 'lr_decay': 0.99, 'lr_min': 0.0, 'num_epochs': 300,
        'eval_every': 20, 'weight_decay': 1e-5, 'encoder_channels': 512,
        'num_samples': 10, 'num_hops': {'id': 4, 'text': 2, 'image': 1},
        'feature_dropout': 0.3, 'hidden_dropout': 0.3, 'user_dropout': 0.3,
        'item_dropout': 0.3, 'edge_dropout': 0.2, 'out_dropout': 0.2,
    },
    'Sports': {
        'num_users': 35_598, 'num_parameters': 2_741_004,
        'lr': 1e-2, 'lr_decay': 0.99, 'lr_min': 1e-3, 'num_epochs': 300,
        'eval_every': 50, 'weight_decay': 1e-4, 'encoder_channels': 512,
        'num_samples': 10, 'num_hops': {'id': 4, 'text': 2, 'image': 3},
        'feature_dropout': 0.2, 'hidden_dropout': 0.5, 'user_dropout': 0.1,
        'item_dropout': 0.2, 'edge_dropout': 0.5, 'out_dropout': 0.2,
    },
    'Clothing': {
        'num_users': 39_387, 'num_parameters': 4_368_972,
        'lr': 1e-3, 'lr_decay': 0.999, 'lr_min': 1e-4, 'num_epochs': 500,
        'eval_every': 50, 'weight_decay': 1e-5, 'encoder_channels': 2048,
        'num_samples': 20, 'num_hops': {'id': 2, 'text': 2, 'image': 0},
        'feature_dropout': 0.1, 'hidden_dropout': 0.4, 'user_dropout': 0.1,
        'item_dropout': 0.1, 'edge_dropout': 0.25, 'out_dropout': 0.3,
    },
}  # fmt: skip
COMMON = {
    'hidden_channels': 64, 'alpha': 0.1, 'beta': 0.9, 'attention_channels': 4,
    'mix': 0.1, 'use_transformer': True, 'batch_size': 8000, 'lr_decay_epochs': 1,
    'negatives': 'uniform', 'metric': 'recall@20',
}  # fmt: skip


def defaults_of(function):
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


@pytest.mark.parametrize('dataset', PUBLISHED)
def test_published_settings(dataset):
    model_args, fit_args = MIGGT.published(dataset)
    known, fit_known = defaults_of(MIGGT), defaults_of(fit)
    assert set(model_args) <= set(known)
    assert set(fit_args) <= set(fit_known)
    known['num_hops'] = {'id': 4, 'text': 2, 'image': 1}  # By the docstring.
    settings = fit_known | fit_args | known | model_args
    expected = COMMON | PUBLISHED[dataset]
    num_users, num_parameters = (
        expected.pop(name) for name in ('num_users', 'num_parameters')
    )
    assert {name: settings[name] for name in expected} == expected
    # Training stops after 100 epochs without gain, that is, with evaluation number
    # patience + 1; metrics are compared unrounded.
    assert (settings['patience'] + 1) * settings['eval_every'] == 100
    assert settings['metric_decimals'] >= 12

    channels = {'image': 4096, 'text': 384}
    model = MIGGT(num_users, 7_050, channels, **model_args)
    assert sum(p.numel() for p in model.parameters()) == num_parameters
    assert model.num_hops == expected['num_hops']
    assert model.projection_image.shape == (4096, 384)
    assert {conv.dropout for conv in model.conv.values()} == {expected['edge_dropout']}


def test_published_settings_are_copies():
    MIGGT.published('Sports')[0]['num_hops']['id'] = 99
    MIGGT.published('Sports')[1]['lr'] = 99
    assert MIGGT.published('Sports')[0]['num_hops']['id'] == 4
    assert MIGGT.published('Sports')[1]['lr'] == 1e-2
    with pytest.raises(ValueError, match=r"'dataset' must be one of \('Baby', .*Books"):
        MIGGT.published('Books')


@pytest.mark.parametrize('kind', MODALITIES)
def test_num_parameters_and_branches(kind):
    data = make_data(kind)
    model = make_model(data)
    params = dict(model.named_parameters())
    count = 30 * 8 + 2 * (8 * 4 + 4)
    for name, size in MODALITIES[kind].items():
        size = 6 if name == 'image' else size
        count += (size * 12 + 12) + 24 + 1 + (12 * 8 + 8) + 16 + 1
    assert sum(p.numel() for p in params.values()) == count

    branches = model.branches()
    assert list(branches) == ['id', *MODALITIES[kind], 'fusion']
    found = branch_names(model)  # Raises if they are no partition.
    for name in params:
        first, second, *_ = name.split('.')
        expected = {'user_embedding': 'id', 'transformer': 'fusion'}.get(first, second)
        assert found[name] == expected

    (table,) = model.tables()
    assert (table.rows, table.is_raw) == ('user', False)
    assert table.parameter is model.user_embedding.weight


def test_initial_values():
    with isolated_seed(0):
        model = MIGGT(3000, 5, {'image': 300, 'text': 100})
        fresh = torch.empty(3000, 64)
        model.tables()[0].init(fresh)
    model.requires_grad_(False)
    for table in (model.user_embedding.weight, fresh):
        assert abs(table.mean()) < 0.002
        assert table.std() == pytest.approx(0.125, rel=0.01)
    for name, size in (('image', 384), ('text', 100)):
        encoder = model.encoder[name]
        bound = (6 / (size + 512)) ** 0.5
        assert 0.99 * bound < encoder.linear1.weight.abs().max() <= bound
        bound = (6 / (512 + 64)) ** 0.5
        assert 0.99 * bound < encoder.linear2.weight.abs().max() <= bound
        for layer in (encoder.linear1, encoder.linear2):
            assert layer.bias.abs().max() == 0
        for layer in (encoder.prelu1, encoder.prelu2):
            assert layer.weight.tolist() == [0.25]
        for layer in (encoder.bn1, encoder.bn2):
            assert (layer.eps, layer.momentum, layer.affine) == (1e-5, 0.1, True)
            assert layer.track_running_stats
    assert model.projection_image.std() == pytest.approx(1, rel=0.02)
    assert abs(model.projection_image.mean()) < 0.02


def test_random_projection():
    data = make_data()
    model = make_model(data)
    graph = model.build_graph(data)
    product = data['item'].x_image @ model.projection_image
    norm = graph.features['image'].norm(dim=1)
    assert torch.allclose(norm, torch.ones(25), atol=1e-6)
    cosine = torch.cosine_similarity(product, graph.features['image'])
    assert torch.allclose(cosine, torch.ones(25), atol=1e-6)
    assert torch.equal(graph.features['text'], data['item'].x_text)
    names = [name for name, _ in model.named_buffers() if 'projection' in name]
    assert names == ['projection_image']
    assert 'projection_image' in model.state_dict()
    assert not any('projection' in name for name, _ in model.named_parameters())

    def build(seed, **kwargs):
        with isolated_seed(seed):
            return MIGGT.from_data(data, **kwargs)

    # The projection is drawn first, so that it depends on the seed alone.
    first, second = build(1), build(1, hidden_channels=4, encoder_channels=7)
    assert torch.equal(first.projection_image, second.projection_image)
    assert not torch.equal(first.projection_image, build(2).projection_image)
    other = build(2)
    other.load_state_dict(first.state_dict())
    graphs = first.build_graph(data), other.build_graph(data)
    assert torch.equal(*(graph.features['image'] for graph in graphs))

    model = make_model(data, projection_channels={})
    assert not any('projection' in name for name in model.state_dict())
    graph = model.build_graph(data)
    assert torch.equal(graph.features['image'], data['item'].x_image)
    model = make_model(data, projection_channels={'text': 5})
    assert model.build_graph(data).features['text'].shape == (25, 5)


def test_samples_in_evaluation_mode():
    data = make_data()
    model = make_model(data)
    graph, again = model.build_graph(data), model.build_graph(data)
    assert graph.samples.shape == (55, 3)
    assert torch.equal(graph.samples, again.samples)
    # Items only, all of them, isolated ones included.
    assert graph.samples.unique().tolist() == list(range(30, 55))
    for out, expected in zip(model(graph), model(again)):
        assert torch.equal(out, expected)
    other = make_model(data, sample_seed=1).build_graph(data)
    assert not torch.equal(graph.samples, other.samples)
    assert not torch.allclose(torch.cat(model(other)), torch.cat(model(graph)))


def test_samples_in_training_mode():
    data = make_data()
    model = make_model(data, **NO_DROPOUT)
    graph = model.build_graph(data)
    seen = []
    model.transformer.register_forward_pre_hook(
        lambda module, args: seen.append(args[1])
    )
    model.train()
    model(graph)
    model.loss(graph, make_batch(data))
    with isolated_seed(4):
        model(graph)
    with isolated_seed(4):
        model(graph)
    assert not torch.equal(seen[0], graph.samples)
    assert not torch.equal(seen[0], seen[1])
    assert torch.equal(seen[2], seen[3])
    with isolated_seed(0):
        for _ in range(400):
            model._samples(graph)
            seen.append(model._samples(graph))
    drawn = torch.stack(seen[4:])
    assert drawn.shape == (400, 55, 3)
    assert (drawn.min(), drawn.max()) == (30, 54)
    # Uniform with replacement, alike for users and items, in every column.
    for part in (drawn[:, :30], drawn[:, 30:], drawn[..., 0], drawn[..., 2]):
        count = (part.flatten() - 30).bincount(minlength=25).double()
        mean = part.numel() / 25
        assert ((count - mean) ** 2 / mean).sum() < 62  # One seed in 30,000.
    repeated = (drawn[..., 0] == drawn[..., 1]).double().mean()
    assert repeated == pytest.approx(1 / 25, rel=0.2)


def test_every_dropout_is_where_it_belongs(monkeypatch):
    data = make_data()
    rates = {f'{name}_dropout': 0.1 * (i + 1) for i, name in enumerate(DROPOUTS)}
    model = make_model(data, **rates).train()
    calls = []

    def spy(x, p, training):
        calls.append((tuple(x.shape), round(p, 3), training))
        return x

    monkeypatch.setattr(mig_gt, 'dropout', spy)
    graph = model.build_graph(data)
    model(graph)
    forward = sorted(calls)
    expected = [
        ((30, 8), 0.3),  # User embeddings.
        ((25, 6), 0.1), ((25, 12), 0.1),  # Features, the image ones projected.
        ((25, 12), 0.2), ((25, 12), 0.2),  # Hidden layers.
        ((25, 8), 0.4), ((25, 8), 0.4),  # Branch inputs of items.
        ((55, 8), 0.6),  # Sum of the branches.
    ]  # fmt: skip
    assert forward == sorted((*call, True) for call in expected)
    assert [conv.dropout for conv in model.conv.values()] == [0.5] * 3
    calls.clear()
    model.loss(graph, make_batch(data))  # One forward pass, not two.
    assert sorted(calls) == forward
    calls.clear()
    model.eval()(graph)
    assert {training for _, _, training in calls} == {False}


@pytest.mark.parametrize('name', DROPOUTS)
def test_every_dropout_acts_in_training_only(name):
    data = make_data()
    model = make_model(data, **NO_DROPOUT | {f'{name}_dropout': 0.5})
    graph = model.build_graph(data)
    state = copy.deepcopy(model.state_dict())
    model.train()
    outs = [torch.cat(list(model.branch_embeddings(graph).values())) for _ in 'ab']
    if name == 'out':
        assert torch.equal(*outs)
        outs = [model._sum(model.branch_embeddings(graph)) for _ in 'ab']
        assert 0.4 < (outs[0] == 0).double().mean() < 0.6
    assert not torch.equal(*outs)
    model.eval().load_state_dict(state)  # Training moves the batch statistics.
    plain = make_model(data, **NO_DROPOUT)
    assert torch.equal(torch.cat(model(graph)), torch.cat(plain(graph)))


def test_branches_draw_their_own_edges():
    data = make_data()
    model = make_model(data, num_hops=1, **NO_DROPOUT | {'edge_dropout': 0.5})
    graph = model.train().build_graph(data)
    off_diagonal = ~torch.eye(55, dtype=torch.bool)
    masks = [
        (conv(torch.eye(55), graph.user_item) != 0) & off_diagonal
        for conv in model.conv.values()
    ]
    num_edges = 2 * graph.edge_index.size(1)
    for i, mask in enumerate(masks):
        assert 0.35 < int(mask.sum()) / num_edges < 0.65
        assert not torch.equal(mask, masks[i - 1])


def test_no_hop_still_includes_the_branch():
    data = make_data()
    model = make_model(data, num_hops={'id': 2, 'text': 2, 'image': 0})
    graph = model.build_graph(data)
    out = model.branch_embeddings(graph)
    assert list(out) == ['id', 'image', 'text']
    assert out['image'][:30].abs().max() == 0
    content = model.content_embeddings(graph)
    assert list(content) == ['image', 'text']
    assert torch.equal(out['image'][30:], content['image'])
    assert content['image'].abs().min() > 0
    zero = {**out, 'image': torch.zeros_like(out['image'])}
    moved = torch.cat(model.fuse(graph, out)) - torch.cat(model.fuse(graph, zero))
    assert moved.abs().max() > 0.1
    # Hops carry the others to the users.
    reached = torch.zeros(30, dtype=torch.bool)
    reached[graph.edge_index[0]] = True
    assert not reached[29]
    assert torch.equal(out['text'][:30].abs().sum(dim=1) > 0, reached)


def test_hops_by_branch():
    data = make_data('three')
    assert make_model(data).num_hops == {'id': 4, 'image': 1, 'audio': 2, 'text': 2}
    model = make_model(data, num_hops={'audio': 5})
    assert model.num_hops == {'id': 2, 'image': 2, 'audio': 5, 'text': 2}
    assert {n: c.num_layers for n, c in model.conv.items()} == model.num_hops
    assert set(make_model(data, num_hops=3).num_hops.values()) == {3}


def test_branch_embeddings_and_fuse_are_the_forward_pass():
    data = make_data('three')
    model = make_model(data)
    graph = model.build_graph(data)
    branches = model.branch_embeddings(graph)
    assert [x.shape for x in branches.values()] == [(55, 8)] * 4
    for out, expected in zip(model.fuse(graph, branches), model(graph)):
        assert torch.equal(out, expected)


def test_there_is_no_item_id_embedding():
    data = make_data()
    model = make_model(data, num_hops=0)
    out = model.branch_embeddings(model.build_graph(data))['id']
    assert torch.equal(out[:30], model.user_embedding.weight)
    assert out[30:].abs().max() == 0


def test_running_statistics_move_in_training_only():
    data = make_data()
    model = make_model(data, **NO_DROPOUT)
    graph = model.build_graph(data)
    bn = model.encoder['text'].bn1
    before = bn.running_mean.clone()
    model(graph)
    assert torch.equal(bn.running_mean, before)
    model.train()(graph)
    hidden = model.encoder['text'].linear1(data['item'].x_text)
    expected = 0.9 * before + 0.1 * hidden.mean(dim=0)
    assert torch.allclose(bn.running_mean, expected, atol=1e-5)


def test_build_graph_ignores_marked_edges(data):
    model = make_model(data)
    marked = ForgetUsers([3, 17])(data)
    mask = marked[schema.EDGE_TYPE].forget_mask
    graph = model.build_graph(marked)
    assert mask.any()
    assert torch.equal(graph.edge_index, data[schema.EDGE_TYPE].edge_index[:, ~mask])
    assert graph.user_item.num_entries == 2 * int((~mask).sum()) + 160
    # A forgotten user keeps nothing but the self loop.
    source, target = graph.user_item.edge_index
    assert source[target == 3].tolist() == [3]
    assert graph.user_item.edge_weight[target == 3].item() == 1


@withCUDA
def test_graph_follows_the_model(device):
    data = make_data()
    model = make_model(data).to(device)
    graph = model.build_graph(data)
    assert graph.edge_index.device == graph.user_item.value.device == device
    assert graph.samples.device == graph.features['image'].device == device
    assert torch.equal(graph.samples.cpu(), graph.to('cpu').samples)
    out = torch.cat(model(graph)).cpu()
    cpu = copy.deepcopy(model).cpu()
    expected = torch.cat(cpu(graph.to('cpu')))
    assert torch.allclose(out, expected, atol=1e-5)


@onlyLinux
@pytest.mark.parametrize('training', [False, True])
def test_compile(training):
    data = make_data()
    model = make_model(data).train(training)
    graph, batch = model.build_graph(data), make_batch(data)
    state = copy.deepcopy(model.state_dict())

    def run(function, *args):
        model.load_state_dict(state)
        with isolated_seed(2):
            out = function(*args)
        out = torch.cat(out) if isinstance(out, tuple) else out
        grads = torch.autograd.grad(out.sum(), list(model.parameters()))
        return [out, *grads, model.encoder['text'].bn1.running_var.clone()]

    function, args = model.forward, (graph,)
    if training:
        function, args = model.loss, (graph, batch)
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend='aot_eager')
    for a, b in zip(run(compiled, *args), run(function, *args)):
        assert torch.allclose(a, b, atol=1e-4, rtol=1e-5)


def test_fit_learns(data):
    with isolated_seed(0):
        model = MIGGT.from_data(data, hidden_channels=16, encoder_channels=32)
    before = evaluate_split(model, data)['recall@10']
    args = MIGGT.published('Baby')[1] | {
        'num_epochs': 30, 'batch_size': 256, 'eval_every': 10
    }  # fmt: skip
    result = fit(model, data, **args)
    assert result.history[-1]['loss'] < 0.9 * result.history[0]['loss']
    assert evaluate_split(model, data)['recall@10'] > before + 0.1
    first, second = model.recommend(model.build_graph(data), torch.arange(5), k=3)
    assert first.shape == second.shape == (5, 3)


def test_autocast_stays_close(data):
    model = make_model(data, **NO_DROPOUT)
    graph, batch = model.build_graph(data), make_batch(data)
    expected = model.loss(graph, batch)
    with torch.autocast('cpu', torch.bfloat16):
        loss = model.loss(graph, batch)
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=2e-2)
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    ('args', 'kwargs', 'match'),
    [
        ((3, 2, {}), {}, 'at least one modality .got none.. MIGGT is a multimodal'),
        ((3, 2, {'keys': 4}), {}, "'keys' can't name a modality"),
        ((0, 2, {'text': 4}), {}, "'num_users' must be at least 1"),
        ((3, 0, {'text': 4}), {}, "'num_items' must be at least 1"),
        ((3, 2, {'text': 0}), {}, "'in_channels' must be at least 1"),
        ((3, 2, {'text': 4}, 0), {}, "'hidden_channels' must be at least 1"),
        ((3, 2, {'text': 4}), {'encoder_channels': 0}, "'encoder_channels' must be"),
        ((3, 2, {'text': 4}), {'num_samples': 0}, "'num_samples' must be at least 1"),
        ((3, 2, {'text': 4}), {'num_hops': {'text': -1}}, "'num_hops' must be at le"),
        ((3, 2, {'text': 4}), {'alpha': 0.0, 'beta': 0.0}, 'must not both be 0'),
        ((3, 2, {'text': 4}), {'mix': 1.1}, "'mix' must be a finite number in"),
        ((3, 2, {'text': 4}), {'weight_decay': -1.0}, "'weight_decay' must be a fin"),
        ((3, 2, {'text': 4}), {'sample_seed': -1}, "'sample_seed' must be an integer"),
        (
            (3, 2, {'image': 4}),
            {'projection_channels': {'image': 0}},
            "'projection_channels' must be at least 1",
        ),
        *(
            ((3, 2, {'text': 4}), {f'{name}_dropout': 1.0}, 'ropout. must be a finite')
            for name in DROPOUTS
        ),
    ],
)
def test_bad_arguments(args, kwargs, match):
    with pytest.raises(ValueError, match=match):
        MIGGT(*args, **kwargs)


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
        MIGGT.from_data(other)


def test_repr():
    assert str(make_model(make_data())) == (
        "MIGGT(30, 25, modalities=['image', 'text'], hidden_channels=8, "
        "num_hops={'id': 4, 'image': 1, 'text': 2})"
    )
