r"""The shape of the package: imports run one way, nothing optional is required."""

import ast
import subprocess
import sys
from pathlib import Path

import torch_geometric_unlearn as tgu

PACKAGE = Path(tgu.__file__).parent
LAYERS = [
    {'typing', 'utils', 'ops', 'data'},
    {'transforms', 'datasets', 'nn'},
    {'loader', 'metrics'},
    {'train'},
    {'unlearn'},
    {'audit'},
    {'report', 'testing'},
]


def test_imports_run_one_way():
    level = {name: place for place, names in enumerate(LAYERS) for name in names}
    for path in PACKAGE.rglob('*.py'):
        part = path.relative_to(PACKAGE).parts[0].removesuffix('.py')
        if part == '__init__':
            continue
        # What a function imports when it runs (a result its report) is not needed.
        for node in ast.parse(path.read_text()).body:
            if not isinstance(node, ast.ImportFrom) or node.level > 0:
                continue
            names = (node.module or '').split('.')
            if names[0] != 'torch_geometric_unlearn' or len(names) == 1:
                continue
            assert level[names[1]] <= level[part], f'{path.name} imports {node.module}'


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
