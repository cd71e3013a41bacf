r"""What every process of the tests does: it trains, forgets, saves, loads, and writes
what it has found. Started by ``torchrun``, or on its own.
"""

import os
import signal
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from unittest import mock

import torch

from torch_geometric_unlearn.data.request import Request
from torch_geometric_unlearn.datasets import SyntheticMultimodal
from torch_geometric_unlearn.distributed import (
    Columns,
    Processes,
    mark,
    process_group,
)
from torch_geometric_unlearn.distributed import processes as processes_module
from torch_geometric_unlearn.metrics import evaluate_request, evaluate_split
from torch_geometric_unlearn.nn import ColumnParallelLightGCN, LightGCN, Served
from torch_geometric_unlearn.train import fit, load_model, save_model
from torch_geometric_unlearn.transforms import (
    DropForgotten,
    ForgetInteractions,
    ForgetUsers,
)
from torch_geometric_unlearn.unlearn import (
    TRU,
    EdgeDrop,
    PartialRetrain,
    Retrain,
    RowReset,
    UltraRE,
)

CHANNELS = 8


def build(data):
    return ColumnParallelLightGCN.from_data(data, hidden_channels=CHANNELS)


def embeddings(model, data):
    return [x.detach() for x in model(model.build_graph(data))]


def refusal(function):
    try:
        function()
    except (TypeError, ValueError) as error:
        return str(error)
    return ''


def never_whole(model):
    r"""Where columns are gathered, a block fails."""
    if model.columns.num_processes == 1:
        return nullcontext()
    return mock.patch.object(Columns, 'gather', side_effect=AssertionError)


def rankings(data):
    r"""Lists by whole numbers, of which many scores are equal, and none is rounded."""
    whole = LightGCN.from_data(data, hidden_channels=CHANNELS, num_layers=0)
    rng = torch.Generator().manual_seed(0)
    for table in whole.parameters():
        table.data = torch.randint(-1, 2, table.shape, generator=rng).float()
    model = ColumnParallelLightGCN.from_whole(whole)
    graph = model.build_graph(data)
    out = {}
    for size in (7, 33, 2048):  # The last blocks are smaller, or fewer than processes.
        kwargs = {'k': 9, 'batch_size': size, 'exclude_items': [2]}
        with never_whole(model):
            out[f'ties {size}'] = model.recommend(graph, range(100), **kwargs)
        out[f'ties {size} whole'] = whole.recommend(graph, range(100), **kwargs)
    if model.columns.rank == model.columns.num_processes - 1:
        model.item_embedding.weight.data[3, 1] = torch.nan
    out['not finite'] = refusal(lambda: model.recommend(graph, [1]))
    model.item_embedding.weight.data.nan_to_num_(nan=1e30)
    out['too large'] = refusal(lambda: Served(model, graph).scores)
    return out


def main(folder):
    data = SyntheticMultimodal('tiny')[0]
    out = {}
    torch.manual_seed(0)
    model = build(data)
    columns = model.columns
    out['initial'] = embeddings(model, data)
    result = fit(
        model, data, num_epochs=4, batch_size=256, checkpoint=folder / 'fit', seed=1
    )
    out['loss'] = [row['loss'] for row in result.history]
    out['trained'] = embeddings(model, data)
    out['whole'] = embeddings(model.to_whole(), data)
    out['again'] = embeddings(ColumnParallelLightGCN.from_whole(model.to_whole()), data)
    with never_whole(model):
        out['test'] = evaluate_split(model, data)
        out['lists'] = model.recommend(model.build_graph(data), [0, 1, 2], k=5)
    out |= rankings(data)
    save_model(model, folder / 'model', {'note': 1}, data=data)

    first = columns.rank == 0
    users = ForgetUsers(ratio=0.1, seed=2)
    marked = mark(data, users if first else None, columns)
    small = mark(data, ForgetUsers([3]) if first else None, columns)
    pairs = mark(data, ForgetInteractions(ratio=0.05) if first else None, columns)
    torch.manual_seed(0)
    methods = {
        'EdgeDrop': (EdgeDrop(), marked),
        'RowReset': (RowReset(seed=3), marked),
        'PartialRetrain': (PartialRetrain(min_steps=8, num_epochs=2), marked),
        'PartialRetrain, one user': (PartialRetrain(min_steps=8), small),
        'PartialRetrain, pairs': (
            PartialRetrain(
                min_steps=8, num_epochs=2, checkpoint=folder / 'rows', resume=True
            ),
            pairs,
        ),
        'Retrain': (Retrain(build, num_epochs=2, batch_size=256), marked),
    }
    for name, (method, request) in methods.items():
        result = method(model, request)
        out[name] = embeddings(result.model, result.data)
        out[f'{name} facts'] = (result.touched, result.shift)
        served = Request.of(request)
        left = result.data['user', 'interacts', 'item'].edge_index
        out[f'{name} left'] = bool(served.covers(left).any())
        with never_whole(model):
            out[f'{name} metrics'] = evaluate_request(result.model, request)
    # Rows of deleted users: none on any process is as it was.
    reset = RowReset(seed=3)(model, marked).model.user_embedding.weight
    gone = Request.of(marked).users
    kept = (reset[gone] == model.user_embedding.weight[gone]).any()
    out['kept rows'] = bool(columns.any(bool(kept)))

    out['refused method'] = refusal(lambda: TRU()(model, marked))
    wrong = marked if columns.rank == 0 else small
    out['tampered'] = refusal(lambda: EdgeDrop()(model, wrong))
    out['other data'] = refusal(lambda: fit(model, DropForgotten()(wrong)))
    out['bad request'] = refusal(
        lambda: mark(data, ForgetUsers([10**6]) if first else None, columns)
    )
    with mock.patch.object(processes_module, 'package_versions') as versions:
        versions.return_value = {'torch': f'2.{columns.rank}'}
        out['other versions'] = refusal(lambda: EdgeDrop()(model, marked))
    out['no request'] = refusal(lambda: mark(data, None, columns))
    out['odd'] = refusal(
        lambda: ColumnParallelLightGCN.from_data(data, hidden_channels=7)
    )
    torch.save(out, folder / f'{columns.num_processes}-{columns.rank}.pt')


