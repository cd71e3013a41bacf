r"""What does every audit say of a request, on models that are trained once and kept?

    python benchmark/audit.py --out runs --json runs/audit.json        # MGCN, users.
    python benchmark/audit.py --backbone MIGGT --regime item --out runs

Trains the original and two retrained models, which differ by their seed only and show
what training by itself leaves open, goes on from finished epochs when repeated, and
keeps every unlearned model. Then runs the membership attack in both modes, closeness,
relearning, exposure and the lists, and takes time and memory of each. Uses Amazon Baby
if `TGU_REAL_DATA` names a folder that has it, else generated data. Every model runs
once, in the first audit; relearning trains copies.
"""

from backbones import (
    BUILD,
    check_methods,
    load_original,
    load_request,
    request_parser,
    resumable,
)
from common import finish

from torch_geometric_unlearn.audit import compare_membership, relearn_time
from torch_geometric_unlearn.evaluation import Comparison
from torch_geometric_unlearn.metrics import closeness
from torch_geometric_unlearn.train import load_model, save_model
from torch_geometric_unlearn.unlearn import (
    TRU,
    EdgeDrop,
    MMRecUn,
    PartialRetrain,
    Retrain,
    RowReset,
)
from torch_geometric_unlearn.utils import ResourceMeter

parser = request_parser()
parser.add_argument('--no-relearn', action='store_true', help='minutes less')
args = parser.parse_args()
data, marked, fit_args, cells, title = load_request(args)
build_model = BUILD[args.backbone]
batch = {'batch_size': fit_args.get('batch_size', 2048), 'seed': args.seed}


def retraining(seed, file):
    return Retrain(build_model, seed=seed, **fit_args, **resumable(cells / file))


unlearners = {
    'retrained': retraining(args.seed, 'retrain.ck'),
    'retrained_2': retraining(args.seed + 1, 'retrain_2.ck'),
    'edge_drop': EdgeDrop(seed=args.seed),
    'row_reset': RowReset(seed=args.seed),
    'mmrecun': MMRecUn(**batch),
    'tru': TRU(**batch),
    'partial_retrain': PartialRetrain(**batch),
}
check_methods(parser, args, unlearners)

# 1. The models.
model, run = load_original(
    args.backbone, data, args.out, args.seed, args.device, **fit_args
)
models = {'original': model}
rows = {'original': {key: run[key] for key in ('seconds', 'peak_memory')}}
for method, unlearner in unlearners.items():
    if args.methods and method not in args.methods:
        continue
    path = cells / f'{method}.safetensors'
    if path.exists():
        models[method] = build_model(data).to(args.device)
        rows[method] = load_model(models[method], path, data=marked)
        continue
    result = unlearner(model, marked)
    seconds = result.seconds
    if method.startswith('retrained'):  # Perhaps in several goes.
        seconds = sum(row['seconds'] for row in result.history)
    models[method] = result.model
    rows[method] = {'seconds': seconds, 'peak_memory': result.peak_memory}
    save_model(result.model, path, rows[method], data=result.data)
    print(f'{method} done in {seconds:.1f} s', flush=True)

# 2. The audits.
costs = []


def audit(what, function, *inputs, **kwargs):
    with ResourceMeter(args.device) as meter:
        out = function(*inputs, **kwargs)
    costs.append(
        {'audit': what, 'time_s': meter.seconds, 'peak_memory': meter.peak_memory}
    )
    print(f'{what}: {meter.seconds:.1f} s', flush=True)
    return out


comparison = Comparison(models, marked)
served = {method: comparison.serve(method) for method in models}
members = audit('membership', compare_membership, served, marked)
for row in members['rows']:
    prefix = '' if row['mode'] == 'direct' else 'transfer_'
    keys = ('balanced_accuracy', 'auc', 'tpr_at_1_fpr', 'priv_gap', 'direction')
    values = {prefix + key: row[key] for key in keys if key in row}
    for key in ('balanced_accuracy', 'auc'):
        values[f'{prefix}{key}_interval'] = [row[f'{key}_low'], row[f'{key}_high']]
    rows[row['method']] |= values

for row in audit('lists and exposure', comparison.measure):
    rows[row['method']] = row | rows[row['method']]
goals = [served.get('retrained'), marked, served['original'], served.get('retrained_2')]
for method in models:
    if method == 'original' or goals[0] is None:
        continue
    near = audit(f'{method}: closeness', closeness, served[method], *goals)
    keep = ('value', 'recovered', 'ceiling', 'floor')
    rows[method]['closeness'] = {key: near[key] for key in keep}
    rows[method] |= {
        key: near['value'][key] for key in ('jaccard@20', 'rbo', 'jsd', 'ks_forget')
    }
    if args.no_relearn:
        continue
    back = audit(
        f'{method}: relearning',
        relearn_time,
        models[method],
        marked,
        model,
        batch_size=batch['batch_size'],
    )
    rows[method] |= {'relearn_steps': back['steps'], 'relearn_start': back['start']}
total = sum(cost['time_s'] for cost in costs)
costs.append({'audit': 'all', 'time_s': total})

for row in rows.values():
    if 'retrained' in rows:
        row['speed_up'] = rows['retrained']['seconds'] / max(row['seconds'], 1e-9)
        if 'relearn_steps' in row:
            steps = rows['retrained']['relearn_steps']
            row['relearn_relative'] = row['relearn_steps'] / max(steps, 1e-9)
columns = [
    'method',
    'retain_ndcg@20',
    'forget_recall@20',
    'exposure@20',
    'balanced_accuracy',
    'auc',
    'transfer_balanced_accuracy',
    'transfer_auc',
    'jaccard@20',
    'rbo',
    'jsd',
    'ks_forget',
    'relearn_steps',
    'seconds',
]
config = {key: value for key, value in vars(args).items() if key != 'out'}
extra = {'costs': costs, 'self_check': members['self_check']}
extra['confounded'] = members['confounded']
finish(title, list(rows.values()), columns, config, args.json, extra)
