r"""Every writer, killed at every step and at any moment: the file is complete, and the
next write leaves nothing else in its folder.

`TGU_KILLS=200` in the environment kills as many processes at random moments.
"""

import itertools
import os
import random
import re
import signal
from hashlib import sha256

import pytest
from torch_geometric.testing import onlyLinux

from torch_geometric_unlearn.utils import files

NUM_KILLS = int(os.environ.get('TGU_KILLS', '18'))

# Runs in this process and in those that are killed.
CODE = '''
import copy
import json
import torch
from torch_geometric.data import Data
from torch_geometric_unlearn.datasets import SyntheticMultimodal
from torch_geometric_unlearn.datasets._stored import StoredDataset
from torch_geometric_unlearn.nn import LightGCN
from torch_geometric_unlearn.report import build_report, save_json, write_report
from torch_geometric_unlearn.train import fit, save_model
from torch_geometric_unlearn.transforms import ForgetUsers
from torch_geometric_unlearn.unlearn import EdgeDrop, PartialRetrain
from torch_geometric_unlearn.utils.seed import isolated_seed

data = SyntheticMultimodal('tiny')[0]
marked = ForgetUsers([3])(data)
with isolated_seed(0):
    model = LightGCN.from_data(data, hidden_channels=4)


def write_model(folder, value):
    filled = copy.deepcopy(model)
    with torch.no_grad():
        filled.user_embedding.weight.fill_(value)
    save_model(filled, folder / 'model', {'value': value}, data=data)


def write_json(folder, value):
    save_json(folder / 'rows.json', {'value': value, 'rest': [value] * 3000})


def write_dataset(folder, value):
    parts = [Data(x=torch.full((999,), float(value))), Data(x=torch.ones(2))]
    StoredDataset.save(parts, str(folder / 'data'))


def write_page(folder, value):
    global content
    if content is None:
        content = build_report(EdgeDrop()(model, marked))
    write_report(content | {'title': str(value)}, folder / 'page')


def train(folder, value):
    with isolated_seed(0):
        fresh = LightGCN.from_data(data, hidden_channels=4)
    fit(fresh, data, num_epochs=2, batch_size=512, checkpoint=folder / 'run',
        resume=True)


def train_rows(folder, value):
    PartialRetrain(num_epochs=2, min_steps=2, checkpoint=folder / 'rows', resume=True)(
        model, marked)


content = None
WRITERS = {
    'model': write_model,
    'json': write_json,
    'dataset': write_dataset,
    'report': write_page,
    'fit': train,
    'rows': train_rows,
}
'''
SPACE = {}
exec(CODE, SPACE)
WRITERS = SPACE['WRITERS']
NAMES = {
    'model': ['model'],
    'json': ['rows.json'],
    'dataset': ['data'],
    'report': ['page.html', 'page.json'],
    'fit': ['run'],
    'rows': ['rows'],
}


def read(name, folder):
    r"""The value that was written last, or nothing; fails on half a file."""
    load_tensors, json = SPACE['save_model'].__globals__['load_tensors'], SPACE['json']
    path = folder / NAMES[name][-1]
    if name == 'report':
        page = path.with_suffix('.html')
        if page.exists():
            digest = re.search(r'json-sha256" content="(\w+)"', page.read_text())[1]
            assert sha256(path.read_bytes()).hexdigest() == digest
            assert page.read_text().endswith('</html>')
    if not path.exists():
        return None
    if path.suffix == '.json':
        content = json.loads(path.read_text())
        return int(content['title' if name == 'report' else 'value'])
    tensors, header = load_tensors(path)
    if name == 'model':
        assert (tensors['user_embedding.weight'] == header['meta']['value']).all()
        return header['meta']['value']
    if name == 'dataset':
        return int(max(tensors.values(), key=len)[0]) if len(tensors) > 1 else None
    return 1


class Killed(BaseException):
    r"""Ends everything: what would clean up fails with it as well."""


