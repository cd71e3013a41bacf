r"""Every argument of every method acts: another legal value gives another result, in a
case where it should matter, or it is an error.
"""

import hashlib
import inspect

import pytest
import torch
from torch_geometric.transforms import Compose

from torch_geometric_unlearn import unlearn
from torch_geometric_unlearn.datasets import SyntheticMultimodal
from torch_geometric_unlearn.nn import MGCN
from torch_geometric_unlearn.train import fit
from torch_geometric_unlearn.transforms import ForgetInteractions, ForgetUsers
from torch_geometric_unlearn.utils.seed import isolated_seed

BATCH = {'batch_size': 256}
BASE = {
    'COVA': {'num_iters': 2, 'rank': 4},
    'TRU': {'num_epochs': 2, 'repair_batches': 2, **BATCH},
    'FineTune': {'num_epochs': 2, **BATCH},
    'GNNDelete': {'num_epochs': 2, 'num_steps': 3},
    'InfluenceFunction': {'max_iter': 4},
    'MMRecUn': {'num_epochs': 2, 'repair_batches': 2, **BATCH},
    'MultiDelete': {'num_epochs': 2, 'batch_size': 32},
    'NegGrad': {'num_epochs': 2, **BATCH},
    'PartialRetrain': {'num_epochs': 2, 'min_steps': 10, **BATCH},
    'Retrain': {'num_epochs': 2, **BATCH},
    'RowReset': {},
    'ScaleGUN': {'max_iter': 4},
    'UltraRE': {'num_shards': 2, 'num_epochs': 2, 'grouping': 'random', **BATCH},
}
#: By method and argument another value, perhaps with what it needs to matter.
CHANGES = {
    'COVA': {
        'alpha': 20.0, 'beta': 0.5, 'rank': 6, 'num_iters': 0, 'seed': 1,
    },
    'TRU': {
        'gate': False, 'scaling': False, 'isolation': False, 'rows': 'item',
        'max_shift': 0.5, 'lr_reverse': 1e-2, 'lr_repair': 1e-2, 'shared_rate': 0.5,
        'num_epochs': 1, 'num_passes': 1, 'repair_batches': 3,
        'patience': (9, {'num_epochs': 6, 'max_drop': 1.0, 'lr_repair': 0.1}),
        'max_drop': (0.0, {'num_epochs': 4, 'max_shift': 3.0}), 'k': 5,
        'gate_weight': 5.0,
        'margin': 1.0, 'alpha_range': (0.9, 1.1), 'smoothing': 0.0, 'num_probes': 1,
        'top_k': 6, 'capacity': 1.0, 'sensitivity': 'relative', 'batch_size': 64,
        'seed': 1,
    },
    'FineTune': {
        'num_epochs': 1, 'lr': 1e-2, 'patience': (1, {'num_epochs': 8, 'lr': 1e-1}),
        'batch_size': 64, 'seed': 1,
    },
    'GNNDelete': {
        'weight': 0.9, 'lr': 1e-2, 'num_epochs': 3, 'num_steps': 4, 'seed': 1,
    },
    'InfluenceFunction': {
        'num_negatives': 2, 'weight_decay': 1e-2, 'quantile': 0.1, 'damping': 5.0,
        'max_iter': (1, {'curvature': 'gauss_newton'}),
        'tol': (0.5, {'curvature': 'gauss_newton', 'max_iter': 50}),
        'curvature': 'gauss_newton',
        'step': 0.5, 'max_change': 1e-3, 'seed': 1,
    },
    'MMRecUn': {
        'form': 'negate', 'schedule': 'joint', 'alpha': (0.9, {'schedule': 'joint'}),
        'lr_reverse': 1e-1, 'lr_repair': 1e-2, 'num_epochs': 1, 'repair_batches': 3,
        'patience': (1, {'num_epochs': 12, 'lr_repair': 1e-1}), 'row_reset': True,
        'batch_size': 64, 'seed': 1,
    },
    'MultiDelete': {
        'decoupling': 3.0, 'multimodal': 3.0, 'unimodal': 3.0, 'partner': 'uniform',
        'target_graph': 'full', 'normalise': False, 'score_only': True, 'lr': 1e-3,
        'num_epochs': 1, 'patience': (9, {'num_epochs': 8, 'lr': 0.1}),
        'repair_batches': 2, 'lr_repair': (1e-2, {'repair_batches': 2}),
        'batch_size': 64, 'seed': 1,
    },
    'NegGrad': {
        'beta': 0.5, 'lr': 1e-2, 'max_norm': 1e-3, 'num_epochs': 1, 'batch_size': 64,
        'seed': 1,
    },
    'PartialRetrain': {
        'tau': 0.6, 'num_epochs': 3, 'min_steps': 20, 'lr': 1e-2, 'batch_size': 64,
        'shared_lr': 1e-3, 'seed': 1,
    },
    'Retrain': {'seed': 1},
    'RowReset': {'seed': 1, 'init': torch.nn.init.normal_},
    'ScaleGUN': {
        'num_negatives': 2, 'weight_decay': 1e-2, 'damping': 5.0, 'max_iter': 2,
        'tol': (0.9, {'max_iter': 50}), 'hessian': 'block', 'scope': 'rows',
        'num_hops': (0, {'scope': 'khop'}), 'step': 0.5, 'max_change': 1e-3,
        'noise_std': 1e-3, 'graph_change': False, 'seed': 1,
        'max_halvings': (0, {'max_change': 1e9, 'damping': 1e-9}),
    },
    'UltraRE': {
        'num_shards': 3, 'grouping': 'data', 'combination': 'mean_items', 'seed': 1,
        'solver': ('sinkhorn', {'grouping': 'data', 'num_rounds': 1}),
        'num_rounds': (1, {'grouping': 'data'}),
    },
}  # fmt: skip
#: Where and how something is done, not what; every method takes a seed.
SILENT = {
    'EdgeDrop': {'seed'},
    'PartialRetrain': {'checkpoint', 'resume'},
    'UltraRE': {'num_workers', 'by_rank'},
}
CASES = [(method, name) for method, changes in CHANGES.items() for name in changes]


