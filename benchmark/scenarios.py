r"""Does a model stay as good as a retrained one in cases from the field?

    python benchmark/scenarios.py --out runs/scenarios --json scenarios.json
    python benchmark/scenarios.py --backbone LightGCN --scenarios surge --out runs/s

- `withdrawn consent`: users leave, one by one over four weeks.
- `sensitive category`: users want all pairs with a cluster of items forgotten.
- `spam wave`: fake users who promote an item are found, a group a week, and removed.
- `surge`: many users leave on one day. This goes to a review while containment holds; a
  person approves a quarter a day.

After each quarter of the requests all models are compared with one retrained without
what was asked for until then. `workspace` is what `Workspace` serves: requests come in
day by day, `work` runs every evening and, at the end of a quarter, for whatever waits;
what goes to a review is approved by a person. It unlearns by `PartialRetrain`, and
trains from scratch by its own rules. All other methods get the same batches one after
the other and never start again, so that they show what `PartialRetrain` alone does.

`relative` is the difference in retained test NDCG@20 to retraining, of the same users,
with its 95 % interval; `excess` that of the membership attack's balanced accuracy
(nothing with fewer than 50 pairs a side); `er@20` and `asr@20` are the shares of clean
users who get the promoted item, without the trigger and for it. Seconds add up from the
first quarter: the workspace's with gates and evidence, the methods' alone, and
retraining's one training per quarter.

Finished scenarios are kept in the folder, so the command can be stopped and repeated.
`--plot` draws retained utility and forgetting by quarter.
"""

import argparse
import json
import tempfile
import time
import warnings
from functools import cache
from pathlib import Path

from backbones import BUILD
from common import finish
from service import Days, Jobs
from stories import QUARTERS, STORIES, marked

from torch_geometric_unlearn.audit import compare_membership
from torch_geometric_unlearn.audit.backdoor import backdoor_table
from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.data.request import is_erased
from torch_geometric_unlearn.datasets import SyntheticMultimodal
from torch_geometric_unlearn.evaluation import Comparison
from torch_geometric_unlearn.report import save_json
from torch_geometric_unlearn.train import fit
from torch_geometric_unlearn.transforms import DropForgotten
from torch_geometric_unlearn.unlearn import TRU, EdgeDrop, PartialRetrain, RowReset
from torch_geometric_unlearn.utils.optional import import_optional
from torch_geometric_unlearn.utils.seed import isolated_seed
from torch_geometric_unlearn.workspace import Workspace

parser = argparse.ArgumentParser(allow_abbrev=False)
parser.add_argument('--backbone', default='MGCN', choices=['MGCN', 'LightGCN'])
parser.add_argument('--size', default='small', help='of the generated data')
parser.add_argument('--requests', type=int, default=80, help='of every scenario')
parser.add_argument('--scenarios', nargs='+', default=list(STORIES), choices=STORIES)
parser.add_argument('--num-epochs', type=int, default=1000, help='of every training')
parser.add_argument('--min-steps', type=int, default=200, help='of PartialRetrain')
parser.add_argument('--seed', type=int, default=0)
parser.add_argument('--out', required=True, metavar='FOLDER')
parser.add_argument('--json', metavar='PATH')
parser.add_argument('--plot', metavar='PATH', help='needs matplotlib')
args = parser.parse_args()

plt = args.plot and import_optional('matplotlib.pyplot', 'The plot', 'figures')
build = BUILD[args.backbone]
settings = {'batch_size': 512, 'lr': 4e-3, 'patience': 5, 'num_epochs': args.num_epochs}
partial = {'batch_size': 512, 'min_steps': args.min_steps}
METHODS = {
    'PartialRetrain': PartialRetrain(seed=args.seed, **partial),
    'TRU': TRU(batch_size=512, seed=args.seed),
    'EdgeDrop': EdgeDrop(seed=args.seed),
    'RowReset': RowReset(seed=args.seed),
}


def trained(data):
    with isolated_seed(args.seed):
        model = build(data)
    return model, fit(model, data, seed=args.seed, **settings).seconds


@cache
def original():
    r"""The model of the plain data, trained once for several stories."""
    return trained(data)[0]


