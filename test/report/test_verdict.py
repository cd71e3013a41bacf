import math
from functools import partial
from itertools import pairwise

import pytest
import torch

from torch_geometric_unlearn.audit import completion, membership
from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.datasets import SyntheticMultimodal
from torch_geometric_unlearn.evaluation import Comparison, Difference
from torch_geometric_unlearn.nn import LightGCN
from torch_geometric_unlearn.report import build_report, render_html
from torch_geometric_unlearn.report.verdict import TOLERANCE, judge
from torch_geometric_unlearn.train import fit
from torch_geometric_unlearn.transforms import ForgetInteractions, ForgetUsers
from torch_geometric_unlearn.unlearn import EdgeDrop, Retrain, UnlearnResult

FIT = {'num_epochs': 40, 'lr': 5e-3, 'batch_size': 128}


@pytest.fixture
def plant(inputs, monkeypatch):
    r"""Builds a report with given figures: by how much the unlearned model's forget
    figure differs, and how far chance can move it.
    """
    module = 'torch_geometric_unlearn.evaluation'
    unlearned = inputs['result'].model

    def run(shift, half, **kwargs):
        def exposure(served, data, k):
            own = shift if served.model is unlearned else 0.0
            return {'exposure@20': 0.5, 'reach@20': 0.5, 'pair@20': 0.2 + own}

        def ranking(served, data, **kwargs):
            return {'retain_ndcg@20': 0.04, 'forget_recall@20': 0.1}

        def difference(comparison, name, k):
            own = {'unlearned': shift, 'retrained again': 0.04}.get(name, 0.0)
            far = half if name == 'unlearned' else 0.001
            return {
                'pair@20': Difference(own, own - far, own + far, 80, 20),
                'retain_ndcg@20': Difference(0.0, -0.01, 0.01, 90, 90),
            }

        monkeypatch.setattr(f'{module}.exposure', exposure)
        monkeypatch.setattr(f'{module}.evaluate_request', ranking)
        monkeypatch.setattr(Comparison, 'difference', difference)
        return build_report(**inputs, **kwargs)

    return run


@pytest.mark.parametrize(
    ('shift', 'half', 'status', 'words'),
    [
        (0.0, 0.01, 'within', 'within the tolerance of'),
        (0.03, 0.005, 'outside', 'still remembers'),
        (-0.03, 0.005, 'outside', 'over-forgotten'),
        (0.03, 0.02, 'unclear', 'About 80 interactions would be needed'),
        (0.0, 0.1, 'unclear', 'About 2,000 interactions would be needed'),
        (0.3, 0.29, 'unclear', 'from +1.0 to +59.0 percentage points'),
        (0.03, 0.0101, 'unclear', 'It reaches beyond the tolerance on one side'),
    ],
)
def test_verdict_judges_both_sides_through_the_interval(
    plant, shift, half, status, words
):
    content = plant(shift, half)
    verdict = content['verdict']
    assert verdict['status'] == status
    text = ' '.join(verdict['sentences'])
    assert f'ranks {20 + 100 * shift:.1f} % of the deleted interactions' in text
    assert 'not a legal guarantee' in text
    if half != 0.02:  # There, half of the interval is the tolerance itself.
        assert words in text
    assert ('judging several requests together' in text) == (status == 'unclear')
    first = verdict['measures'][0]
    assert first['interval'] == pytest.approx([shift - half, shift + half])
    assert first['within'] is {'within': True, 'outside': False}.get(status)
    assert bool(first['reason']) == (status == 'unclear')
    # Controls are the retrained model itself here.
    assert "the comparison 'edge drop' is within the same tolerance" in text
    page = render_html(content)
    assert ('the request is too small to tell' in page) == (status == 'unclear')


