r"""How a cell of the grid is computed: its models, its method, its figures."""

from __future__ import annotations

import inspect
import os
from functools import cache, cached_property

import cells
import torch
from backbones import REGIMES, builder
from common import DATASETS, load_dataset
from measures import describe, measure, value
from trained import training_code

from torch_geometric_unlearn import unlearn
from torch_geometric_unlearn.audit import (
    hold_out_users,
    likelihood_ratio,
    relearn_time,
    shadow,
)
from torch_geometric_unlearn.data.digest import data_digest
from torch_geometric_unlearn.nn import Served, ShardEnsemble
from torch_geometric_unlearn.report import versions
from torch_geometric_unlearn.train import fit, load_model, save_model
from torch_geometric_unlearn.transforms import DropForgotten
from torch_geometric_unlearn.utils.seed import isolated_seed

#: How far the seed of the second retrained model is from that of the first.
SECOND = 1000


@cache
def dataset(name):
    r"""Returns a data set and its title.

    Raises:
        FileNotFoundError: If it is a real one, and its folder isn't known: figures of
            generated data must not stand under its name.
    """
    if DATASETS[name][0] and not os.environ.get('TGU_REAL_DATA'):
        raise FileNotFoundError(
            f"'{name}' needs the environment variable TGU_REAL_DATA, which names the "
            f"folder that holds '{DATASETS[name][0]}'"
        )
    return load_dataset(name)


class Setting:
    r"""The data and the models of one request.

    Args:
        cell (Cell): Any cell of the request.
        models (TrainedModels): Where trained models are kept.
        held_out (float, optional): Share of the users that no model sees.
    """

    def __init__(self, cell, models, held_out=0.0):
        data, self.title = dataset(cell.dataset)
        if held_out:
            data = hold_out_users(data, held_out, cell.seed)
        self.cell, self.models = cell, models
        self.data = data.to(models.device)
        request = REGIMES[cell.regime](ratio=cell.ratio, seed=cell.seed)
        self.marked = request(self.data)
        self.retained = DropForgotten()(self.marked)
        self.build = builder(cell.backbone, cell.dataset)
        self.fit_args = cell.config['fit']

    def trained(self, what, data, seed):
        r"""Returns a trained model and facts about its training."""
        label = f'{self.cell.dataset}-{self.cell.backbone}-{what}-{seed}'
        return self.models(label, self.build, data, self.fit_args, seed)

    @cached_property
    def original(self):
        r"""The model before the request, and facts about its training."""
        return self.trained('original', self.data, self.cell.seed)

    @cached_property
    def retrained(self):
        r"""The reference, and facts about its training."""
        return self.trained(self._what, self.retained, self.cell.seed)

    @cached_property
    def second(self):
        r"""Another reference, whose seed is the only difference."""
        return self.trained(self._what, self.retained, self.cell.seed + SECOND)

    @property
    def _what(self):
        return f'{self.cell.regime}-{self.cell.ratio:g}'

    def epoch_seconds(self):
        r"""Seconds of a training epoch with its evaluation, now, so that a ratio to it
        is one of the same run.
        """
        with isolated_seed(self.cell.seed):
            fresh = self.build(self.retained).to(self.models.device)
        every = self.fit_args.get('eval_every', 1)

        def last_epoch(model, eval_every):
            few = {**self.fit_args, 'num_epochs': 2, 'eval_every': eval_every}
            history = fit(model, self.retained, seed=self.cell.seed, **few).history
            return [row['seconds'] for row in history]

        seconds = last_epoch(fresh, 1)[-1]
        if every == 1:
            return seconds
        plain = last_epoch(fresh, 2)[0]
        return plain + (seconds - plain) / every

    def unlearner(self, spec):
        r"""Returns the method that an entry of the grid describes.

        Raises:
            ValueError: If it names an unknown method or setting.
        """
        cls = getattr(unlearn, spec['class'], None)
        if cls is None or spec['class'] not in unlearn.__all__:
            raise ValueError(f"There is no method '{spec['class']}'")
        args = dict(spec.get('args', {}))
        usual = inspect.signature(fit).parameters
        for name, factor in spec.get('training', {}).items():
            source, factor = factor if isinstance(factor, list) else (name, factor)
            base = self.fit_args.get(source, usual[source].default)
            args[name] = type(base)(base * factor)
        if cls is unlearn.UltraRE:
            return cls(self.build, seed=self.cell.seed, **self.fit_args, **args)
        return cls(seed=self.cell.seed, **args)

    def ensemble(self, ultrare):
        r"""Returns the shards of UltraRE before the request, which all requests with
        the same original model share.
        """
        model = self.original[0]
        shards = [self.build(self.data) for _ in range(ultrare.num_shards)]
        owner = torch.zeros(self.data['user'].num_nodes, dtype=torch.int64)
        empty = ShardEnsemble(shards, owner, ultrare.combination)
        empty = empty.to(self.models.device)
        args = self.fit_args | {'unlearner': repr(ultrare), **ultrare.kwargs}
        label = f'{self.cell.dataset}-{self.cell.backbone}-shards-{self.cell.seed}'
        path = self.models.file(label, empty, self.data, args, self.cell.seed)
        with self.models.lock(path):
            if path.exists():
                return empty, load_model(empty, path, data=self.data)
            ultrare.prepare(self.build, self.data, model=model)
            history = ultrare.prepare_history
            run = {'seconds': sum(row['seconds'] for row in history)}
            save_model(ultrare.ensemble, path, run, data=self.data)
            return ultrare.ensemble, run