class Service:
    r"""A workspace on the way through a story."""

    def __init__(self, story, model, folder):
        self.story, self.clock = story, Days()
        self.ws = Workspace.create(
            folder,
            data=story.data,
            model=model,
            build_model=build,
            clock=self.clock,
            method_args=partial,
            fit_args=settings,
            seed=args.seed,
        )
        self.jobs, self.seconds, self.num_reviewed = Jobs(self.ws), 0.0, 0
        self.asked, self.batches, self.surge = {}, [], {}

    @property
    def model(self):
        r"""The model in service, without what is contained only."""
        return self.ws.versions.get_model(self.ws.status()['version'])

    def submit(self, requests):
        for request in requests:
            name = f'T-{len(self.asked) + 1}'
            kwargs = {'client_id': name, 'verified_by': 'benchmark'}
            info = self.ws.submit(self.story.kind, **request, **kwargs)
            self.asked[info.id] = request

    def work(self, now=False):
        start = time.perf_counter()
        jobs = self.ws.work(now=now)
        self.seconds += time.perf_counter() - start
        self.jobs.take(jobs)
        self.batches += [[self.asked[n] for n in job.requests] for job in jobs]

    def approve(self, requests):
        for info in self.ws.book.requests('review'):
            if self.asked[info.id] in requests:
                self.ws.release(info.id, 'operator', 'these are real requests')
                self.num_reviewed += 1

    def open_surge(self):
        r"""Lets all requests come in on one day, and looks at what is served then."""
        before = self.ws.status()['version']
        self.submit([x for wave in self.story.waves for x in wave])
        self.work()
        _, data = self.ws.load()
        self.surge = {
            'requests': len(self.asked),
            'in_review': self.ws.status()['requests'].get('review', 0),
            'contained': sum(map(is_erased, data['user'].raw_id)),
            'promoted': self.ws.status()['version'] != before,
        }

    def quarter(self, wave):
        r"""Serves a quarter of the requests, and returns the batches."""
        self.batches = []
        for day in range(self.story.days):
            self.clock.let_pass()
            if not self.story.at_once:
                self.submit(wave[day :: self.story.days])
            self.work()
            self.approve(wave)
        while self.ws.book.requests('queued'):
            self.work(now=True)
            self.approve(wave)
        return self.batches

    def figures(self):
        ran = sorted(self.jobs.by_method.items())
        return {
            'jobs': self.jobs.num,
            'ran': ', '.join(f'{n} {name}' for name, n in ran),
            'decided': self.jobs.decided,
            'failed_attempts': self.jobs.failed,
            'reviewed': self.num_reviewed,
        }


def attacked(comparison):
    r"""Figures of the membership attack by model."""
    names = list(comparison.models)
    # One called 'original' is attacked three times more, to check the attacker.
    keys = [name.replace('original', 'before') for name in names]
    served = dict(zip(keys, map(comparison.serve, names)))
    with warnings.catch_warnings():  # The figures say that there are too few.
        warnings.filterwarnings('ignore', 'The attack needs')
        kwargs = {'modes': ['direct'], 'classifiers': ['logistic'], 'seed': args.seed}
        table = compare_membership(served, comparison.data, **kwargs)
    out = {}
    for name, row in zip(names, table['rows']):
        key = 'balanced_accuracy'
        out[name] = {
            f'membership{end}': row[f'{key}{end}'] for end in ('', '_low', '_high')
        } | {f'excess{end}': row[f'excess_{key}{end}'] for end in ('', '_low', '_high')}
    return out


def measure(models, data, seconds):
    r"""A row per model, beside the retrained one."""
    comparison = Comparison(models, data)
    privacy, promoted = attacked(comparison), {}
    if 'backdoor_target' in data:
        table = backdoor_table(models, data, num_users=1000, seed=args.seed)
        promoted = {row.pop('method'): row for row in table['rows']}
    rows = []
    for row in comparison.measure(('ranking',), seed=args.seed):
        name = row['method']
        change = comparison.difference(name)['retain_ndcg@20']
        kept = {key: row[key] for key in ('retain_ndcg@20', 'forget_recall@20')}
        kept |= {'relative': change.value, 'low': change.low, 'high': change.high}
        kept |= privacy[name] | promoted.get(name, {}) | seconds.get(name, {})
        rows.append({'method': name, **kept})
    return rows