def test_a_wider_tolerance_and_a_second_retraining(plant, inputs):
    assert plant(0.03, 0.005)['verdict']['status'] == 'outside'
    wide = plant(0.03, 0.005, tolerance={'forget': 0.05})
    assert wide['verdict']['status'] == 'within'
    second = plant(0.03, 0.005, second=inputs['retrained'])
    assert second['verdict']['status'] == 'within'  # Two retrainings differ by 0.04.
    measure = second['verdict']['measures'][0]
    assert measure['noise'] == pytest.approx(0.04)
    text = ' '.join(second['verdict']['sentences'])
    assert 'two models trained without the data differ by 4.0 points' in text
    assert 'a second model trained without' not in text
    rows = {row['name']: row['role'] for row in second['table']['rows']}
    assert rows['retrained again'] == 'retrained again'
    assert 'the same with another seed' in render_html(second)
    far = plant(0.06, 0.005, second=inputs['retrained'])
    assert far['verdict']['status'] == 'outside'


@pytest.fixture(scope='module')
def shop():
    data = SyntheticMultimodal('tiny', num_users=400)[0]
    build = partial(LightGCN.from_data, hidden_channels=16)
    torch.manual_seed(0)
    model = build(data)
    fit(model, data, **FIT)
    return data, build, model


def test_chance_is_not_a_fault_of_an_exact_method():
    data = SyntheticMultimodal('tiny')[0]
    build = partial(LightGCN.from_data, hidden_channels=8)
    model = build(data)
    fit(model, data, **FIT)
    for request in (ForgetUsers([3]), ForgetInteractions(ratio=0.002)):
        marked = request(data)
        runs = [Retrain(build, seed=s, **FIT)(model, marked) for s in range(4)]
        for first, second in pairwise(runs):
            with pytest.warns(UserWarning, match='needs 50'):
                audits = {
                    name: {
                        'unlearned': attack(first.model, marked),
                        'retrained': attack(second.model, marked),
                    }
                    for name, attack in [
                        ('membership', membership), ('completion', completion)
                    ]
                }  # fmt: skip
            content = build_report(
                first, model, marked, second, audits=audits
            )
            verdict = content['verdict']
            assert verdict['status'] == 'unclear', verdict['sentences']
            within = {m['name']: m['within'] for m in verdict['measures']}
            assert within['pair@20'] is None
            text = ' '.join(verdict['sentences'])
            assert 'Not judged by membership: The attack needs 50 members' in text
            assert 'Not judged by completion: The completion attack needs 50' in text
            page = render_html(content)
            assert page.count('The attack needs 50 members') == 3


def test_a_planted_failure_is_found(shop):
    data, build, model = shop
    for request in (ForgetUsers(ratio=0.05), ForgetInteractions(ratio=0.05)):
        marked = request(data)
        retrained = Retrain(build, **FIT)(model, marked)
        result = EdgeDrop()(model, marked)
        verdict = build_report(result, model, marked, retrained)['verdict']
        assert verdict['status'] == 'outside'
        assert verdict['measures'][0]['within'] is False
        assert 'It still remembers' in ' '.join(verdict['sentences'])


def contents(audits, rows=(), seconds=(None, None)):
    values = [{'seconds': value} for value in seconds]
    names = [('retrained', 'retrained'), ('unlearned', 'unlearned'), *rows]
    values += [{'seconds': 0.5}] * len(rows)
    return {
        'k': 20,
        'request': {'needs': ['data']},
        'method': {'exact': False},
        'table': {
            'rows': [
                {'name': name, 'role': role, 'values': value}
                for (name, role), value in zip(names, values)
            ]
        },
        'differences': {},
        'audits': {name: {'models': models} for name, models in audits.items()},
        'failures': [],
    }


def attacked(value, half, groups=50):
    return {
        'balanced_accuracy': value,
        'intervals': {'balanced_accuracy': [value - half, value + half]},
        'num_groups': groups,
    }


