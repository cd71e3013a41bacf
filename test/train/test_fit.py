import math
import signal
import sys

import pytest
import torch
from torch_geometric.testing import onlyCUDA

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.loader import TripletLoader
from torch_geometric_unlearn.metrics import evaluate_split
from torch_geometric_unlearn.nn import MGCN, MIGGT, LightGCN
from torch_geometric_unlearn.train import fit, load_model
from torch_geometric_unlearn.transforms import (
    DropForgotten,
    ForgetUsers,
    ItemKNNGraph,
)
from torch_geometric_unlearn.utils.seed import isolated_seed
from torch_geometric_unlearn.utils.tensor_file import load_tensors, save_tensors


def build(data, **kwargs):
    with isolated_seed(1):
        return MGCN.from_data(data, hidden_channels=8, **kwargs)


def build_mig_gt(data):
    with isolated_seed(1):
        return MIGGT.from_data(data, hidden_channels=8, encoder_channels=16)


def test_fit_equals_a_plain_loop(data):
    model, expected = build(data), build(data)
    result = fit(model, data, num_epochs=3, batch_size=128, lr_decay=0.5, patience=5)

    graph = expected.build_graph(data)
    pairs = data[schema.EDGE_TYPE].edge_index
    loader = TripletLoader(pairs, schema.num_items(data), 128, seed=999)
    optimizer = torch.optim.Adam(expected.parameters(), lr=1e-3)
    best, best_state = -1.0, None
    for epoch in range(3):
        optimizer.param_groups[0]['lr'] = 1e-3 * 0.5 ** (epoch / 50)
        total = 0.0
        for batch in loader:
            optimizer.zero_grad()
            loss = expected.loss(graph, batch)
            loss.backward()
            optimizer.step()
            total += loss.item()
        assert result.history[epoch]['loss'] == pytest.approx(total, rel=1e-4)
        recall = evaluate_split(expected, data, 'val')['recall@20']
        assert result.history[epoch]['recall@20'] == pytest.approx(recall, abs=1e-6)
        if round(recall, 4) > round(best, 4):
            best, best_state = recall, {
                k: v.clone() for k, v in expected.state_dict().items()
            }
    for name, value in model.state_dict().items():
        assert torch.allclose(value, best_state[name], atol=1e-5), name
    assert result.best_metric == pytest.approx(best, abs=1e-6)


def test_early_stopping_and_best_epoch(data):
    metrics = []
    result = fit(
        build(data),
        data,
        num_epochs=50,
        patience=2,
        lr=1e-12,
        callbacks=[lambda model, row: metrics.append(row['recall@20'])],
    )
    # Nothing moves at this rate, so epoch 0 stays the best one.
    assert result.best_epoch == 0
    assert len(result.history) == len(metrics) == 4
    assert result.seconds > 0
    assert result.peak_memory > 0


def test_callback_stops(data):
    result = fit(build(data), data, callbacks=[lambda model, row: row['epoch'] == 1])
    assert len(result.history) == 2


def test_without_validation_split_all_epochs_run(data):
    del data.val_edge_label_index
    result = fit(build(data), data, num_epochs=3, patience=0)
    assert len(result.history) == 3
    assert result.best_epoch == 2
    assert math.isnan(result.best_metric)


def test_marked_interactions_are_not_used(data):
    marked = ForgetUsers([3, 5])(data)
    a, b = build(data), build(data)
    fit(a, marked, num_epochs=2, patience=5)
    dropped = DropForgotten()(marked)
    dropped.val_edge_label_index = data.val_edge_label_index
    fit(b, dropped, num_epochs=2, patience=5)
    for x, y in zip(a.parameters(), b.parameters()):
        assert torch.equal(x, y)


def test_global_generator_is_left_alone_and_seed_decides(data):
    state = torch.get_rng_state()
    models = []
    for seed in (3, 3, 4):
        models.append(build(data))
        fit(models[-1], data, num_epochs=1, seed=seed)
    assert torch.equal(state, torch.get_rng_state())
    first, second, third = (m.user_embedding.weight for m in models)
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


