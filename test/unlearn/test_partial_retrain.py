import copy
import itertools
import math

import pytest
import torch
from torch_geometric.nn import LightGCN as PyGLightGCN

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.loader import TripletLoader
from torch_geometric_unlearn.metrics import evaluate_request
from torch_geometric_unlearn.nn import MGCN, MIGGT, LightGCN, RecommenderAdapter
from torch_geometric_unlearn.testing import check_unlearner
from torch_geometric_unlearn.testing._snapshot import assert_same, snapshot
from torch_geometric_unlearn.transforms import (
    DropForgotten,
    ForgetInteractions,
    ForgetItems,
    ForgetUsers,
)
from torch_geometric_unlearn.unlearn import (
    EdgeDrop,
    PartialRetrain,
    Retrain,
    RowReset,
    _row_training,
    _touched_rows,
    partial_retrain,
)
from torch_geometric_unlearn.unlearn._row_training import RowTraining
from torch_geometric_unlearn.unlearn._touched_rows import start_smoothly, touched_rows
from torch_geometric_unlearn.utils.tensor_file import load_tensors, save_tensors

EDGE = schema.EDGE_TYPE
FEW = {'batch_size': 256, 'min_steps': 10, 'num_epochs': 2}


def build(name, data):
    torch.manual_seed(0)
    if name == 'MIGGT':
        return MIGGT.from_data(data, hidden_channels=8, encoder_channels=16)
    if name == 'adapter':
        return RecommenderAdapter(PyGLightGCN(160, 8, 2), 100, 60)
    return {'MGCN': MGCN, 'LightGCN': LightGCN}[name].from_data(data, hidden_channels=8)


def trained_statistics(model, data):
    r"""Running statistics that training has moved."""
    loader = TripletLoader(data[EDGE].edge_index, 60, 256)
    with torch.no_grad():
        model.train().loss(model.build_graph(data), next(iter(loader)))
    return model


def mixed(data):
    pair = data[EDGE].edge_index[:, 50:51]
    return ForgetUsers([3])(ForgetItems([5])(ForgetInteractions(pair)(data)))


def influence(data, retained, tau):
    r"""The rows by the formula, pair by pair."""
    gone = schema.forgotten_edge_index(data).t().tolist()
    kept = retained[EDGE].edge_index.t().tolist()
    ends = {}
    for pairs, place in ((gone, 0), (kept, 1)):
        for u, i in pairs:
            for node, other in ((('u', u), ('i', i)), (('i', i), ('u', u))):
                ends.setdefault(node, ([], []))[place].append(other)
    share = {n: len(g) / (len(g) + len(k)) for n, (g, k) in ends.items()}
    out = set()
    for node, (_, near) in ends.items():
        second = sum(share[m] for m in near) / len(near) if near else 0.0
        value = share[node] + second
        if value > 0 and value >= tau - 1e-9:
            out.add(node)
    return out


@pytest.mark.parametrize('name', ['MGCN', 'LightGCN', 'MIGGT', 'adapter'])
def test_contract_of_mixed_requests(name, data):
    model = build(name, data)
    result = check_unlearner(PartialRetrain(**FEW), model, mixed(data))
    row = result.history[-1]
    path = {'MIGGT': 'model', 'adapter': 'model'}.get(name, row['path'])
    assert row['path'] == path
    assert (row['num_items'] == 0) == (name == 'MIGGT')
    assert sum(r['selected'] for r in result.history) == 1
    assert [r['epoch'] for r in result.history] == list(range(len(result.history)))


@pytest.mark.parametrize('tau', [0.0, 0.02, 0.1, 0.3])
def test_touched_rows_by_loops(data, tau, monkeypatch):
    monkeypatch.setattr(_touched_rows, 'ALL_ROWS', 1.0)
    marked = ForgetInteractions(data[EDGE].edge_index[:, [3, 100, 400]])(data)
    retained = DropForgotten()(marked)
    touched = touched_rows(marked, retained, tau)
    expected = influence(marked, retained, tau)
    assert not touched.is_all
    assert set(touched.users.tolist()) == {n for kind, n in expected if kind == 'u'}
    assert set(touched.items.tolist()) == {n for kind, n in expected if kind == 'i'}


