r"""What every process of the tests does: it trains, forgets, saves, loads, and writes
what it has found. Started by ``torchrun``, or on its own.
"""

import copy
import os
import signal
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist

from torch_geometric_unlearn.data.request import Request
from torch_geometric_unlearn.datasets import SyntheticMultimodal
from torch_geometric_unlearn.distributed import (
    Columns,
    Processes,
    mark,
    process_group,
)
from torch_geometric_unlearn.distributed import processes as processes_module
from torch_geometric_unlearn.distributed.blocks import Blocks
from torch_geometric_unlearn.distributed.columns import UnevenColumns, divided
from torch_geometric_unlearn.distributed.rows import Rows
from torch_geometric_unlearn.metrics import evaluate_request, evaluate_split
from torch_geometric_unlearn.nn import (
    ColumnParallelLightGCN,
    ColumnParallelMGCN,
    ColumnParallelMIGGT,
    LightGCN,
    Served,
    Triplets,
)
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
from torch_geometric_unlearn.utils.mode import evaluating

CHANNELS = 8


def light_gcn(data):
    return ColumnParallelLightGCN.from_data(data, hidden_channels=CHANNELS)


def mgcn(data):
    return ColumnParallelMGCN.from_data(data, hidden_channels=CHANNELS)


def mig_gt(data):
    r"""In float64, as biases before batch norm make steps of their rounding."""
    sizes = {'hidden_channels': CHANNELS, 'encoder_channels': 11}
    return ColumnParallelMIGGT.from_data(data, **sizes).double()


def load_data(build=light_gcn):
    r"""Tiny data; where features count, of sizes that no two processes can halve."""
    if build is light_gcn:
        return SyntheticMultimodal('tiny')[0]
    data = SyntheticMultimodal('tiny', num_items=59)[0]
    data['item'].x_image = data['item'].x_image[:, :15].contiguous()
    return data


def batch_of(data):
    users, items = data['user', 'interacts', 'item'].edge_index[:, :201]
    return Triplets(users, items, items.flip(0))


def embeddings(model, data):
    with evaluating(model):
        return [x.detach() for x in model(model.build_graph(data))]


def refusal(function):
    try:
        function()
    except (TypeError, ValueError) as error:
        return str(error)
    return ''


def never_whole(model):
    r"""Where columns are gathered, a block fails."""
    if model.columns.num_processes == 1 or not hasattr(model, 'column_embeddings'):
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


def shared(model):
    r"""What a process holds as a whole."""
    parts = divided(model)
    state = model.state_dict().items()
    return {name: x.clone() for name, x in state if name not in parts}


def gradients(model, data):
    r"""Whole gradients: of the loss, and of embeddings of which all do the same."""
    model = copy.deepcopy(model)
    torch.manual_seed(5)  # Of dropout.
    for table in model.tables():
        table.parameter.data *= 10  # Or attention would have next to none.
    graph, parts, out = model.build_graph(data), divided(model), []
    user_emb, item_emb = model(graph)
    views = [user_emb[:, 0].sin().sum(), item_emb.pow(3).sum()]
    if hasattr(model, 'branch_embeddings'):
        branches = model.branch_embeddings(graph)
        fused = model.fuse(graph, branches)
        content = model.content_embeddings(graph)
        views += [x.sin().sum() for x in (*branches.values(), *content.values())]
        views += [x.pow(2)[::2].sum() for x in fused]
    for loss in (model.loss(graph, batch_of(data)), sum(views)):
        model.zero_grad()
        loss.backward()
        grads = {name: p.grad for name, p in model.named_parameters()}
        out.append({
            name: parts[name].gather(grad) if name in parts else grad.clone()
            for name, grad in grads.items()
            if grad is not None
        })
    model.zero_grad()
    return out


def sent(model, data):
    r"""Numbers that this process sends in a step."""
    graph, num, total = model.build_graph(data), model.columns.num_processes, []
    exchange, gather, reduce = dist.all_to_all_single, dist.all_gather, dist.all_reduce

    def count_exchange(out, x, received, given, group=None):
        total.append(x[: sum(given) - given[model.columns.rank]].numel())
        exchange(out, x, received, given, group=group)

    def count_gather(out, x, group=None):
        total.append((num - 1) * x.numel())
        gather(out, x, group=group)

    def count_reduce(x, group=None):
        total.append(2 * (num - 1) / num * x.numel())
        reduce(x, group=group)

    with (
        mock.patch.object(dist, 'all_to_all_single', count_exchange),
        mock.patch.object(dist, 'all_gather', count_gather),
        mock.patch.object(dist, 'all_reduce', count_reduce),
    ):
        model.loss(graph, batch_of(data)).backward()
    model.zero_grad()
    return sum(total)