def run(name, data):
    r"""All rows of a scenario, and what was seen of a surge."""
    story = STORIES[name](data, args.requests, args.seed)
    first = original() if story.data is data else trained(story.data)[0]
    rows, seconds = [], {}
    with tempfile.TemporaryDirectory() as folder:
        service = Service(story, first, Path(folder) / 'shop')
        if story.at_once:
            service.open_surge()
        asked, states = [], {key: (first, story.data) for key in METHODS}
        for quarter, wave in enumerate(story.waves, 1):
            asked += wave
            batches = service.quarter(wave)
            for key, method in METHODS.items():
                for batch in batches:
                    model, current = states[key]
                    result = method(model, marked(current, batch))
                    states[key] = result.model, result.data
                    seconds[key] = seconds.get(key, 0.0) + result.seconds
            request = marked(story.data, asked)
            reference, spent = trained(DropForgotten()(request))
            seconds['retrained'] = seconds.get('retrained', 0.0) + spent
            seconds['workspace'] = service.seconds
            models = {'original': first, 'retrained': reference}
            models |= {'workspace': service.model}
            models |= {key: model for key, (model, _) in states.items()}
            costs = {key: {'seconds': value} for key, value in seconds.items()}
            costs['workspace'] |= service.figures()
            pairs = schema.forgotten_edge_index(request).size(1)
            place = {'scenario': name, 'quarter': quarter, 'pairs': pairs}
            rows += [place | row for row in measure(models, request, costs)]
            print(f'{name}, {quarter} of {QUARTERS}', flush=True)
    return {'rows': rows, 'surge': service.surge}


def draw(rows, path):
    r"""Utility and forgetting by quarter, a column per scenario."""
    figure, axes = plt.subplots(
        2, len(args.scenarios), figsize=(2.9 * len(args.scenarios), 4.6), squeeze=False
    )
    marks = dict(zip(('workspace', *METHODS), 'osv^D'))
    for column, scenario in enumerate(args.scenarios):
        top, bottom = axes[:, column]
        found = [row for row in rows if row['scenario'] == scenario]
        goal = [row for row in found if row['method'] == 'retrained']
        top.axhline(0, color='black', linestyle='--')
        places = [row['quarter'] for row in goal]
        recall = [row['forget_recall@20'] for row in goal]
        bottom.plot(places, recall, 'k--', label='retrained')
        for shift, (method, mark) in enumerate(marks.items()):
            line = [row for row in found if row['method'] == method]
            x = [row['quarter'] + 0.06 * (shift - 2) for row in line]
            y = [100 * row['relative'] for row in line]
            ends = [
                [100 * (row['relative'] - row['low']) for row in line],
                [100 * (row['high'] - row['relative']) for row in line],
            ]
            kwargs = {'marker': mark, 'markersize': 4, 'linewidth': 1, 'label': method}
            top.errorbar(x, y, yerr=ends, **kwargs)
            bottom.plot(x, [row['forget_recall@20'] for row in line], **kwargs)
        top.set_title(scenario)
        bottom.set_xlabel('quarters of the requests')
        bottom.set_xticks(places)
        top.set_xticks(places)
    axes[0, 0].set_ylabel('retained NDCG@20\nto retraining (%)')
    axes[1, 0].set_ylabel('forget Recall@20')
    handles, labels = axes[1, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc='lower center', ncols=len(labels), frameon=False)
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)
    print(f'Wrote {path}')


data, out = SyntheticMultimodal(args.size, seed=args.seed)[0], Path(args.out)
config = {k: v for k, v in vars(args).items() if k not in ('out', 'plot', 'scenarios')}
config.pop('json')
rows, surges = [], {}
for name in args.scenarios:
    path = out / f"{name.replace(' ', '_')}.json"
    if path.exists():
        content = json.loads(path.read_text())
        if content['config'] != config:
            parser.error(f"'{path}' is of other settings: {content['config']}")
    else:
        content = run(name, data) | {'config': config}
        save_json(path, content)
        content = json.loads(path.read_text())  # NaN is nothing.
    rows += content['rows']
    surges |= {name: content['surge']} if content['surge'] else {}
shown = ['scenario', 'quarter', 'method', 'pairs', 'retain_ndcg@20', 'relative', 'low']
shown += ['high', 'forget_recall@20', 'membership', 'excess', 'excess_low']
shown += ['excess_high', 'er@20', 'asr@20', 'seconds', 'ran']
extra = {'surges': surges}
title = f'Scenarios, {args.size}, {args.backbone}'
finish(title, rows, shown, config, args.json, extra)
for name, content in surges.items():
    print(f'{name}: {content}')
if args.plot:
    draw(rows, args.plot)