class Machine:
    r"""The operating system as `utils.files` sees it, until it stops."""

    GATES = ('fsync', 'replace', 'unlink', 'open', 'makedirs')

    def __init__(self, last_step):
        self.last_step, self.num_steps = last_step, 0

    def step(self):
        self.num_steps += 1
        if self.num_steps >= self.last_step:
            raise Killed

    def __getattr__(self, name):
        value = getattr(os, name)
        if name not in self.GATES:
            return value

        def call(*args, **kwargs):
            self.step()
            return value(*args, **kwargs)

        return call

    def open_file(self, path, mode):
        self.step()
        return File(self, open(path, mode))


class File:
    def __init__(self, machine, file):
        self.machine, self.file = machine, file

    def write(self, content):
        try:
            self.machine.step()
        except Killed:
            self.file.write(content[: len(content) // 2])
            raise
        return self.file.write(content)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def __getattr__(self, name):
        return getattr(self.file, name)


# A run goes on from its own file only.
CASES = [(name, False) for name in WRITERS]
CASES += [(name, True) for name in WRITERS if name not in ('fit', 'rows')]


@pytest.mark.parametrize(('name', 'exists'), CASES)
def test_killed_at_every_step(name, exists, tmp_path, monkeypatch):
    monkeypatch.setattr(os, 'fsync', lambda _: None)  # Slow, and of no effect here.
    write, left_behind, pages = WRITERS[name], 0, set()
    for last_step in itertools.count(1):
        folder = tmp_path / str(last_step)
        folder.mkdir()
        if exists:
            write(folder, 0)
        machine, ended = Machine(last_step), False
        with monkeypatch.context() as patch:
            patch.setattr(files, 'os', machine)
            patch.setattr(files, 'open', machine.open_file, raising=False)
            try:
                write(folder, 1)
                ended = True
            except Killed:
                pass
        assert read(name, folder) in ((0, 1) if exists else (None, 1))
        pages.add(tuple(sorted(p.name for p in folder.iterdir() if p.suffix != '.tmp')))
        left_behind += any(path.suffix == '.tmp' for path in folder.iterdir())
        write(folder, 1)
        assert read(name, folder) == 1
        assert sorted(path.name for path in folder.iterdir()) == NAMES[name]
        if ended:
            break
    assert left_behind >= 3  # In the middle of the content, before and after a flush.
    assert tuple(NAMES[name]) in pages
    assert ('page.html',) not in pages


@onlyLinux
@pytest.mark.parametrize('name', WRITERS)
def test_killed_at_any_moment(name, tmp_path, run_code):
    rng, num_left = random.Random(name), 0
    for _ in range(NUM_KILLS // len(WRITERS)):
        for path in tmp_path.iterdir():
            path.unlink()
        kill = (
            'import os, random, signal, threading\n'
            'from pathlib import Path\n'
            'torch.set_num_threads(1)\n'
            f'folder, name = Path({str(tmp_path)!r}), {name!r}\n'
            'WRITERS[name](folder, 0)\n'
            f'threading.Timer({rng.uniform(0, 0.03)}, os.kill, '
            '(os.getpid(), signal.SIGKILL)).start()\n'
            'while True:\n'
            '    for value in (1, 0):\n'
            '        if name in ("fit", "rows"):\n'
            '            next(folder.iterdir()).unlink(missing_ok=True)\n'
            '        WRITERS[name](folder, value)\n'
        )
        assert run_code(CODE + kill) == -signal.SIGKILL
        num_left += any(tmp_path.glob('*.tmp'))
        assert read(name, tmp_path) in (None, 0, 1)
        WRITERS[name](tmp_path, 1)
        assert read(name, tmp_path) == 1
        assert sorted(path.name for path in tmp_path.iterdir()) == NAMES[name]
    if NUM_KILLS >= 200 and name not in ('fit', 'rows'):  # These mostly compute.
        assert num_left > 0
