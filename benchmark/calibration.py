r"""Which parts of the never-seen target matter? Measured as it was chosen, without a
test pair and without a retrained model.

    python benchmark/calibration.py --backbone MGCN --regime interaction --out runs
    python benchmark/calibration.py --backbone MIGGT --regime item --out runs --seeds 1
    python benchmark/calibration.py --test --methods tru --seeds 1 2 3 --out runs

Half of the validation pairs are the reference that TRU aims at, the other half take the
place of the test pairs that the attacker compares with. Requests are drawn with seeds
of their own; the original model is the one of `methods.py`. Every finished variant is a
file in the folder, so the command can be stopped and repeated. With `--test`, which is
for reporting and not for choosing, test pairs are what they are elsewhere.
"""

import json
from unittest.mock import patch

import torch
from backbones import check_methods, load_original, load_request, request_parser
from common import finish

from torch_geometric_unlearn.audit import membership
from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.metrics import evaluate_request
from torch_geometric_unlearn.report import save_json
from torch_geometric_unlearn.unlearn import TRU, EdgeDrop, NeverSeen, RowReset, _strata
from torch_geometric_unlearn.utils.seed import generator

VIEWS = NeverSeen.views


def looks_at(*names):
    r"""Confines the target to some views; without names, to those of no branch."""
    wanted = names or ('row', 'column', 'cosine', 'neighbors')

    def views(self, *args):
        return {k: v for k, v in VIEWS(self, *args).items() if k in wanted}

    return patch.object(NeverSeen, 'views', views)


def one_stratum():
    return patch.object(_strata, 'MAX_STRATA', 1)


VARIANTS = {
    'edge_drop': (EdgeDrop, {}, None),
    'row_reset': (RowReset, {}, None),
    'lowest': (TRU, {'target': 'lowest'}, None),
    'tru': (TRU, {}, None),
    'one_stratum': (TRU, {}, one_stratum),
    'without_branches': (TRU, {}, looks_at),
    'row_and_neighbors': (TRU, {}, lambda: looks_at('row', 'neighbors')),
    'row_only': (TRU, {}, lambda: looks_at('row')),
    'no_anchor': (TRU, {'anchor': 0.0}, None),
    'rows_of_users': (TRU, {'rows': 'user'}, None),
    'rows_of_request': (TRU, {'rows': 'both'}, None),
    'no_repair': (TRU, {'repair_batches': 0}, None),
}

parser = request_parser()
parser.add_argument('--seeds', type=int, nargs='*', default=[1], help='of the requests')
parser.add_argument('--test', action='store_true', help='attack with test pairs')
args = parser.parse_args()
check_methods(parser, args, VARIANTS)
data, _, fit_args, _, _ = load_request(args)
model, _ = load_original(
    args.backbone, data, args.out, args.seed, args.device, **fit_args
)

validation = schema.held_out(data, 'val')
order = torch.randperm(validation.size(1), generator=generator(0))
halves = [half.sort()[0] for half in order.tensor_split(2)]

rows = []
model_seed = args.seed
kind = f'{"test" if args.test else "calibration"}_{model_seed}'
for seed in args.seeds:
    args.seed = seed
    _, marked, _, cells, title = load_request(args)
    if not args.test:
        marked.val_edge_label_index = validation[:, halves[0]]
        marked.test_edge_label_index = validation[:, halves[1]]
    for name, (method, kwargs, patched) in VARIANTS.items():
        if args.methods and name not in args.methods:
            continue
        path = cells / f'{kind}_{name}.json'
        if not path.exists():
            if method is TRU:
                kwargs = {'batch_size': fit_args.get('batch_size', 2048)} | kwargs
            unlearner = method(seed=seed, **kwargs)
            if patched is None:
                result = unlearner(model, marked)
            else:
                with patched():
                    result = unlearner(model, marked)
            scores = evaluate_request(result.model, marked, ks=(20,))
            attack = membership(result.model, marked).to_dict()
            save_json(
                path,
                {
                    'variant': name,
                    'seed': seed,
                    'retain_ndcg@20': scores['retain_ndcg@20'],
                    'forget_recall@20': scores['forget_recall@20'],
                    'balanced_accuracy': attack['balanced_accuracy'],
                    'auc': attack['auc'],
                    'intervals': attack['intervals'],
                    'num_members': attack['num_members'],
                    'seconds': result.seconds,
                },
            )
            print(f'{args.backbone}, {args.regime}, seed {seed}: {name}', flush=True)
        rows.append(json.loads(path.read_text()))
for row in rows:
    for key in ('balanced_accuracy', 'auc'):
        row[f'{key}_low'], row[f'{key}_high'] = row['intervals'][key]
columns = [
    'variant',
    'seed',
    'retain_ndcg@20',
    'forget_recall@20',
    'balanced_accuracy',
    'balanced_accuracy_low',
    'balanced_accuracy_high',
    'auc',
    'auc_low',
    'auc_high',
    'seconds',
]
args.seed = model_seed
config = {key: value for key, value in vars(args).items() if key != 'out'}
pairs = 'test' if args.test else 'validation'
finish(f'{title}, on {pairs} pairs', rows, columns, config, args.json)
