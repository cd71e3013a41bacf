r"""How do time and memory grow with the number of interactions, and shrink with the
number of processes?

    python benchmark/scaling.py --edges 100000 1000000 10000000 --processes 1 2

Trains a two-layer `ColumnParallelLightGCN` (d = 64, batches of 2,048) for a few steps
on random graphs with log-normal popularity, ten interactions per user; every size runs
in processes of its own, with one thread each, so that peak memory is its own too.
Memory beyond that of a process that has just imported the package stands beside the
formula of the documentation. `request_s` is one user's
`PartialRetrain`, from the request to the result.
"""

import argparse
import json
import resource
import subprocess
import sys

import torch
from common import finish
from torch_geometric.data import HeteroData

from torch_geometric_unlearn.distributed import mark, process_group
from torch_geometric_unlearn.nn import ColumnParallelLightGCN, Triplets
from torch_geometric_unlearn.transforms import ForgetUsers
from torch_geometric_unlearn.unlearn import PartialRetrain
from torch_geometric_unlearn.utils import ResourceMeter

parser = argparse.ArgumentParser(allow_abbrev=False)
parser.add_argument(
    '--edges', type=int, nargs='+', default=[10**5, 10**6, 10**7], help='interactions'
)
parser.add_argument('--processes', type=int, nargs='+', default=[1])
parser.add_argument('--steps', type=int, default=5)
parser.add_argument('--no-request', action='store_true', help='train only')
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
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    with ResourceMeter(args.device) as meter:
        pairs, num_users, num_items = random_graph(num_edges)
        data = HeteroData()
        data['user'].num_nodes, data['item'].num_nodes = num_users, num_items
        data['user', 'interacts', 'item'].edge_index = pairs
        sizes = num_users, num_items, args.channels
        torch.manual_seed(0)
        model = ColumnParallelLightGCN(*sizes).to(args.device)
        columns = model.columns
        graph = model.build_graph(data)
        optimizer = torch.optim.Adam(model.parameters(), fused=True)
        seconds = []
        rng = torch.Generator().manual_seed(0)
        for _ in range(args.steps):
            rows = torch.randint(pairs.size(1), (2048,), generator=rng)
            negative = torch.randint(num_items, (2048,), generator=rng)
            batch = Triplets(*pairs[:, rows], negative).to(args.device)
            with ResourceMeter(args.device) as step:
                optimizer.zero_grad()
                loss = model.loss(graph, batch)
                loss.backward()
                optimizer.step()
            seconds.append(step.seconds)
        optimizer.zero_grad()
        median = sorted(seconds)[len(seconds) // 2]
        row = {
            'interactions': pairs.size(1),
            'nodes': num_users + num_items,
            'processes': columns.num_processes,
            'last_loss': float(loss.detach()),
            'ms_per_step': median * 1e3,
            'edges_per_s': pairs.size(1) / median,
            'kb_sent_per_step': (2 * 2048 + 1) * 4 / 1e3 * (columns.num_processes > 1),
        }
        train_memory = meter.peak_memory
        del optimizer, graph
        if not args.no_request:
            request = ForgetUsers([7]) if columns.rank == 0 else None
            with ResourceMeter(args.device) as whole:
                marked = mark(data, request, columns)
                PartialRetrain()(model, marked)
            row['request_s'] = whole.seconds
    held = 16 * row['interactions']
    held += 36 * args.channels / row['processes'] * row['nodes']
    return row | {
        'train_memory_mb': (train_memory - base) / 1e6,
        'formula_mb': held / 1e6,
        'peak_memory_mb': (meter.peak_memory - base) / 1e6,
    }


if args.one:
    torch.set_num_threads(1)
    with process_group():
        row = measure(args.edges[0])
        if torch.distributed.is_initialized():
            rows = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(rows, row)
            row['train_memory_mb'] = max(other['train_memory_mb'] for other in rows)
            row['peak_memory_mb'] = max(other['peak_memory_mb'] for other in rows)
        if int(row['processes']) == 1 or torch.distributed.get_rank() == 0:
            print(json.dumps(row))
    sys.exit()
rows = []
for num_edges in args.edges:
    for processes in args.processes:
        options = ['--edges', str(num_edges), '--steps', str(args.steps)]
        options += ['--channels', str(args.channels), '--device', args.device, '--one']
        options += ['--no-request'] * args.no_request
        launch = ['-m', 'torch.distributed.run', '--standalone', '--nproc-per-node']
        launch = [*launch, str(processes)] if processes > 1 else []
        command = [sys.executable, *launch, __file__, *options]
        out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        rows.append(json.loads(out.stdout.splitlines()[-1]))
        print(rows[-1], flush=True)
finish(
    f'LightGCN step, {args.device}, d = {args.channels}',
    rows,
    list(rows[0]),
    vars(args),
    args.json,
)
