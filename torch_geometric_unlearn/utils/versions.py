from __future__ import annotations

import platform
import subprocess
from contextlib import suppress
from importlib import import_module
from pathlib import Path

import numpy
import torch
import torch_geometric

_PACKAGE = 'torch_geometric_unlearn'


def versions() -> dict[str, str]:
    r"""Returns what a saved run should say about its surroundings."""
    device = _processor()
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    threads = str(torch.get_num_threads())
    return package_versions() | {
        'device': device,
        'num_threads': threads,
        'git': _git_hash(),
    }


def package_versions() -> dict[str, str]:
    r"""Returns the versions of the packages that a file was written with."""
    return {
        'torch_geometric_unlearn': import_module(_PACKAGE).__version__,
        'torch': torch.__version__,
        'torch_geometric': torch_geometric.__version__,
        'numpy': numpy.__version__,
        'python': platform.python_version(),
    }


def _processor() -> str:
    with suppress(OSError):
        for line in Path('/proc/cpuinfo').read_text().splitlines():
            if line.startswith('model name'):
                return line.partition(':')[2].strip()
    return platform.processor() or platform.machine()


def _git_hash() -> str:
    r"""Returns the commit of the package's own checkout, or nothing."""
    package = Path(__file__).parents[1]
    if not (package.parent / '.git').exists():
        return ''
    command = ['git', '-C', str(package), 'rev-parse', '--short', 'HEAD']
    with suppress(OSError):
        out = subprocess.run(command, capture_output=True, text=True, check=False)
        return out.stdout.strip()
    return ''
