r"""What the benchmarks of unlearning share: backbones with their published settings,
kinds of requests, and an original model that is trained once.
"""

from pathlib import Path

import torch
from torch_geometric.nn import LightGCN

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.metrics import evaluate_split
from torch_geometric_unlearn.nn import MGCN, MIGGT, RecommenderAdapter
from torch_geometric_unlearn.train import fit, load_model, save_model
from torch_geometric_unlearn.transforms import (
    ForgetInteractions,
    ForgetItems,
    ForgetUsers,
)


def build_mgcn(data):
    return MGCN.from_data(data)


def build_miggt(data):
    return MIGGT.from_data(data, **MIGGT.published('Baby')[0])


def build_lightgcn(data):
    sizes = schema.num_users(data), schema.num_items(data)
    module = LightGCN(sum(sizes), 64, num_layers=2)
    return RecommenderAdapter(module, *sizes, weight_decay=1e-4)


BUILD = {'MGCN': build_mgcn, 'MIGGT': build_miggt, 'LightGCN': build_lightgcn}
REGIMES = {
    'user': ForgetUsers,
    'item': ForgetItems,
    'interaction': ForgetInteractions,
}


def training_settings(backbone):
    r"""Arguments of `fit` that the backbone was published with."""
    return MIGGT.published('Baby')[1] if backbone == 'MIGGT' else {}


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
        return model, load_model(model, path)
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
    save_model(model, path, run)
    return model, run
