r"""Two processes against one: the same numbers, the same lists, the same refusals."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from torch_geometric_unlearn.datasets import SyntheticMultimodal
from torch_geometric_unlearn.nn import ColumnParallelLightGCN, LightGCN, grow
from torch_geometric_unlearn.train import fit, load_model, save_model

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(),
    reason='needs torch.distributed with gloo',
)
WORKER = Path(__file__).with_name('worker.py')
TRAINED = ['initial', 'trained', 'whole', 'again']
UNLEARNED = [
    'EdgeDrop',
    'RowReset',
    'PartialRetrain',
    'PartialRetrain, one user',
    'PartialRetrain, pairs',
    'Retrain',
]


def torchrun(*steps, restarts=0):
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone']
    command += ['--nproc-per-node', '2', '--max-restarts', str(restarts)]
    env = {**os.environ, 'OMP_NUM_THREADS': '1'}
    out = subprocess.run(
        [*command, str(WORKER), *map(str, steps)],
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
    spec = importlib.util.spec_from_file_location('worker', WORKER)
    worker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(worker)
    for name in ('one', 'two', 'killed'):
        (root / name).mkdir()
    worker.run(['main', root / 'one', 'shards', root / 'one'])
    both = ['main', root / 'two', 'shards', root / 'two', 'load', root / 'one']
    torchrun(*both, 'die_once', root / 'killed', restarts=1)
    worker.run(['load', root / 'two'])
    return root


@pytest.fixture(scope='module')
def one(folder):
    return torch.load(folder / 'one' / '1-0.pt')


@pytest.fixture(scope='module')
def two(folder):
    return [torch.load(folder / 'two' / f'2-{rank}.pt') for rank in (0, 1)]


@pytest.mark.parametrize('name', TRAINED + UNLEARNED)
def test_two_processes_give_what_one_gives(one, two, name):
    for ours, others in zip(one[name], zip(*(found[name] for found in two))):
        assert torch.equal(*others)
        assert ours.isfinite().all()
        assert torch.allclose(ours, others[0], rtol=0, atol=1e-6)


def test_losses_metrics_and_lists(one, two):
    for found in two:
        assert found['loss'] == pytest.approx(one['loss'], abs=1e-6)
        assert found['test'] == pytest.approx(one['test'], abs=1e-6)
        assert torch.equal(found['lists'][0], one['lists'][0])
        for name in UNLEARNED:
            metrics = f'{name} metrics'
            assert found[metrics] == pytest.approx(one[metrics], abs=1e-6)


@pytest.mark.parametrize('size', [7, 33, 2048])
def test_lists_in_turns_are_those_of_the_whole(one, two, size):
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


def test_what_can_not_be_ranked_is_refused_on_every_process(one, two):
    for found in (one, *two):
        assert 'must give finite item embeddings' in found['not finite']
        assert 'must be small enough for finite scores' in found['too large']


def test_training_moves_the_model(one):
    assert not torch.allclose(one['initial'][0], one['trained'][0], atol=1e-3)
    assert not torch.allclose(one['trained'][0], one['PartialRetrain'][0], atol=1e-3)


def test_facts_are_those_of_whole_tables(one, two):
    for name in UNLEARNED:
        for ours, *others in zip(*(found[f'{name} facts'] for found in (one, *two))):
            assert others[0] == others[1] == pytest.approx(ours, abs=1e-5)


def test_nothing_deleted_is_left_on_any_process(one, two):
    for found in (one, *two):
        assert not any(found[f'{name} left'] for name in UNLEARNED)
        assert not found['kept rows']


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
    assert one['odd'] == ''


def test_a_state_is_loaded_by_another_number_of_processes(folder, one):
    back = [torch.load(folder / 'two' / 'load-1-0.pt')]
    back += [torch.load(folder / 'one' / f'load-2-{rank}.pt') for rank in (0, 1)]
    for found in back:
        assert found['note'] == {'note': 1}
        assert found['loss'] == pytest.approx(back[0]['loss'], abs=1e-6)
        assert len(found['loss']) == 6
        assert found['loss'][:4] == pytest.approx(one['loss'], abs=1e-6)
        for x, y in zip(found['loaded'], one['trained']):
            assert torch.allclose(x, y, rtol=0, atol=1e-6)
        for x, y in zip(found['resumed'], back[0]['resumed']):
            assert torch.allclose(x, y, rtol=0, atol=1e-6)


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
    one = torch.load(folder / 'one' / 'shards-1-0.pt')
    for rank in (0, 1):
        two = torch.load(folder / 'two' / f'shards-2-{rank}.pt')
        assert two['shards'] == one['shards']
        for state in ('prepared', 'unlearned'):
            assert one[state].keys() == two[state].keys()
            assert all(torch.equal(one[state][k], x) for k, x in two[state].items())
        assert 'differ' in two['other data']


def test_one_process_is_a_light_gcn(data):
    r"""Embeddings, loss and gradients are those of the model that is not divided."""
    ours = ColumnParallelLightGCN.from_data(data, hidden_channels=8, num_layers=3)
    plain = ours.to_whole()
    assert type(plain) is LightGCN
    graph = ours.build_graph(data)
    for x, y in zip(ours(graph), plain(graph)):
        assert torch.equal(x, y)
    kwargs = {'num_epochs': 2, 'batch_size': 256, 'seed': 4}
    results = [fit(model, data, **kwargs) for model in (ours, plain)]
    losses = [[row['loss'] for row in result.history] for result in results]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    for x, y in zip(ours.parameters(), plain.parameters()):
        assert torch.allclose(x, y, rtol=0, atol=1e-6)


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
