r"""Runs the examples of the docstrings, of the README and of the documentation."""

import doctest
import importlib
import pkgutil
import re
import textwrap
from pathlib import Path

import pytest
import torch

import torch_geometric_unlearn as tgu

ROOT = Path(__file__).parents[1]
FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
PAGES = sorted((ROOT / 'docs').glob('*.rst'))
CONCEPTS = [path for path in PAGES if '>>> ' in path.read_text()]
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
        tgu.distributed,
        tgu.loader,
        tgu.metrics,
        tgu.nn,
        tgu.ops,
        tgu.report,
        tgu.testing,
        tgu.train,
        tgu.transforms,
        tgu.unlearn,
        tgu.workspace,
    ):
        out |= {name: getattr(package, name) for name in package.__all__}
    data = tgu.datasets.SyntheticMultimodal('tiny')[0]
    model = tgu.nn.MGCN.from_data(data)
    return out | {'data': data, 'model': model}


@pytest.mark.usefixtures('few_trees')
@pytest.mark.parametrize('name', MODULES)
def test_docstrings(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if name.endswith('._triton'):
        pytest.importorskip('triton')
    module = importlib.import_module(name)
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    messages = []
    for test in doctest.DocTestFinder().find(module, name, extraglobs=namespace()):
        runner.run(test, out=messages.append)
    assert runner.summarize(verbose=False).failed == 0, ''.join(messages)


@pytest.mark.usefixtures('few_trees')
def test_readme_tour(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r'```python\n(.*?)```', (ROOT / 'README.md').read_text(), re.S)
    assert len(blocks) == 3
    scope = {}
    for block in blocks:
        exec(compile(block, 'README.md', 'exec'), scope)
    assert type(scope['result'].model).__name__ == 'RecommenderAdapter'
    assert scope['items'].shape == (2, 5)
    assert 0 <= scope['attack'].balanced_accuracy <= 1  # Not NaN.
    assert scope['attack'].reason == ''
    assert scope['content']['verdict']['status'] in ('within', 'outside', 'unclear')
    assert 'forget_recall@20' in capsys.readouterr().out
    assert (tmp_path / 'unlearned.safetensors').exists()


@pytest.mark.usefixtures('few_trees')
@pytest.mark.parametrize('path', CONCEPTS, ids=lambda path: path.stem)
def test_concept(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    test = doctest.DocTestParser().get_doctest(
        path.read_text(), {'__name__': '__main__'}, path.name, str(path), 0
    )
    runner, messages = doctest.DocTestRunner(optionflags=FLAGS), []
    runner.run(test, out=messages.append)
    assert runner.summarize(verbose=False).failed == 0, ''.join(messages)


@pytest.mark.usefixtures('few_trees')
def test_tour(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = (ROOT / 'docs' / 'tour.rst').read_text()
    blocks = re.findall(r'^\.\. code-block:: python\n\n((?: {4}.*\n|\n)+)', text, re.M)
    scope = {'__name__': '__main__'}
    for block in blocks:
        exec(compile(textwrap.dedent(block), 'tour.rst', 'exec'), scope)
    assert scope['after']['forget_recall@20'] < scope['before']['forget_recall@20']
    assert scope['items'].shape == (2, 5)
    assert scope['content']['failures'] == []
    assert scope['content']['verdict']['status'] in capsys.readouterr().out
    assert (tmp_path / 'unlearned.safetensors').exists()
    assert (tmp_path / 'report.html').exists()


def test_every_method_has_a_row():
    text = (ROOT / 'docs' / 'unlearner.rst').read_text()
    for name in tgu.unlearn.__all__:
        assert f':class:`~unlearn.{name}`' in text, name


@pytest.mark.parametrize('name', ['torch_geometric_unlearn', *MODULES])
def test_every_public_name_is_documented(name):
    if name.endswith('._triton'):
        pytest.importorskip('triton')
    module = importlib.import_module(name)
    for public in getattr(module, '__all__', ()):
        if not public.startswith('__'):
            assert getattr(module, public).__doc__, f'{name}.{public}'
