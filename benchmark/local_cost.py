r"""What does a request cost by its size, locally and over the full graph, and is the
result the same?

    python benchmark/local_cost.py --out runs/baby
    python benchmark/local_cost.py --dataset synthetic --out runs/synthetic

Serves requests of one pair, one user, a hundred users and 5 % by `PartialRetrain` in
three ways: by the response to the rows that move, by propagating all rows in every
step, and by the model's own full loss. All take the same steps; the largest difference
between their rows is shown. Trains the original model first, if it isn't in the folder.
"""

import argparse
from unittest.mock import patch

import torch
from backbones import load_original, training_settings
from common import DATASETS, finish, load_dataset

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.nn.models import LinearRows, TableRows
from torch_geometric_unlearn.transforms import ForgetInteractions, ForgetUsers
from torch_geometric_unlearn.unlearn import PartialRetrain, _row_training

parser = argparse.ArgumentParser(allow_abbrev=False)
parser.add_argument('--dataset', default='Baby', choices=list(DATASETS))
parser.add_argument('--backbone', default='MGCN', choices=['MGCN', 'LightGCN'])
parser.add_argument('--seed', type=int, default=999)
parser.add_argument('--repeats', type=int, default=3)
parser.add_argument('--out', required=True, metavar='FOLDER')
parser.add_argument('--json', metavar='PATH')
args = parser.parse_args()

data, title = load_dataset(args.dataset)
fit_args = training_settings(args.backbone)
model, _ = load_original(args.backbone, data, args.out, args.seed, **fit_args)
pairs = data[schema.EDGE_TYPE].edge_index
requests = {
    '1 pair': ForgetInteractions(pairs[:, 1000:1001]),
    '1 user': ForgetUsers([77]),
    '100 users': ForgetUsers(list(range(100, 200))),
    '5 % of the users': ForgetUsers(ratio=0.05, seed=args.seed),
}
num_users = schema.num_users(data)
ways = {
    'response': lambda m, g, nodes, *_: LinearRows(m, g, nodes, True),
    'propagate': lambda m, g, nodes, *_: LinearRows(m, g, nodes, False),
    'full graph': lambda m, g, nodes, *_: TableRows(m, g, nodes, num_users),
}


def serve(marked, way):
    with patch.object(_row_training, '_rows_of', way):
        return PartialRetrain(seed=args.seed)(model, marked)


rows = []
model.build_graph(data)  # The graph of the features, which all share.
for name, request in requests.items():
    marked = request(data)
    usual = PartialRetrain(seed=args.seed)
    seconds = sorted(usual(model, marked).seconds for _ in range(args.repeats))
    result = usual(model, marked)
    facts = result.history[-1]
    row = {'request': name, 'path': facts['path']}
    row |= {key: facts[key] for key in ('num_users', 'num_items', 'num_pairs')}
    row |= {'steps': sum(r['steps'] for r in result.history)}
    row |= {'time_ms': 1000 * seconds[len(seconds) // 2]}
    for way, rows_of in ways.items():
        if way == 'response' and facts['path'] == 'propagate':
            continue  # Too many rows for it.
        out = serve(marked, rows_of)
        row[f'{way} ms'] = 1000 * out.seconds
        states = zip(out.model.parameters(), result.model.parameters())
        with torch.no_grad():
            change = [float((a - b).abs().max()) for a, b in states]
        row[f'{way} difference, 1e-6'] = 1e6 * max(change)
    rows.append(row)
columns = ['request', 'path', 'num_users', 'num_items', 'num_pairs', 'steps', 'time_ms']
columns += [f'{way} ms' for way in ways] + [f'{way} difference, 1e-6' for way in ways]
config = {k: v for k, v in vars(args).items() if k != 'out'}
config['threads'] = torch.get_num_threads()
finish(f'{title}, {args.backbone}', rows, columns, config, args.json)
