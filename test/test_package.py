r"""The shape of the package: imports run one way, nothing optional is required."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import torch_geometric_unlearn as tgu

PACKAGE = Path(tgu.__file__).parent
#: Every layer may name those before it, and none after it.
LAYERS = [
    'typing',
    'utils',
    'ops',
    'data',
    'transforms',
    'distributed',
    'datasets',
    'nn',
    'loader',
    'metrics',
    'train',
    'unlearn',
    'audit',
    'evaluation',
    'report',
    'testing',
    'workspace',
    '__main__',
]


def layer_of(path):
    parts = path.relative_to(PACKAGE).parts
    return parts[0].removesuffix('.py')


def imported_layers(path):
    r"""What a module imports from the package, at its top or anywhere below."""
    depth = len(path.relative_to(PACKAGE).parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module]
            if node.module == PACKAGE.name:
                names = [f'{PACKAGE.name}.{alias.name}' for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level >= depth:
            names = [f'{PACKAGE.name}.{node.module or node.names[0].name}']
        else:
            continue
        for name in names:
            first, _, rest = name.partition('.')
            if first == PACKAGE.name and not rest.startswith('__'):
                yield rest.partition('.')[0]


@pytest.mark.parametrize('layer', LAYERS)
def test_a_layer_names_none_after_it(layer):
    paths = [p for p in PACKAGE.rglob('*.py') if layer_of(p) == layer]
    assert paths
    allowed = set(LAYERS[: LAYERS.index(layer) + 1])
    for path in paths:
        above = set(imported_layers(path)) - allowed
        assert not above, f'{path.relative_to(PACKAGE)} imports {sorted(above)}'


def test_every_module_has_a_layer():
    found = {layer_of(path) for path in PACKAGE.rglob('*.py')} - {'__init__'}
    assert found == set(LAYERS)


BLOCKED = '''
import sys
for name in ('pandas', 'pyarrow', 'sklearn', 'scipy', 'ogb', 'ot',
             'torch_scatter', 'torch_sparse', 'triton', 'sentence_transformers'):
    sys.modules[name] = None
import torch_geometric_unlearn as tgu
data = tgu.datasets.SyntheticMultimodal('tiny')[0]
model = tgu.nn.MGCN.from_data(data, hidden_channels=8)
tgu.train.fit(model, data, num_epochs=1)
tgu.unlearn.TRU(num_epochs=1)(model, tgu.transforms.ForgetUsers([3])(data))
try:
    tgu.data.to_frame(data)
except ImportError as error:
    print(error)
'''


def test_works_without_optional_packages(tmp_path):
    out = subprocess.run(
        [sys.executable, '-W', 'error::UserWarning', '-c', BLOCKED],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert out.returncode == 0, out.stderr
    assert 'pip install "torch_geometric_unlearn[frame]"' in out.stdout


def test_extras_that_are_named_exist():
    root = PACKAGE.parent
    text = (root / 'pyproject.toml').read_text()
    extras = text.partition('[project.optional-dependencies]')[2].partition('\n[')[0]
    known = set(re.findall(r'^(\w+) = ', extras, re.MULTILINE))
    pages = [root / 'README.md', *(root / 'docs').glob('*.rst'), *PACKAGE.rglob('*.py')]
    for page in pages:
        text = page.read_text()
        named = set(re.findall(r'torch_geometric_unlearn\[([a-z]+)\]', text))
        if page.suffix != '.py':
            named |= set(re.findall(r'[`.]\[([a-z]+)\][`\']', text))
        assert named <= known, page.name
