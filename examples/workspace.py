r"""A month in a shop that keeps its deletion requests in a workspace.

    python examples/workspace.py

Five requests of different kinds come in; what each changes at once, what waits for a
batch, a batch that fails a gate and is retrained, a way back that brings nobody back,
an attempt to load deleted data again, and evidence that anyone can check. The data is
generated, the clock is turned by hand. Needs pandas and scikit-learn
(`pip install "torch_geometric_unlearn[frame,audit]"`); takes about a minute.
"""

import argparse
import tempfile
import warnings
from datetime import datetime, timezone
from pathlib import Path

import pandas as pd
import torch

from torch_geometric_unlearn.data import from_frame, to_frame
from torch_geometric_unlearn.datasets import SyntheticMultimodal
from torch_geometric_unlearn.nn import LightGCN
from torch_geometric_unlearn.train import fit
from torch_geometric_unlearn.workspace import Workspace, verify

parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
parser.add_argument('--size', default='small', help='of the generated data')
parser.add_argument('--epochs', type=int, default=60, help='of a full training')
parser.add_argument('--leaving', type=float, default=0.1, help='share of the users')
parser.add_argument('--folder', help='where to keep the workspace, if at all')
parser.add_argument('--seed', type=int, default=0)
args = parser.parse_args()
# Attacks on few interactions say that they are few; here the gates tell.
warnings.filterwarnings('ignore', category=UserWarning)

today = datetime(2026, 3, 1, 9, tzinfo=timezone.utc).timestamp()


def tell(text):
    print(f'{datetime.fromtimestamp(today, timezone.utc):%d %B}  {text}')


def days_pass(days):
    global today
    today += days * 86_400


def run():
    r"""What a cron table calls once a day: `tgu work`."""
    plan, jobs = shop.plan(), shop.work()
    if plan.decides:
        tell(f'A full training: {plan.reason}.')
    for job in jobs:
        who = f'Requests {job.requests}' if job.requests else 'That'
        tell(f'{who} went through job {job.id}: {job.verdict}.')
        for attempt, gates in job.gates.items():
            found = ', '.join(f'{name} {verdict}' for name, verdict in gates.items())
            print(f'           {attempt}: {found}')
    return jobs


def build_model(data):
    return LightGCN.from_data(data, hidden_channels=32)


# 1. A shop with its own ids, and a trained model. A tenth of the purchases come later.
world = SyntheticMultimodal(args.size, seed=args.seed)[0]
users = [f'user{i}@shop.org' for i in range(world['user'].num_nodes)]
items = [f'product-{i}' for i in range(world['item'].num_nodes)]
world['user'].raw_id, world['item'].raw_id = users, items
features = {
    name: pd.DataFrame(world['item'][f'x_{name}'].numpy(), index=items)
    for name in ('image', 'text')
}
everything = to_frame(world).astype(str)
bought = everything[everything['split'] == 'train']
later = bought.sample(frac=0.1, random_state=args.seed)
data = from_frame(
    everything.drop(later.index),
    split='split',
    users=users,
    items=items,
    item_features=features,
)
training = {'num_epochs': args.epochs, 'lr': 5e-3, 'batch_size': 1024}
torch.manual_seed(args.seed)
model = build_model(data)
fit(model, data, seed=args.seed, **training)

# 2. The workspace; its key lies beside the folder, never in it.
root = Path(args.folder or tempfile.mkdtemp()) / 'shop'
shop = Workspace.create(
    root,
    data=data,
    model=model,
    build_model=build_model,
    clock=lambda: today,
    fit_args=training,
    method='FineTune',  # Cheap; 'PartialRetrain' is the default.
    method_args={'num_epochs': 3, 'batch_size': 1024},
    seed=args.seed,
    max_erased=0.5,  # Else so many would be retrained for without an attempt.
)
tell(f'The workspace is made; version {shop.status()["version"][:12]} is served.')

# 3. Three requests. Each is out of what is served at once.
ann, ink = users[3], items[5]
shop.submit('erasure', users=[ann], client_id='T-1', verified_by='crm')
_, served = shop.load()
assert ann not in served['user'].raw_id
tell('T-1, an erasure: this user is out of what is served; the model follows later.')
days_pass(1)
shop.submit('takedown', items=[ink], client_id='T-2', verified_by='legal')
served_model, served = shop.load()
graph = served_model.build_graph(served)
lists, _ = served_model.recommend(graph, torch.arange(50), k=20)
assert not (lists == data['item'].raw_id.index(ink)).any()
tell('T-2, a takedown: nobody gets this product any more.')
pair = bought.drop(later.index).iloc[-1]
shop.submit(
    'correction',
    pairs=[(pair['user'], pair['item'])],
    client_id='T-3',
    verified_by='support',
)
tell('T-3, a correction of one purchase. They wait: ' + shop.plan().reason + '.')
days_pass(5)
tell(f'The takedown has seven days: {shop.plan().reason}.')
jobs = run()
days_pass(1)
run()

# 4. Many leave at once. A person has to look; and so many are enough for the gates to
# tell that the cheap method has not forgotten them. Then the model is retrained.
days_pass(3)
leaving = users[20 : 20 + int(args.leaving * len(users))]
many = shop.submit(
    'consent', users=leaving, client_id='T-4', verified_by='crm', due_days=14
)
run()
reason = shop.book.info(many.id).outcome
tell(f'T-4, {len(leaving)} users at once, is in review ({reason}).')
shop.release(many.id, who='dpo@shop.org', why='the users were asked')
tell('The data protection officer has approved it.')
jobs += run()

# 5. Accounts of a robot: these are always retrained for.
days_pass(3)
robots = users[10:13]
shop.submit('cleanup', users=robots, client_id='T-5', verified_by='security')
tell('T-5, a cleanup of three accounts.')
days_pass(2)
jobs += run()

# 6. Someone dislikes the new lists and rolls back: older weights, no older data.
before = shop.status()['watermark']
shop.rollback(who='ops@shop.org', why='the lists look odd')
_, served = shop.load()
assert not {ann, *leaving, *robots} & set(served['user'].raw_id)
assert shop.status()['watermark'] == before
tell(f'A rollback: older weights, still free of all {before} requests.')

# 7. A month's purchases come from a database that has not forgotten anybody.
days_pass(1)
try:
    kwargs = {'split': 'split', 'like': served, 'item_features': features}
    shop.refresh(from_frame(everything, **kwargs), 'ops@shop.org', 'monthly training')
except ValueError as error:
    tell(f'A training on all of it is refused: {error}')
clean = shop.filter(everything)
tell(f'The filter drops {len(everything) - len(clean)} of {len(everything)} rows.')
new = from_frame(clean, split='split', like=served)
version = shop.refresh(new, 'ops@shop.org', 'monthly training')
tell(f'Version {version[:12]} is trained on the others and served.')

# 8. After the probation, ids and old models are destroyed. Evidence stays.
for _ in range(2):
    days_pass(7)
    run()
tell(f'All is done: {shop.status()["requests"]}; {shop.doctor() or "nothing to mend"}.')
gone = [raw.encode() for raw in (ann, *leaving, *robots)]
files = [path for path in root.rglob('*') if path.is_file()]
found = [raw for raw in gone for path in files if b'"%b"' % raw in path.read_bytes()]
tell(f'Ids of {len(gone)} users found in {len(files)} files: {len(found)}.')
for job in jobs:
    if job.version is not None:
        tell(f'Evidence of {job.id}: {verify(shop.evidence(job.id))["verdict"]}.')
