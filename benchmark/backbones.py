r"""What the benchmarks of unlearning share: backbones with their published settings,
kinds of requests, and an original model that is trained once.
"""

from functools import partial
from pathlib import Path

import torch

from torch_geometric_unlearn.metrics import evaluate_split
from torch_geometric_unlearn.nn import MGCN, MIGGT, LightGCN
from torch_geometric_unlearn.train import fit, load_model, save_model
from torch_geometric_unlearn.transforms import (
    ForgetInteractions,
    ForgetItems,
    ForgetUsers,
)


def builder(backbone, dataset='Baby'):
    r"""Returns a function that makes a fresh model for some data, with the settings
    published for a data set where there are some, else with those for Baby.
    """
    if backbone == 'MIGGT':
        model_args = MIGGT.published(_published(dataset))[0]
        return partial(MIGGT.from_data, **model_args)
    return {'MGCN': MGCN, 'LightGCN': LightGCN}[backbone].from_data


def training_settings(backbone, dataset='Baby'):
    r"""Arguments of `fit` that the backbone was published with."""
    if backbone == 'MIGGT':
        return MIGGT.published(_published(dataset))[1]
    return {}


def _published(dataset):
    return dataset if dataset in ('Sports', 'Clothing') else 'Baby'


BUILD = {name: builder(name) for name in ('MGCN', 'MIGGT', 'LightGCN')}
REGIMES = {
    'user': ForgetUsers,
    'item': ForgetItems,
    'interaction': ForgetInteractions,
}


def resumable(path):
    r"""Arguments of `fit` that keep the state of a training in a file and go on from
    it.
    """
    return {'checkpoint': path, 'checkpoint_every': 5, 'resume': True}


def load_original(backbone, data, out, seed, device='cpu', **fit_args):
    r"""The original model and facts about its training, trained on the first call."""
    path = Path(out) / f'{backbone}_{seed}.safetensors'
    torch.manual_seed(seed)
    model = BUILD[backbone](data).to(device)
    if path.exists():
        return model, load_model(model, path, data=data)
    progress = resumable(path.with_suffix('.ck'))
    result = fit(model, data, seed=seed, **fit_args, **progress)
    run = {
        'best_epoch': result.best_epoch,
        'num_epochs': len(result.history),
        'seconds': result.seconds,
        'peak_memory': result.peak_memory,
        'history': result.history,
        'test': evaluate_split(model, data),
        'test_own_masking': evaluate_split(model, data, mask_validation=True),
    }
    save_model(model, path, run, data=data)
    return model, run
