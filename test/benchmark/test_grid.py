import json
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

from torch_geometric_unlearn.datasets import SyntheticMultimodal
from torch_geometric_unlearn.nn import MGCN

# As little data as a test can bear is too little for an attack.
pytestmark = pytest.mark.filterwarnings('ignore:The attack needs')
FOLDER = Path(__file__).parents[2] / 'benchmark'
COMMIT = 'a' * 40
METHODS = {
    'original': {'kind': 'original'},
    'retrain': {'kind': 'retrain'},
    'edge_drop': {'class': 'EdgeDrop'},
    'tru': {'class': 'TRU', 'args': {'num_epochs': 1}, 'training': {'batch_size': 1}},
}
GRID = {
    'methods': METHODS,
    'groups': {
        'core': list(METHODS),
        'others': [],
        'shards': [],
        'ablation': [],
        'sensitivity': [],
    },
    'training': {'tiny': {'num_epochs': 2, 'batch_size': 256}},
    'measures': {'num_bootstrap': 20},
    'factors': {},
    'blocks': [
        {
            'name': 'all',
            'datasets': ['tiny'],
            'backbones': ['MGCN'],
            'regimes': ['user'],
            'ratios': [0.2],
            'seeds': [0],
            'methods': ['core'],
        }
    ],
}
PLACE = 'tiny/MGCN/user/0.2/0'


@pytest.fixture
def bench(monkeypatch):
    r"""The scripts as modules, of a clean checkout."""
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setattr(import_module('cells'), 'checkout', lambda: (COMMIT, False))
    return import_module


class Run:
    r"""Runs the command in a folder, in this process."""

    def __init__(self, bench, folder, grid=GRID):
        self.main = bench('run').main
        self.folder, self.results = folder, folder / 'results'
        (folder / 'grid.json').write_text(json.dumps(grid))
        self.paths = ['--grid', f'{folder}/grid.json', '--results', f'{self.results}']

    def __call__(self, *options):
        models = ['--models', f'{self.folder}/models']
        return self.main([*self.paths, *models, '--jobs', '0', *options])

    def files(self):
        return sorted(p.name for p in (self.results / PLACE).glob('*.json'))


@pytest.fixture(scope='module')
def filled(tmp_path_factory):
    r"""A folder whose grid is filled; tests take a copy of it."""
    folder = tmp_path_factory.mktemp('grid')
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.syspath_prepend(FOLDER)
        monkeypatch.setattr(
            import_module('cells'), 'checkout', lambda: (COMMIT, False)
        )
        run = Run(import_module, folder)
        assert run() == 0
    return folder


@pytest.fixture
def copied(filled, tmp_path, bench):
    shutil.copytree(filled, tmp_path, dirs_exist_ok=True)
    return Run(bench, tmp_path)


def change(run, method, **values):
    r"""Writes other content into a cell, with a digest that fits."""
    cells = import_module('cells')
    path = run.results / PLACE / f'{method}.json'
    cells.write(path, cells.read(path) | values)


def test_cell_holds_settings_figures_and_origin(filled):
    cell = json.loads((filled / 'results' / PLACE / 'tru.json').read_text())
    assert cell['config']['fit'] == {'num_epochs': 2, 'batch_size': 256}
    assert cell['details']['settings']['batch_size'] == 256
    assert (cell['commit'], cell['dirty']) == (COMMIT, False)
    ndcg = cell['metrics']['retain_ndcg@20']
    assert 0 <= ndcg['low'] < ndcg['value'] < ndcg['high'] <= 1
    for name in ('exposure@20', 'jaccard@20', 'seconds', 'speed_up', 'peak_memory'):
        assert cell['metrics'][name]['value'] > 0
    retrain = json.loads((filled / 'results' / PLACE / 'retrain.json').read_text())
    change = cell['metrics']['excess_retain_ndcg@20']['value']
    goal = retrain['metrics']['retain_ndcg@20']['value']
    assert ndcg['value'] / goal - 1 == pytest.approx(change, abs=1e-5)


def test_second_run_computes_nothing(copied, monkeypatch, bench, capsys):
    monkeypatch.setattr(bench('run'), 'run_here', None)
    assert copied() == 0
    assert '4 done' in capsys.readouterr().out


