r"""How do time and memory grow with the number of interactions?

    python benchmark/scaling.py --edges 100000 1000000 10000000

Trains a two-layer LightGCN with `ops.layer_mean` (d = 64, batches of 2,048) for a few
steps on random graphs with log-normal popularity, ten interactions per user; every size
runs in a process of its own, so that peak memory is its own too.
"""

import argparse
import json
import subprocess
import sys

import torch
from common import finish

from torch_geometric_unlearn.nn.functional import bpr_loss
from torch_geometric_unlearn.ops.sparse_operator import bipartite_operators
from torch_geometric_unlearn.ops.spmm import layer_mean
from torch_geometric_unlearn.utils import ResourceMeter

parser = argparse.ArgumentParser(allow_abbrev=False)
parser.add_argument(
    '--edges', type=int, nargs='+', default=[10**5, 10**6, 10**7], help='interactions'
)
parser.add_argument('--steps', type=int, default=5)
parser.add_argument('--channels', type=int, default=64)
parser.add_argument('--device', default='cpu')
parser.add_argument('--json', metavar='PATH')
parser.add_argument('--one', action='store_true', help=argparse.SUPPRESS)
args = parser.parse_args()


def random_graph(num_edges, seed=0):
    gen = torch.Generator().manual_seed(seed)
    num_users, num_items = num_edges // 10, num_edges // 50
    weight = torch.randn(num_items, generator=gen).mul_(1.2).exp_().cumsum(0)
    draw = torch.rand(num_edges, generator=gen) * weight[-1]
    item = torch.searchsorted(weight, draw).clamp_(max=num_items - 1)
    user = torch.randint(num_users, (num_edges,), generator=gen)
    code = (user * num_items + item).unique()
    pairs = torch.stack([code // num_items, code % num_items])
    return pairs, num_users, num_items


def measure(num_edges):
    with ResourceMeter(args.device) as meter:
        pairs, num_users, num_items = random_graph(num_edges)
        operator = bipartite_operators(pairs, num_users, num_items)[0]
        operator = operator.to(args.device)
        table = torch.empty(num_users + num_items, args.channels, device=args.device)
        table = torch.nn.Parameter(torch.nn.init.xavier_uniform_(table))
        optimizer = torch.optim.Adam([table], fused=True)
        seconds = []
        for _ in range(args.steps):
            with ResourceMeter(args.device) as step:
                rows = torch.randint(pairs.size(1), (2048,))
                user, pos = pairs[:, rows].to(args.device)
                neg = torch.randint(num_items, (2048,), device=args.device)
                optimizer.zero_grad()
                out = layer_mean(operator, table, 2)
                pos_score = (out[user] * out[pos + num_users]).sum(-1)
                neg_score = (out[user] * out[neg + num_users]).sum(-1)
                bpr_loss(pos_score, neg_score).backward()
                optimizer.step()
            seconds.append(step.seconds)
    return {
        'interactions': pairs.size(1),
        'users': num_users,
        'items': num_items,
        'ms_per_step': sorted(seconds)[len(seconds) // 2] * 1e3,
        'ns_per_entry': sorted(seconds)[len(seconds) // 2] * 1e9 / (8 * pairs.size(1)),
        'peak_memory_mb': meter.peak_memory / 1e6,
    }


if args.one:
    print(json.dumps(measure(args.edges[0])))
    sys.exit()
rows = []
for num_edges in args.edges:
    options = ['--edges', str(num_edges), '--steps', str(args.steps)]
    options += ['--channels', str(args.channels), '--device', args.device, '--one']
    command = [sys.executable, __file__, *options]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    rows.append(json.loads(out.stdout.splitlines()[-1]))
finish(
    f'LightGCN step, {args.device}, d = {args.channels}',
    rows,
    list(rows[0]),
    vars(args),
    args.json,
)
