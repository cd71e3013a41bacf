r"""The kinds of arguments: a flag is a boolean and nothing else, and NumPy's numbers
are as good as Python's, in every public constructor and function.
"""

import importlib
import inspect
import json

import numpy as np
import pytest
import torch

import torch_geometric_unlearn as tgu
from torch_geometric_unlearn import datasets, metrics, nn, ops, transforms, unlearn
from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.datasets import SyntheticMultimodal
from torch_geometric_unlearn.loader import TripletLoader
from torch_geometric_unlearn.report import build_report
from torch_geometric_unlearn.train import fit
from torch_geometric_unlearn.transforms import ForgetUsers
from torch_geometric_unlearn.unlearn import EdgeDrop

DATA = SyntheticMultimodal('tiny')[0]
PAIRS = DATA[schema.EDGE_TYPE].edge_index


def mgcn(data=DATA, **kwargs):
    return nn.MGCN.from_data(data, hidden_channels=4, **kwargs)


def report(**kwargs):
    marked = ForgetUsers([3])(DATA)
    return build_report(EdgeDrop()(mgcn(), marked), data=marked, **kwargs)


def adapter(is_raw):
    module = torch.nn.Embedding(160, 4)
    table = nn.Table(module.weight, 'node', is_raw)
    return nn.RecommenderAdapter(module, 100, 60, tables=[table])


def call(name):
    r"""Returns what takes the flags of a public name as keywords."""
    special = {
        'datasets.AmazonMultimodal': lambda **flag: datasets.AmazonMultimodal(
            'nowhere', 'Baby', source='mmrec', **flag
        ),
        'datasets.TikTok': lambda **flag: datasets.TikTok('nowhere', **flag),
        'metrics.cross_modal_cka': lambda **flag: metrics.cross_modal_cka(
            mgcn(), mgcn().build_graph(DATA), **flag
        ),
        'metrics.evaluate_split': lambda **flag: metrics.evaluate_split(
            mgcn(), DATA, **flag
        ),
        'nn.ColumnParallelMGCN': lambda **flag: nn.ColumnParallelMGCN.from_data(
            DATA, hidden_channels=4, **flag
        ),
        'nn.ColumnParallelMIGGT': lambda **flag: nn.ColumnParallelMIGGT(
            3, 4, {'image': 2}, **flag
        ),
        'nn.MGCN': mgcn,
        'nn.MIGGT': lambda **flag: nn.MIGGT(3, 4, {'image': 2}, **flag),
        'nn.Table': adapter,
        'ops.LazyPropagation': lambda **flag: ops.LazyPropagation(
            PAIRS[:, :1], torch.ones(160, 1), [1.0], num_users=100, **flag
        ),
        'ops.SparseOperator': lambda **flag: ops.SparseOperator(
            PAIRS[:, :0], torch.ones(0), (2, 2), **flag
        ),
        'report.build_report': report,
        'train.fit': lambda **flag: fit(mgcn(), DATA, num_epochs=1, **flag),
        'unlearn.UltraRE': lambda **flag: unlearn.UltraRE(nn.MGCN.from_data, **flag),
        'unlearn.PartialRetrain': lambda **flag: unlearn.PartialRetrain(
            checkpoint='run.pt', **flag
        ),
    }
    module, _, attribute = name.partition('.')
    module = importlib.import_module(f'{tgu.__name__}.{module}')
    return special.get(name, getattr(module, attribute))


def flags():
    for place in tgu.__all__:
        if place.startswith('_'):
            continue
        module = importlib.import_module(f'{tgu.__name__}.{place}')
        for public in module.__all__:
            value = getattr(module, public)
            if not callable(value) or public in ('UnlearnResult', 'RecommenderLike'):
                continue
            try:
                parameters = inspect.signature(value).parameters.values()
            except ValueError:
                continue
            for parameter in parameters:
                if 'bool' in str(parameter.annotation):
                    yield f'{place}.{public}', parameter.name


@pytest.mark.parametrize(('name', 'flag'), sorted(flags()))
def test_a_flag_is_true_or_false(name, flag):
    for value in ('no', 'False', 0, None):
        with pytest.raises(TypeError, match=f"'{flag}' must be True or False"):
            call(name)(**{flag: value})
    if not name.startswith('datasets'):  # There are no files.
        call(name)(**{flag: np.True_})


def test_flags_are_found():
    found = set(flags())
    assert ('report.build_report', 'show_ids') in found
    assert len(found) >= 18


UNLEARNERS = [n for n in unlearn.__all__ if n not in ('Unlearner', 'UnlearnResult')]
TRANSFORMS = ['InjectBackdoor', 'ItemKNNGraph', 'SplitInteractions']


def numpy_numbers(cls):
    r"""Returns all numbers among the default arguments as NumPy's."""
    out = {}
    for name, parameter in inspect.signature(cls).parameters.items():
        value = parameter.default
        if type(value) is int:
            out[name] = np.int64(value)
        elif type(value) is float:
            out[name] = np.float64(value)
        elif value is True or value is False:
            out[name] = np.bool_(value)
    return out


@pytest.mark.parametrize('name', UNLEARNERS)
def test_unlearners_of_numpy_numbers(name):
    cls = getattr(unlearn, name)
    extra = {'build_model': mgcn} if name in ('Retrain', 'UltraRE') else {}
    idle = {'lr_repair', 'num_hops', 'alpha'} if name != 'COVA' else set()
    numbers = {k: v for k, v in numpy_numbers(cls).items() if k not in idle}
    got, expected = cls(**extra, **numbers), cls(**extra)
    assert repr(got) == repr(expected)
    assert json.dumps(got._settings()) == json.dumps(expected._settings())


@pytest.mark.parametrize('name', TRANSFORMS)
def test_transforms_of_numpy_numbers(name):
    cls = getattr(transforms, name)
    got, expected = cls(**numpy_numbers(cls)), cls()
    assert repr(vars(got)) == repr(vars(expected))


def test_other_numpy_numbers():
    one, seed = np.int64(1), np.uint8(7)
    sizes = {'num_users': np.int64(50), 'num_items': np.int32(40)}
    data = SyntheticMultimodal('tiny', seed=seed, **sizes)[0]
    expected = SyntheticMultimodal('tiny', seed=7, num_users=50, num_items=40)[0]
    pairs = data[schema.EDGE_TYPE].edge_index
    assert torch.equal(pairs, expected[schema.EDGE_TYPE].edge_index)
    data['user'].num_nodes = np.int64(50)
    assert schema.validate(data) is data

    request = ForgetUsers(ratio=np.float32(0.5), seed=seed)
    assert type(request.seed) is int
    expected = ForgetUsers(ratio=0.5, seed=7)(data)
    assert torch.equal(request(data).forget_users, expected.forget_users)
    loader = TripletLoader(pairs, np.int64(40), np.int64(64), seed=seed)
    assert len(next(iter(loader)).user) == 64
    for model in (
        nn.LightGCN(50, 40, **numpy_numbers(nn.LightGCN)),
        nn.MGCN.from_data(data, **numpy_numbers(nn.MGCN)),
        nn.MIGGT.from_data(data, **numpy_numbers(nn.MIGGT)),
        nn.CertifiedHead(**numpy_numbers(nn.CertifiedHead)),
    ):
        repr(model)
    model = nn.LightGCN(**sizes, hidden_channels=np.int64(4), num_layers=one)
    result = fit(model, data, num_epochs=one, batch_size=np.int64(64), seed=seed)
    assert len(result.history) == 1
    assert json.dumps(result.history)
