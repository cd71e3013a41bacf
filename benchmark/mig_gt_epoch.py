r"""How long is a training epoch of MIG-GT, against a straightforward implementation?

    python benchmark/mig_gt_epoch.py

The baseline propagates with torch COO matrices, lets all tokens of all nodes attend,
as the paper writes it, and uses torch's own dropout and PReLU. Both get the same
batches; losses are compared without dropout on the same samples.
"""

import argparse
import copy

import torch
import torch.nn.functional as F
from common import finish, load_baby, time_side_by_side

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.loader import TripletLoader
from torch_geometric_unlearn.nn import MIGGT

parser = argparse.ArgumentParser(allow_abbrev=False)
parser.add_argument('--device', default='cpu')
parser.add_argument('--repeats', type=int, default=10)
parser.add_argument('--json', metavar='PATH')
args = parser.parse_args()


class PlainMIGGT:
    r"""MIG-GT as one would write it down, over the layers of a given model."""

    def __init__(self, model, graph):
        self.model, self.graph = model, graph
        operator = graph.user_item
        self.index, self.weight = operator.edge_index.flip(0), operator.edge_weight
        self.size = operator.size

    def propagate(self, x, conv):
        weight = F.dropout(self.weight, conv.dropout)
        matrix = torch.sparse_coo_tensor(
            self.index, weight, self.size, check_invariants=False
        )
        out = x
        for _ in range(conv.num_layers):
            out = conv.beta * torch.sparse.mm(matrix, out) + conv.alpha * x
        return out / conv.gamma

    def encode(self, name):
        m, encoder = self.model, self.model.encoder[name]
        x = F.dropout(self.graph.features[name], m.feature_dropout)
        x = encoder.prelu1(encoder.bn1(encoder.linear1(x)))
        x = F.dropout(x, encoder.dropout)
        return encoder.prelu2(encoder.bn2(encoder.linear2(x)))

    def loss(self, batch, samples):
        m = self.model
        zeros = torch.zeros(m.num_items, m.hidden_channels, device=args.device)
        x = F.dropout(m.user_embedding.weight, m.user_dropout)
        views = [self.propagate(torch.cat([x, zeros]), m.conv['id'])]
        zeros = torch.zeros(m.num_users, m.hidden_channels, device=args.device)
        for name in m.modalities:
            x = F.dropout(self.encode(name), m.item_dropout)
            views.append(self.propagate(torch.cat([zeros, x]), m.conv[name]))
        x = F.dropout(sum(views), m.out_dropout)
        own = torch.arange(x.size(0), device=args.device).unsqueeze(1)
        tokens = x[torch.cat([own, samples], dim=1)]
        query, key = m.transformer.query(tokens), m.transformer.key(tokens)
        alpha = (query @ key.transpose(1, 2) / query.size(-1) ** 0.5).softmax(dim=-1)
        rows = (1 - m.transformer.mix) * tokens + m.transformer.mix * alpha @ tokens
        z = rows[:, 0]
        pos, neg = batch.pos_item + m.num_users, batch.neg_item + m.num_users
        user = z[batch.user]
        rank = F.softplus((user * z[neg]).sum(1) - (user * z[pos]).sum(1)).sum()
        score = (rows[pos] * user.unsqueeze(1)).sum(dim=-1)
        tur = F.cross_entropy(score, torch.zeros_like(pos), reduction='sum')
        return rank + tur + 0.5 * m.weight_decay * z.pow(2).sum()


data, name = load_baby()
data = data.to(args.device)
pairs = data[schema.EDGE_TYPE].edge_index
num_items = schema.num_items(data)
loader = TripletLoader(
    pairs,
    num_items,
    batch_size=8000,
    known=pairs[:, :0],
    negative_items=torch.arange(num_items),
)
batch = next(iter(loader)).to(args.device)

# 1. Equal losses, without dropout and on the same samples.
torch.manual_seed(0)
off = dict.fromkeys(
    ['feature', 'hidden', 'user', 'item', 'edge', 'out'], 0.0
)
model = MIGGT.from_data(data, **{f'{key}_dropout': p for key, p in off.items()})
model = model.to(args.device)
graph = model.build_graph(data)
model._samples = lambda graph: graph.samples
expected = float(PlainMIGGT(copy.deepcopy(model), graph).loss(batch, graph.samples))
gap = abs(float(model.loss(graph, batch).detach()) - expected) / expected

# 2. Time of a step, with everything as published.
torch.manual_seed(0)
model = MIGGT.from_data(data).to(args.device)
plain = PlainMIGGT(copy.deepcopy(model), graph)
ours_optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, fused=True)
plain_optimizer = torch.optim.Adam(
    plain.model.parameters(), lr=1e-2, foreach=False, fused=False
)


def ours():
    ours_optimizer.zero_grad()
    model.loss(graph, batch).backward()
    ours_optimizer.step()


def baseline():
    samples = torch.randint_like(graph.samples, num_items) + model.num_users
    plain_optimizer.zero_grad()
    plain.loss(batch, samples).backward()
    plain_optimizer.step()


functions = {'baseline': baseline, 'ours': ours}
result = time_side_by_side(functions, args.device, args.repeats, warmup=1)
rows = [
    {
        'implementation': label,
        'ms_per_step': times['median'] * 1e3,
        'spread_ms': times['spread'] * 1e3,
        'seconds_per_epoch': times['median'] * len(loader),
        'ratio': result['baseline']['median'] / times['median'],
        'relative_loss_gap': f'{gap:.1e}',
    }
    for label, times in result.items()
]
title = f'{name}, MIG-GT, {args.device}, {len(loader)} steps per epoch'
finish(title, rows, list(rows[0]), vars(args), args.json)
