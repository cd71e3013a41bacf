r"""Fixtures shared by all tests."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

if 'PYTEST_XDIST_WORKER' in os.environ:  # Workers share the cores.
    os.environ.setdefault('OMP_NUM_THREADS', '1')

import pytest
import torch

if not torch.cuda.is_available():  # Before the kernels are imported.
    os.environ.setdefault('TRITON_INTERPRET', '1')

from torch_geometric.data import HeteroData

from torch_geometric_unlearn import typing
from torch_geometric_unlearn.audit import _attack
from torch_geometric_unlearn.datasets import SyntheticMultimodal
from torch_geometric_unlearn.nn import MGCN, MIGGT
from torch_geometric_unlearn.train import fit
from torch_geometric_unlearn.utils.seed import isolated_seed


@pytest.fixture
def data() -> HeteroData:
    r"""A tiny data set, fresh for every test."""
    return SyntheticMultimodal('tiny')[0]


@pytest.fixture(scope='session')
def trained() -> MGCN:
    r"""An MGCN trained on the tiny data set; tests must not change it."""
    data = SyntheticMultimodal('tiny')[0]
    with isolated_seed(0):
        model = MGCN.from_data(data, hidden_channels=16)
    fit(model, data, num_epochs=60, lr=5e-3, batch_size=128)
    return model.requires_grad_(True)


@pytest.fixture(scope='session')
def trained_miggt() -> MIGGT:
    r"""A MIG-GT trained on the tiny data set; tests must not change it."""
    data = SyntheticMultimodal('tiny')[0]
    with isolated_seed(0):
        model = MIGGT.from_data(data, hidden_channels=16, encoder_channels=32)
    fit(model, data, num_epochs=60, lr=5e-3, batch_size=128)
    return model


@pytest.fixture(scope='session')
def run_code() -> Callable[[str], int]:
    r"""Runs code in a process of its own, which may kill itself, and returns how it has
    ended. All are forked from one that has imported the package, which takes seconds.
    """
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['torch_geometric_unlearn'])

    def run(code: str) -> int:
        process = context.Process(target=exec, args=(code, {}))
        process.start()
        process.join()
        return process.exitcode

    return run


@pytest.fixture(scope='session')
def run_in_threads() -> Callable[..., list[Any]]:
    r"""Runs functions at the same time, and returns their results in order."""

    def run(*functions: Callable[[], Any]) -> list[Any]:
        with ThreadPoolExecutor(len(functions)) as pool:
            return [f.result(60) for f in [pool.submit(f) for f in functions]]

    return run


@pytest.fixture
def few_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    r"""Makes boosting fast, for tests of anything but the strength of the attacker."""
    monkeypatch.setattr(_attack, '_NUM_TREES', 20)


@pytest.fixture
def without_extensions(monkeypatch: pytest.MonkeyPatch) -> None:
    r"""Switches our optional accelerators off."""
    for name in ('WITH_TORCH_SPARSE', 'WITH_TORCH_SCATTER', 'WITH_TRITON'):
        monkeypatch.setattr(typing, name, False)


@pytest.fixture(scope='session')
def real_data() -> Path:
    r"""The folder with real data; skips the test if it is not there."""
    folder = os.environ.get('TGU_REAL_DATA')
    if not folder or not Path(folder).is_dir():
        pytest.skip("the environment variable 'TGU_REAL_DATA' names no folder")
    return Path(folder)


@pytest.fixture(autouse=True)
def _same_every_time() -> None:
    r"""Draws without a seed of their own are the same in any order of the tests."""
    torch.manual_seed(12345)
    torch.set_num_threads(min(2, torch.get_num_threads()))
