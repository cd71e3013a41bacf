r"""How do time and memory grow with the number of interactions, and shrink with the
number of processes?

    python benchmark/scaling.py --edges 100000 1000000 10000000 --processes 1 2

Trains a two-layer `ColumnParallelLightGCN` for a few steps (batches of 2,048 from a
`TripletLoader`) on random graphs with log-normal popularity, ten interactions per user
and fifty per item; then the `PartialRetrain` of one user, with an item that nine others
have at most, is timed from the request to the result in which nothing of the user is
left. Every size runs in processes of its own,
with one thread each, so that peak memory is its own too: that of the largest process,
beyond what a process holds after a tiny run, beside the formula of the documentation.
Bytes sent are those of the tensors that a process hands to torch.distributed.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest import mock

import torch
from common import finish
from torch_geometric.data import HeteroData

from torch_geometric_unlearn.distributed import Processes, mark, process_group
from torch_geometric_unlearn.loader import TripletLoader
from torch_geometric_unlearn.nn import ColumnParallelLightGCN
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


def random_graph(num_edges, seed=0, block=200_000):
    r"""Pairs of ten interactions per user, drawn for a block of users at a time."""
    gen = torch.Generator().manual_seed(seed)
    num_users, num_items = num_edges // 10, num_edges // 50
    weight = torch.randn(num_items, generator=gen).mul_(1.2).exp_().cumsum(0)
    parts = []
    for first in range(0, num_users, block):
        size = 10 * min(block, num_users - first)
        draw = torch.rand(size, generator=gen) * weight[-1]
        item = torch.searchsorted(weight, draw).clamp_(max=num_items - 1)
        user = torch.randint(first, first + size // 10, (size,), generator=gen)
        parts.append((user * num_items + item).unique())
    pairs = torch.empty(2, sum(map(len, parts)), dtype=torch.int64)
    place = 0
    for code in parts:
        rows = slice(place, place := place + len(code))
        pairs[0, rows], pairs[1, rows] = code // num_items, code % num_items
    return pairs, num_users, num_items


def resident():
    r"""Bytes of memory that this process holds now."""
    pages = int(Path('/proc/self/statm').read_text().split()[1])
    return pages * resource.getpagesize()


@contextmanager
def counted():
    r"""Counts the bytes of the tensors that this process hands to torch.distributed."""
    sent = {'bytes': 0}

    def counting(function):
        def call(x, *others, **kwargs):
            tensor = others[0] if function.__name__.startswith('all_gather') else x
            sent['bytes'] += tensor.numel() * tensor.element_size()
            return function(x, *others, **kwargs)

        return call

    names = ('all_reduce', 'reduce', 'broadcast', 'all_gather')
    functions = {name: getattr(torch.distributed, name) for name in names}
    with ExitStack() as stack:
        for name, function in functions.items():
            patch = mock.patch.object(torch.distributed, name, counting(function))
            stack.enter_context(patch)
        yield sent


def graph_data(num_edges):
    pairs, num_users, num_items = random_graph(num_edges)
    data = HeteroData()
    data['user'].num_nodes, data['item'].num_nodes = num_users, num_items
    data['user', 'interacts', 'item'].edge_index = pairs
    return data


def measure(num_edges, base):
    data = graph_data(num_edges)
    num_users, num_items = data['user'].num_nodes, data['item'].num_nodes
    num_pairs = data['user', 'interacts', 'item'].edge_index.size(1)
    torch.manual_seed(0)
    with ResourceMeter(args.device) as train:
        model = ColumnParallelLightGCN(num_users, num_items, args.channels)
        model = model.to(args.device)
        columns = model.columns
        with ResourceMeter(args.device) as build:
            graph = model.build_graph(data)
        loader = TripletLoader(graph.edge_index, num_items)
        optimizer = torch.optim.Adam(model.parameters(), fused=True)
        seconds = []
        with ResourceMeter(args.device) as draw:
            batches = iter(loader)
            batch = next(batches)
        with counted() as sent:
            for _ in range(args.steps):
                with ResourceMeter(args.device) as step:
                    optimizer.zero_grad()
                    loss = model.loss(graph, batch.to(args.device))
                    loss.backward()
                    optimizer.step()
                seconds.append(step.seconds)
                batch = next(batches, batch)
    median = sorted(seconds)[len(seconds) // 2]
    values = args.channels / columns.num_processes * (num_users + num_items)
    row = {
        'interactions': num_pairs,
        'nodes': num_users + num_items,
        'processes': columns.num_processes,
        'last_loss': float(loss.detach()),
        's_per_step': median,
        'interactions_per_s': num_pairs / median,
        'bytes_sent_per_step': sent['bytes'] / args.steps,
        'build_graph_s': build.seconds,
        'draw_epoch_s': draw.seconds,
        'train_memory_mb': (train.peak_memory - base) / 1e6,
        'train_formula_mb': (56 * num_pairs + 24 * values) / 1e6,
    }
    if args.no_request:
        return row
    del optimizer, graph, loader, batches, batch, loss
    model.zero_grad()
    users, items = data['user', 'interacts', 'item'].edge_index
    is_rare = items.bincount()[items] <= 10  # Or it might touch no row to train.
    user = int(users[is_rare.nonzero()[0]])
    del users, items, is_rare
    request = ForgetUsers([user]) if columns.rank == 0 else None
    with ResourceMeter(args.device) as whole:
        result = PartialRetrain()(model, mark(data, request, columns))
        left = result.data['user', 'interacts', 'item'].edge_index[0]
        assert not (left == user).any()
    return row | {
        'rows_trained': result.history[-1]['num_trained'],
        'request_s': whole.seconds,
        'request_memory_mb': (whole.peak_memory - base) / 1e6,
        'request_formula_mb': (65 * num_pairs + 20 * values) / 1e6,
    }


if args.one:
    torch.set_num_threads(1)
    with process_group():
        measure(1000, 0)  # What is loaded and compiled at first is no part of it.
        processes = Processes()
        row = measure(args.edges[0], resident())
        rows = processes.share(row)
        for key in [key for key in row if key.endswith('memory_mb')]:
            row[key] = max(other[key] for other in rows)
        if processes.rank == 0:
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
        # Or the C library keeps what is free again, of tensors below 32 MB.
        env = os.environ | {'MALLOC_MMAP_THRESHOLD_': '262144'}
        options = {'stdout': subprocess.PIPE, 'text': True, 'env': env}
        out = subprocess.run(command, check=True, **options)
        rows.append(json.loads(out.stdout.splitlines()[-1]))
        # A run that is cut short leaves what it has.
        title = f'LightGCN step, {args.device}, d = {args.channels}'
        finish(title, rows, list(rows[0]), vars(args), args.json)
