r"""Trained models, kept outside of git under all that determines them."""

from __future__ import annotations

import ast
import hashlib
import json
from functools import cache
from pathlib import Path

import torch
import torch_geometric
from backbones import resumable
from filelock import FileLock

import torch_geometric_unlearn
from torch_geometric_unlearn.data.digest import data_digest
from torch_geometric_unlearn.metrics import evaluate_split
from torch_geometric_unlearn.train import fit, load_model, save_model
from torch_geometric_unlearn.train.checkpoint import model_record
from torch_geometric_unlearn.utils.seed import isolated_seed

#: The parts of the package that a training runs through.
_PARTS = (
    'data',
    'distributed',
    'loader',
    'metrics',
    'nn',
    'ops',
    'train',
    'transforms',
    'utils',
)
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@cache
def training_code():
    r"""Returns a hash of the code that a training runs through; comments and docstrings
    don't count.
    """
    root = Path(torch_geometric_unlearn.__file__).parent
    out = hashlib.sha256()
    for part in _PARTS:
        for path in sorted((root / part).rglob('*.py')):
            tree = ast.parse(path.read_text())
            for node in ast.walk(tree):
                is_documented = isinstance(node, _DOCUMENTED)
                if is_documented and ast.get_docstring(node) is not None:
                    node.body = node.body[1:]
            out.update(f'{path.relative_to(root)}\n{ast.dump(tree)}\n'.encode())
    return out.hexdigest()[:16]


def _curve(history, metric):
    r"""Returns the epochs that were evaluated, and what came out."""
    rows = [row for row in history if metric in row]
    return {key: [row[key] for row in rows] for key in ('epoch', metric)}


class TrainedModels:
    r"""A folder of trained models.

    Args:
        folder (str or Path): The folder, outside of git.
        device (str, optional): Where models are trained and run.
            (default: :obj:`'cpu'`)
    """

    def __init__(self, folder, device='cpu'):
        self.folder, self.device = Path(folder), device

    def file(self, label, model, data, fit_args, seed):
        r"""Returns where a model stands; its name holds a hash of everything that
        determines it.
        """
        record = model_record(model)
        record.pop('versions')
        key = {
            'model': record,
            'data': data_digest(data),
            'fit': fit_args,
            'seed': seed,
            'device': torch.device(self.device).type,
            'code': training_code(),
            'torch': torch.__version__,
            'torch_geometric': torch_geometric.__version__,
        }
        text = json.dumps(key, sort_keys=True, default=str)
        key = hashlib.sha256(text.encode()).hexdigest()[:16]
        return self.folder / f'{label}-{key}.safetensors'

    def lock(self, path):
        r"""Returns what keeps two processes from making the same file."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return FileLock(path.with_suffix('.lock'))

    def __call__(self, label, build, data, fit_args, seed):
        r"""Returns a model and facts about its training, which happens on the first
        call, and goes on from its last checkpoint if it was cut off.

        Args:
            label (str): Begins the name of the file.
            build (callable): Returns a fresh model for some data.
            data (HeteroData): What to train on.
            fit_args (dict): Arguments of `fit` but the seed.
            seed (int): Seed of the initial parameters and of the training.
        """
        with isolated_seed(seed):
            model = build(data).to(self.device)
        path = self.file(label, model, data, fit_args, seed)
        with self.lock(path):
            if path.exists():
                return model, load_model(model, path, data=data)
            state = path.with_suffix('.ck')
            result = fit(model, data, seed=seed, **fit_args, **resumable(state))
            run = {
                'seconds': result.seconds,
                'peak_memory': result.peak_memory,
                'best_epoch': result.best_epoch,
                'num_epochs': len(result.history),
                'curve': _curve(result.history, fit_args.get('metric', 'recall@20')),
                'test': evaluate_split(model, data),
                'test_own_masking': evaluate_split(model, data, mask_validation=True),
            }
            save_model(model, path, run, data=data)
            state.unlink(missing_ok=True)
            # What later calls get.
            return model, json.loads(json.dumps(run))