def test_all_rows_where_most_pairs_are_touched(data):
    marked = ForgetInteractions(ratio=0.1)(data)
    touched = touched_rows(marked, DropForgotten()(marked), 0.02)
    assert touched.is_all
    assert (touched.users.numel(), touched.items.numel()) == (100, 60)


def projected(x, edge_index, side, rank):
    r"""Rows on the leading singular vectors of the normalised interactions, densely."""
    dense = torch.zeros(100, 60, dtype=torch.float64)
    dense[edge_index[0], edge_index[1]] = 1
    scale = [dense.sum(dim).clamp(min=1).rsqrt() for dim in (1, 0)]
    parts = torch.linalg.svd(scale[0].unsqueeze(1) * dense * scale[1])
    basis = parts[0] if side == 'user' else parts[2].t()
    return basis[:, :rank] @ (basis[:, :rank].t() @ x.double())


@pytest.mark.parametrize('name', ['LightGCN', 'adapter'])
def test_smooth_start_by_dense_svd(name, data):
    marked = ForgetUsers([3])(data)
    retained = DropForgotten()(marked)
    model = build(name, data)
    tables = [table.parameter.detach().clone() for table in model.tables()]
    drawn = copy.deepcopy(model)
    assert start_smoothly(model, tables, retained)
    user = torch.cat(tables)[:100]
    item = torch.cat(tables)[100:]
    edges = retained[EDGE].edge_index
    expected = [projected(user, edges, 'user', 3), projected(item, edges, 'item', 3)]
    got = torch.cat([table.parameter for table in model.tables()]).double()
    kept = torch.ones(160, dtype=torch.bool)
    kept[3] = False
    assert torch.allclose(got[kept], torch.cat(expected)[kept], atol=1e-5)
    before = torch.cat([table.parameter for table in drawn.tables()])
    assert torch.equal(got[3].float(), before[3])  # No retained pair: left alone.


def test_smooth_start_takes_nothing_from_deleted_rows(data):
    retained = DropForgotten()(ForgetUsers([3, 17])(data))
    model = build('LightGCN', data)
    tables = [table.parameter.detach().clone() for table in model.tables()]
    other = [table.clone() for table in tables]
    other[0][[3, 17]] += 1.0
    out = []
    for rows in (tables, other):
        model = build('LightGCN', data)
        torch.manual_seed(1)
        assert start_smoothly(model, rows, retained)
        out.append(torch.cat([table.parameter for table in model.tables()]))
    assert torch.equal(*out)


@pytest.mark.parametrize('name', ['MGCN', 'LightGCN', 'MIGGT', 'adapter'])
@pytest.mark.parametrize('better', ['smooth', 'drawn'])
def test_the_better_start_goes_on(name, better, data, monkeypatch):
    monkeypatch.setattr(_row_training, 'MIN_PAIRS', 1)
    plain = _row_training.ValidationCurve.__call__
    values = iter([0.1, 0.2] if better == 'smooth' else [0.2, 0.2])

    def curve(self, model, graph):
        key, value = next(iter(plain(self, model, graph).items()))
        return {key: next(values, value)}

    monkeypatch.setattr(_row_training.ValidationCurve, '__call__', curve)
    marked = ForgetInteractions(ratio=0.05)(data)
    history = PartialRetrain(**FEW)(build(name, data), marked).history
    has_choice = name in ('LightGCN', 'adapter')
    smooth = has_choice and better == 'smooth'
    assert all(row['all_rows'] for row in history)
    assert all(row['smooth_start'] == smooth for row in history)
    assert [row['epoch'] for row in history] == list(range(len(history)))
    other = history[0].get('other_start_ndcg@20')
    assert other == ((0.1 if smooth else 0.2) if has_choice else None)


@pytest.mark.parametrize('name', ['LightGCN', 'adapter'])
def test_no_choice_of_the_start_without_its_means(name, data, monkeypatch):
    model = build(name, data)
    marked = ForgetInteractions(ratio=0.05)(data)
    monkeypatch.setattr(_row_training, 'MIN_PAIRS', 10**9)
    (first, *_) = PartialRetrain(**FEW)(model, marked).history
    assert first['all_rows']
    assert not first['smooth_start']
    monkeypatch.setattr(_row_training, 'MIN_PAIRS', 1)
    (first, *_) = PartialRetrain(tau=0.5, **FEW)(model, ForgetUsers([3])(data)).history
    assert not first['all_rows']
    assert 'other_start_ndcg@20' not in first