def transposes(folder):
    r"""What becomes of rows and columns, and of the gradients of a sum that every
    process knows a part of.
    """
    columns = Columns(CHANNELS)
    rank, num = columns.rank, columns.num_processes
    out = {}
    for num_rows in (1, 5, 6):
        rows, gen = Rows(num_rows), torch.Generator().manual_seed(num_rows)
        x, weight, *own = torch.randn(2 + 2 * num, num_rows, 3, CHANNELS, generator=gen)
        own, weights = own[rank], own[num + rank]
        wide = Blocks(CHANNELS, 2)

        def of_columns(x, columns=columns):
            return x[..., columns.start : columns.start + columns.width]

        def of_rows(x, rows=rows):
            return x[rows.start : rows.start + rows.size]

        cases = {
            'from_columns': (rows.from_columns, of_columns(x), of_rows(weight)),
            'to_columns': (rows.to_columns, of_rows(x), of_columns(weight)),
            'reduce': (rows.reduce, own, of_rows(weight)),
            'collect': (rows.collect, of_rows(x), weights),
            'gather': (rows.gather, of_rows(x), weight),
            'take': (rows.take, x, of_rows(weight)),
            'reduce, columns': (wide.reduce, own, wide.take(weight)),
            'collect, columns': (wide.collect, wide.take(x), weights),
        }
        for name, (function, given, factor) in cases.items():
            given = given.clone().requires_grad_()
            result = function(given)
            (result * factor).sum().backward()
            out[name, num_rows] = result.detach().clone(), given.grad
    parts = UnevenColumns(5)
    x = torch.arange(15.0).view(3, 5)
    out['uneven'] = parts.sizes, parts.take(x).clone(), parts.gather(parts.take(x))
    pair = [torch.ones(2, 2, requires_grad=True), torch.ones(3, requires_grad=True)]
    first, second = columns.replicate(*pair)
    ((rank + 1) * first.sum() + 10 * (rank + 1) * second.sum()).backward()
    out['replicate'] = [x.grad for x in pair]
    torch.save(out, folder / f'transposes-{num}-{rank}.pt')


def main(build, folder):
    data = load_data(build)
    out = {}
    torch.manual_seed(Processes().rank)  # Only the first one counts.
    model = build(data)
    torch.manual_seed(0)
    columns = model.columns
    out['gradients'] = gradients(model, data)
    out['sent'] = sent(model, data)
    out['initial'] = embeddings(model, data)
    result = fit(
        model, data, num_epochs=4, batch_size=256, checkpoint=folder / 'fit', seed=1
    )
    out['loss'] = [row['loss'] for row in result.history]
    out['trained'] = embeddings(model, data)
    out['whole'] = embeddings(model.to_whole(), data)
    out['again'] = embeddings(type(model).from_whole(model.to_whole()), data)
    out['shared'] = shared(model)
    with never_whole(model):
        out['test'] = evaluate_split(model, data)
        out['lists'] = model.recommend(model.build_graph(data), [0, 1, 2], k=5)
    if isinstance(model, ColumnParallelLightGCN):
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
    if build is not light_gcn:
        layers = PartialRetrain(
            min_steps=8, num_epochs=2, shared_lr=1e-3, checkpoint=folder / 'shared'
        )
        methods['PartialRetrain, shared'] = layers, marked
    for name, (method, request) in methods.items():
        result = method(model, request)
        out[name] = embeddings(result.model, result.data)
        out[f'{name} shared'] = shared(result.model)
        out[f'{name} facts'] = (result.touched, result.shift)
        served = Request.of(request)
        left = result.data['user', 'interacts', 'item'].edge_index
        out[f'{name} left'] = bool(served.covers(left).any())
        with never_whole(model):
            out[f'{name} metrics'] = evaluate_request(result.model, request)
        # Rows of deleted users: none on any process is as it was.
        gone = served.users
        rows = [x.user_embedding.weight[gone] for x in (result.model, model)]
        out[f'{name} kept'] = columns.any(bool((rows[0] == rows[1]).any()))

    out['refused method'] = refusal(lambda: TRU()(model, marked))
    wrong = marked if columns.rank == 0 else small
    out['tampered'] = refusal(lambda: EdgeDrop()(model, wrong))
    other = DropForgotten()(wrong)
    out['other data'] = refusal(lambda: fit(model, other, num_epochs=1))
    out['bad request'] = refusal(
        lambda: mark(data, ForgetUsers([10**6]) if first else None, columns)
    )
    with mock.patch.object(processes_module, 'package_versions') as versions:
        versions.return_value = {'torch': f'2.{columns.rank}'}
        out['other versions'] = refusal(lambda: EdgeDrop()(model, marked))
    out['no request'] = refusal(lambda: mark(data, None, columns))
    out['odd'] = refusal(lambda: type(model).from_data(data, hidden_channels=7))
    if build is mgcn:
        moved = copy.deepcopy(model)
        moved.attention_hidden.bias.data += columns.rank
        out['other layers'] = refusal(lambda: EdgeDrop()(moved, marked))
        data['item'].x_image = data['item'].x_image[:, :1].clone()
        out['few'] = refusal(lambda: build(data))
    torch.save(out, folder / f'{columns.num_processes}-{columns.rank}.pt')


def load(build, folder):
    r"""Loads what other processes, any number of them, have saved."""
    data = load_data(build)
    model = build(data)
    columns = model.columns
    out = {'note': load_model(model, folder / 'model', data=data)}
    out['loaded'] = embeddings(model, data)
    rows = PartialRetrain(
        min_steps=8, num_epochs=2, checkpoint=folder / 'rows', resume=True
    )
    first = columns.rank == 0
    pairs = mark(data, ForgetInteractions(ratio=0.05) if first else None, columns)
    result = rows(model, pairs)
    out['PartialRetrain, pairs'] = embeddings(result.model, result.data)
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
    torch.save(out, folder / f'load-{columns.num_processes}-{columns.rank}.pt')


def die_once(folder):
    r"""The second process is killed in the third epoch of the first attempt."""
    data = load_data()
    torch.manual_seed(0)
    model = light_gcn(data)

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


STEPS = {
    'light_gcn': partial(main, light_gcn),
    'mgcn': partial(main, mgcn),
    'mig_gt': partial(main, mig_gt),
    'load_light_gcn': partial(load, light_gcn),
    'load_mgcn': partial(load, mgcn),
    'load_mig_gt': partial(load, mig_gt),
    'transposes': transposes,
    'shards': shards,
    'die_once': die_once,
}


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
