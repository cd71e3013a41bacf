r"""How long is a training epoch, against a straightforward implementation?

    python benchmark/training_epoch.py                          # 384-d images.
    python benchmark/training_epoch.py --image-channels 4096    # As published.
    python benchmark/training_epoch.py --profile                # Where time goes.
    OMP_NUM_THREADS=1 python benchmark/training_epoch.py --models LightGCN --steps 58

MGCN: the baseline propagates with torch COO matrices, fuses all nodes in every step,
and steps with unfused dense Adam, as a plain reading of the paper does. LightGCN: the
baseline is PyG's own example, its model on a plain `edge_index`; then a plain reading
of the paper with COO matrices, stacked layers and unfused Adam, as in the research
toolboxes; PyG's model in `RecommenderAdapter`; and `LightGCN` of this package. All get
the same batches and start from the same parameters, and their losses are compared with
those of the baseline. Beside the time by the clock stands that of the processor, which
other programs on the machine disturb less.
"""

import argparse
import copy
import statistics
import time

import torch
import torch.nn.functional as F
from common import finish, load_baby
from torch_geometric.nn import LightGCN as PyGLightGCN

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.loader import TripletLoader
from torch_geometric_unlearn.nn import MGCN, LightGCN, RecommenderAdapter

MODELS = ['MGCN', 'LightGCN']
parser = argparse.ArgumentParser(allow_abbrev=False)
parser.add_argument('--image-channels', type=int, default=384)
parser.add_argument('--models', nargs='+', default=MODELS, choices=MODELS)
parser.add_argument('--steps', type=int, default=50, help='compared side by side')
parser.add_argument('--profile', action='store_true')
parser.add_argument('--device', default='cpu')
parser.add_argument('--json', metavar='PATH')
args = parser.parse_args()

data, name = load_baby()
torch.manual_seed(0)
if data['item'].x_image.size(1) != args.image_channels:
    basis = torch.randn(data['item'].x_image.size(1), args.image_channels)
    data['item'].x_image = data['item'].x_image @ basis / basis.size(0) ** 0.5
data = data.to(args.device)
pairs = data[schema.EDGE_TYPE].edge_index
num_users, num_items = schema.num_users(data), schema.num_items(data)
loader = TripletLoader(pairs, num_items)


def coo(operator):
    r"""A sparse operator as a COO matrix of torch."""
    size = operator.size[::-1]
    index = operator.edge_index.flip(0)
    return torch.sparse_coo_tensor(
        index, operator.edge_weight, size, check_invariants=False
    ).coalesce()


def mean_of_layers(matrix, x, num_layers):
    r"""LightGCN's propagation as one would write it down."""
    layers = [x]
    for _ in range(num_layers):
        layers.append(torch.sparse.mm(matrix, layers[-1]))
    return torch.stack(layers, dim=1).mean(dim=1)


