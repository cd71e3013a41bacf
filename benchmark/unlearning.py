r"""What does TRU cost, as a multiple of a training epoch and against retraining?

    python benchmark/unlearning.py                       # Steps only, a minute or two.
    python benchmark/unlearning.py --retrain             # And a full retraining.

Times the parts of a TRU epoch on a briefly trained MGCN, then a whole TRU run on a
request of 5 % of the users. With `--retrain`, also retrains to its own early stop; pass
`--checkpoint` to start from a fully trained model (see `examples/tru.py`).
"""

import argparse

import torch
from common import finish, load_baby, time_side_by_side

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.loader import TripletLoader
from torch_geometric_unlearn.nn import MGCN
from torch_geometric_unlearn.train import fit, load_model
from torch_geometric_unlearn.transforms import ForgetUsers
from torch_geometric_unlearn.unlearn import TRU, Retrain
from torch_geometric_unlearn.utils import ResourceMeter

parser = argparse.ArgumentParser(allow_abbrev=False)
parser.add_argument('--checkpoint', metavar='PATH')
parser.add_argument('--retrain', action='store_true')
parser.add_argument('--seed', type=int, default=999)
parser.add_argument('--device', default='cpu')
parser.add_argument('--json', metavar='PATH')
args = parser.parse_args()

data, name = load_baby()
data = data.to(args.device)
marked = ForgetUsers(ratio=0.05, seed=args.seed)(data)


def build_model(data):
    return MGCN.from_data(data).to(args.device)


torch.manual_seed(args.seed)
model = build_model(data)
if args.checkpoint:
    load_model(model, args.checkpoint)
else:
    fit(model, data, num_epochs=2, seed=args.seed)

# 1. One training step, for the unit.
graph = model.build_graph(data)
pairs = data[schema.EDGE_TYPE].edge_index
loader = TripletLoader(pairs, schema.num_items(data))
batch = next(iter(loader)).to(args.device)
optimizer = torch.optim.Adam(model.parameters(), lr=0.0, fused=True)


def step():
    optimizer.zero_grad()
    model.loss(graph, batch).backward()
    optimizer.step()


epoch = time_side_by_side({'step': step}, args.device)['step']['median'] * len(loader)

# 2. A TRU run, and the share of its epochs.
with ResourceMeter(args.device) as meter:
    result = TRU(seed=args.seed)(model, marked)
epochs = [row['seconds'] for row in result.history]
rows = [
    {'what': 'training epoch', 'time_s': epoch, 'in_epochs': 1.0},
    {'what': 'TRU, whole run', 'time_s': meter.seconds},
    {'what': 'TRU, first epoch (with reversal)', 'time_s': epochs[0]},
    {'what': 'TRU, last epoch', 'time_s': epochs[-1]},
]
if args.retrain:
    retrained = Retrain(build_model, seed=args.seed)(model, marked)
    rows.append({'what': 'retraining', 'time_s': retrained.seconds})
    rows[1]['speed_up'] = retrained.seconds / meter.seconds
for row in rows:
    row['in_epochs'] = row['time_s'] / epoch
finish(
    f'{name}, {args.device}, 5 % of the users, {len(epochs)} TRU epochs',
    rows,
    ['what', 'time_s', 'in_epochs', 'speed_up'],
    vars(args),
    args.json,
)