def test_autocast_stays_close(data):
    a, b = build(data), build(data)
    x = fit(a, data, num_epochs=1, autocast=False).history[0]['loss']
    y = fit(b, data, num_epochs=1, autocast=True).history[0]['loss']
    assert x == pytest.approx(y, rel=2e-2)


def test_compiled_loss_is_the_same(data):
    a, b = build(data), build(data)
    x = fit(a, data, num_epochs=2, batch_size=256)
    compiled = {'backend': 'aot_eager', 'fullgraph': True}
    y = fit(b, data, num_epochs=2, batch_size=256, compile=compiled)
    for row, other in zip(x.history, y.history):
        assert row['loss'] == pytest.approx(other['loss'], rel=1e-5)


def test_frozen_features_stay(data):
    model = build(data, train_features=False)
    fit(model, data, num_epochs=1)
    assert torch.equal(model.features['image'].weight, data['item'].x_image)


def test_resume_equals_uninterrupted_run(data, tmp_path):
    expected, model = build(data), build(data)
    whole = fit(expected, data, num_epochs=6, patience=10, batch_size=128)
    path = tmp_path / 'run.safetensors'
    fit(model, data, num_epochs=3, patience=10, batch_size=128, checkpoint=path)

    model = build(data)
    with torch.no_grad():  # The checkpoint must bring everything back.
        for parameter in model.parameters():
            parameter.add_(1)
    result = fit(
        model,
        data,
        num_epochs=6,
        patience=10,
        batch_size=128,
        checkpoint=path,
        resume=True,
    )
    for name, value in model.state_dict().items():
        assert torch.equal(value, expected.state_dict()[name]), name
    assert [row['loss'] for row in result.history] == [
        row['loss'] for row in whole.history
    ]
    assert result.best_epoch == whole.best_epoch


SCRIPT = '''
import os, signal, torch
from torch_geometric_unlearn.datasets import SyntheticMultimodal
from torch_geometric_unlearn.nn import MGCN
from torch_geometric_unlearn.train import fit, save_model
from torch_geometric_unlearn.utils.seed import isolated_seed
torch.set_num_threads(1)
data = SyntheticMultimodal('tiny')[0]
with isolated_seed(1):
    model = MGCN.from_data(data, hidden_channels=8)
def die(model, row):
    if row['epoch'] == {epoch}:
        os.kill(os.getpid(), signal.SIGKILL)
fit(model, data, num_epochs=6, patience=10, checkpoint={checkpoint!r}, resume=True,
    callbacks=[die])
save_model(model, {done!r})
'''


def test_kill_and_resume(data, tmp_path, run_code):
    checkpoint, done = tmp_path / 'run.safetensors', tmp_path / 'done.safetensors'
    paths = {'checkpoint': str(checkpoint), 'done': str(done)}
    assert run_code(SCRIPT.format(epoch=2, **paths)) == -signal.SIGKILL
    assert checkpoint.exists()
    assert not done.exists()
    assert run_code(SCRIPT.format(epoch=None, **paths)) == 0

    expected, model = build(data), build(data)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    fit(expected, data, num_epochs=6, patience=10)
    torch.set_num_threads(threads)
    load_model(model, done)
    for name, value in model.state_dict().items():
        assert torch.equal(value, expected.state_dict()[name]), name