def compute(cell, models):
    r"""Returns the content of a cell's file.

    Args:
        cell (Cell): The cell.
        models (TrainedModels): Where trained models are kept.
    """
    commit, dirty = cells.checkout()
    held_out = cell.config.get('hold_out', 0.0)
    setting = Setting(cell, models, held_out)
    found = _KINDS[cell.kind](setting, cell.config)
    surroundings = versions()
    del surroundings['git']
    return {
        'cell': cell.name,
        'config': cell.config,
        'data': {'title': setting.title, 'digest': data_digest(setting.data)},
        'request': describe(setting.marked),
        **found,
        'versions': surroundings | {'device_type': torch.device(models.device).type},
        'commit': commit,
        'dirty': dirty,
        'training_code': training_code(),
    }


def _measured(setting, name, view, facts):
    original = Served.before(setting.original[0], setting.marked)
    retrained = view
    if name != 'retrained':
        retrained = Served.of(setting.retrained[0], setting.marked, name='retrained')
    size = setting.cell.config['measures']['num_bootstrap']
    figures, details = measure(name, view, setting.marked, original, retrained, size)
    for key in ('seconds', 'peak_memory', 'speed_up'):
        if key in facts:
            figures[key] = value(facts.pop(key))
    return {'metrics': figures, 'details': facts | details}


def _original(setting, config):
    model, run = setting.original
    view = Served.before(model, setting.marked)
    return _measured(setting, 'original', view, dict(run))


def _retrain(setting, config):
    model, run = setting.retrained
    view = Served.of(model, setting.marked, name='retrained')
    return _measured(setting, 'retrained', view, dict(run))


def _retrain_again(setting, config):
    model, run = setting.second
    view = Served.of(model, setting.marked, name='retrained again')
    return _measured(setting, 'retrained again', view, dict(run))


def _unlearned(setting, config):
    r"""Returns the result of a method, or why it refuses."""
    unlearner, facts = setting.unlearner(config), {}
    model = setting.original[0]
    if isinstance(unlearner, unlearn.UltraRE):
        model, run = setting.ensemble(unlearner)
        facts['preparation_seconds'] = run['seconds']
    ok, reason = unlearner.supports(model, setting.marked)
    if not ok:
        return None, {'refused': reason}
    result = unlearner(model, setting.marked)
    facts |= {
        'seconds': result.seconds,
        'peak_memory': result.peak_memory,
        'settings': result.settings,
        'exact': result.exact,
        'touched': result.touched,
        'history': result.history,
    }
    return result.model, facts


