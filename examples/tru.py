r"""Trains MGCN, forgets a share of the users, items or interactions with TRU, as its
paper has it, and by partial retraining, and compares both with the original model,
retraining, and the baselines.

    python examples/tru.py                       # Generated data, no network needed.
    python examples/tru.py --dataset Baby --root data --regime user

For generated data, expect a forget Recall@20 of about 0.74 before, 0.07 after
retraining and 0.07 after TRU, at a retain Recall@20 of about 0.35 throughout.
"""

import argparse
from pathlib import Path

import torch

from torch_geometric_unlearn.datasets import (
    AmazonMultimodal,
    SyntheticMultimodal,
    TikTok,
)
from torch_geometric_unlearn.evaluation import Comparison
from torch_geometric_unlearn.nn import MGCN
from torch_geometric_unlearn.report import format_table, save_json, versions
from torch_geometric_unlearn.train import fit, load_model, save_model
from torch_geometric_unlearn.transforms import (
    ForgetInteractions,
    ForgetItems,
    ForgetUsers,
)
from torch_geometric_unlearn.unlearn import (
    TRU,
    EdgeDrop,
    MMRecUn,
    PartialRetrain,
    Retrain,
    RowReset,
)

parser = argparse.ArgumentParser(allow_abbrev=False)
parser.add_argument(
    '--dataset',
    default='synthetic',
    choices=['synthetic', 'Baby', 'Sports', 'Clothing', 'TikTok'],
)
parser.add_argument('--size', default='small', help='of the generated data')
parser.add_argument('--root', default='data', help='folder of the datasets')
parser.add_argument(
    '--regime', default='user', choices=['user', 'item', 'interaction']
)
parser.add_argument('--ratio', type=float, default=0.05, help='share to forget')
parser.add_argument('--seed', type=int, default=999)
parser.add_argument('--device', default='cpu')
parser.add_argument('--json', metavar='PATH', help='file to write the results to')
parser.add_argument(
    '--checkpoint', metavar='PATH', help='original model: used if there, else saved'
)
parser.add_argument('--note', help='what to say about the data beside the results')
args = parser.parse_args()
PATHS = ('root', 'json', 'checkpoint')  # Stay out of the results.

# 1. The data, and what is to be forgotten.
if args.dataset == 'synthetic':
    data = SyntheticMultimodal(args.size, seed=args.seed)[0]
elif args.dataset == 'TikTok':
    data = TikTok(args.root)[0]
else:
    data = AmazonMultimodal(args.root, args.dataset)[0]
forget = {
    'user': ForgetUsers,
    'item': ForgetItems,
    'interaction': ForgetInteractions,
}[args.regime]
data = data.to(args.device)
marked = forget(ratio=args.ratio, seed=args.seed)(data)

# 2. The original model. Generated data is small, so it takes smaller batches.
small = args.dataset == 'synthetic'
settings = {'batch_size': 512, 'patience': 10} if small else {}


def build_model(data):
    return MGCN.from_data(data).to(args.device)


torch.manual_seed(args.seed)
model = build_model(data)
if args.checkpoint and Path(args.checkpoint).exists():
    run = load_model(model, args.checkpoint, data=data)
else:
    result = fit(model, data, seed=args.seed, **settings)
    run = {
        'best_epoch': result.best_epoch,
        'num_epochs': len(result.history),
        'seconds': result.seconds,
        'peak_memory': result.peak_memory,
        'history': result.history,
    }
    if args.checkpoint:
        save_model(model, args.checkpoint, run, data=data)

# 3. Unlearn with every method, and measure all models alike.
batch = {'batch_size': settings.get('batch_size', 2048), 'seed': args.seed}
unlearners = {
    'retrained': Retrain(build_model, seed=args.seed, **settings),
    'edge_drop': EdgeDrop(seed=args.seed),
    'row_reset': RowReset(seed=args.seed),
    'mmrecun': MMRecUn(**batch),
    'tru': TRU(**batch),
    'partial_retrain': PartialRetrain(**batch),
}


results = {name: unlearner(model, marked) for name, unlearner in unlearners.items()}
comparison = Comparison({'original': model, **results}, marked)
rows = comparison.measure(('ranking', 'exposure', 'completion'))
rows[0] |= {key: run[key] for key in ('seconds', 'peak_memory')}

columns = [
    'method',
    'retain_recall@20',
    'retain_ndcg@20',
    'forget_recall@20',
    'forget_ndcg@20',
    'exposure@20',
    'completion',
    'trade_off',
    'seconds',
]
title = f'{args.dataset}, {args.regime}-level, {args.ratio:.0%} forgotten'
print(f'{title} ({args.note})' if args.note else title)
print(format_table(rows, columns))
if args.json:
    config = vars(args) | settings | {'best_epoch': run['best_epoch']}
    config |= {name: repr(unlearner) for name, unlearner in unlearners.items()}
    config = {key: config[key] for key in config if key not in PATHS}
    content = {'rows': rows, 'config': config, 'versions': versions()}
    content['histories'] = {name: result.history for name, result in results.items()}
    content['histories']['original'] = run['history']
    content['shifts'] = {name: result.shift for name, result in results.items()}
    save_json(args.json, content)
    print(f'Wrote {args.json}')
