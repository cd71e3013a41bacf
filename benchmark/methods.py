r"""How do all methods compare on one backbone and one kind of request?

    python benchmark/methods.py --backbone MGCN --out runs     # Hours; resumable.
    python benchmark/methods.py --backbone MIGGT --out runs --regime item
    python benchmark/methods.py --out runs --methods tru retrain

Every finished method is a file in the folder, and the trainings of the original and
the retrained model go on from their last epoch, so the command can be stopped and
repeated. Prints the table of what is finished, and writes it with `--json`. Uses Amazon
Baby if `TGU_REAL_DATA` names a folder that has it, else generated data.
"""

import json

from backbones import (
    BUILD,
    check_methods,
    load_original,
    load_request,
    request_parser,
    resumable,
)
from common import finish

from torch_geometric_unlearn.audit import membership
from torch_geometric_unlearn.metrics import evaluate_request, exposure, trade_off
from torch_geometric_unlearn.nn import Served
from torch_geometric_unlearn.report import save_json
from torch_geometric_unlearn.unlearn import (
    COVA,
    TRU,
    EdgeDrop,
    FineTune,
    GNNDelete,
    InfluenceFunction,
    MMRecUn,
    MultiDelete,
    NegGrad,
    PartialRetrain,
    Retrain,
    RowReset,
    ScaleGUN,
    UltraRE,
)


def make_unlearners(build_model, fit_args, seed):
    r"""All methods by name, with a backbone's own training settings."""
    # MIG-GT's loss is a sum with a regulariser over all nodes, made for its batch size.
    batch = {'batch_size': fit_args.get('batch_size', 2048), 'seed': seed}
    half = {'batch_size': batch['batch_size'] // 2, 'seed': seed}
    return {
        'edge_drop': EdgeDrop(seed=seed),
        'row_reset': RowReset(seed=seed),
        'tru': TRU(**batch),
        'partial_retrain': PartialRetrain(**batch),
        'mmrecun': MMRecUn(**batch),
        'multidelete': MultiDelete(**half),
        'multidelete_repair': MultiDelete(repair_batches=10, **half),
        'scalegun': ScaleGUN(seed=seed),
        'influence': InfluenceFunction(seed=seed),
        'gnndelete': GNNDelete(seed=seed),
        'cova': COVA(seed=seed),
        'neg_grad': NegGrad(**batch),
        'fine_tune': FineTune(**batch),
        'retrain': Retrain(build_model, seed=seed, **fit_args),
        'ultrare': UltraRE(build_model, seed=seed, **fit_args),
    }


parser = request_parser()
parser.add_argument(
    '--membership', action='store_true', help='let an attacker try on each model'
)
args = parser.parse_args()
data, marked, fit_args, cells, title = load_request(args)
build_model = BUILD[args.backbone]
unlearners = make_unlearners(build_model, fit_args, args.seed)
check_methods(parser, args, unlearners)


def measure(served):
    scores = evaluate_request(served, marked, ks=(10, 20))
    scores |= exposure(served, marked)
    if args.membership:
        attack = membership(served, marked).to_dict()
        for key in ('balanced_accuracy', 'auc', 'direction'):
            scores[f'membership_{key}'] = attack[key]
        for key, interval in attack['intervals'].items():
            scores[f'membership_{key}_interval'] = interval
    return scores


def write(method, content):
    save_json(cells / f'{method}.json', {'method': method} | content)
    print(f'{args.backbone}, {args.regime}-level: {method} done', flush=True)


model, run = load_original(
    args.backbone, data, args.out, args.seed, args.device, **fit_args
)
if not (cells / 'original.json').exists():
    write('original', measure(Served.before(model, marked)) | run)
for method, unlearner in unlearners.items():
    if args.methods and method not in args.methods:
        continue
    if (cells / f'{method}.json').exists():
        continue
    if method == 'ultrare' and unlearner.ensemble is None:
        unlearner.prepare(build_model, data, model=model)
        history = unlearner.prepare_history
        write(
            'ultrare_before',
            measure(Served.before(unlearner.ensemble, marked))
            | {'seconds': sum(row['seconds'] for row in history), 'history': history},
        )
    if method == 'retrain':  # Goes on from its last epoch.
        progress = resumable(cells / 'retrain.ck')
        unlearner = Retrain(build_model, seed=args.seed, **fit_args, **progress)
    ok, reason = unlearner.supports(model, marked)
    if not ok:
        write(method, {'refused': reason})
        continue
    start = unlearner.ensemble if method == 'ultrare' else model
    result = unlearner(start, marked)
    seconds = result.seconds
    if method == 'retrain':
        seconds = sum(row['seconds'] for row in result.history)
    write(
        method,
        measure(Served.of(result.model, marked))
        | {'seconds': seconds, 'peak_memory': result.peak_memory}
        | {'shift': result.shift, 'history': result.history},
    )

rows, histories = [], {}
for method in ['original', 'retrain', *unlearners, 'ultrare_before']:
    path = cells / f'{method}.json'
    if path.exists() and method not in [row['method'] for row in rows]:
        row = json.loads(path.read_text())
        histories[method] = row.pop('history', [])
        if 'refused' not in row:
            rows.append(row)
by_name = {row['method']: row for row in rows}
if 'retrain' in by_name:
    for row in rows:
        row['trade_off'] = trade_off(by_name['original'], by_name['retrain'], row)
        row['speed_up'] = by_name['retrain']['seconds'] / max(row['seconds'], 1e-9)
columns = [
    'method',
    'retain_recall@20',
    'retain_ndcg@20',
    'forget_recall@20',
    'forget_ndcg@20',
    'membership_balanced_accuracy',
    'membership_auc',
    'trade_off',
    'seconds',
    'speed_up',
    'peak_memory',
]
config = vars(args) | {key: repr(value) for key, value in unlearners.items()}
config = {key: value for key, value in config.items() if key != 'out'}
finish(title, rows, columns, config, args.json, {'histories': histories})