def _unlearn(setting, config):
    run = setting.retrained[1]  # Is there before anything is timed.
    model, facts = _unlearned(setting, config)
    if model is None:
        return facts
    facts['speed_up'] = run['seconds'] / max(facts['seconds'], 1e-3)
    if facts['seconds'] > 1:
        facts['epoch_seconds'] = setting.epoch_seconds()
        seconds = facts['epoch_seconds'] * run['num_epochs']
        facts['speed_up'] = seconds / facts['seconds']
    view = Served.of(model, setting.marked, name=config['method'])
    return _measured(setting, config['method'], view, facts)


def _before(setting, config):
    unlearner = setting.unlearner(config)
    model, run = setting.ensemble(unlearner)
    view = Served.before(model, setting.marked)
    return _measured(setting, 'before the request', view, dict(run))


def _target(setting, config):
    r"""Returns the model that an audit is about, or why there is none."""
    name, spec = config['of']
    marked = setting.marked
    if spec['kind'] == 'original':
        return Served.before(setting.original[0], marked), {}
    if spec['kind'] in ('retrain', 'retrain_again'):
        found = setting.retrained if spec['kind'] == 'retrain' else setting.second
        return Served.of(found[0], marked, name=name), {}
    model, facts = _unlearned(setting, spec | {'method': name})
    if model is None:
        return None, facts
    return Served.of(model, marked, name=name), {}


def _attack(result, facts=()):
    figures = {
        key: value(getattr(result, key), *result.intervals[key])
        for key in ('balanced_accuracy', 'auc', 'tpr_at_1_fpr')
    }
    details = dict(facts) | result.details
    details |= {'direction': result.direction, 'reason': result.reason}
    details |= {'members': result.num_members, 'nonmembers': result.num_nonmembers}
    return {'metrics': figures, 'details': details}


def _likelihood_ratio(setting, config):
    view, facts = _target(setting, config)
    if view is None:
        return facts
    result = likelihood_ratio(
        setting.marked,
        setting.build,
        setting.unlearner(config['of'][1]),
        setting.fit_args,
        model=view,
        level='user' if config['regime'] == 'user' else 'pair',
        num_models=config['num_models'],
        num_bootstrap=config['measures']['num_bootstrap'],
        seed=config['seed'],
    )
    return _attack(result)


def _shadow(setting, config):
    view, facts = _target(setting, config)
    if view is None:
        return facts
    result = shadow(
        view,
        setting.marked,
        setting.build,
        setting.fit_args,
        num_bootstrap=config['measures']['num_bootstrap'],
        seed=config['seed'],
    )
    return _attack(result, {'flagged': result.details.get('flagged')})


def _relearn(setting, config):
    view, facts = _target(setting, config)
    if view is None:
        return facts
    found = relearn_time(
        view.model,
        setting.marked,
        Served.before(setting.original[0], setting.marked),
        batch_size=setting.fit_args.get('batch_size', 2048),
        lr=setting.fit_args.get('lr', 1e-3),
        seed=config['seed'],
    )
    steps = found['steps_per_subset']
    figures = {
        'relearn_steps': value(found['steps']),
        'relearn_reached': value(found['reached']),
        'relearn_start': value(found['start']),
    }
    return {'metrics': figures, 'details': {'steps_per_subset': steps}}


_KINDS = {
    'original': _original,
    'retrain': _retrain,
    'retrain_again': _retrain_again,
    'unlearn': _unlearn,
    'before': _before,
    'likelihood_ratio': _likelihood_ratio,
    'shadow': _shadow,
    'relearn': _relearn,
}