def build(data):
    return MGCN.from_data(data, hidden_channels=8)


@pytest.fixture(scope='module')
def shop():
    data = SyntheticMultimodal('tiny', num_users=200)[0]
    with isolated_seed(0):
        model = build(data)
    fit(model, data, num_epochs=15, lr=5e-3, batch_size=256)
    return model, data, {}


def digest(shop, method, **kwargs):
    r"""What a method leaves, as one number, but for the time that it took."""
    model, data, known = shop
    key = method, repr(sorted(kwargs.items()))
    if key in known:
        return known[key]
    request = Compose([ForgetInteractions(ratio=0.1, seed=1), ForgetUsers([3, 5])])
    unlearner = getattr(unlearn, method)
    if method in ('Retrain', 'UltraRE'):
        kwargs['build_model'] = build
    result = unlearner(**kwargs)(model, request(data))
    out = hashlib.sha256()
    for tensor in result.model.state_dict().values():
        out.update(tensor.numpy().tobytes())
    for row in result.history:
        out.update(repr({k: v for k, v in row.items() if k != 'seconds'}).encode())
    known[key] = out.hexdigest()
    return known[key]


@pytest.mark.parametrize(('method', 'name'), CASES)
def test_another_value_acts(method, name, shop):
    value, needs = CHANGES[method][name], {}
    if isinstance(value, tuple) and isinstance(value[1], dict):
        value, needs = value
    base = BASE[method] | needs
    assert digest(shop, method, **base | {name: value}) != digest(shop, method, **base)


@pytest.mark.parametrize(
    ('method', 'kwargs', 'idle'),
    [
        ('MMRecUn', {'alpha': 0.9}, 'alpha'),
        ('MMRecUn', {'schedule': 'joint', 'lr_reverse': 1e-1}, 'lr_reverse'),
        ('MultiDelete', {'lr_repair': 1e-2}, 'lr_repair'),
        ('ScaleGUN', {'num_hops': 1}, 'num_hops'),
        ('TRU', {'gate': False, 'k': 5}, 'k'),
        ('UltraRE', {'grouping': 'random', 'solver': 'sinkhorn'}, 'solver'),
    ],
)
def test_what_cannot_act_is_an_error(method, kwargs, idle):
    if method == 'UltraRE':
        kwargs = {'build_model': build, **kwargs}
    with pytest.raises(ValueError, match=f"'{idle}' can't act with .* Leave it out"):
        getattr(unlearn, method)(**kwargs)


def test_no_argument_is_left_out():
    for method in unlearn.__all__:
        cls = getattr(unlearn, method)
        if method in ('Unlearner', 'UnlearnResult'):
            continue
        names = set(inspect.signature(cls).parameters) - {'build_model', 'kwargs'}
        tried = set(CHANGES.get(method, ())) | SILENT.get(method, set())
        assert names == tried, method