def test_other_commits_are_computed_anew_on_demand(copied, monkeypatch, bench):
    done = []
    monkeypatch.setattr(
        bench('run'), 'run_here', lambda cell, args: done.append(cell.method) or True
    )
    change(copied, 'tru', commit='b' * 40)
    change(copied, 'retrain', dirty=True)
    assert copied() == 0
    assert done == []
    assert copied('--renew') == 0
    assert done == ['retrain', 'tru']


def test_only_some_cells(bench, tmp_path, capsys):
    run = Run(bench, tmp_path)
    assert run('--only', '*/edge_drop') == 0
    assert run.files() == ['edge_drop.json']
    with pytest.raises(SystemExit):
        run('--only', '*/nothing')
    assert 'matches no cell' in capsys.readouterr().err


def test_no_budget_no_cell(bench, tmp_path):
    run = Run(bench, tmp_path)
    assert run('--budget', '0') == 0
    assert not run.results.exists()


@pytest.mark.parametrize(
    ('budget', 'expected'),
    [
        ('30s', []),  # Nor what would have to make its models first.
        ('5m', ['original', 'retrain', 'edge_drop']),
        ('2h', ['original', 'retrain', 'edge_drop', 'tru']),
    ],
)
def test_budget_starts_what_fits(bench, tmp_path, monkeypatch, budget, expected):
    done = []
    monkeypatch.setattr(
        bench('run'), 'run_here', lambda cell, args: done.append(cell.method) or True
    )
    slow = {'tru': METHODS['tru'] | {'minutes': 60}}
    run = Run(bench, tmp_path, GRID | {'methods': METHODS | slow})
    assert run('--budget', budget) == 0
    assert done == expected


@pytest.mark.parametrize(
    ('text', 'value'), [('8h', 28800), ('1h30m', 5400), ('90s', 90), ('0', 0)]
)
def test_budget_is_a_time(bench, text, value):
    assert bench('run').seconds(text) == value


def test_budget_of_no_time_is_refused(bench, tmp_path, capsys):
    with pytest.raises(SystemExit):
        Run(bench, tmp_path)('--budget', 'soon')
    assert "such as '8h'" in capsys.readouterr().err


def test_failing_cell_is_recorded_and_the_rest_goes_on(filled, tmp_path, bench):
    shutil.copytree(filled, tmp_path, dirs_exist_ok=True)
    bad = {'tru': {'class': 'TRU', 'args': {'k': 0}}, 'row_reset': METHODS['edge_drop']}
    grid = GRID | {'methods': METHODS | bad}
    grid['groups'] = GRID['groups'] | {'core': ['original', 'tru', 'row_reset']}
    (tmp_path / 'results' / PLACE / 'tru.json').unlink()
    run = Run(bench, tmp_path, grid)
    assert run() == 1
    assert {'tru.error.json', 'row_reset.json'} <= set(run.files())
    error = json.loads((run.results / PLACE / 'tru.error.json').read_text())
    assert "'k' must be" in error['error']
    (run.results / PLACE / 'tru.error.json').touch()
    before = (run.results / PLACE / 'tru.error.json').stat().st_mtime_ns
    assert run() == 1  # Known, and not tried again.
    assert (run.results / PLACE / 'tru.error.json').stat().st_mtime_ns == before
    assert run('--retry') == 1
    assert (run.results / PLACE / 'tru.error.json').stat().st_mtime_ns > before


def test_killed_process_is_recorded(bench, tmp_path, monkeypatch):
    kill = 'import os; os.kill(os.getpid(), 9)'
    monkeypatch.setattr(
        bench('run'),
        'start',
        lambda cell, args: subprocess.Popen([sys.executable, '-c', kill]),
    )
    run = Run(bench, tmp_path)
    assert run('--jobs', '1') == 1
    # The others would need the models that it did not make.
    assert run.files() == ['original.error.json']
    error = json.loads((run.results / PLACE / 'original.error.json').read_text())
    assert error['error'] == 'The process ended with -9'
    assert run('--only', '*/tru') == 1
    assert run.files() == ['original.error.json']


def test_real_data_are_never_replaced(bench, monkeypatch):
    monkeypatch.delenv('TGU_REAL_DATA', raising=False)
    with pytest.raises(FileNotFoundError, match=r"'Baby' needs .* TGU_REAL_DATA"):
        bench('compute').dataset('Baby')