def test_bad_arguments(data, tmp_path):
    model = build(data)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    cases = [
        ({'num_epochs': 0}, "'num_epochs' must be at least 1"),
        ({'lr': -1.0}, "'lr' must be a finite number"),
        ({'lr_decay': 2.0}, "'lr_decay' must be a finite number"),
        ({'patience': -1}, "'patience' must be at least 0"),
        ({'metric': 'auc'}, "'metric' must be 'recall@K' or 'ndcg@K'"),
        ({'batch_size': 0}, "'batch_size' must be at least 1"),
        ({'seed': -1}, "'seed' must be an integer"),
        ({'lr_min': -1.0}, "'lr_min' must be a finite number"),
        ({'negatives': 'all'}, r"'negatives' must be one of \('rejected', 'uniform'\)"),
        ({'eval_every': 0}, "'eval_every' must be at least 1"),
    ]
    for kwargs, message in cases:
        with pytest.raises(ValueError, match=message):
            fit(model, data, **kwargs)
    with pytest.raises(TypeError, match=r'num_epoch'):
        fit(model, data, num_epoch=3)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_bad_checkpoints(data, tmp_path):
    path = tmp_path / 'run.safetensors'
    fit(build(data), data, num_epochs=1, checkpoint=path)
    with pytest.raises(FileExistsError, match=r'Pass resume=True to go on from it'):
        fit(build(data), data, num_epochs=2, checkpoint=path)
    with pytest.raises(ValueError, match=r'other settings or data .lr: 0.001 in the'):
        fit(build(data), data, num_epochs=2, lr=0.1, checkpoint=path, resume=True)
    for change in ({'lr_min': 1e-4}, {'negatives': 'uniform'}, {'eval_every': 2}):
        match = f'other settings or data .{next(iter(change))}:'
        with pytest.raises(ValueError, match=match):
            fit(build(data), data, num_epochs=2, **change, checkpoint=path, resume=True)
    with isolated_seed(1):
        other = MGCN.from_data(data, hidden_channels=16)
    with pytest.raises(ValueError, match=r'checkpoint of another model'):
        fit(other, data, num_epochs=2, checkpoint=path, resume=True)
    dropped = DropForgotten()(ForgetUsers([1])(data))
    with pytest.raises(ValueError, match=r'other settings or data .data:'):
        fit(build(data), dropped, num_epochs=2, checkpoint=path, resume=True)


def flip_features(data):
    data['item'].x_text = data['item'].x_text.flip(0)


def drop_a_held_out_pair(data):
    data.val_edge_label_index = data.val_edge_label_index[:, 1:]


def link_items(data):
    linked = ItemKNNGraph(3)(data)
    for edge_type in linked.edge_types[1:]:
        data[edge_type].update(linked[edge_type])


def rename_a_user(data):
    data['user'].raw_id = [f'u{u}' for u in range(data['user'].num_nodes)]


def reorder(data):
    store = data[schema.EDGE_TYPE]
    store.edge_index = store.edge_index.flip(1)


@pytest.mark.parametrize(
    'change', [flip_features, drop_a_held_out_pair, link_items, rename_a_user, reorder]
)
def test_resume_with_other_data(data, tmp_path, change):
    path = tmp_path / 'run.safetensors'
    args = {'checkpoint': path, 'resume': True}
    fit(build(data), data, num_epochs=1, **args)
    other = data.clone()
    change(other)
    model = build(data)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError, match=r'other settings or data .data: \w{64} in'):
        fit(model, other, num_epochs=2, **args)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    fit(model, data.clone(), num_epochs=2, **args)


def test_resume_with_another_model_of_the_same_shapes(data, tmp_path):
    path = tmp_path / 'run.safetensors'
    args = {'checkpoint': path, 'resume': True}
    fit(build(data), data, num_epochs=1, **args)
    with pytest.raises(ValueError, match=r"'num_layers' is 2 in the file and 1 in the"):
        fit(build(data, num_layers=1), data, num_epochs=2, **args)
    frozen = build(data)
    frozen.user_embedding.requires_grad_(False)
    with pytest.raises(ValueError, match=r'other settings or data \(trained: '):
        fit(frozen, data, num_epochs=2, **args)
    with pytest.raises(ValueError, match=r'is torch.float32 in the file and torch.flo'):
        fit(build(data).double(), data, num_epochs=2, **args)
    with pytest.raises(ValueError, match=r'other settings or data \(compile: None in '):
        fit(build(data), data, num_epochs=2, compile={}, **args)


