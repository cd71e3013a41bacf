r"""What the benchmarks share: data, timing side by side, bandwidth, output."""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path

import numpy as np
import torch

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.datasets import SyntheticMultimodal
from torch_geometric_unlearn.datasets._mmrec import read_mmrec
from torch_geometric_unlearn.report import format_table, save_json, versions

PATHS = ('json', 'checkpoint')  # Stay out of the results.


#: Folder, file, modalities and what to say of the features, by name; of generated data
#: the size.
DATASETS = {
    'Baby': ('amazon_baby', 'baby', ('image', 'text'), 'reconstructed features'),
    'Sports': ('amazon_sports', 'sports', ('image', 'text'), 'reconstructed features'),
    'Clothing': ('amazon_clothing', 'clothing', ('text',), 'category text'),
    'TikTok': ('tiktok', 'tiktok', ('image', 'audio'), 'original features'),
    'synthetic': ('', '', (), 'small'),
    'tiny': ('', '', (), 'tiny'),
}


def load_dataset(name):
    r"""A data set from the folder named by `TGU_REAL_DATA`, and its title; generated
    data of Baby's size without that folder, or that of a size where it is asked for.
    """
    root = os.environ.get('TGU_REAL_DATA')
    folder, file, modalities, note = DATASETS[name]
    if not folder:
        return SyntheticMultimodal(note)[0], f'synthetic ({note})'
    if not root:
        return SyntheticMultimodal('medium')[0], 'synthetic (medium)'
    data = read_mmrec(str(Path(root) / folder), file, modalities)
    return data, f'{name} ({note})'


def load_baby():
    r"""Amazon Baby, or generated data of its size."""
    return load_dataset('Baby')


def enlarged(edge_index, num_users, num_items, factor, seed=0):
    r"""A graph `factor` times as large: disjoint copies of the users, whose items are
    spread over copies of the items at random, so that degrees keep their skew.
    """
    rng = np.random.default_rng(seed)
    users, items = edge_index.numpy()
    out = []
    for copy in range(factor):
        shift = rng.integers(factor, size=items.size)
        out.append(np.stack([users + copy * num_users, items + shift * num_items]))
    pairs = np.unique(np.concatenate(out, axis=1), axis=1)
    return torch.from_numpy(pairs), num_users * factor, num_items * factor


def time_side_by_side(functions, device='cpu', repeats=15, warmup=3):
    r"""Runs all functions in turns, so that noise hits all of them alike, and returns
    median seconds and the spread between the quartiles by name. Every turn calls a
    function twice and times the second call, which finds its own data in the caches.
    """

    def run(function):
        if device != 'cpu':
            torch.cuda.synchronize()
        start = time.perf_counter()
        function()
        if device != 'cpu':
            torch.cuda.synchronize()
        return time.perf_counter() - start

    seconds = {name: [] for name in functions}
    for turn in range(warmup + repeats):
        for name, function in functions.items():
            function()
            value = run(function)
            if turn >= warmup:
                seconds[name].append(value)
    out = {}
    for name, values in seconds.items():
        low, high = values[0], values[0]  # One repeat has no spread.
        if len(values) > 1:
            low, _, high = statistics.quantiles(values, n=4)
        out[name] = {'median': statistics.median(values), 'spread': high - low}
    return out


def copy_bandwidth(device='cpu', num_bytes=256 * 2**20):
    r"""Bytes per second of a plain copy, read plus write."""
    source = torch.ones(num_bytes // 4, device=device)
    target = torch.empty_like(source)
    result = time_side_by_side({'copy': lambda: target.copy_(source)}, device)
    return 2 * num_bytes / result['copy']['median']


def finish(title, rows, columns, config, path, extra=None):
    r"""Prints the table and writes it with versions, device and what is to be kept
    beside it if a path is given.
    """
    print(title)
    print(format_table(rows, columns))
    if path:
        config = {key: config[key] for key in config if key not in PATHS}
        content = {'title': title, 'rows': rows, 'config': config}
        save_json(path, content | {'versions': versions()} | (extra or {}))
        print(f'Wrote {path}')


def training_graph(data, factor=1):
    r"""Training pairs, number of users and of items, `factor` times as large."""
    sizes = schema.num_users(data), schema.num_items(data)
    graph = data[schema.EDGE_TYPE].edge_index, *sizes
    return enlarged(*graph, factor) if factor > 1 else graph
