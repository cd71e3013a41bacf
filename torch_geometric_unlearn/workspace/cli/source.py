r"""Where a command finds its workspace, and the functions that give data and model."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import sys
from collections.abc import Callable
from functools import cache
from operator import attrgetter
from pathlib import Path
from typing import Any

from torch_geometric.data import HeteroData

from torch_geometric_unlearn.nn.models.base import RecommenderLike

from ..settings import SOURCE
from ..workspace import Workspace

FOLDER = 'TGU_WORKSPACE'


def find_function(name: str) -> Callable[..., Any]:
    r"""Returns a function by its place.

    Args:
        name (str): :obj:`'shop.py:load_data'` for a file, or :obj:`'shop:load_data'`
            for a module that is installed.

    Raises:
        ValueError: If there is none.
    """
    place, _, function = name.rpartition(':')
    if not place or not all(part.isidentifier() for part in function.split('.')):
        raise ValueError(
            f"A function must be named as 'shop.py:load_data' or 'module:function' "
            f"(got '{name}')"
        )
    module = _run_file(Path(place)) if place.endswith('.py') else _import(place)
    try:
        out = attrgetter(function)(module)
    except AttributeError as error:
        raise ValueError(f"'{place}' has no '{function}'") from error
    if not callable(out):
        raise ValueError(f"'{name}' must be a function (got {type(out).__name__})")
    return out


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f'{name}.'.startswith(f'{error.name}.'):
            raise
        raise ValueError(
            f"There is no module '{name}'. Install it, or name a file, as 'shop.py:...'"
        ) from error


def _run_file(path: Path) -> Any:
    r"""Runs a file as a module of its name; it may import its neighbours."""
    if not path.is_file():
        raise ValueError(f"There is no file '{path}'")
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)  # At the front, it would shadow what others import.
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(path.stem)
    sys.modules[path.stem] = module  # As an import does.
    try:
        spec.loader.exec_module(module)
    finally:
        if before is not None:
            sys.modules[path.stem] = before
    return module


def absolute(name: str) -> str:
    r"""Returns the place of a function that holds in every folder."""
    place, _, function = name.rpartition(':')
    if place.endswith('.py'):
        return f'{Path(place).resolve()}:{function}'
    return name


def open_workspace(args: argparse.Namespace) -> Workspace:
    root = Path(args.workspace or os.environ.get(FOLDER) or '.')
    if not (root / 'workspace.json').is_file():
        raise FileNotFoundError(
            f"There is no workspace in '{root}'. Name its folder with '--workspace' or "
            f"the variable '{FOLDER}', or make one with 'tgu init'."
        )
    # Most commands build no model; a file is run once.
    found = cache(lambda: find_function(read_source(root)['model']))

    def build_model(data: HeteroData) -> RecommenderLike:
        return found()(data)

    return Workspace(root, build_model)


def read_source(root: Path) -> dict[str, str]:
    try:
        content = json.loads((root / SOURCE).read_text())
        return {key: str(content[key]) for key in ('data', 'model')}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"'{root / SOURCE}' must name the functions that give data and model, as "
            f'{{"data": "shop.py:load_data", "model": "shop.py:build_model"}}. Write '
            f'it.'
        ) from error
