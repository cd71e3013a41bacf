r"""What does a workspace cost, and does the model stay good under requests day by day?

    python benchmark/deletion_service.py --json results/deletion_service_cpu.json
    python benchmark/deletion_service.py --parts days --seeds 0 1 2 --batch-size 512

`days`: a hundred users leave on sixty days, and the scheduler serves them in batches;
at the end stands one retraining without any of them. `one by one`: the same, every
request served at once. `single`: one user, from the request to the promoted version,
beside the unlearning alone. `import`: many requests at a time.

A full training in between makes the last model as good as retraining by itself. So the
first two parts count how versions came about, and look at every one that was put into
service: `worst_relative` is the lowest NDCG@20 of the users who stay relative to
retraining, and `worst_to_full` that of unlearned versions relative to the last full
training, as the budget of 2 % has it. The last unlearned version before every full
training, and the one at the end, is attacked: can the pairs erased until then be told
from test pairs? `contained` of the `attacks` have an interval that holds the value of
the retrained model on the same pairs; `membership`, `low`, `high` and `control` are
those of the attack on the most pairs.
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch
from backbones import BUILD, training_settings
from common import finish, load_dataset
from service import Days, Drift, Jobs

from torch_geometric_unlearn.data.request import is_erased
from torch_geometric_unlearn.metrics import evaluate_request
from torch_geometric_unlearn.nn import Served
from torch_geometric_unlearn.train import fit
from torch_geometric_unlearn.transforms import DropForgotten, ForgetUsers
from torch_geometric_unlearn.unlearn import PartialRetrain
from torch_geometric_unlearn.utils.seed import isolated_seed
from torch_geometric_unlearn.workspace import Workspace

parser = argparse.ArgumentParser(allow_abbrev=False)
parser.add_argument('--backbone', default='MGCN', choices=['LightGCN', 'MGCN'])
parser.add_argument('--requests', type=int, default=100)
parser.add_argument('--days', type=int, default=60)
parser.add_argument('--imported', type=int, default=10_000)
parser.add_argument('--seeds', type=int, nargs='+', default=[0])
parser.add_argument('--num-epochs', type=int, help='largest, of every training')
parser.add_argument('--patience', type=int, help='of every training')
parser.add_argument('--lr', type=float, help='of every training')
parser.add_argument('--batch-size', type=int, help='of trainings and unlearning')
parser.add_argument(
    '--parts',
    nargs='+',
    default=['days', 'one by one', 'single', 'import'],
    choices=['days', 'one by one', 'single', 'import'],
)
parser.add_argument('--json', metavar='PATH')
args = parser.parse_args()

data, title = load_dataset('synthetic')
build, settings = BUILD[args.backbone], training_settings(args.backbone)
given = {k: getattr(args, k) for k in ('num_epochs', 'patience', 'lr', 'batch_size')}
settings |= {key: value for key, value in given.items() if value is not None}
steps = {key: settings[key] for key in ('batch_size',) if key in settings}


def trained(data, seed):
    with isolated_seed(seed):
        model = build(data)
    fit(model, data, seed=seed, **settings)
    return model


def workspace(model, folder, clock, seed):
    fit_args = {k: v for k, v in settings.items() if k != 'seed'}
    return Workspace.create(
        folder,
        data=data,
        model=model,
        build_model=build,
        clock=clock,
        method_args=steps,
        fit_args=fit_args,
        seed=seed,
        surge_share=0.5,
    )


def leavers(seed):
    users = data['user', 'interacts', 'item'].edge_index[0].unique()
    generator = torch.Generator().manual_seed(seed)
    return users[torch.randperm(users.numel(), generator=generator)].tolist()


def through_days(model, reference, folder, seed, at_once):
    clock = Days()
    ws = workspace(model, folder, clock, seed)
    users, start = leavers(seed)[: args.requests], time.perf_counter()
    marked = ForgetUsers(users)(data)
    goal, jobs = Served.of(reference, marked), Jobs(ws)
    drift = Drift(ws, data, goal, marked, seed)

    def work(**kwargs):
        waiting = {info.id: info.client_id for info in ws.book.requests('queued')}
        done = ws.work(**kwargs)
        service = jobs.take(done)
        if service is not None:
            served = [waiting[number] for job in done for number in job.requests]
            drift.take(service, list(map(int, served)))

    for day in range(args.days + 35):
        clock.let_pass()
        share = slice(*(args.requests * d // args.days for d in (day, day + 1)))
        for user in users[share] if day < args.days else []:
            ws.submit('erasure', users=[user], client_id=f'{user}', verified_by='bench')
            if at_once:
                work(now=True)
        work()
    seconds = time.perf_counter() - start
    served, after = ws.load()
    found, aim = (
        evaluate_request(x, marked, ks=(20,))['retain_ndcg@20'] for x in (served, goal)
    )
    status = ws.status()
    return {
        'seed': seed,
        'retain_ndcg@20': found,
        'retrained': aim,
        'relative': found / aim - 1,
        'jobs': jobs.num,
        'unlearned': jobs.by_method.get('PartialRetrain', 0),
        'from_scratch': jobs.by_method.get('Retrain', 0),
        'decided': jobs.decided,
        'failed_attempts': jobs.failed,
        'failed_gates': ', '.join(f'{n} {k}' for k, n in jobs.failed_gates.items()),
        **drift.figures(),
        'erased': sum(map(is_erased, after['user'].raw_id)),
        'overdue': status['overdue'],
        'open': sum(n for s, n in status['requests'].items() if s != 'completed'),
        'time_s': seconds,
    }


def single(model, folder, seed):
    ws = workspace(model, folder, time.time, seed)
    user = leavers(seed)[0]
    start = time.perf_counter()
    ws.submit('erasure', users=[user], client_id='one', verified_by='bench')
    ws.load()
    contained = time.perf_counter() - start
    start = time.perf_counter()
    (job,) = ws.work(now=True)
    ws.evidence(job.id)
    total = time.perf_counter() - start
    result = PartialRetrain(seed=seed, **steps)(model, ForgetUsers([user])(data))
    return {
        'seed': seed,
        'contained_s': contained,
        'promoted_s': total,
        'unlearning_s': result.seconds,
        'time_s': contained + total,
    }


def imported(model, folder, seed):
    ws = workspace(model, folder, time.time, seed)
    start = time.perf_counter()
    ws.submit_all(
        {
            'kind': 'erasure',
            'users': [10**9 + k],
            'client_id': f'{k}',
            'verified_by': 'bench',
        }
        for k in range(args.imported)
    )
    seconds = time.perf_counter() - start
    start = time.perf_counter()
    ws.status()
    return {
        'seed': seed,
        'requests': args.imported,
        'time_s': seconds,
        'status_s': time.perf_counter() - start,
        'ledger_mb': (ws.root / 'ledger.db').stat().st_size / 1e6,
    }


rows = []
for seed in args.seeds:
    model = trained(data, seed)
    marked = ForgetUsers(leavers(seed)[: args.requests])(data)
    reference = None
    for part in args.parts:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder) / 'shop'
            if part in ('days', 'one by one'):
                reference = reference or trained(DropForgotten()(marked), seed)
                row = through_days(model, reference, root, seed, part == 'one by one')
            else:
                row = {'single': single, 'import': imported}[part](model, root, seed)
        rows.append({'part': part, **row})
        # After every row, since what is done should not be lost.
        columns = list(dict.fromkeys(key for row in rows for key in row))
        finish(f'{title}, {args.backbone}', rows, columns, vars(args), args.json)