def test_both_starts_go_on_as_if_alone(data, monkeypatch):
    r"""A run that was tried beside another ends where it would have ended alone."""
    monkeypatch.setattr(_row_training, 'MIN_PAIRS', 1)
    model, marked = build('LightGCN', data), ForgetInteractions(ratio=0.05)(data)
    with monkeypatch.context() as patch:
        patch.setattr(partial_retrain, 'start_smoothly', lambda *_: False)
        alone = PartialRetrain(**FEW)(model, marked)
    better_start = partial_retrain.better_start

    def drawn(first, second, path):
        assert better_start(first, second, path) in (first, second)
        return first

    monkeypatch.setattr(partial_retrain, 'better_start', drawn)
    beside = PartialRetrain(**FEW)(model, marked)
    assert [r['loss'] for r in beside.history] == [r['loss'] for r in alone.history]
    for name, value in alone.model.state_dict().items():
        assert torch.equal(value, beside.model.state_dict()[name]), name


def test_everything_else_stays_bit_identical(data, trained):
    marked = ForgetUsers([3])(data)
    touched = touched_rows(marked, DropForgotten()(marked), 0.3)
    result = PartialRetrain(tau=0.3, **FEW)(trained, marked)
    before, after = dict(trained.named_parameters()), result.model
    for name, value in after.named_parameters():
        moved = (value != before[name]).view(value.size(0), -1).any(dim=1)
        moved = set(moved.nonzero().view(-1).tolist())
        if name == 'user_embedding.weight':
            assert moved == set(touched.users.tolist()) == {3}
        elif name == 'item_embedding.weight' or name.startswith('features'):
            assert moved == set(touched.items.tolist())
        else:
            assert not moved, name
    for name, table in after.features.items():
        rows = touched.items
        assert torch.equal(table.weight[rows], data['item'][f'x_{name}'][rows])


@pytest.mark.parametrize('shared_lr', [0.0, 1e-3])
def test_buffers_stay_bit_identical(shared_lr, data):
    model = trained_statistics(build('MIGGT', data), data)
    assert any('running_mean' in name for name, _ in model.named_buffers())
    unlearner = PartialRetrain(shared_lr=shared_lr, **FEW)
    result = unlearner(model, ForgetUsers([3])(data))
    after = dict(result.model.named_buffers())
    for name, value in model.named_buffers():
        assert torch.equal(value, after[name]), name


def test_deleted_user_stays_as_drawn(data, trained):
    marked = ForgetUsers([3])(data)
    result = PartialRetrain(**FEW)(trained, marked)
    fresh = result.model.user_embedding.weight[3]
    bound = math.sqrt(6 / (100 + 16))  # Of Xavier's uniform distribution.
    assert fresh.abs().max() <= bound
    more = PartialRetrain(**FEW | {'num_epochs': 4})(trained, marked).model
    assert torch.equal(fresh, more.user_embedding.weight[3])  # Never trained.


def test_a_user_whose_pairs_have_gone_singly(data, trained):
    own = data[EDGE].edge_index[:, data[EDGE].edge_index[0] == 3]
    first = EdgeDrop()(trained, ForgetInteractions(own)(data))
    marked = ForgetUsers([3])(first.data)
    assert not marked[EDGE].forget_mask.any()
    for unlearner in (PartialRetrain(**FEW), RowReset()):
        result = unlearner(first.model, marked)
        moved = result.model.user_embedding.weight != first.model.user_embedding.weight
        assert moved.any(dim=1).nonzero().view(-1).tolist() == [3]
        assert result.shift['item_embedding.weight'] == 0
    assert PartialRetrain(**FEW)(first.model, marked).history[0]['steps'] == 0
    retrain = Retrain(lambda d: build('MGCN', d), num_epochs=1)(first.model, marked)
    assert len(retrain.history) == 1


