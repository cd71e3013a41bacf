r"""How long is a training epoch, against a straightforward implementation?

    python benchmark/training_epoch.py                          # 384-d images.
    python benchmark/training_epoch.py --image-channels 4096    # As published.
    python benchmark/training_epoch.py --profile                # Where time goes.

MGCN: the baseline propagates with torch COO matrices, fuses all nodes in every step,
and steps with unfused dense Adam, as a plain reading of the paper does. Both get the
same batches and start from the same parameters; their losses are compared over the
first 50 steps. LightGCN: PyG's model on a plain `edge_index` against the same model on
`ops.spmm`.
"""

import argparse
import copy
import statistics
import time

import torch
import torch.nn.functional as F
from common import finish, load_baby
from torch_geometric.nn import LightGCN

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.loader import TripletLoader
from torch_geometric_unlearn.nn import MGCN
from torch_geometric_unlearn.nn.functional import bpr_loss
from torch_geometric_unlearn.ops import spmm
from torch_geometric_unlearn.ops.sparse_operator import bipartite_operators

parser = argparse.ArgumentParser(allow_abbrev=False)
parser.add_argument('--image-channels', type=int, default=384)
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


class PlainMGCN(torch.nn.Module):
    r"""MGCN as one would write it down: COO matrices, every node fused every step."""

    def __init__(self, model, graph):
        super().__init__()
        self.model = model
        self.user_item = self.coo(graph.user_item)
        self.item_to_user = self.coo(graph.item_to_user)
        self.similar = {name: self.coo(op) for name, op in graph.similar.items()}

    @staticmethod
    def coo(operator):
        size = operator.size[::-1]
        index = operator.edge_index.flip(0)
        return torch.sparse_coo_tensor(
            index, operator.edge_weight, size, check_invariants=False
        ).coalesce()

    def encode(self):
        m = self.model
        x = torch.cat([m.user_embedding.weight, m.item_embedding.weight])
        layers = [x]
        for _ in range(m.num_layers):
            layers.append(torch.sparse.mm(self.user_item, layers[-1]))
        behaviour = torch.stack(layers, dim=1).mean(dim=1)
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


def synchronise():
    if args.device != 'cpu':
        torch.cuda.synchronize()


def train_step(loss, optimizer):
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


def compare(title, baseline, ours, optimizers, batches):
    r"""Steps both in turns on the same batches; returns rows with median seconds."""
    seconds = {'baseline': [], 'ours': []}
    losses = {'baseline': [], 'ours': []}
    for batch in batches:
        for label, loss in (('baseline', baseline), ('ours', ours)):
            synchronise()
            start = time.perf_counter()
            value = train_step(loss(batch), optimizers[label])
            synchronise()
            seconds[label].append(time.perf_counter() - start)
            losses[label].append(float(value))
    gaps = [abs(a - b) for a, b in zip(losses['baseline'], losses['ours'])]
    medians = {k: statistics.median(v[3:]) for k, v in seconds.items()}
    quartiles = {k: statistics.quantiles(v[3:], n=4) for k, v in seconds.items()}
    return [
        {
            'model': title,
            'implementation': label,
            'ms_per_step': medians[label] * 1e3,
            'spread_ms': (quartiles[label][2] - quartiles[label][0]) * 1e3,
            'seconds_per_epoch': medians[label] * len(loader),
            'ratio': medians['baseline'] / medians[label],
            'max_loss_gap': f'{max(gaps):.1e}',
        }
        for label in seconds
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


# 1. MGCN.
model = MGCN.from_data(data).to(args.device)
graph = model.build_graph(data)
plain = PlainMGCN(copy.deepcopy(model), graph)
optimizers = {
    'baseline': torch.optim.Adam(plain.parameters(), foreach=False, fused=False),
    'ours': torch.optim.Adam(model.parameters(), fused=True),
}
rows = compare(
    f'MGCN, {args.image_channels}-d images',
    plain.loss,
    lambda batch: model.loss(graph, batch),
    optimizers,
    batches,
)
if args.profile:
    profile('the baseline', plain.loss, optimizers['baseline'])
    profile('ours', lambda batch: model.loss(graph, batch), optimizers['ours'])

# 2. LightGCN with two layers.
edge_index = torch.cat([pairs, pairs.flip(0)], dim=1).clone()
edge_index[1, : pairs.size(1)] += num_users
edge_index[0, pairs.size(1) :] += num_users
lightgcn = LightGCN(num_users + num_items, 64, num_layers=2).to(args.device)
table = torch.nn.Parameter(lightgcn.embedding.weight.detach().clone())
operator = bipartite_operators(pairs, num_users, num_items)[0].to(args.device)


def rank_loss(out, batch):
    user, pos = out[batch.user], out[batch.pos_item + num_users]
    neg = out[batch.neg_item + num_users]
    return bpr_loss((user * pos).sum(-1), (user * neg).sum(-1))


def ours(batch):
    first = spmm(operator, table)
    return rank_loss((table + first + spmm(operator, first)) / 3, batch)


rows += compare(
    'LightGCN, 2 layers',
    lambda batch: rank_loss(lightgcn.get_embedding(edge_index), batch),
    ours,
    {
        'baseline': torch.optim.Adam(lightgcn.parameters()),
        'ours': torch.optim.Adam([table], fused=True),
    },
    batches,
)
finish(
    f'{name}, {args.device}, {len(loader)} steps per epoch, '
    f'negative sampling {sampling:.4f} s per epoch',
    rows,
    list(rows[0]),
    vars(args) | {'sampling_seconds': sampling},
    args.json,
)
