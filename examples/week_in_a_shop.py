r"""A week in a shop: new users, items and purchases every day, and two deletions.

    python examples/week_in_a_shop.py

The model grows by rows for what is new and trains a few epochs; who leaves is forgotten
by partial retraining. At the end a model trained from scratch stands beside it. Needs
pandas (`pip install "torch_geometric_unlearn[frame]"`); takes about a minute.
"""

import argparse
import time

import pandas as pd
import torch

from torch_geometric_unlearn.data import from_frame, to_frame
from torch_geometric_unlearn.datasets import SyntheticMultimodal
from torch_geometric_unlearn.metrics import evaluate_split
from torch_geometric_unlearn.nn import MGCN, grow
from torch_geometric_unlearn.report import format_table
from torch_geometric_unlearn.train import fit
from torch_geometric_unlearn.transforms import ForgetItems, ForgetUsers
from torch_geometric_unlearn.unlearn import PartialRetrain

parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
parser.add_argument('--size', default='small', help='of the generated data')
parser.add_argument('--epochs', type=int, default=60, help='of the first training')
parser.add_argument('--daily-epochs', type=int, default=3)
parser.add_argument('--seed', type=int, default=0)
args = parser.parse_args()
settings = {'lr': 5e-3, 'batch_size': 1024, 'seed': args.seed}

# 1. All that will have happened by Saturday. A tenth of the users and of the items come
# during the week, and with them their purchases.
world = SyntheticMultimodal(args.size, seed=args.seed)[0]
names = {
    'user': [f'user{i}@shop.org' for i in range(world['user'].num_nodes)],
    'item': [f'product-{i}' for i in range(world['item'].num_nodes)],
}
for kind, ids in names.items():
    world[kind].raw_id = ids
table = to_frame(world).astype(str)
arrival = torch.zeros(len(table), dtype=torch.long)
generator = torch.Generator().manual_seed(args.seed)
for kind, ids in names.items():
    day = torch.randint(50, (len(ids),), generator=generator)
    day = dict(zip(ids, torch.where(day < 5, day, 0).tolist()))
    arrival = arrival.maximum(torch.tensor(table[kind].map(day).tolist()))
days = ['Monday', 'Tuesday', 'Wednesday', 'Thursday', 'Friday']


def features(items):
    r"""What the catalogue says of some products."""
    rows = {name: world['item'][f'x_{name}'] for name in ('image', 'text')}
    index = [names['item'].index(item) for item in items]
    return {
        name: pd.DataFrame(x[index].numpy(), index=list(items))
        for name, x in rows.items()
    }


def build(data):
    torch.manual_seed(args.seed)
    return MGCN.from_data(data, hidden_channels=32)


rows = []
for day, name in enumerate(days):
    new = table[(arrival == day).numpy()]
    start = time.perf_counter()
    if day == 0:
        # 2. Monday: a first model.
        products = new['item'].unique()
        data = from_frame(new, split='split', item_features=features(products))
        model = build(data)
        fit(model, data, num_epochs=args.epochs, **settings)
    else:
        # 3. Yesterday's data and today's: ids stay, what is new gets rows.
        known = set(data['item'].raw_id)
        products = [item for item in new['item'].unique() if item not in known]
        frame = pd.concat([to_frame(data).astype(str), new])
        new_features = features(products) if products else None
        data = from_frame(frame, split='split', item_features=new_features, like=data)
        model = grow(model, data, seed=args.seed)
        fit(model, data, num_epochs=args.daily_epochs, **settings)
    event = ''
    if name in ('Wednesday', 'Thursday'):
        # 4. Someone withdraws consent; a product is taken down.
        user, item = data['user', 'interacts', 'item'].edge_index[:, -1].tolist()
        if name == 'Wednesday':
            subject = data['user'].raw_id[user]
            marked = ForgetUsers(raw_users=[subject])(data)
        else:
            subject = data['item'].raw_id[item]
            marked = ForgetItems(raw_items=[subject])(data)
        unlearner = PartialRetrain(seed=args.seed, batch_size=settings['batch_size'])
        result = unlearner(model, marked)
        model, data = result.model, result.data
        assert subject not in data['user'].raw_id + data['item'].raw_id
        event = f'forgot {subject} in {result.seconds:.1f} s'
    rows.append({
        'day': name,
        'users': data['user'].num_nodes,
        'items': data['item'].num_nodes,
        'interactions': data['user', 'interacts', 'item'].num_edges,
        'test ndcg@20': evaluate_split(model, data)['ndcg@20'],
        'seconds': time.perf_counter() - start,
        'event': event,
    })

# 5. The same data, from scratch.
start = time.perf_counter()
fresh = build(data)
fit(fresh, data, num_epochs=args.epochs, **settings)
rows.append({
    **rows[-1],
    'day': 'from scratch',
    'test ndcg@20': evaluate_split(fresh, data)['ndcg@20'],
    'seconds': time.perf_counter() - start,
    'event': '',
})
print(format_table(rows, list(rows[0])))
