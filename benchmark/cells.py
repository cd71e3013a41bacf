r"""What a cell of the grid is: its place, its settings, and its file."""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
from dataclasses import dataclass, field
from fnmatch import fnmatch
from itertools import product
from pathlib import Path

# The package of this checkout, whatever else is installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch_geometric_unlearn
from torch_geometric_unlearn.report.table import save_json, without_nan

FOLDER = Path(__file__).resolve().parent
#: Version of the files; tables take no other.
SCHEMA = 1
#: What a result depends on, as paths of git.
_CODE = ('torch_geometric_unlearn', 'benchmark', ':!benchmark/results')
_CODE += (':!benchmark/README.md', ':!benchmark/figures')
_AXES = ('datasets', 'backbones', 'regimes', 'ratios', 'seeds', 'methods')


@dataclass(frozen=True)
class Cell:
    r"""One method on one request: where it stands, and all that determines it.

    Attributes:
        dataset (str): Name of the data set.
        backbone (str): Name of the model.
        regime (str): What the request names: users, items or interactions.
        ratio (float): Share to forget.
        seed (int): Seed of model, request and method.
        method (str): Name of the method in the grid.
        block (str): The first block of the grid that has it.
        config (dict): All settings, and what the six above say.
        minutes (float): What it is expected to take.
    """

    dataset: str
    backbone: str
    regime: str
    ratio: float
    seed: int
    method: str
    block: str = field(compare=False)
    config: dict = field(compare=False, repr=False)
    minutes: float = field(compare=False)

    @property
    def request(self):
        r"""The place of all cells of the same request."""
        where = self.dataset, self.backbone, self.regime, f'{self.ratio:g}', self.seed
        return '/'.join(map(str, where))

    @property
    def name(self):
        r"""The place of the cell."""
        return f'{self.request}/{self.method}'

    @property
    def kind(self):
        r"""How it is computed."""
        return self.config['kind']

    def file(self, results):
        r"""Returns where the result stands."""
        return Path(results) / f'{self.name}.json'

    def error_file(self, results):
        r"""Returns where it stands why there is no result."""
        return Path(results) / f'{self.name}.error.json'


class Grid:
    r"""All cells of a file, the most valuable first.

    Args:
        path (str or Path): A JSON file with :obj:`methods` by name, :obj:`groups` of
            them, :obj:`training` (arguments of `fit` by data set or backbone),
            :obj:`measures`, :obj:`factors` (time by data set or backbone, relative to
            the first), and :obj:`blocks`, each with a list for every axis.

    Raises:
        ValueError: If something unknown is named, or something is missing.
    """

    def __init__(self, path=FOLDER / 'grid.json'):
        content = json.loads(Path(path).read_text())
        known = {'methods', 'groups', 'training', 'measures', 'factors', 'blocks'}
        if set(content) != known:
            raise ValueError(
                f"'{path}' must hold {sorted(known)} (got {sorted(content)})"
            )
        self.content = content
        self.path, self.methods = Path(path), content['methods']
        cells = {}
        for block in content['blocks']:
            for cell in self._block(block):
                cells.setdefault(cell.name, cell)
        self.cells = cells

    def _block(self, block):
        if set(block) != {'name', *_AXES}:
            raise ValueError(
                f"A block must hold 'name' and {_AXES} (got {sorted(block)})"
            )
        methods = []
        for name in block['methods']:
            methods += self.content['groups'].get(name, [name])
        for name in methods:
            if name not in self.methods:
                raise ValueError(
                    f"The block '{block['name']}' names '{name}', which is neither a "
                    f"method nor a group of the grid"
                )
        axes = [block[axis] for axis in _AXES[:5]]
        # A seed is served whole before the next one.
        for dataset, backbone, seed, ratio, regime in product(
            axes[0], axes[1], axes[4], axes[3], axes[2]
        ):
            for method in methods:
                yield self._cell(
                    dataset, backbone, regime, ratio, seed, method, block['name']
                )

    def _cell(self, dataset, backbone, regime, ratio, seed, method, block):
        from backbones import training_settings

        spec = dict(self.methods[method])
        minutes = spec.pop('minutes', 1.0)
        if 'of' in spec:
            spec['of'] = [spec['of'], self._plain(spec['of'])]
        fit_args = training_settings(backbone, dataset)
        for name in (backbone, dataset, f'{dataset}/{backbone}'):
            fit_args |= self.content['training'].get(name, {})
        for name in (backbone, dataset):
            minutes *= self.content['factors'].get(name, 1.0)
        config = {
            'schema': SCHEMA,
            'dataset': dataset,
            'backbone': backbone,
            'regime': regime,
            'ratio': ratio,
            'seed': seed,
            'method': method,
            'kind': 'unlearn',
            **spec,
            'fit': fit_args,
            'measures': self.content['measures'],
        }
        config = json.loads(json.dumps(config))  # As it comes back from a file.
        return Cell(
            dataset, backbone, regime, ratio, seed, method, block, config, minutes
        )

    def _plain(self, method):
        spec = dict(self.methods[method])
        spec.pop('minutes', None)
        return {'kind': 'unlearn'} | spec

    def select(self, patterns=()):
        r"""Returns the cells that match one of the patterns, all without any; a pattern
        also matches the name of a block.

        Raises:
            ValueError: If a pattern matches nothing.
        """
        for pattern in patterns:
            if not any(_matches(cell, pattern) for cell in self.cells.values()):
                raise ValueError(
                    f"'{pattern}' matches no cell. Patterns are of the form "
                    f"'Baby/MGCN/user/*/999/tru', or the name of a block: "
                    f'{list(dict.fromkeys(c.block for c in self.cells.values()))}'
                )
        return [
            cell
            for cell in self.cells.values()
            if not patterns or any(_matches(cell, p) for p in patterns)
        ]