@pytest.mark.parametrize(
    ('own', 'goal', 'within', 'words'),
    [
        (attacked(0.51, 0.01), attacked(0.5, 0.01), True, 'within the tolerance'),
        (attacked(0.7, 0.03), attacked(0.5, 0.04), False, 'outside the tolerance'),
        (attacked(0.56, 0.02), attacked(0.5, 0.03), None, 'on one side'),
        (attacked(0.56, 0.3), attacked(0.5, 0.4), None, 'About 100.0 times as many'),
        (attacked(0.7, 0.0, 1), attacked(0.5, 0.0), None, 'of 1 user (or items)'),
        ({'balanced_accuracy': 0.7}, attacked(0.5, 0.1), None, 'without intervals'),
        (attacked(0.7, 0.0), {'reason': 'Too few.'}, None, 'Too few.'),
    ],
)
def test_audits_are_judged_through_their_intervals(own, goal, within, words):
    audits = {'membership direct': {'unlearned': own, 'retrained': goal}}
    verdict = judge(contents(audits), TOLERANCE)
    measure = verdict['measures'][-1]
    assert measure['within'] is within
    assert words in ' '.join(verdict['sentences'])
    if measure['interval']:
        ends = own['intervals']['balanced_accuracy'], goal['intervals']
        half = math.hypot(
            own['balanced_accuracy'] - ends[0][0], goal['balanced_accuracy']
            - ends[1]['balanced_accuracy'][0]
        )  # fmt: skip
        change = own['balanced_accuracy'] - goal['balanced_accuracy']
        assert measure['interval'] == pytest.approx([change - half, change + half])


def test_only_measured_times_are_told():
    sentences = judge(contents({}, seconds=(12.94, 1.04)), TOLERANCE)['sentences']
    text = 'Unlearning took 1.04 seconds here, training without the data 12.9.'
    assert text in sentences
    for seconds in ((None, 1.0), (12.9, None), (12.9, 0.0)):
        known = judge(contents({}, seconds=seconds), TOLERANCE)['sentences']
        assert not any('seconds' in sentence for sentence in known)
    audits = {
        'completion': {
            name: {'auc': 0.6, 'interval': [0.59, 0.61], 'num_users': 40}
            for name in ('retrained', 'unlearned', 'drop')
        }
    }
    for seconds, cheaper in ((1.0, True), (0.1, False), (None, False)):
        found = contents(audits, [('drop', 'control')], (9.0, seconds))
        text = ' '.join(judge(found, TOLERANCE)['sentences'])
        assert "Beware: the comparison 'drop' is within the same tolerance" in text
        assert ('took less time: nothing here speaks for the method' in text) == cheaper


def test_edges_left_in_the_data_fail_the_verdict(inputs):
    bad = UnlearnResult(model=inputs['original'], data=inputs['data'].clone())
    del bad.data[schema.EDGE_TYPE].forget_mask
    content = build_report(bad, data=inputs['data'])
    marked = int(schema.forget_mask(inputs['data']).sum())
    assert content['request']['remaining'] == marked
    assert content['verdict']['status'] == 'outside'
    assert 'the deletion failed' in content['verdict']['sentences'][0]


def test_models_of_different_kinds_are_refused(inputs, data):
    other = LightGCN.from_data(data, hidden_channels=16)
    with pytest.raises(ValueError, match=r"'retrained' .* is a MGCN, not a LightGCN"):
        build_report(**{**inputs, 'original': other})
    with pytest.raises(ValueError, match=r"'unlearned' .* is a MGCN, not a LightGCN"):
        build_report(inputs['result'], other, inputs['data'])
    with pytest.raises(ValueError, match=r"'retrained' .* is a LightGCN, not a MGCN"):
        build_report(**{**inputs, 'retrained': other})
    with pytest.raises(ValueError, match=r"'second' needs a 'retrained' model"):
        build_report(**{**inputs, 'retrained': None, 'second': other})
    with pytest.raises(ValueError, match=r"'controls' must not be named"):
        build_report(inputs['result'], controls={'retrained again': other})
