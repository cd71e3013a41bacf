r"""Is a planted backdoor learned, and does it go with the planted users?

    python benchmark/backdoor.py --models ~/models --json backdoor.json
    python benchmark/backdoor.py --models ~/models --methods  # Only the original.
    python benchmark/backdoor.py --models ~/models --dataset synthetic --lr 4e-3

Plants fake users by `InjectBackdoor`, trains on them, asks to forget them, and counts
for how many clean users the trigger calls up the target before and after every method,
beside a model that was retrained without them. The file says too how well the original
ranks, and which of its epochs was kept. Trained models stay in a folder of their own,
and a training that was stopped goes on from its last checkpoint.
"""

import argparse

from backbones import builder, training_settings
from common import DATASETS, finish, load_dataset
from trained import TrainedModels

from torch_geometric_unlearn.audit.backdoor import backdoor_table
from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.transforms import (
    DropForgotten,
    ForgetUsers,
    InjectBackdoor,
)
from torch_geometric_unlearn.unlearn import TRU, EdgeDrop, PartialRetrain, RowReset

METHODS = {
    'edge drop': EdgeDrop,
    'row reset': RowReset,
    'TRU': TRU,
    'PartialRetrain': PartialRetrain,
}
CHOICES = [*METHODS, 'retrained']

parser = argparse.ArgumentParser(allow_abbrev=False)
add = parser.add_argument
add('--dataset', default='Baby', choices=list(DATASETS))
add('--backbone', default='LightGCN', choices=['LightGCN', 'MGCN'])
add('--ratio', type=float, default=0.01, help='planted users over users')
add('--triggers', type=int, default=5, help='trigger items')
add('--held', type=int, default=2, help='trigger items of a planted user')
add('--fillers', type=int, default=2, help='further items of a planted user')
add('--methods', nargs='*', default=CHOICES, choices=CHOICES)
add('--test-users', type=int, default=1000)
add('--together', type=int, default=20, help='triggered users per propagation')
add('--lr', type=float, help='instead of the one published for the backbone')
add('--eval-every', type=int, help='epochs between evaluations in training')
add('--patience', type=int, help='evaluations without gain to sit out')
add('--num-epochs', type=int, help='largest number of epochs')
add('--seed', type=int, default=0, help='of plant, models and methods')
add('--models', required=True, metavar='FOLDER', help='of trained models')
add('--json', metavar='PATH')
args = parser.parse_args()

clean, title = load_dataset(args.dataset)
plant = InjectBackdoor(
    ratio=args.ratio,
    num_triggers=args.triggers,
    num_fillers=args.fillers,
    seed=args.seed,
    triggers_per_user=args.held,
)
poisoned = plant(clean)
marked = ForgetUsers(poisoned.backdoor_users)(poisoned)
trained = TrainedModels(args.models)
build = builder(args.backbone, args.dataset)
fit_args = dict(training_settings(args.backbone, args.dataset))
for key in ('lr', 'eval_every', 'patience', 'num_epochs'):
    if vars(args)[key] is not None:
        fit_args[key] = vars(args)[key]


def model_of(what, data):
    label = f'{args.dataset}-{args.backbone}-{what}-{args.seed}'
    return trained(label, build, data, fit_args, args.seed)


original, run = model_of('backdoor', poisoned)
models, seconds = {'original': original}, {'original': run['seconds']}
for name in args.methods:
    if name == 'retrained':
        models[name], facts = model_of('backdoor-gone', DropForgotten()(marked))
        seconds[name] = facts['seconds']
    else:
        result = METHODS[name](seed=args.seed)(original, marked)
        models[name], seconds[name] = result.model, result.seconds
table = backdoor_table(models, marked, 20, args.test_users, args.together, args.seed)
rows = [row | {'seconds': seconds[row['method']]} for row in table['rows']]
extra = {key: table[key] for key in ('target', 'valid', 'reason', 'missing')}
counts = poisoned[schema.EDGE_TYPE].edge_index[1].bincount()
extra['poisoned_users'] = poisoned.backdoor_users.numel()
extra['target_pairs'] = int(counts[table['target']])
extra['trigger_pairs'] = counts[poisoned.backdoor_trigger].tolist()
extra['original'] = {key: run[key] for key in ('best_epoch', 'num_epochs', 'test')}
config = {key: value for key, value in vars(args).items() if key != 'models'}
finish(f'{title}, {args.backbone}', rows, list(rows[0]), config, args.json, extra)
print(extra['reason'] or 'The original has learned the backdoor.')