class PlainMGCN(torch.nn.Module):
    r"""MGCN as one would write it down: COO matrices, every node fused every step."""

    def __init__(self, model, graph):
        super().__init__()
        self.model = model
        self.user_item = coo(graph.user_item)
        self.item_to_user = coo(graph.item_to_user)
        self.similar = {name: coo(op) for name, op in graph.similar.items()}

    def encode(self):
        m = self.model
        x = torch.cat([m.user_embedding.weight, m.item_embedding.weight])
        behaviour = mean_of_layers(self.user_item, x, m.num_layers)
        views = []
        for name in m.modalities:
            x = m.purifier[name](m.projection[name](m.features[name].weight)).sigmoid()
            x = torch.sparse.mm(self.similar[name], m.item_embedding.weight * x)
            views.append(torch.cat([torch.sparse.mm(self.item_to_user, x), x]))
        scores = [m.attention_query(torch.tanh(m.attention_hidden(v))) for v in views]
        alpha = torch.softmax(torch.cat(scores, dim=-1), dim=-1)
        shared = sum(alpha[:, i].unsqueeze(1) * v for i, v in enumerate(views))
        out = shared
        for name, view in zip(m.modalities, views):
            out = out + torch.sigmoid(m.preference[name](behaviour)) * (view - shared)
        return behaviour, out / (len(views) + 1)

    def info_nce(self, x, y):
        x, y = F.normalize(x, dim=1), F.normalize(y, dim=1)
        positive = torch.exp((x * y).sum(dim=-1) / self.model.temperature)
        total = torch.exp(x @ y.t() / self.model.temperature).sum(dim=1)
        return -torch.log(positive / total).mean()

    def loss(self, batch):
        m = self.model
        behaviour, fused = self.encode()
        out = behaviour + fused
        users, items = out.split([m.num_users, m.num_items])
        user, pos, neg = users[batch.user], items[batch.pos_item], items[batch.neg_item]
        bpr = -F.logsigmoid((user * pos).sum(1) - (user * neg).sum(1)).mean()
        norm = 0.5 * sum(v.pow(2).sum() for v in (user, pos, neg)) / m.batch_size
        nce = 0.0
        for index in (batch.user, batch.pos_item + m.num_users):
            nce = nce + self.info_nce(fused[index], behaviour[index])
        return bpr + m.weight_decay * norm + m.contrastive_weight * nce


class PlainLightGCN(torch.nn.Module):
    r"""LightGCN as one would write it down: COO matrices, all layers kept."""

    def __init__(self, model, graph):
        super().__init__()
        self.model = model
        self.user_item = coo(graph.user_item)

    def loss(self, batch):
        m = self.model
        users, items = m.user_embedding.weight, m.item_embedding.weight
        out = mean_of_layers(self.user_item, torch.cat([users, items]), m.num_layers)
        rows = users[batch.user], items[batch.pos_item], items[batch.neg_item]
        users, items = out.split([m.num_users, m.num_items])
        user, pos, neg = users[batch.user], items[batch.pos_item], items[batch.neg_item]
        bpr = -F.logsigmoid((user * pos).sum(1) - (user * neg).sum(1)).mean()
        norm = 0.5 * sum(x.pow(2).sum() for x in rows) / batch.user.numel()
        return bpr + m.weight_decay * norm


def synchronise():
    if args.device != 'cpu':
        torch.cuda.synchronize()


def train_step(loss, optimizer):
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


def compare(title, losses, optimizers, batches):
    r"""Steps all of them in turns on the same batches, the first being the baseline;
    returns rows with median seconds.
    """
    seconds = {label: [] for label in losses}
    cpu_seconds = {label: [] for label in losses}
    values = {label: [] for label in losses}
    for batch in batches:
        for label, loss in losses.items():
            synchronise()
            start, cpu_start = time.perf_counter(), time.process_time()
            value = train_step(loss(batch), optimizers[label])
            synchronise()
            seconds[label].append(time.perf_counter() - start)
            cpu_seconds[label].append(time.process_time() - cpu_start)
            values[label].append(float(value))
    baseline = next(iter(losses))
    medians = {k: statistics.median(v[3:]) for k, v in seconds.items()}
    cpu = {k: statistics.median(v[3:]) for k, v in cpu_seconds.items()}
    quartiles = {k: statistics.quantiles(v[3:], n=4) for k, v in seconds.items()}
    gaps = {
        label: max(abs(a - b) for a, b in zip(values[baseline], own))
        for label, own in values.items()
    }
    return [
        {
            'model': title,
            'implementation': label,
            'ms_per_step': medians[label] * 1e3,
            'spread_ms': (quartiles[label][2] - quartiles[label][0]) * 1e3,
            'seconds_per_epoch': medians[label] * len(loader),
            'ratio': medians[baseline] / medians[label],
            'cpu_ms_per_step': cpu[label] * 1e3,
            'cpu_ratio': cpu[baseline] / cpu[label],
            'max_loss_gap': f'{gaps[label]:.1e}',
        }
        for label in losses
    ]


