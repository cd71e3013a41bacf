r"""Is a small request ever more recognisable after partial retraining than after merely
dropping its edges, and what does it cost everyone else?

    python benchmark/small_requests.py --dataset synthetic --out runs/synthetic
    python benchmark/small_requests.py --out runs/baby --sizes 25 125 --draws 4

Serves requests of some single interactions, and of some users, each drawn several
times, and pools the draws, as one alone is too small to audit. `auc` is that of the
standardised score between deleted and test pairs of the same users, from 0.5 on in
either direction; `attack` the membership attack's, where there are 50 pairs of each.
"""

import argparse
import statistics

import torch
from backbones import BUILD, load_original, training_settings
from common import DATASETS, finish, load_dataset

from torch_geometric_unlearn.audit._attack import cross_validate, ranking_figures
from torch_geometric_unlearn.audit._features import MAIN, PairFeatures
from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.metrics import evaluate_request
from torch_geometric_unlearn.nn import Served
from torch_geometric_unlearn.transforms import ForgetInteractions, ForgetUsers
from torch_geometric_unlearn.unlearn import TRU, EdgeDrop, PartialRetrain, RowReset
from torch_geometric_unlearn.utils.seed import generator

parser = argparse.ArgumentParser(allow_abbrev=False)
parser.add_argument('--dataset', default='Baby', choices=list(DATASETS))
parser.add_argument('--backbone', default='MGCN', choices=list(BUILD))
parser.add_argument('--kinds', nargs='*', default=['pairs', 'users'])
parser.add_argument('--sizes', nargs='*', type=int, default=[1, 5, 25, 125])
parser.add_argument('--draws', type=int, default=10)
parser.add_argument('--seed', type=int, default=999)
parser.add_argument('--no-tru', action='store_true', help='leave out the slow one')
parser.add_argument('--out', required=True, metavar='FOLDER')
parser.add_argument('--json', metavar='PATH')
args = parser.parse_args()

data, title = load_dataset(args.dataset)
small = args.dataset == 'synthetic'
fit_args = training_settings(args.backbone)
fit_args |= {'batch_size': 512, 'patience': 10} if small else {}
batch = {'batch_size': fit_args.get('batch_size', 2048)}
model, _ = load_original(args.backbone, data, args.out, args.seed, **fit_args)
pairs = data[schema.EDGE_TYPE].edge_index
methods = {
    'edge drop': lambda seed: EdgeDrop(seed=seed),
    'row reset': lambda seed: RowReset(seed=seed),
    'TRU': lambda seed: TRU(seed=seed, **batch),
    'PartialRetrain': lambda seed: PartialRetrain(seed=seed, **batch),
}
if args.no_tru:
    del methods['TRU']


def draw(kind, size, seed):
    rng = generator(seed)
    if kind == 'pairs':
        chosen = torch.randperm(pairs.size(1), generator=rng)[:size]
        return ForgetInteractions(pairs[:, chosen])(data)
    users = pairs[0].unique()
    return ForgetUsers(users[torch.randperm(users.numel(), generator=rng)[:size]])(data)


rows = []
for kind in args.kinds:
    for size in args.sizes:
        if kind == 'users' and size > 25:
            continue
        found = {}
        for seed in range(args.draws):
            marked = draw(kind, size, seed)
            deleted = schema.forgotten_edge_index(marked)
            test = schema.held_out(marked, 'test')
            test = test[:, torch.isin(test[0], deleted[0])]
            both = torch.cat([deleted, test], dim=1)
            label = torch.arange(both.size(1)) < deleted.size(1)
            for name in ('original', *methods):
                current, seconds = model, 0.0
                graph = model.build_graph(data)
                if name != 'original':
                    result = methods[name](seed)(model, marked)
                    current, seconds = result.model, result.seconds
                    graph = current.build_graph(result.data)
                served = Served(current, graph)
                source = PairFeatures(served, marked)
                x, group = source(both), both[0] + seed * schema.num_users(data)
                scores = evaluate_request(served, marked, ks=(20,))
                ndcg = scores['retain_ndcg@20']
                place = source.names.index(MAIN)
                facts = x, label, group, ndcg, seconds
                found.setdefault(name, []).append(facts)
        for name, parts in found.items():
            x, label, group = (
                torch.cat([part[i] for part in parts]) for i in range(3)
            )
            auc = float(ranking_figures(x[:, place], label)['auc'])
            row = {'request': f'{size} {kind}', 'method': name}
            row |= {'members': int(label.sum()), 'others': int((~label).sum())}
            row['auc'] = max(auc, 1 - auc)
            if min(row['members'], row['others']) >= 50:
                score, _, _ = cross_validate(x, label, group, ('logistic',), 5, 0)
                row['attack'] = float(ranking_figures(score, label)['auc'])
            base = [part[3] for part in found['original']]
            change = [part[3] / b - 1 for part, b in zip(parts, base)]
            row['relative_ndcg@20'] = statistics.mean(change)
            row['worst_ndcg@20'] = min(change)
            row['time_s'] = statistics.median(part[4] for part in parts)
            rows.append(row)
            print(row, flush=True)
columns = ['request', 'method', 'members', 'others', 'auc', 'attack']
columns += ['relative_ndcg@20', 'worst_ndcg@20', 'time_s']
config = {k: v for k, v in vars(args).items() if k != 'out'}
finish(f'Small requests, {title}, {args.backbone}', rows, columns, config, args.json)