def test_training_goes_on_and_is_kept(bench, tmp_path, monkeypatch):
    trained = bench('trained')
    data = SyntheticMultimodal('tiny')[0]
    models = trained.TrainedModels(tmp_path)
    args = 'tiny', MGCN.from_data, data, {'num_epochs': 6, 'batch_size': 256}

    whole, _ = trained.TrainedModels(tmp_path / 'other')(*args, 1)
    with monkeypatch.context() as patch:
        patch.setattr(trained, 'save_model', None)  # Ends before anything is kept.
        with pytest.raises(TypeError):
            models(*args, 1)
    assert list(tmp_path.glob('*.ck'))
    epochs = []
    with monkeypatch.context() as patch:
        step = trained.fit

        def fit(*a, **kw):
            note = lambda model, row: epochs.append(row) and None  # noqa: E731
            return step(*a, callbacks=[note], **kw)

        patch.setattr(trained, 'fit', fit)
        resumed, run = models(*args, 1)
    assert len(epochs) == 0  # The checkpoint had the last epoch.
    assert run['num_epochs'] == 6
    for a, b in zip(whole.parameters(), resumed.parameters()):
        assert torch.equal(a, b)
    monkeypatch.setattr(trained, 'fit', None)
    again, known = models(*args, 1)
    assert known == run
    assert torch.equal(next(again.parameters()), next(resumed.parameters()))
    with pytest.raises(TypeError):  # Another seed is another model.
        models(*args, 2)


def test_models_are_kept_under_what_determines_them(bench, tmp_path):
    models = bench('trained').TrainedModels(tmp_path)
    data, other = (SyntheticMultimodal('tiny', seed=seed)[0] for seed in (0, 1))
    model, wide = (MGCN.from_data(data, hidden_channels=c) for c in (8, 16))
    files = [
        models.file('a', model, data, {'lr': 0.1}, 0),
        models.file('a', wide, data, {'lr': 0.1}, 0),
        models.file('a', model, other, {'lr': 0.1}, 0),
        models.file('a', model, data, {'lr': 0.2}, 0),
        models.file('a', model, data, {'lr': 0.1}, 1),
    ]
    assert len(set(files)) == 5
    assert models.file('a', model, data, {'lr': 0.1}, 0) == files[0]


@pytest.mark.parametrize(
    ('key', 'value', 'match'),
    [
        ('datasets', None, 'A block must hold'),
        ('methods', ['nothing'], 'neither a method nor a group'),
    ],
)
def test_bad_grid_is_refused(bench, tmp_path, key, value, match):
    block = {**GRID['blocks'][0], key: value}
    if value is None:
        del block[key]
    path = tmp_path / 'grid.json'
    path.write_text(json.dumps(GRID | {'blocks': [block]}))
    with pytest.raises(ValueError, match=match):
        bench('cells').Grid(path)


class Page:
    r"""A page with a table, and the command that writes and checks it."""

    def __init__(self, run, marker='table: main tiny/MGCN/0.2'):
        self.run, self.path = run, run.folder / 'page.md'
        self.path.write_text(f'Before\n<!-- {marker} -->\n<!-- end -->\nAfter\n')

    def __call__(self, *options):
        main = import_module('tables').main
        return main([*self.run.paths, '--pages', f'{self.path}', *options])


def test_tables_are_written_and_checked(copied, capsys):
    page = Page(copied)
    assert page('--check') == 1
    assert 'not current' in capsys.readouterr().err
    assert page() == 0
    assert page('--check') == 0
    text = page.path.read_text()
    assert text.startswith('Before\n<!-- table')
    assert text.endswith('<!-- end -->\nAfter\n')
    cell = json.loads((copied.results / PLACE / 'tru.json').read_text())
    value = cell['metrics']['forget_recall@20']['value']
    (row,) = [line for line in text.splitlines() if line.startswith('| tru |')]
    assert row.split(' | ')[4] == f'{value:.4f}'
    assert COMMIT[:7] in text
    page.path.write_text(text.replace(f'{value:.4f}', '0.1234'))
    assert page('--check') == 1


