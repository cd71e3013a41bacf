r"""Does partial retraining forget like retraining? Models that are trained once,
several requests, and every audit beside retraining and the controls.

    python benchmark/partial_retraining.py --out runs/baby                 # Hours.
    python benchmark/partial_retraining.py --out runs/tiktok --dataset TikTok
    python benchmark/partial_retraining.py --out runs/sports --dataset Sports \
        --backbone LightGCN --regimes user --requests 11

Every finished method on every request is a file in the folder, and trainings go on from
their last epochs, so the command can be stopped and repeated. `--no-training` skips
requests whose retrained model isn't there yet, `--collect` all that isn't there. Prints
the mean over the requests, and writes everything with `--json`. The settings of
`PartialRetrain` were chosen on validation pairs of Baby and on generated data; in which
order, README.md tells.
"""

import json
import math
from pathlib import Path

import torch
from backbones import BUILD, REGIMES, load_original, resumable, training_settings
from common import DATASETS, finish, load_dataset

from torch_geometric_unlearn.audit import membership
from torch_geometric_unlearn.audit.completion import completion
from torch_geometric_unlearn.metrics import evaluate_request
from torch_geometric_unlearn.nn import Served
from torch_geometric_unlearn.report import save_json, versions
from torch_geometric_unlearn.train import fit, load_model, save_model
from torch_geometric_unlearn.transforms import DropForgotten
from torch_geometric_unlearn.unlearn import (
    TRU,
    EdgeDrop,
    MMRecUn,
    PartialRetrain,
    RowReset,
)

METHODS = [
    'original',
    'retrain',
    'retrain_2',
    'edge_drop',
    'row_reset',
    'tru',
    'mmrecun',
    'partial_retrain',
]
SHOWN = {  # Published figures of a cell: name, where it comes from.
    'retain_recall@20': 'retain_recall@20',
    'retain_ndcg@20': 'retain_ndcg@20',
    'forget_recall@20': 'forget_recall@20',
    'balanced_accuracy': 'balanced_accuracy',
    'auc': 'auc',
    'completion': 'completion',
    'seconds': 'time_s',
    'speed_up': 'speed_up',
}


def parse():
    import argparse

    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument('--dataset', default='Baby', choices=list(DATASETS))
    parser.add_argument('--backbone', default='MGCN', choices=list(BUILD))
    parser.add_argument(
        '--regimes', nargs='*', default=list(REGIMES), choices=list(REGIMES)
    )
    parser.add_argument('--requests', nargs='*', type=int, default=[11, 12, 13])
    parser.add_argument('--methods', nargs='*', default=METHODS, choices=METHODS)
    parser.add_argument('--ratio', type=float, default=0.05, help='share to forget')
    parser.add_argument('--seed', type=int, default=999, help='of the models')
    parser.add_argument('--num-epochs', type=int, help='largest, of every training')
    parser.add_argument('--threads', type=int, help='of torch')
    parser.add_argument('--no-training', action='store_true')
    parser.add_argument('--collect', action='store_true')
    parser.add_argument('--out', required=True, metavar='FOLDER')
    parser.add_argument('--json', metavar='PATH')
    return parser.parse_args()


args = parse()
if args.threads:
    torch.set_num_threads(args.threads)
data, title = load_dataset(args.dataset)
build_model, fit_args = BUILD[args.backbone], training_settings(args.backbone)
if args.num_epochs:
    fit_args['num_epochs'] = args.num_epochs
batch = {'batch_size': fit_args.get('batch_size', 2048)}
rates = {'lr': fit_args.get('lr', 1e-3)}


def retrained(marked, folder, seed):
    r"""The retrained model and facts about its training, or nothing."""
    path = folder / f'retrain_{seed}.safetensors'
    retained = DropForgotten()(marked)
    torch.manual_seed(seed)
    fresh = build_model(retained)
    if path.exists():
        return fresh, load_model(fresh, path, data=retained)
    if args.no_training:
        return None, {}
    progress = resumable(path.with_suffix('.ck'))
    result = fit(fresh, retained, seed=seed, **fit_args, **progress)
    run = {
        'seconds': sum(row['seconds'] for row in result.history),
        'best_epoch': result.best_epoch,
        'num_epochs': len(result.history),
    }
    save_model(fresh, path, run, data=retained)
    return fresh, run


def unlearner(method, seed):
    return {
        'edge_drop': EdgeDrop,
        'row_reset': RowReset,
        'tru': lambda seed: TRU(seed=seed, **batch),
        'mmrecun': lambda seed: MMRecUn(seed=seed, **batch),
        'partial_retrain': lambda seed: PartialRetrain(seed=seed, **batch, **rates),
    }[method](seed=seed)


def measure(served, marked):
    scores = evaluate_request(served, marked, ks=(20,))
    attack = membership(served, marked, num_bootstrap=300).to_dict()
    known = completion(served, marked)
    for key in ('balanced_accuracy', 'auc'):
        scores[key] = attack[key]
        scores[f'{key}_interval'] = attack['intervals'][key]
    return scores | {
        'direction': attack['direction'],
        'completion': known.auc,
        'completion_interval': known.interval,
    }


