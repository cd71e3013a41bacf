r"""What does a local push save against propagating over the whole graph again?

    python benchmark/lazy_propagation.py                  # Baby's graph, d = 64, L = 2.
    python benchmark/lazy_propagation.py --factor 10      # Ten times the size.
    python benchmark/lazy_propagation.py --r-max 1e-3     # Small residues stay.

For every request (one interaction, a hundred, all of some users) the maintained
embedding is compared with a full propagation in float64. Beside it run full
propagations in float32: `ops.layer_mean` alone, and with the rebuilt operator, which a
deletion needs as well.
"""

import argparse
import copy
import statistics
import time

import torch
from common import finish, load_baby, time_side_by_side, training_graph

from torch_geometric_unlearn.ops import LazyPropagation
from torch_geometric_unlearn.ops.lazy_propagation import layer_mean_weights
from torch_geometric_unlearn.ops.sparse_operator import bipartite_operators
from torch_geometric_unlearn.ops.spmm import layer_mean
from torch_geometric_unlearn.utils.seed import generator

parser = argparse.ArgumentParser(allow_abbrev=False)
parser.add_argument('--factor', type=int, default=1, help='size against Baby')
parser.add_argument('--channels', type=int, default=64)
parser.add_argument('--layers', type=int, default=2)
parser.add_argument('--r-max', type=float, default=0.0)
parser.add_argument('--user-ratio', type=float, default=0.05)
parser.add_argument('--repeats', type=int, default=5)
parser.add_argument('--seed', type=int, default=0)
parser.add_argument('--device', default='cpu')
parser.add_argument('--json', metavar='PATH')
args = parser.parse_args()

data, name = load_baby()
edge_index, num_users, num_items = training_graph(data, args.factor)
edge_index = edge_index.to(args.device)
rng = generator(args.seed)
x = torch.randn(num_users + num_items, args.channels, generator=rng).to(args.device)
weights = layer_mean_weights(args.layers)
fresh = LazyPropagation(edge_index, x, weights, False, args.r_max, num_users)

order = torch.randperm(edge_index.size(1), generator=rng).to(args.device)
users = torch.randperm(num_users, generator=rng)[: int(args.user_ratio * num_users)]
requests = {
    '1 interaction': order[:1],
    '100 interactions': order[:100],
    f'{args.user_ratio:.0%} of the users': torch.isin(
        edge_index[0], users.to(args.device)
    ).nonzero().view(-1),
}


def synchronise():
    if args.device != 'cpu':
        torch.cuda.synchronize()


def push(removed):
    r"""Median seconds over copies of the same state, the last copy and its report."""
    seconds = []
    for _ in range(args.repeats):
        prop = copy.deepcopy(fresh)
        synchronise()
        start = time.perf_counter()
        update = prop.remove_edges(removed)
        synchronise()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), prop, update


rows = []
for label, index in requests.items():
    keep = torch.ones(edge_index.size(1), dtype=torch.bool, device=args.device)
    keep[index] = False
    left = edge_index[:, keep]
    seconds, prop, update = push(edge_index[:, index])
    operator = bipartite_operators(left, num_users, num_items)[0]
    exact = LazyPropagation(left, x.double(), weights, num_users=num_users).embedding

    def rebuild(left=left):
        rebuilt = bipartite_operators(left, num_users, num_items)[0]
        return layer_mean(rebuilt, x, args.layers)

    full = time_side_by_side(
        {
            'propagate': lambda op=operator: layer_mean(op, x, args.layers),
            'rebuild': rebuild,
        },
        args.device,
        args.repeats,
        warmup=1,
    )
    rows.append(
        {
            'request': label,
            'interactions': index.numel(),
            'push_ms': seconds * 1e3,
            'layer_mean_ms': full['propagate']['median'] * 1e3,
            'rebuild_and_layer_mean_ms': full['rebuild']['median'] * 1e3,
            'touched_nodes': update.node_share,
            'touched_edges': update.edge_share,
            'max_error': f'{float((prop.embedding - exact).abs().max()):.1e}',
            'error_bound': f'{float(prop.residue().max()):.1e}',
        }
    )
sizes = f'{num_users + num_items:,} nodes, {edge_index.size(1):,} interactions'
finish(
    f'{name} x {args.factor}: {sizes}, d = {args.channels}, L = {args.layers}, '
    f'r_max = {args.r_max:g}, {args.device}',
    rows,
    list(rows[0]),
    vars(args),
    args.json,
)