def test_missing_cells_are_named(copied):
    (copied.results / PLACE / 'tru.json').unlink()
    page = Page(copied)
    assert page() == 0
    assert 'Missing, 1 of 4 cells: user/0: tru.' in page.path.read_text()
    shutil.rmtree(copied.results)
    assert page() == 0
    assert 'None of the 4 cells is there yet.' in page.path.read_text()


def tamper(run):
    path = run.results / PLACE / 'tru.json'
    path.write_text(path.read_text().replace('"dirty"', '"clean"'))


@pytest.mark.parametrize(
    ('spoil', 'match'),
    [
        (tamper, 'was changed after it was written'),
        (lambda run: change(run, 'tru', commit='b' * 40), 'different commits'),
        (lambda run: change(run, 'tru', dirty=True), 'changed working tree'),
        (lambda run: change(run, 'tru', config={'schema': 1}), 'other settings'),
        (lambda run: change(run, 'tru', data={'digest': ''}), 'different data'),
        (
            lambda run: shutil.copy(
                run.results / PLACE / 'tru.json', run.results / PLACE / 'mine.json'
            ),
            'is no cell of the grid',
        ),
    ],
)
def test_what_does_not_belong_together_is_refused(copied, capsys, spoil, match):
    page = Page(copied)
    assert page() == 0
    text = page.path.read_text()
    spoil(copied)
    assert page('--check') == 1
    assert match in capsys.readouterr().err
    assert page() == 1  # Nor is it written.
    assert page.path.read_text() == text


def test_figures_follow_their_cells(copied, bench, monkeypatch, tmp_path, capsys):
    pytest.importorskip('matplotlib')
    figures = bench('figures')
    monkeypatch.setattr(figures, 'FOLDER', tmp_path / 'figures')
    page = Page(copied, 'figure: plane tiny/MGCN/0.2')
    assert page() == 1
    assert 'was not drawn' in capsys.readouterr().err
    assert figures.main([*copied.paths, '--page', f'{page.path}']) == 0
    assert page() == 0
    assert page('--check') == 0
    file = figures.file('plane tiny/MGCN/0.2')
    text = file.read_text()
    file.write_text(text + ' ')
    assert page('--check') == 1
    assert 'changed after it was drawn' in capsys.readouterr().err
    file.write_text(text)
    change(copied, 'tru', commit=COMMIT, cell_seconds=1.0)
    assert page('--check') == 1
    assert 'drawn of other cells' in capsys.readouterr().err


@pytest.mark.parametrize('kind', ['persistence', 'cka', 'layers'])
def test_figures_of_a_diagnosis(copied, bench, monkeypatch, tmp_path, kind):
    pytest.importorskip('matplotlib')
    figures = bench('figures')
    monkeypatch.setattr(figures, 'FOLDER', tmp_path / 'figures')
    page = Page(copied, f'figure: {kind} tiny/MGCN/0.2')
    assert figures.main([*copied.paths, '--page', f'{page.path}']) == 0
    assert page() == 0


def test_figure_needs_cells_of_its_own(filled, tmp_path, bench):
    shutil.copytree(filled, tmp_path, dirs_exist_ok=True)
    grid = GRID | {'methods': METHODS | {'tru-none': {'class': 'TRU'}}}
    grid['groups'] = GRID['groups'] | {
        'core': [*METHODS, 'tru-none'],
        'ablation': ['tru-none'],
    }
    page = Page(Run(bench, tmp_path, grid), 'figure: ablation tiny/MGCN/0.2')
    assert page() == 0
    assert 'None of its cells is there yet.' in page.path.read_text()


def test_unknown_tables_and_figures_are_refused(copied, capsys):
    for marker in ('table: best tiny/MGCN/0.2', 'figure: pie tiny/MGCN/0.2'):
        assert Page(copied, marker)() == 1
    assert Page(copied, 'table: main tiny/MGCN/0.5')() == 1
    err = capsys.readouterr().err
    assert 'is no table' in err
    assert 'is no figure' in err
    assert 'no cell of tiny/MGCN/0.5' in err


def test_the_grid_of_the_project_is_whole(bench):
    grid = bench('cells').Grid()
    used = {cell.method for cell in grid.cells.values()}
    assert used == set(grid.methods)
    for cell in grid.cells.values():
        if cell.method not in ('retrain_2', 'original'):
            assert f'{cell.request}/original' in grid.cells