def test_resume_from_a_damaged_file(data, tmp_path):
    path = tmp_path / 'run.safetensors'
    args = {'checkpoint': path, 'resume': True}
    fit(build(data), data, num_epochs=1, **args)
    tensors, header = load_tensors(path)
    name = 'user_embedding.weight'
    for change in (
        {f'best/{name}': torch.ones(1)},
        {'adam/exp_avg/nonsense': torch.ones(1)},
        {f'adam/exp_avg/{name}': torch.ones(1)},
        {f'adam/step/{name}': torch.ones(2)},
        {'rng/cpu': torch.ones(2).byte()},
        {'result': {'nonsense': 1}},
        {'result': 5},
    ):
        is_tensor = '/' in next(iter(change))
        parts = (tensors | change, header) if is_tensor else (tensors, header | change)
        save_tensors(path, *parts)
        model = build(data)
        before = {k: v.clone() for k, v in model.state_dict().items()}
        with pytest.raises(ValueError, match=r'another model: |is damaged'):
            fit(model, data, num_epochs=2, **args)
        for key, value in model.state_dict().items():
            assert torch.equal(value, before[key])


def test_diverging_loss_is_reported(data):
    with pytest.raises(FloatingPointError, match=r'no longer finite in epoch'):
        fit(build(data), data, num_epochs=20, lr=1e30)


@onlyCUDA
def test_on_cuda(data):
    a, b = build(data), build(data).cuda()
    x = fit(a, data, num_epochs=3, patience=5)
    y = fit(b, data, num_epochs=3, patience=5)
    assert b.user_embedding.weight.is_cuda
    for row, other in zip(x.history, y.history):
        assert row['loss'] == pytest.approx(other['loss'], rel=1e-3)


def test_other_metric(data):
    result = fit(build(data), data, num_epochs=1, metric='ndcg@5')
    assert 'ndcg@5' in result.history[0]
    assert 'recall@20' not in result.history[0]


def test_floor_of_the_learning_rate(data):
    args = {'num_epochs': 5, 'lr': 1e-2, 'lr_decay': 0.5, 'lr_decay_epochs': 1}
    rows = fit(build(data), data, **args, lr_min=2e-3).history
    expected = [1e-2, 5e-3, 2.5e-3, 2e-3, 2e-3]
    assert [row['lr'] for row in rows] == pytest.approx(expected)
    rows = fit(build(data), data, **args).history
    assert rows[-1]['lr'] == pytest.approx(1e-2 / 16)


def test_floor_decides_what_is_learned(data):
    del data.val_edge_label_index  # Or an early epoch may be the best one.
    models = []
    for kwargs in ({'lr_min': 1e-3}, {'lr_decay': 1.0}, {}):
        models.append(build(data))
        args = {'lr': 1e-3, 'lr_decay': 1e-9, 'lr_decay_epochs': 1} | kwargs
        fit(models[-1], data, num_epochs=3, patience=5, **args)
    first, second, third = (m.user_embedding.weight for m in models)
    assert torch.equal(first, second)
    assert not torch.allclose(first, third, atol=1e-4)


def scripted(model, monkeypatch, metrics):
    r"""Lets evaluations return given numbers, one after the other."""
    numbers = iter(metrics)
    monkeypatch.setattr(
        sys.modules[fit.__module__],
        'rank',
        lambda *args, **kwargs: {'recall@20': next(numbers)},
    )
    states = []
    return states, lambda model, row: states.append(
        {k: v.clone() for k, v in model.state_dict().items()}
    )


@pytest.mark.parametrize('num_epochs', [7, 6])
def test_rows_that_are_evaluated(data, num_epochs):
    result = fit(build(data), data, num_epochs=num_epochs, eval_every=3)
    due = [row['epoch'] for row in result.history if 'recall@20' in row]
    # Every third epoch and the last one, which may be both.
    assert due == ([2, 5, 6] if num_epochs == 7 else [2, 5])
    assert len(result.history) == num_epochs
    assert all({'loss', 'lr', 'seconds'} <= set(row) for row in result.history)
    assert result.best_epoch in due
    best = result.history[result.best_epoch]['recall@20']
    assert result.best_metric == best


def test_evaluation_does_not_change_the_training(data):
    a, b = build_mig_gt(data), build_mig_gt(data)
    x = fit(a, data, num_epochs=4, eval_every=1, patience=9)
    y = fit(b, data, num_epochs=4, eval_every=4, patience=9)
    assert [r['loss'] for r in x.history] == [r['loss'] for r in y.history]
    assert x.history[-1]['recall@20'] == y.history[-1]['recall@20']