def load(folder):
    r"""Loads what other processes, any number of them, have saved."""
    data = SyntheticMultimodal('tiny')[0]
    model = build(data)
    out = {'note': load_model(model, folder / 'model', data=data)}
    out['loaded'] = embeddings(model, data)
    result = fit(
        model,
        data,
        num_epochs=6,
        batch_size=256,
        checkpoint=folder / 'fit',
        resume=True,
        seed=1,
    )
    out['loss'] = [row['loss'] for row in result.history]
    out['resumed'] = embeddings(model, data)
    columns = model.columns
    torch.save(out, folder / f'load-{columns.num_processes}-{columns.rank}.pt')


def die_once(folder):
    r"""The second process is killed in the third epoch of the first attempt."""
    data = SyntheticMultimodal('tiny')[0]
    torch.manual_seed(0)
    model = build(data)

    def kill(model, row):
        is_time = model.columns.rank == 1 and row['epoch'] == 2
        if is_time and not (folder / 'killed').exists():
            (folder / 'killed').touch()
            os.kill(os.getpid(), signal.SIGKILL)

    kwargs = {'checkpoint': folder / 'fit', 'resume': True, 'seed': 1}
    fit(model, data, num_epochs=5, batch_size=256, callbacks=[kill], **kwargs)
    out = {'resumed': embeddings(model, data)}
    torch.save(out, folder / f'killed-{model.columns.rank}.pt')


def shards(folder):
    r"""Trains the shards of an ensemble on all processes, and those of a request."""
    data = SyntheticMultimodal('tiny')[0]
    torch.manual_seed(0)
    model = LightGCN.from_data(data, hidden_channels=CHANNELS)
    unlearner = UltraRE(
        partial(LightGCN.from_data, hidden_channels=CHANNELS),
        3,
        grouping='random',
        by_rank=True,
        num_epochs=2,
    )
    unlearner.prepare(None, data)
    out = {'prepared': state_of(unlearner.ensemble)}
    result = unlearner(unlearner.ensemble, ForgetUsers([3, 5, 8, 13])(data))
    out['unlearned'] = state_of(result.model)
    out['shards'] = [row['shard'] for row in result.history]
    processes = Processes()
    wrong = ForgetUsers([3 + processes.rank])(data)
    out['other data'] = refusal(lambda: unlearner(model, wrong))
    torch.save(out, folder / f'shards-{processes.num_processes}-{processes.rank}.pt')


def state_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


STEPS = {'main': main, 'load': load, 'shards': shards, 'die_once': die_once}


def run(steps):
    r"""Runs steps in folders, given in turns."""
    with process_group(timeout=120):
        processes = Processes()
        for name, folder in zip(steps[::2], steps[1::2]):
            # Those that are done are not repeated after a restart.
            place = f'{processes.num_processes}-{processes.rank}'
            done = Path(folder) / f'{name}-{place}.done'
            if not done.exists():
                STEPS[name](Path(folder))
                done.touch()


if __name__ == '__main__':
    torch.set_num_threads(1)
    run(sys.argv[1:])