start = time.perf_counter()
loader.sample_negatives(loader.edge_index[0])
sampling = time.perf_counter() - start
batches = []
while len(batches) < args.steps:
    batches += [batch.to(args.device) for batch in loader]
batches = batches[: args.steps]

def profile(title, loss, optimizer):
    r"""Prints the operators that take most time, by share of a step."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if args.device != 'cpu':
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        for batch in batches[:10]:
            train_step(loss(batch), optimizer)
    which = 'self_cpu_time_total' if args.device == 'cpu' else 'self_device_time_total'
    events = sorted(profiler.key_averages(), key=lambda e: -getattr(e, which))
    total = sum(getattr(event, which) for event in events)
    print(f'Profile of {title}:')
    for event in events[:12]:
        print(f'  {getattr(event, which) / total:6.1%}  {event.key}')


def compare_mgcn():
    model = MGCN.from_data(data).to(args.device)
    graph = model.build_graph(data)
    plain = PlainMGCN(copy.deepcopy(model), graph)
    losses = {'baseline': plain.loss, 'ours': lambda batch: model.loss(graph, batch)}
    optimizers = {
        'baseline': torch.optim.Adam(plain.parameters(), foreach=False, fused=False),
        'ours': torch.optim.Adam(model.parameters(), fused=True),
    }
    title = f'MGCN, {args.image_channels}-d images'
    return title, losses, optimizers


def compare_lightgcn():
    model = LightGCN.from_data(data).to(args.device)
    graph = model.build_graph(data)
    plain = PlainLightGCN(copy.deepcopy(model), graph)
    example = PyGLightGCN(num_users + num_items, 64, num_layers=2).to(args.device)
    with torch.no_grad():
        example.embedding.weight.copy_(model.node_embedding())

    def rank_loss(module, edge_index, batch):
        user, pos, neg = batch.nodes(num_users).chunk(3)
        label_index = torch.stack([torch.cat([user, user]), torch.cat([pos, neg])])
        ranks = module(edge_index, label_index).chunk(2)
        # The regulariser of all entries, not of distinct nodes, and without the half.
        node_id, weight = batch.nodes(num_users), model.weight_decay / 2
        return module.recommendation_loss(*ranks, node_id, lambda_reg=weight)

    adapter = RecommenderAdapter(
        copy.deepcopy(example),
        num_users,
        num_items,
        loss=lambda own, graph, batch: rank_loss(own.module, graph.adj, batch),
    )
    adapter_graph = adapter.build_graph(data)
    edge_index = adapter_graph.adj.clone()
    losses = {
        "PyG's example": lambda batch: rank_loss(example, edge_index, batch),
        'COO matrices': plain.loss,
        "PyG's model, adapter": lambda batch: adapter.loss(adapter_graph, batch),
        'ours': lambda batch: model.loss(graph, batch),
    }
    optimizers = {
        "PyG's example": torch.optim.Adam(example.parameters()),
        'COO matrices': torch.optim.Adam(
            plain.parameters(), foreach=False, fused=False
        ),
        "PyG's model, adapter": torch.optim.Adam(adapter.parameters(), fused=True),
        'ours': torch.optim.Adam(model.parameters(), fused=True),
    }
    return 'LightGCN, 2 layers', losses, optimizers


rows = []
for name_, setup in (('MGCN', compare_mgcn), ('LightGCN', compare_lightgcn)):
    if name_ not in args.models:
        continue
    title, losses, optimizers = setup()
    rows += compare(title, losses, optimizers, batches)
    for label in losses if args.profile else ():
        profile(f'{title}, {label}', losses[label], optimizers[label])
finish(
    f'{name}, {args.device}, {len(loader)} steps per epoch, '
    f'negative sampling {sampling:.4f} s per epoch',
    rows,
    list(rows[0]),
    vars(args) | {'sampling_seconds': sampling},
    args.json,
)