def test_patience_counts_evaluations(data, monkeypatch):
    model = build_mig_gt(data)
    states, callback = scripted(model, monkeypatch, [0.1, 0.3, 0.2, 0.3, 0.1, 0.9])
    result = fit(
        model,
        data,
        num_epochs=50,
        eval_every=2,
        patience=2,
        metric_decimals=12,
        callbacks=[callback],
    )
    # Evaluations 3, 4 (a draw) and 5 are no gain, the third of which is too much.
    assert len(result.history) == 10
    assert (result.best_epoch, result.best_metric) == (3, 0.3)
    for name, value in model.state_dict().items():
        assert torch.equal(value, states[3][name]), name


def test_gain_resets_the_patience(data, monkeypatch):
    model = build(data)
    metrics = [0.3, 0.2, 0.3 + 1e-9, 0.2, 0.2]
    _, callback = scripted(model, monkeypatch, metrics)
    args = {'num_epochs': 50, 'eval_every': 2, 'patience': 1, 'callbacks': [callback]}
    result = fit(model, data, metric_decimals=12, **args)
    assert (len(result.history), result.best_epoch) == (10, 5)
    _, args['callbacks'][0] = scripted(model, monkeypatch, metrics)
    result = fit(model, data, metric_decimals=4, **args)
    assert (len(result.history), result.best_epoch) == (6, 1)


@pytest.mark.parametrize('has_validation', [True, False])
def test_stop_before_the_first_evaluation(data, has_validation):
    if not has_validation:
        del data.val_edge_label_index
    stop = [lambda model, row: row['epoch'] == 2]
    result = fit(build(data), data, eval_every=5, callbacks=stop)
    # The model holds what the last epoch has left.
    assert len(result.history) == 3
    assert result.best_epoch == 2
    assert math.isnan(result.best_metric)


class Recorder(MGCN):
    r"""Keeps every batch it is trained on."""

    def loss(self, graph, batch):
        self.seen.append(torch.stack(batch))
        return super().loss(graph, batch)


@pytest.mark.parametrize('negatives', ['rejected', 'uniform'])
def test_negatives(data, negatives):
    pairs = data[schema.EDGE_TYPE].edge_index
    pairs = pairs[:, pairs[1] < 55]  # Five items without a training pair.
    data[schema.EDGE_TYPE].edge_index = pairs
    del data.val_edge_label_index
    with isolated_seed(1):
        model = Recorder.from_data(data, hidden_channels=2)
    model.seen = []
    num_epochs = 20
    fit(model, data, num_epochs=num_epochs, batch_size=500, negatives=negatives)
    user, pos, neg = torch.cat(model.seen, dim=1)
    num = pairs.size(1) * num_epochs
    assert neg.numel() == num
    # Positives come once per epoch, whatever the negatives.
    code = (user * 60 + pos).bincount(minlength=6000)
    expected = torch.zeros(6000, dtype=torch.long)
    expected[pairs[0] * 60 + pairs[1]] = num_epochs
    assert torch.equal(code, expected)

    known = expected[user * 60 + neg] > 0
    if negatives == 'rejected':
        assert not known.any()
        assert neg.max() < 55
        return
    # Over all items alike, and as often a known one as chance has it.
    count = neg.bincount(minlength=60).double()
    chi_squared = ((count - num / 60) ** 2 / (num / 60)).sum()
    assert chi_squared < 118  # 59 degrees of freedom: about one seed in 100,000.
    share = (pairs[0].bincount(minlength=100).double() / 60)[user].mean()
    deviation = (share * (1 - share) / num) ** 0.5
    assert abs(known.double().mean() - share) < 5 * deviation
    assert (neg == pos).any()


class Interrupted(Exception):
    pass


