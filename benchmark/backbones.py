r"""What the benchmarks of unlearning share: backbones with their published settings,
kinds of requests, and an original model that is trained once.
"""

import argparse
from pathlib import Path

import torch
from common import DATASETS, load_dataset

from torch_geometric_unlearn.metrics import evaluate_split
from torch_geometric_unlearn.nn import MGCN, MIGGT, LightGCN
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
    return LightGCN.from_data(data)


BUILD = {'MGCN': build_mgcn, 'MIGGT': build_miggt, 'LightGCN': build_lightgcn}
REGIMES = {
    'user': ForgetUsers,
    'item': ForgetItems,
    'interaction': ForgetInteractions,
}


def request_parser():
    r"""Options of the benchmarks that compare methods on one request."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument('--dataset', default='Baby', choices=list(DATASETS))
    parser.add_argument('--backbone', default='MGCN', choices=list(BUILD))
    parser.add_argument('--regime', default='user', choices=list(REGIMES))
    parser.add_argument('--ratio', type=float, default=0.05, help='share to forget')
    parser.add_argument('--methods', nargs='*', metavar='NAME', help='only these')
    parser.add_argument('--out', required=True, metavar='FOLDER')
    parser.add_argument(
        '--num-epochs', type=int, help='of every training, for a quick try'
    )
    parser.add_argument('--seed', type=int, default=999, help='of models and request')
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--json', metavar='PATH')
    return parser


def load_request(args):
    r"""Data, the marked request, arguments of `fit`, the folder of the finished cells,
    and a title.
    """
    data, name = load_dataset(args.dataset)
    data = data.to(args.device)
    marked = REGIMES[args.regime](ratio=args.ratio, seed=args.seed)(data)
    fit_args = training_settings(args.backbone)
    if args.num_epochs:
        fit_args['num_epochs'] = args.num_epochs
    cells = Path(args.out) / f'{args.backbone}_{args.regime}_{args.seed}'
    cells.mkdir(parents=True, exist_ok=True)
    title = f'{name}, {args.backbone}, {args.regime}-level, {args.ratio:.0%} forgotten'
    return data, marked, fit_args, cells, title


def check_methods(parser, args, unlearners):
    r"""Exits with a message if a wanted method is unknown."""
    unknown = set(args.methods or ()) - set(unlearners)
    if unknown:
        parser.error(f'unknown methods {sorted(unknown)}; there are {list(unlearners)}')


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
