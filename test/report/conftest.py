r"""A request with everything to compare with, and the report on it."""

import math
from functools import partial

import pytest

from torch_geometric_unlearn.datasets import SyntheticMultimodal
from torch_geometric_unlearn.metrics import closeness
from torch_geometric_unlearn.nn import MGCN
from torch_geometric_unlearn.report import build_report
from torch_geometric_unlearn.transforms import ForgetUsers
from torch_geometric_unlearn.unlearn import TRU, EdgeDrop, Retrain, RowReset


@pytest.fixture(scope='session')
def inputs(trained):
    marked = ForgetUsers(ratio=0.1)(SyntheticMultimodal('tiny')[0])
    build_model = partial(MGCN.from_data, hidden_channels=16)
    retrain = Retrain(build_model, num_epochs=5)
    return {
        'result': TRU(batch_size=128, num_epochs=2)(trained, marked),
        'original': trained,
        'data': marked,
        'retrained': retrain(trained, marked),
        'controls': {
            'edge drop': EdgeDrop()(trained, marked),
            'row reset': RowReset()(trained, marked).model,
        },
    }


@pytest.fixture(scope='session')
def full(inputs):
    def fails():
        raise RuntimeError('no <script>alert(1)</script> & no plant')

    audits = {
        'membership direct': {
            'unlearned': {
                'balanced_accuracy': 0.56,
                'intervals': {'balanced_accuracy': [0.5, 0.62]},
                'auc': 0.6,
                'tpr_at_1_fpr': math.nan,
                'scores': {'members': [0.0, 1.0, 2.0], 'nonmembers': [0.0, 0.5]},
            },
            'retrained': {'balanced_accuracy': 0.5},
        },
        'backdoor': {'unlearned': fails, 'retrained': {'asr@20': {'mean': 0.125}}},
        'closeness': lambda: closeness(
            inputs['result'].model, inputs['retrained'].model, inputs['data']
        ),
    }
    return build_report(**inputs, audits=audits, settings={'note': '<img src=x>'})