def epoch_seconds(marked):
    r"""Seconds of a training epoch with its evaluation, for a ratio in one run."""
    retained = DropForgotten()(marked)
    torch.manual_seed(args.seed)
    fresh = build_model(retained)
    every = fit_args.get('eval_every', 1)
    few = {**fit_args, 'num_epochs': 2, 'eval_every': 1}
    row = fit(fresh, retained, seed=args.seed, **few).history[-1]
    if every == 1:
        return row['seconds']
    few = {**fit_args, 'num_epochs': 2, 'eval_every': 2}
    plain = fit(build_model(retained), retained, seed=args.seed, **few).history[0]
    return plain['seconds'] + (row['seconds'] - plain['seconds']) / every


def cell(method, model, marked, folder, seed):
    if method == 'original':
        return measure(Served.before(model, marked), marked)
    if method.startswith('retrain'):
        other = args.seed + (method == 'retrain_2')
        fresh, run = retrained(marked, folder, other)
        if fresh is None:
            return None
        return run | measure(Served.of(fresh, marked), marked)
    method = unlearner(method, seed)
    facts = {}
    if isinstance(method, PartialRetrain):
        facts['epoch_seconds'] = epoch_seconds(marked)
    result = method(model, marked)
    facts |= {'seconds': result.seconds, 'peak_memory': result.peak_memory}
    served = Served.of(result.model, marked)
    return facts | {'history': result.history} | measure(served, marked)


model, run = load_original(args.backbone, data, args.out, args.seed, **fit_args)
cells = {}
for seed in args.requests:
    for regime in args.regimes:
        marked = REGIMES[regime](ratio=args.ratio, seed=seed)(data)
        folder = Path(args.out) / f'{args.backbone}_{regime}_{seed}'
        folder.mkdir(parents=True, exist_ok=True)
        needed = folder / f'retrain_{args.seed}.safetensors'
        if args.no_training and not needed.exists():
            continue
        for method in args.methods:
            second = folder / f'retrain_{args.seed + 1}.safetensors'
            if method == 'retrain_2' and seed != args.requests[0]:
                continue  # The noise floor, once a regime.
            if method == 'retrain_2' and args.no_training and not second.exists():
                continue
            path = folder / f'{method}.json'
            if args.collect and not path.exists():
                continue
            if not path.exists():
                out = cell(method, model, marked, folder, seed)
                if out is None:
                    continue
                save_json(path, out | {'versions': versions()})
                print(f'{args.dataset}, {regime}, {seed}: {method} done', flush=True)
            cells[regime, seed, method] = json.loads(path.read_text())

rows = []
for regime in args.regimes:
    for method in args.methods:
        found = {s: c for (r, s, m), c in cells.items() if (r, m) == (regime, method)}
        if not found:
            continue
        row = {'regime': regime, 'method': method, 'requests': len(found)}
        row['commits'] = sorted({f['versions'].get('git', '') for f in found.values()})
        for seed, facts in found.items():
            reference = cells.get((regime, seed, 'retrain'), {})
            if 'epoch_seconds' in facts:
                epochs = reference.get('num_epochs', math.nan)
                facts['speed_up'] = facts['epoch_seconds'] * epochs / facts['seconds']
            for key in ('balanced_accuracy', 'completion', 'forget_recall@20'):
                values = [facts[key], reference.get(key)]
                known = None not in values  # NaN is written as null.
                excess = values[0] - values[1] if known else math.nan
                facts[f'excess_{key}'] = excess
            change = facts['retain_ndcg@20'] / reference.get('retain_ndcg@20', math.nan)
            facts['relative_retain_ndcg@20'] = change - 1
        keys = [*SHOWN, *(k for k in next(iter(found.values())) if 'excess_' in k)]
        for key in [*keys, 'relative_retain_ndcg@20']:
            values = [facts.get(key) for facts in found.values()]
            values = [value for value in values if value is not None]
            if values:
                row[SHOWN.get(key, key)] = sum(values) / len(values)
        for key in ('balanced_accuracy', 'auc', 'completion'):
            bounds = [facts[f'{key}_interval'] for facts in found.values()]
            row[f'{key}_intervals'] = bounds
        rows.append(row)
columns = ['regime', 'method', 'requests', *SHOWN.values()]
columns += ['excess_balanced_accuracy', 'excess_completion', 'relative_retain_ndcg@20']
test = run.get('test')
hidden = ('out', 'collect', 'no_training')
config = {k: v for k, v in vars(args).items() if k not in hidden}
config['original_test'] = test
commits = sorted({c['versions'].get('git', '') for c in cells.values()})
config['commits'] = commits
share = f'{args.ratio:.0%}'
finish(f'{title}, {args.backbone}, {share}', rows, columns, config, args.json)