def parser(text):
    r"""Returns a parser of options with those that all commands of the grid have."""
    out = argparse.ArgumentParser(
        allow_abbrev=False,
        description=text,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    results = FOLDER / 'results' / 'grid'
    out.add_argument('--grid', default=FOLDER / 'grid.json', metavar='FILE')
    out.add_argument('--results', default=results, metavar='FOLDER')
    return out


def _matches(cell, pattern):
    return fnmatch(cell.name, pattern) or fnmatch(cell.block, pattern)


def checkout():
    r"""Returns the commit of the checkout, and whether its code differs from it; empty
    and true outside of one.

    Raises:
        ImportError: If the package that is imported is not that of the checkout.
    """
    package = Path(torch_geometric_unlearn.__file__).resolve().parents[1]
    if package != FOLDER.parent:
        raise ImportError(
            f"'torch_geometric_unlearn' must be that of '{FOLDER.parent}' (got that of "
            f"'{package}'), or results would name a wrong commit. Set PYTHONPATH."
        )

    def git(*args):
        command = ['git', '-C', str(FOLDER.parent), *args]
        out = subprocess.run(command, capture_output=True, text=True, check=False)
        return out.stdout.strip() if out.returncode == 0 else None

    try:
        commit = git('rev-parse', 'HEAD')
        changes = git('status', '--porcelain', '--', *_CODE)
    except OSError:
        commit = changes = None
    return commit or '', commit is None or changes != ''


def digest(content):
    r"""Returns a hash of a result but for its own digest."""
    content = {key: value for key, value in content.items() if key != 'digest'}
    text = json.dumps(without_nan(content), sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def write(path, content):
    r"""Writes a result with its digest, in one atomic step."""
    save_json(path, content | {'digest': digest(content)})


def read(path):
    r"""Returns a result.

    Raises:
        ValueError: If it is not what was written, or of another version.
    """
    try:
        content = json.loads(Path(path).read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"'{path}' is damaged: {error}") from error
    found = content.get('config', {}).get('schema')
    if found != SCHEMA:
        raise ValueError(
            f"'{path}' must be of schema {SCHEMA} (got {found}). Remove it, and run "
            f"'run.py' again."
        )
    if content.get('digest') != digest(content):
        raise ValueError(
            f"'{path}' was changed after it was written: its digest doesn't fit. "
            f"Remove it, and run 'run.py' again."
        )
    return content
