r"""Runs the examples of the docstrings and of the README."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest
import torch

import torch_geometric_unlearn as tgu

ROOT = Path(__file__).parents[1]
MODULES = [
    module.name
    for module in pkgutil.walk_packages(tgu.__path__, 'torch_geometric_unlearn.')
]


def namespace():
    out = {'torch': torch}
    for package in (
        tgu.audit,
        tgu.data,
        tgu.datasets,
        tgu.loader,
        tgu.metrics,
        tgu.nn,
        tgu.ops,
        tgu.report,
        tgu.testing,
        tgu.train,
        tgu.transforms,
        tgu.unlearn,
    ):
        out |= {name: getattr(package, name) for name in package.__all__}
    data = tgu.datasets.SyntheticMultimodal('tiny')[0]
    model = tgu.nn.MGCN.from_data(data)
    return out | {'data': data, 'model': model}


@pytest.mark.parametrize('name', MODULES)
def test_docstrings(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if name.endswith('._triton'):
        pytest.importorskip('triton')
    module = importlib.import_module(name)
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    runner = doctest.DocTestRunner(optionflags=flags)
    messages = []
    for test in doctest.DocTestFinder().find(module, name, extraglobs=namespace()):
        runner.run(test, out=messages.append)
    assert runner.summarize(verbose=False).failed == 0, ''.join(messages)


def test_readme_tour(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r'```python\n(.*?)```', (ROOT / 'README.md').read_text(), re.S)
    assert len(blocks) == 2
    scope = {}
    for block in blocks:
        exec(compile(block, 'README.md', 'exec'), scope)
    assert type(scope['result'].model).__name__ == 'RecommenderAdapter'
    assert scope['items'].shape == (2, 5)
    assert 'forget_recall@20' in capsys.readouterr().out
    assert (tmp_path / 'unlearned.safetensors').exists()


def test_every_public_name_is_documented():
    for name, value in namespace().items():
        if name not in ('torch', 'data', 'model'):
            assert value.__doc__, name