def test_forgets_like_retraining(data, trained):
    marked = ForgetUsers(ratio=0.1, seed=2)(data)
    before = evaluate_request(trained, marked, ks=(5,))
    result = PartialRetrain(batch_size=128, lr=2e-3)(trained, marked)
    after = evaluate_request(result.model, marked, ks=(5,))
    assert before['forget_recall@5'] > 0.5
    assert after['forget_recall@5'] < 0.25
    assert after['retain_ndcg@5'] > 0.85 * before['retain_ndcg@5']


def test_local_and_full_steps_agree(data, trained, monkeypatch):
    marked = ForgetUsers([3])(data)
    states = []
    for way in (True, False):
        monkeypatch.setattr(
            _row_training,
            '_rows_of',
            lambda m, g, n, *_, way=way: _row_training.LinearRows(m, g, n, way),
        )
        states.append(PartialRetrain(**FEW)(trained, marked).model.state_dict())
    for name, value in states[0].items():
        assert torch.allclose(value, states[1][name], atol=1e-5), name


@pytest.mark.parametrize(
    ('name', 'shared_lr'),
    [('MGCN', 0), ('adapter', 0), ('MIGGT', 1e-3), ('LightGCN', 0)],
)
def test_resume_gives_the_same(name, shared_lr, data, tmp_path, monkeypatch):
    monkeypatch.setattr(_row_training, 'MIN_PAIRS', 1)  # So that a start is chosen.
    model, marked = build(name, data), ForgetUsers([3, 17])(data)
    kwargs = {'batch_size': 256, 'min_steps': 12, 'num_epochs': 4}
    kwargs['shared_lr'] = shared_lr
    expected = PartialRetrain(**kwargs)(model, marked)
    path = tmp_path / 'run.safetensors'
    save = RowTraining.save

    def dies(run, where):
        save(run, where)
        if len(run.history) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RowTraining, 'save', dies)
        with pytest.raises(KeyboardInterrupt):
            PartialRetrain(checkpoint=path, **kwargs)(model, marked)
    with pytest.raises(FileExistsError, match='Pass resume=True'):
        PartialRetrain(checkpoint=path, **kwargs)(model, marked)
    resumed = PartialRetrain(checkpoint=path, resume=True, **kwargs)(model, marked)
    for key, value in expected.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[key]), key
    losses = [[row['loss'] for row in r.history] for r in (expected, resumed)]
    assert losses[0] == losses[1]
    others = {
        'another request': (model, ForgetUsers([4])(data)),
        'as many other rows': (model, ForgetUsers([3, 18])(data)),
        'another model': (perturbed(model), marked),
        'other features': (model, changed(marked, 'x_image')),
        'other held-out pairs': (model, changed(marked, 'val_edge_label_index')),
    }
    content = path.read_bytes()
    for other in others.values():
        with pytest.raises(ValueError, match='belongs to another run'):
            PartialRetrain(checkpoint=path, resume=True, **kwargs)(*other)
    tensors, header = load_tensors(path)
    for change in ({'value/0': torch.ones(1)}, {'adam/99/exp_avg': torch.ones(1)}):
        save_tensors(path, tensors | change, header)
        with pytest.raises(ValueError, match=r'is damaged: .* fits none of the'):
            PartialRetrain(checkpoint=path, resume=True, **kwargs)(model, marked)
    path.write_bytes(content)
    PartialRetrain(checkpoint=path, resume=True, **kwargs)(model, marked)


def changed(data, name):
    data = copy.deepcopy(data)
    store = data['item'] if name.startswith('x_') else data
    store[name] = store[name].flip(-1)
    if name.startswith('val'):
        store[name] = store[name][:, 1:]
    return data


def perturbed(model):
    model = copy.deepcopy(model)
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] += 1e-3
    return model


