r"""Do many requests, one after another, do harm? Against retraining once at the end.

    python benchmark/sequences.py                          # Generated data, minutes.
    python benchmark/sequences.py --backbone LightGCN --json sequences.json

A hundred single users, and fifty mixed requests (users, items and pairs), served one by
one, in another order, and at once. Shows retained test NDCG@20, forget Recall@20, the
norms of all embeddings, and seconds per request, beside one retraining.
"""

import argparse
import statistics

import torch
from backbones import BUILD
from common import finish

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.datasets import SyntheticMultimodal
from torch_geometric_unlearn.metrics import evaluate_request
from torch_geometric_unlearn.nn import Served
from torch_geometric_unlearn.train import fit
from torch_geometric_unlearn.transforms import (
    DropForgotten,
    ForgetInteractions,
    ForgetItems,
    ForgetUsers,
)
from torch_geometric_unlearn.unlearn import TRU, EdgeDrop, PartialRetrain, RowReset
from torch_geometric_unlearn.utils.seed import generator

parser = argparse.ArgumentParser(allow_abbrev=False)
parser.add_argument('--backbone', default='MGCN', choices=['MGCN', 'LightGCN'])
parser.add_argument('--size', default='small', help='of the generated data')
parser.add_argument('--users', type=int, default=100, help='single-user requests')
parser.add_argument('--mixed', type=int, default=50, help='mixed requests')
parser.add_argument('--seed', type=int, default=999)
parser.add_argument('--json', metavar='PATH')
args = parser.parse_args()

data = SyntheticMultimodal(args.size, seed=args.seed)[0]
settings = {'batch_size': 512, 'patience': 10}
METHODS = {
    'edge drop': lambda seed: EdgeDrop(seed=seed),
    'row reset': lambda seed: RowReset(seed=seed),
    'TRU': lambda seed: TRU(batch_size=512, seed=seed),
    'PartialRetrain': lambda seed: PartialRetrain(batch_size=512, seed=seed),
}


def trained(data):
    torch.manual_seed(args.seed)
    model = BUILD[args.backbone](data)
    result = fit(model, data, seed=args.seed, **settings)
    return model, result.seconds


def draw_users(num):
    users = data[schema.EDGE_TYPE].edge_index[0].unique()
    perm = torch.randperm(users.numel(), generator=generator(1))[:num]
    return [('user', [u]) for u in users[perm].tolist()]


def draw_mixed(num):
    r"""In turns a user, three pairs and an item, none of which meets another."""
    rng = generator(2)
    pairs = data[schema.EDGE_TYPE].edge_index
    pairs = pairs[:, torch.randperm(pairs.size(1), generator=rng)].t().tolist()
    taken = set()
    out = []
    while len(out) < num:
        kind = ('user', 'pair', 'item')[len(out) % 3]
        chosen = []
        while len(chosen) < (3 if kind == 'pair' else 1):
            u, i = pairs.pop()
            if ('u', u) in taken or ('i', i) in taken:
                continue
            taken |= {('u', u), ('i', i)}
            chosen.append({'user': u, 'item': i, 'pair': (u, i)}[kind])
        out.append((kind, chosen))
    return out


def request(kind, what):
    return {'user': ForgetUsers, 'item': ForgetItems, 'pair': ForgetInteractions}[
        kind
    ](what)


def left(data, kind, what):
    r"""What of a request has not gone with an earlier one."""
    if kind != 'pair':
        return what
    known = set(map(tuple, data[schema.EDGE_TYPE].edge_index.t().tolist()))
    return [pair for pair in what if pair in known]


def serve(method, model, requests):
    current, seconds = data, []
    for place, (kind, what) in enumerate(requests):
        what = left(current, kind, what)
        if not what:
            continue
        result = METHODS[method](place)(model, request(kind, what)(current))
        model, current = result.model, result.data
        seconds.append(result.seconds)
    return model, seconds


def measure(name, model, marked, seconds):
    served = Served.of(model, marked)
    scores = evaluate_request(served, marked, ks=(20,))
    user_emb, item_emb = served.embeddings
    tenth = max(1, len(seconds) // 10)
    return {
        'method': name,
        'retain_ndcg@20': scores['retain_ndcg@20'],
        'forget_recall@20': scores['forget_recall@20'],
        'user_norm': float(user_emb.norm()),
        'item_norm': float(item_emb.norm()),
        'first_s': statistics.mean(seconds[:tenth]),
        'last_s': statistics.mean(seconds[-tenth:]),
    }


model, _ = trained(data)
rows = []
for name, requests in {
    f'{args.users} users': draw_users(args.users),
    f'{args.mixed} mixed': draw_mixed(args.mixed),
}.items():
    marked = data
    for kind, what in requests:
        marked = request(kind, what)(marked)
    reference, seconds = trained(DropForgotten()(marked))
    found = [measure('original', model, marked, [0.0])]
    found.append(measure('retraining', reference, marked, [seconds]))
    for method in METHODS:
        final, seconds = serve(method, model, requests)
        found.append(measure(f'{method}, one by one', final, marked, seconds))
    final, seconds = serve('PartialRetrain', model, requests[::-1])
    found.append(measure('PartialRetrain, reversed', final, marked, seconds))
    result = METHODS['PartialRetrain'](0)(model, marked)
    label = 'PartialRetrain, at once'
    found.append(measure(label, result.model, marked, [result.seconds]))
    for row in found:
        goal = found[1]['retain_ndcg@20']
        row['relative_ndcg@20'] = row['retain_ndcg@20'] / goal - 1
    rows += [{'requests': name} | row for row in found]
columns = ['requests', 'method', 'retain_ndcg@20', 'relative_ndcg@20']
columns += ['forget_recall@20', 'user_norm', 'item_norm', 'first_s', 'last_s']
finish(f'Sequences, {args.backbone}', rows, columns, vars(args), args.json)
