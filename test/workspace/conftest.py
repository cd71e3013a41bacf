r"""A small shop whose workspace is made once and copied for every test."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from torch_geometric_unlearn.datasets import SyntheticMultimodal
from torch_geometric_unlearn.nn import LightGCN
from torch_geometric_unlearn.train import fit
from torch_geometric_unlearn.unlearn import RowReset, base
from torch_geometric_unlearn.utils.files import atomic_save_all
from torch_geometric_unlearn.utils.seed import isolated_seed
from torch_geometric_unlearn.workspace import Workspace, evidence, gates, worker
from torch_geometric_unlearn.workspace.ledger import Ledger

DAY = 86_400.0
START = 1e9
FIT = {'num_epochs': 6, 'lr': 3e-2, 'batch_size': 1024}
PARTIAL = {'num_epochs': 2, 'min_steps': 2, 'lr': 1e-2, 'batch_size': 512}


class Clock:
    def __init__(self):
        self.now = START

    def __call__(self):
        return self.now

    def wait(self, days):
        self.now += days * DAY


def build(data):
    return LightGCN.from_data(data, hidden_channels=8)


def shop_data(num_users=200):
    data = SyntheticMultimodal('tiny', num_users=num_users)[0]
    size = data['item'].num_nodes
    data['user'].raw_id = [f'user{i:03}@shop.org' for i in range(num_users)]
    data['item'].raw_id = [f'sku-{i:02}' for i in range(size)]
    return data


@pytest.fixture(scope='session')
def data():
    r"""The data of the shop; tests must not change it."""
    return shop_data()


@pytest.fixture(scope='session')
def model(data):
    with isolated_seed(0):
        model = build(data)
    fit(model, data, **FIT)
    return model


@pytest.fixture(scope='session')
def template(data, model, tmp_path_factory):
    root = tmp_path_factory.mktemp('template') / 'shop'
    ws = Workspace.create(
        root, data=data, model=model, build_model=build, clock=Clock(),
        fit_args=FIT, method_args=PARTIAL, k=10, min_users=3, surge_share=0.5,
        max_erased=0.5, surge_requests=10_000, surge_item_pairs=10_000,
        max_loss=1.0,
    )  # fmt: skip
    ws.ledger.close()
    return root


@pytest.fixture(autouse=True)
def _fast_disk(monkeypatch):
    r"""Flushes are slow, and of no effect while the machine runs."""
    init = Ledger.__init__

    def fast(self, path):
        init(self, path)
        self.db.execute('PRAGMA synchronous=OFF')

    monkeypatch.setattr(Ledger, '__init__', fast)
    monkeypatch.setattr(os, 'fsync', lambda _: None)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def make(template, clock):
    r"""Makes a workspace in a folder, with other settings if any are given."""

    def make(root, **settings):
        root = Path(root)
        shutil.copytree(template, root)
        shutil.copy(template.with_name('shop.key'), root.with_name('shop.key'))
        content = json.loads((root / 'workspace.json').read_text()) | settings
        content['key'] = str(root.with_name('shop.key'))
        (root / 'workspace.json').write_text(json.dumps(content))
        return Workspace(root, build, clock)

    return make


@pytest.fixture
def ws(make, tmp_path):
    return make(tmp_path / 'shop')


@pytest.fixture
def cheap(make, tmp_path, monkeypatch):
    r"""One that draws rows anew and does not train."""
    original = worker.make_unlearner

    def make_unlearner(ws, name, job):
        # Other rows than those of a way back.
        return RowReset(seed=1) if name == 'RowReset' else original(ws, name, job)

    monkeypatch.setattr(worker, 'make_unlearner', make_unlearner)
    few = FIT | {'num_epochs': 1}
    return make(tmp_path / 'shop', method='RowReset', method_args={}, fit_args=few)


@pytest.fixture
def quick(monkeypatch):
    r"""Writes the first report again and again, and knows what models keep."""
    monkeypatch.setattr(base, 'kept_structure', lambda *_: '')
    original, content = evidence.write_report, {}

    def write_report(result, path, **kwargs):
        paths = [path.with_suffix(end) for end in ('.json', '.html')]
        if not content:
            original(result, path, **kwargs)
            content.update((p, p.read_bytes()) for p in paths)
        files = zip(content.values(), paths)
        atomic_save_all([(lambda f, c=c: f.write(c), p) for c, p in files])

    monkeypatch.setattr(evidence, 'write_report', write_report)


@pytest.fixture
def good_gates(monkeypatch):
    r"""Soft gates that pass whatever they get."""

    def good(name):
        middle = 0.5 if name == 'membership' else 0.0
        figures = {'low': middle, 'high': middle, 'to_full': 0.0, 'num_pairs': 99.0}
        return lambda *_: gates.Gate(name, figures)

    monkeypatch.setattr(gates, 'utility', good('utility'))
    monkeypatch.setattr(gates, 'forget', good('forget'))
    monkeypatch.setattr(gates, 'attack', good('membership'))


@pytest.fixture
def ask():
    r"""Submits a request in one line."""
    numbers = iter(range(1, 10_000))

    def ask(ws, kind='erasure', **kwargs):
        kwargs = {'client_id': f'T-{next(numbers)}', 'verified_by': 'crm'} | kwargs
        return ws.submit(kind, **kwargs)

    return ask


class Shop:
    r"""What tests say about the shop."""

    build = staticmethod(build)
    fit_args = FIT

    @staticmethod
    def user(i):
        return f'user{i:03}@shop.org'

    @staticmethod
    def item(i):
        return f'sku-{i:02}'

    @classmethod
    def pair(cls, data, number):
        u, i = data['user', 'interacts', 'item'].edge_index[:, number].tolist()
        return cls.user(u), cls.item(i)

    @staticmethod
    def places(root, *words):
        r"""Files of a folder that hold one of some words."""
        words = [word if isinstance(word, bytes) else word.encode() for word in words]
        return sorted(
            str(path.relative_to(root))
            for path in Path(root).rglob('*')
            if path.is_file() and any(word in path.read_bytes() for word in words)
        )

    @staticmethod
    def row(model, user):
        r"""The bytes of the embedding of a user."""
        weight = model.state_dict()['user_embedding.weight']
        return weight[user].numpy().tobytes()

    @staticmethod
    def files(root):
        r"""All files of a workspace."""
        root = Path(root)
        return sorted(str(p.relative_to(root)) for p in root.rglob('*') if p.is_file())

    @classmethod
    def check(cls, ws):
        r"""What must hold of any workspace at rest."""
        ws.ledger.check_chain()
        rows = ws.ledger.rows(
            "SELECT id, data FROM version WHERE state != 'purged' UNION "
            "SELECT version, data FROM attempt WHERE state = 'kept'"
        )
        for folder, key in (('models', 'id'), ('data', 'data')):
            expected = {f"{row[key]}.safetensors" for row in rows}
            if folder == 'data':  # What a way back starts from that waits.
                sql = (
                    "SELECT j.data FROM job j JOIN version v ON v.id = j.parent WHERE "
                    "j.data NOT NULL AND v.state != 'purged' AND (j.state = 'waiting' "
                    "OR j.replays AND j.id IN (SELECT job FROM attempt WHERE "
                    "state = 'kept'))"
                )
                waiting = ws.ledger.rows(sql)
                expected |= {f"{row['data']}.safetensors" for row in waiting}
            assert {p.name for p in (ws.root / folder).iterdir()} == expected
        assert not list(ws.root.rglob('*.tmp'))
        # A dead job goes on from its own file.
        sql = "SELECT id FROM job WHERE state IN ('running', 'waiting')"
        running = ws.ledger.rows(sql)
        names = {f"{row['id']}.ck" for row in running}
        assert {p.name for p in (ws.root / 'jobs').glob('*')} <= names
        rows = ws.ledger.rows('SELECT id FROM job WHERE version IS NOT NULL')
        jobs = {row['id'] for row in rows}
        assert {p.name for p in (ws.root / 'evidence').glob('*')} <= jobs


@pytest.fixture(scope='session')
def shop():
    return Shop
