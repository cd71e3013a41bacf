r"""What do TRU and partial retraining cost, as a multiple of a training epoch and
against retraining?

    python benchmark/unlearning.py                       # Steps only, a minute or two.
    python benchmark/unlearning.py --retrain             # And a full retraining.
    python benchmark/unlearning.py --retrain-epochs 45   # Of which three are run.
    python benchmark/unlearning.py --backbone MIGGT --regime interaction

Times a training step and whole runs on a request of 5 %. With
`--retrain`, also retrains to its own early stop; with `--retrain-epochs`, takes the
mean of three epochs for that many, which must be known from a full run. Starts from a
briefly trained model, or from `--checkpoint` (see `examples/tru.py`).
"""

import argparse

import torch
from backbones import BUILD, REGIMES, training_settings
from common import finish, load_baby, time_side_by_side

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.loader import TripletLoader
from torch_geometric_unlearn.train import fit, load_model
from torch_geometric_unlearn.unlearn import TRU, PartialRetrain, Retrain
from torch_geometric_unlearn.utils import ResourceMeter

parser = argparse.ArgumentParser(allow_abbrev=False)
parser.add_argument('--backbone', default='MGCN', choices=list(BUILD))
parser.add_argument('--regime', default='user', choices=list(REGIMES))
parser.add_argument('--checkpoint', metavar='PATH')
parser.add_argument('--retrain', action='store_true')
parser.add_argument('--retrain-epochs', type=int, metavar='N')
parser.add_argument('--seed', type=int, default=999)
parser.add_argument('--device', default='cpu')
parser.add_argument('--json', metavar='PATH')
args = parser.parse_args()

data, name = load_baby()
data = data.to(args.device)
marked = REGIMES[args.regime](ratio=0.05, seed=args.seed)(data)
build_model = BUILD[args.backbone]
fit_args = training_settings(args.backbone)
batch_size = fit_args.get('batch_size', 2048)

torch.manual_seed(args.seed)
model = build_model(data).to(args.device)
if args.checkpoint:
    load_model(model, args.checkpoint, data=data)
else:
    fit(model, data, seed=args.seed, **fit_args | {'num_epochs': 2})

# 1. One training step, for the unit.
graph = model.build_graph(data)
pairs = data[schema.EDGE_TYPE].edge_index
loader = TripletLoader(pairs, schema.num_items(data), batch_size)
batch = next(iter(loader)).to(args.device)
optimizer = torch.optim.Adam(model.parameters(), lr=0.0, fused=True)


def step():
    optimizer.zero_grad()
    model.loss(graph, batch).backward()
    optimizer.step()


epoch = time_side_by_side({'step': step}, args.device)['step']['median'] * len(loader)

# 2. Whole runs. A short one first, so that nothing is timed cold.
TRU(num_epochs=1, batch_size=batch_size)(model, marked)
rows = [{'what': 'training epoch', 'time_s': epoch, 'in_epochs': 1.0}]
for method in (TRU, PartialRetrain):
    unlearner = method(batch_size=batch_size, seed=args.seed)
    with ResourceMeter(args.device) as meter:
        result = unlearner(model, marked)
    seconds = [row['seconds'] for row in result.history]
    name_ = method.__name__
    rows += [
        {'what': name_, 'time_s': meter.seconds, 'epochs': len(seconds)},
        {'what': f'{name_}, first epoch', 'time_s': seconds[0]},
        {'what': f'{name_}, last epoch', 'time_s': seconds[-1]},
    ]
if args.retrain or args.retrain_epochs:
    factor = 1.0
    if args.retrain_epochs:
        fit_args['num_epochs'] = 3
        factor = args.retrain_epochs / 3
    retrained = Retrain(build_model, seed=args.seed, **fit_args)(model, marked)
    retraining = factor * sum(row['seconds'] for row in retrained.history)
    rows.append({'what': 'retraining', 'time_s': retraining})
    for row in rows:
        if 'epochs' in row:
            row['speed_up'] = retraining / row['time_s']
for row in rows:
    row['in_epochs'] = row['time_s'] / epoch
finish(
    f'{name}, {args.backbone}, {args.device}, {args.regime}-level, 5 %',
    rows,
    ['what', 'time_s', 'epochs', 'in_epochs', 'speed_up'],
    vars(args),
    args.json,
)
