r"""Two processes against one: the same numbers, the same lists, the same refusals."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from torch_geometric_unlearn.datasets import SyntheticMultimodal
from torch_geometric_unlearn.nn import (
    ColumnParallelLightGCN,
    LightGCN,
    grow,
)
from torch_geometric_unlearn.train import fit, load_model, save_model

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(),
    reason='needs torch.distributed with gloo',
)
_spec = importlib.util.spec_from_file_location(
    'worker', Path(__file__).with_name('worker.py')
)
WORKER = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(WORKER)
MODELS = ['light_gcn', 'mgcn', 'mig_gt']
# Biases before batch norm or within a softmax move by rounding alone.
NO_GRADIENT = ('linear1.bias', 'linear2.bias', 'key.bias')
TRAINED = ['initial', 'trained', 'whole', 'again']
UNLEARNED = [
    'EdgeDrop',
    'RowReset',
    'PartialRetrain',
    'PartialRetrain, one user',
    'PartialRetrain, pairs',
    'Retrain',
]


def unlearned(found):
    return [name for name in (*UNLEARNED, 'PartialRetrain, shared') if name in found]


def torchrun(*steps, restarts=0):
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone']
    command += ['--nproc-per-node', '2', '--max-restarts', str(restarts)]
    env = {**os.environ, 'OMP_NUM_THREADS': '1'}
    out = subprocess.run(
        [*command, WORKER.__file__, *map(str, steps)],
        env=env,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert out.returncode == 0, out.stderr[-3000:]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    r"""What one process and two have found."""
    root = tmp_path_factory.mktemp('processes')
    steps = {'one': [], 'two': []}
    for number, own in steps.items():
        for name in MODELS:
            place = root / name / number
            place.mkdir(parents=True)
            own += [name, place]
        own += ['shards', root, 'transposes', root]
    for name in MODELS:
        steps['two'] += [f'load_{name}', root / name / 'one']
    (root / 'killed').mkdir()
    WORKER.run(steps['one'])
    torchrun(*steps['two'], 'die_once', root / 'killed', restarts=1)
    for name in MODELS:
        WORKER.run([f'load_{name}', root / name / 'two'])
    return root


@pytest.fixture(scope='module', params=MODELS)
def place(folder, request):
    return folder / request.param


@pytest.fixture(scope='module')
def one(place):
    return torch.load(place / 'one' / '1-0.pt')


@pytest.fixture(scope='module')
def two(place):
    return [torch.load(place / 'two' / f'2-{rank}.pt') for rank in (0, 1)]


def close(xs, ys):
    return all(torch.allclose(x, y, rtol=0, atol=1e-6) for x, y in zip(xs, ys))


def test_two_processes_give_what_one_gives(one, two):
    for name in TRAINED + unlearned(one):
        for ours, *others in zip(one[name], *(found[name] for found in two)):
            assert torch.equal(*others), name
            assert ours.isfinite().all()
            assert torch.allclose(ours, others[0], rtol=0, atol=1e-6), name


def test_losses_metrics_and_lists(one, two):
    for found in two:
        assert found['loss'] == pytest.approx(one['loss'], abs=1e-6)
        assert found['test'] == pytest.approx(one['test'], abs=1e-6)
        assert torch.equal(found['lists'][0], one['lists'][0])
        for name in unlearned(one):
            metrics = f'{name} metrics'
            assert found[metrics] == pytest.approx(one[metrics], abs=1e-6)


def found_rankings(folder):
    r"""What one process and two have ranked by turns."""
    places = ('one', '1-0'), ('two', '2-0'), ('two', '2-1')
    root = folder / 'light_gcn'
    return [torch.load(root / name / f'{file}.pt') for name, file in places]


@pytest.mark.parametrize('size', [7, 33, 2048])
def test_lists_in_turns_are_those_of_the_whole(folder, size):
    one, *two = found_rankings(folder)
    expected = one[f'ties {size} whole']
    for found in (one, *two):
        for ours, whole in zip(found[f'ties {size}'], expected):
            assert torch.equal(ours.nan_to_num(), whole.nan_to_num())
    items, scores = expected
    row = items[items[:, 0] >= 0][0]
    assert items.shape == (100, 9)
    assert row.unique().numel() == 9
    ties = scores[:, 1:] == scores[:, :-1]
    assert ties.float().mean() > 0.3


def test_what_can_not_be_ranked_is_refused_on_every_process(folder):
    for found in found_rankings(folder):
        assert 'must give finite item embeddings' in found['not finite']
        assert 'must be small enough for finite scores' in found['too large']


def test_training_moves_the_model(one):
    assert not torch.allclose(one['initial'][0], one['trained'][0], atol=1e-3)
    assert not torch.allclose(one['trained'][0], one['PartialRetrain'][0], atol=1e-3)


def test_gradients_are_whole(one, two):
    for ours, *others in zip(one['gradients'], *(found['gradients'] for found in two)):
        for name, grad in ours.items():
            for other in others:
                error = (other[name] - grad).abs().max()
                assert error <= 1e-5 * grad.abs().max() + 1e-12, name


def test_what_is_not_divided_stays_equal(one, two):
    r"""Bit by bit, on both processes."""
    for name in ('shared', *(f'{name} shared' for name in unlearned(one))):
        first, second = (found[name] for found in two)
        assert first.keys() == second.keys() == one[name].keys()
        assert all(torch.equal(x, second[key]) for key, x in first.items())
        assert close(first.values(), one[name].values())


def test_facts_are_those_of_whole_tables(one, two):
    for name in unlearned(one):
        for ours, *others in zip(*(found[f'{name} facts'] for found in (one, *two))):
            assert others[0] == others[1]
            for parameter, value in ours.items():
                if not parameter.endswith(NO_GRADIENT):
                    assert others[0][parameter] == pytest.approx(value, abs=1e-5)


def test_nothing_deleted_is_left_on_any_process(one, two):
    for found in (one, *two):
        assert not any(found[f'{name} left'] for name in unlearned(one))
        kept = [name for name in unlearned(one) if found[f'{name} kept']]
        assert kept == ['EdgeDrop']


def test_what_is_refused(one, two):
    assert 'some columns' in one['refused method']
    for found in two:
        assert 'some columns' in found['refused method']
        assert "differ in ['the data']" in found['tampered']
        assert "differ in ['the data']" in found['other data']
        assert "differ in ['the versions']" in found['other versions']
        assert 'refused the request' in found['bad request']
        assert 'first process and nowhere else' in found['no request']
        assert 'multiple of the 2 processes (got 7)' in found['odd']
        if 'few' in found:
            assert "differ in ['the shared layers']" in found['other layers']
            assert 'Of 1 columns, none' in found['few']
    assert one['odd'] == one.get('few', '') == one.get('other layers', '') == ''


def test_a_state_is_loaded_by_another_number_of_processes(place, one):
    back = [torch.load(place / 'two' / 'load-1-0.pt')]
    back += [torch.load(place / 'one' / f'load-2-{rank}.pt') for rank in (0, 1)]
    for found in back:
        assert found['note'] == {'note': 1}
        assert found['loss'] == pytest.approx(back[0]['loss'], abs=1e-6)
        assert len(found['loss']) == 6
        assert found['loss'][:4] == pytest.approx(one['loss'], abs=1e-6)
        assert close(found['loaded'], one['trained'])
        assert close(found['resumed'], back[0]['resumed'])
        assert close(found['PartialRetrain, pairs'], one['PartialRetrain, pairs'])


@pytest.mark.parametrize('num_rows', [1, 5, 6])
@pytest.mark.parametrize(
    'name',
    [
        'from_columns',
        'to_columns',
        'gather',
        'take',
        'reduce',
        'collect',
        'reduce, columns',
        'collect, columns',
    ],
)
def test_rows_and_columns_are_those_of_the_whole(folder, name, num_rows):
    gen = torch.Generator().manual_seed(num_rows)
    x, weight, *own = torch.randn(6, num_rows, 3, 8, generator=gen)
    first = -(-num_rows // 2)
    rows = [slice(first), slice(first, None)]
    columns = [(..., slice(4)), (..., slice(4, 8))]
    expected = {  # The result, and the gradient of the sum over the processes.
        'from_columns': lambda r: (x[rows[r]], weight[columns[r]]),
        'to_columns': lambda r: (x[columns[r]], weight[rows[r]]),
        'reduce': lambda r: ((own[0] + own[1])[rows[r]], weight),
        'reduce, columns': lambda r: ((own[0] + own[1])[columns[r]], weight),
        'collect, columns': lambda r: (x, (own[2] + own[3])[columns[r]]),
        'collect': lambda r: (x, (own[2] + own[3])[rows[r]]),
        'gather': lambda r: (x, weight[rows[r]]),
        'take': lambda r: (x[rows[r]], weight),
    }
    for rank in (0, 1):
        found = torch.load(folder / f'transposes-2-{rank}.pt')[name, num_rows]
        for ours, dense in zip(found, expected[name](rank)):
            assert torch.equal(ours, dense)


def test_uneven_columns_and_replicas(folder):
    for rank in (0, 1):
        found = torch.load(folder / f'transposes-2-{rank}.pt')
        sizes, own, whole = found['uneven']
        assert sizes == [3, 2]
        assert torch.equal(whole, torch.arange(15.0).view(3, 5))
        assert torch.equal(own, whole.split(sizes, dim=1)[rank])
        grads = found['replicate']
        assert [x.unique().tolist() for x in grads] == [[3.0], [30.0]]


@pytest.mark.parametrize('name', ['mgcn', 'mig_gt'])
def test_what_a_step_sends(folder, name):
    r"""As the documentation tells."""
    two = [torch.load(folder / name / 'two' / f'2-{rank}.pt') for rank in (0, 1)]
    n, m, M, H, B, D, P = 100, 59, 2, 8, 201, 4, 2
    if name == 'mgcn':
        items = 2 * M * m * H * (1 + 1 / P)
        nodes = 6 * (M + 1) * B * H / P + 4 * B * H
        layers = M * (3 * H * H + 5 * H)
    else:
        items = 2 * (M + 1) * m * H
        nodes = 2 * (n + m) * H / P + 6 * B * H / P
        layers = 2 * M + 5 * D * (H + 1)
    expected = (P - 1) / P * (items + nodes + 2 * layers)
    assert sum(found['sent'] for found in two) / 2 == pytest.approx(expected, rel=0.02)


def test_a_killed_process_is_started_again(folder):
    assert (folder / 'killed' / 'killed').exists()
    data = SyntheticMultimodal('tiny')[0]
    torch.manual_seed(0)
    model = ColumnParallelLightGCN.from_data(data, hidden_channels=8)
    fit(model, data, num_epochs=5, batch_size=256, seed=1)
    expected = model(model.build_graph(data))
    for rank in (0, 1):
        found = torch.load(folder / 'killed' / f'killed-{rank}.pt')['resumed']
        for x, y in zip(found, expected):
            assert torch.allclose(x, y, rtol=0, atol=1e-6)


def test_shards_by_rank_are_bit_equal(folder):
    one = torch.load(folder / 'shards-1-0.pt')
    for rank in (0, 1):
        two = torch.load(folder / f'shards-2-{rank}.pt')
        assert two['shards'] == one['shards']
        for state in ('prepared', 'unlearned'):
            assert one[state].keys() == two[state].keys()
            assert all(torch.equal(one[state][k], x) for k, x in two[state].items())
        assert 'differ' in two['other data']


@pytest.mark.parametrize('name', MODELS)
def test_one_process_is_the_whole_model(data, name):
    r"""Embeddings, loss and gradients are those of the model that is not divided."""
    torch.manual_seed(0)
    ours = getattr(WORKER, name)(data)
    plain = ours.to_whole()
    assert type(plain) is ours.whole_class
    for x, y in zip(*(WORKER.embeddings(model, data) for model in (ours, plain))):
        assert torch.equal(x, y)
    grads = [WORKER.gradients(model, data) for model in (ours, plain)]
    for found, expected in zip(*grads):
        for name, grad in expected.items():
            error = (found[name] - grad).abs().max()
            assert error <= 1e-5 * grad.abs().max() + 1e-12, name
    kwargs = {'num_epochs': 2, 'batch_size': 256, 'seed': 4}
    results = [fit(model, data, **kwargs) for model in (ours, plain)]
    losses = [[row['loss'] for row in result.history] for result in results]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert close(ours.parameters(), plain.parameters())


def test_initial_values_are_xavier(data):
    torch.manual_seed(0)
    model = ColumnParallelLightGCN(3000, 2000, hidden_channels=32)
    tables = [weight.detach() for weight in model.parameters()]
    for weight in tables:
        bound = (6 / (weight.size(0) + 32)) ** 0.5
        assert 0.99 * bound < weight.abs().max() <= bound
        assert weight.std() == pytest.approx(bound / 3**0.5, rel=0.01)
        assert abs(float(weight.mean())) < 0.01 * bound
    assert not torch.equal(*(weight[:2000] for weight in tables))


def test_grows_as_any_model(data):
    model = ColumnParallelLightGCN.from_data(data, hidden_channels=8)
    larger = grow(model, SyntheticMultimodal('tiny', num_users=130)[0])
    assert larger.num_users == 130
    assert torch.equal(larger.user_embedding.weight[:100], model.user_embedding.weight)


def test_files_and_folders_are_told_apart(data, tmp_path):
    model = ColumnParallelLightGCN.from_data(data, hidden_channels=8)
    save_model(model, tmp_path / 'divided')
    save_model(model.to_whole(), tmp_path / 'whole')
    plain = LightGCN.from_data(data, hidden_channels=8)
    with pytest.raises(ValueError, match='divided by columns'):
        load_model(plain, tmp_path / 'divided')
    with pytest.raises(ValueError, match='a whole model'):
        load_model(model, tmp_path / 'whole')
    with pytest.raises(ValueError, match='is a file'):
        save_model(model, tmp_path / 'whole')
    with pytest.raises(FileNotFoundError):
        load_model(model, tmp_path / 'nothing')
    other = ColumnParallelLightGCN.from_data(data, hidden_channels=16)
    with pytest.raises(ValueError, match='16 columns'):
        load_model(other, tmp_path / 'divided')


def test_a_damaged_state_is_refused(data, tmp_path):
    model = ColumnParallelLightGCN.from_data(data, hidden_channels=8)
    save_model(model, tmp_path / 'state')
    (columns,) = (tmp_path / 'state').glob('columns-*')
    for file in columns.glob('*.distcp'):
        file.unlink()
    with pytest.raises(ValueError, match='damaged or gone'):
        load_model(model, tmp_path / 'state')


def test_a_second_state_replaces_the_first(data, tmp_path):
    model = ColumnParallelLightGCN.from_data(data, hidden_channels=8)
    for note in (1, 2):
        save_model(model, tmp_path / 'state', {'note': note})
    assert len(list((tmp_path / 'state').glob('columns-*'))) == 1
    assert load_model(model, tmp_path / 'state') == {'note': 2}


def test_compile_is_refused(data):
    model = ColumnParallelLightGCN.from_data(data, hidden_channels=8)
    with pytest.raises(ValueError, match="'compile' can't act"):
        fit(model, data, num_epochs=1, compile={})