@pytest.mark.parametrize('dies_at', [None, 3, 5])
def test_goes_on_while_the_curve_rises(dies_at, data, trained, tmp_path, monkeypatch):
    curve = iter([0.1, 0.2, 0.3, 0.32, 0.33, 0.331, 0.5])
    monkeypatch.setattr(_row_training, 'MIN_PAIRS', 1)
    monkeypatch.setattr(
        _row_training.ValidationCurve,
        '__call__',
        lambda self, *_: {self.key: next(curve)},
    )
    kwargs = {'batch_size': 256, 'min_steps': 10, 'num_epochs': 2}
    marked = ForgetUsers([3, 17])(data)
    run = RowTraining

    def dies(self, where, save=run.save):
        save(self, where)
        if len(self.history) == dies_at:
            raise KeyboardInterrupt

    monkeypatch.setattr(run, 'save', dies)
    path = tmp_path / 'run.safetensors'
    unlearner = PartialRetrain(checkpoint=path, resume=True, **kwargs)
    if dies_at:
        with pytest.raises(KeyboardInterrupt):
            unlearner(trained, marked)
    history = unlearner(trained, marked).history
    assert [row['touched_val_ndcg@20'] for row in history] == [
        *(0.1, 0.2),  # The schedule.
        *(0.3, 0.32, 0.33, 0.331),  # Each by more than 1 %, up to the last.
    ]
    assert [row['selected'] for row in history] == [False] * 5 + [True]
    assert [row['steps'] for row in history] == [5] * 6
    assert {row['lr'] for row in history[2:]} == {2e-3}


def test_goes_on_up_to_three_times_the_steps(data, trained, monkeypatch):
    monkeypatch.setattr(_row_training, 'MIN_PAIRS', 1)
    rising = itertools.count(1)
    monkeypatch.setattr(
        _row_training.ValidationCurve,
        '__call__',
        lambda self, *_: {self.key: 1.1 ** next(rising)},
    )
    result = PartialRetrain(**FEW)(trained, ForgetUsers([3, 17])(data))
    assert len(result.history) == 6


def test_seed(data, trained):
    marked = ForgetUsers([3])(data)
    rows = [
        PartialRetrain(seed=seed, **FEW)(trained, marked).model.user_embedding.weight[3]
        for seed in (0, 0, 1)
    ]
    assert torch.equal(rows[0], rows[1])
    assert not torch.equal(rows[0], rows[2])


def test_shared_rate_moves_shared_modules(data, trained):
    marked = ForgetUsers([3])(data)
    shift = PartialRetrain(shared_lr=1e-3, **FEW)(trained, marked).shift
    assert shift['projection.image.weight'] > 0
    assert PartialRetrain(**FEW)(trained, marked).shift['projection.image.weight'] == 0


class NoTables(LightGCN):
    def tables(self):
        return []


def refused(data, model, marked, error, match, **kwargs):
    state = {k: v.clone() for k, v in model.state_dict().items()}
    before = snapshot(marked)
    with pytest.raises(error, match=match):
        PartialRetrain(**kwargs)(model, marked)
    assert_same(before, snapshot(marked), 'The data')
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key]) or value.isnan().any()


def test_bad_input(data):
    marked = ForgetUsers([3])(data)
    refused(data, NoTables(100, 60, 8), marked, ValueError, 'has no ID table')
    frozen = build('LightGCN', data)
    frozen.item_embedding.weight.requires_grad_(False)
    refused(data, frozen, marked, ValueError, "a table is frozen .'requires_grad'")
    half = build('LightGCN', data).half()
    refused(data, half, marked, ValueError, r'it is torch\.float16')
    broken = build('LightGCN', data)
    with torch.no_grad():
        broken.user_embedding.weight[0, 0] = torch.nan
    refused(data, broken, marked, ValueError, "'user_embedding.weight' of the model")
    model = build('LightGCN', data)
    most = ForgetInteractions(ratio=0.6)(data)
    refused(data, model, most, ValueError, "deletes 60% of the training pairs.*'Retr")
    refused(data, model, marked, ValueError, "'shared_lr' can't act", shared_lr=1e-3)
    with pytest.raises(ValueError, match="'resume' needs a 'checkpoint'"):
        PartialRetrain(resume=True)
    for kwargs in ({'tau': -1}, {'num_epochs': 0}, {'lr': 0}, {'batch_size': 0}):
        with pytest.raises(ValueError, match=f"'{next(iter(kwargs))}' must be"):
            PartialRetrain(**kwargs)


def test_a_loss_that_is_not_finite(data, monkeypatch):
    model = build('LightGCN', data)
    monkeypatch.setattr(
        LightGCN, 'node_loss', lambda self, b: b['id'].sum() * torch.tensor(math.inf)
    )
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(FloatingPointError, match='no longer finite after'):
        PartialRetrain(**FEW)(model, ForgetInteractions(ratio=0.05)(data))
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key])
