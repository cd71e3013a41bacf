r"""The public surface: what it has, and with which arguments, changes only on purpose.

`python test/test_public.py` writes it anew; look at the difference before committing.
"""

import importlib
import inspect
import json
import re
from pathlib import Path

import torch_geometric_unlearn as tgu

FILE = Path(__file__).with_name('public.json')


def surface():
    r"""Every public name with its arguments and their defaults."""
    out = {}
    for name in tgu.__all__:
        if name.startswith('_'):
            continue
        module = importlib.import_module(f'{tgu.__name__}.{name}')
        for public in module.__all__:
            out[f'{name}.{public}'] = arguments(getattr(module, public))
    return dict(sorted(out.items()))


def arguments(value):
    if value.__class__.__name__ == '_ProtocolMeta' or not callable(value):
        return ''
    try:
        parameters = inspect.signature(value).parameters.values()
    except ValueError:
        return ''
    plain = [p.replace(annotation=inspect.Parameter.empty) for p in parameters]
    return re.sub(r' at 0x\w+', '', ', '.join(str(p) for p in plain))


def test_names_and_signatures():
    assert surface() == json.loads(FILE.read_text())


def test_public_names_are_few():
    assert len(surface()) <= 110


if __name__ == '__main__':
    FILE.write_text(json.dumps(surface(), indent=1) + '\n')