@pytest.mark.parametrize('last_epoch', [2, 3])
def test_resume_of_a_model_with_buffers_and_dropout(data, tmp_path, last_epoch):
    args = {
        'num_epochs': 6,
        'patience': 10,
        'batch_size': 128,
        'lr': 1e-2,
        'lr_decay': 0.5,
        'lr_decay_epochs': 1,
        'lr_min': 2e-3,
        'negatives': 'uniform',
        'eval_every': 2,
        'metric_decimals': 12,
    }
    expected, model = build_mig_gt(data), build_mig_gt(data)
    whole_end, end = [], []

    def keep(target, row, states):
        if row['epoch'] == 5:
            states.append({k: v.clone() for k, v in target.state_dict().items()})

    whole = fit(
        expected, data, **args, callbacks=[lambda m, row: keep(m, row, whole_end)]
    )

    def interrupt(model, row):
        if row['epoch'] == last_epoch + 1:  # One that is not yet saved.
            raise Interrupted

    path = tmp_path / 'run.safetensors'
    with pytest.raises(Interrupted):
        fit(model, data, **args, checkpoint=path, callbacks=[interrupt])
    model = build_mig_gt(data)
    with torch.no_grad():  # The checkpoint must bring everything back.
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.add_(1)
    result = fit(
        model,
        data,
        **args,
        checkpoint=path,
        resume=True,
        callbacks=[lambda m, row: keep(m, row, end)],
    )
    names = list(model.state_dict())
    assert any('running_var' in name for name in names)
    assert any('num_batches_tracked' in name for name in names)
    for name, value in model.state_dict().items():
        assert torch.equal(value, expected.state_dict()[name]), name
    for name, value in whole_end[0].items():  # Also what the last epoch has left.
        assert torch.equal(value, end[0][name]), name
    assert len(result.history) == 6
    for row, other in zip(result.history, whole.history):
        assert {k: v for k, v in row.items() if k != 'seconds'} == {
            k: v for k, v in other.items() if k != 'seconds'
        }
    assert result.best_epoch == whole.best_epoch
    assert result.best_metric == whole.best_metric


def test_own_optimizer(data, tmp_path):
    r"""Adam in two runs with one state, against a loop by hand."""
    model, other = (LightGCN.from_data(data, hidden_channels=4) for _ in range(2))
    other.load_state_dict(model.state_dict())
    optimizer = torch.optim.Adam(model.parameters())
    settings = {'num_epochs': 2, 'batch_size': 256, 'patience': 99}
    del data.val_edge_label_index  # The last epoch is kept.
    for lr in (1e-2, 1e-3):
        fit(model, data, lr=lr, lr_decay=1.0, optimizer=optimizer, **settings)

    by_hand = torch.optim.Adam(other.parameters(), fused=True)
    pairs, num_items = data[schema.EDGE_TYPE].edge_index, data['item'].num_nodes
    graph = other.build_graph(data)
    for lr in (1e-2, 1e-3):
        by_hand.param_groups[0]['lr'] = lr
        loader = TripletLoader(pairs, num_items, 256, seed=999)
        for _ in range(2):
            for batch in loader:
                by_hand.zero_grad()
                other.loss(graph, batch).backward()
                by_hand.step()
    for x, y in zip(model.parameters(), other.parameters()):
        assert torch.allclose(x, y, atol=1e-6)

    foreign = torch.optim.Adam(other.parameters())
    few = torch.optim.Adam([model.user_embedding.weight])
    for wrong in (foreign, few):
        with pytest.raises(ValueError, match='must step exactly the 2 trained'):
            fit(model, data, optimizer=wrong, **settings)
    path = tmp_path / 'run.ck'
    sgd = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9)
    fit(model, data, optimizer=sgd, checkpoint=path, **settings)
    adam = torch.optim.Adam(model.parameters())
    with pytest.raises(ValueError, match=r'other settings.*optimizer: SGD'):
        fit(model, data, optimizer=adam, checkpoint=path, resume=True, **settings)


@torch.no_grad()
def test_trains_where_gradients_are_off(data):
    model = build(data)
    before = model.user_embedding.weight.clone()
    assert fit(model, data, num_epochs=1).history
    assert not torch.equal(model.user_embedding.weight, before)
    assert not torch.is_grad_enabled()
