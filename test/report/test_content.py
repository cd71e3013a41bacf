import copy
import hashlib
import json
import math
import re
from dataclasses import replace

import pytest
import torch

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.metrics import evaluate_request, exposure
from torch_geometric_unlearn.report import build_report, render_html
from torch_geometric_unlearn.report.content import request_hash
from torch_geometric_unlearn.transforms import (
    DropForgotten,
    ForgetInteractions,
    ForgetItems,
    ForgetUsers,
)
from torch_geometric_unlearn.unlearn import EdgeDrop, UnlearnResult

SECTIONS = ('request', 'table', 'modules', 'branches', 'curve', 'scores', 'exposure')


def test_table_holds_what_the_metrics_say(inputs, full):
    rows = {row['name']: row for row in full['table']['rows']}
    names = ['original', 'retrained', 'edge drop', 'row reset', 'unlearned']
    assert list(rows) == names
    marked, original = inputs['data'], inputs['original']
    whole = copy.copy(marked)
    del whole[schema.EDGE_TYPE].forget_mask
    graph = original.build_graph(whole)
    wanted = evaluate_request(original, marked, graph=graph, ks=(20,))
    wanted |= exposure(original, marked, graph=graph)
    for key, value in wanted.items():
        assert rows['original']['values'][key] == pytest.approx(value, nan_ok=True)
    model = inputs['result'].model
    assert rows['unlearned']['values']['pair@20'] == exposure(model, marked)['pair@20']
    assert rows['retrained']['values']['trade_off'] == 1
    assert rows['row reset']['values']['seconds'] is None  # A model tells no time.
    assert 'forget_mask' in marked[schema.EDGE_TYPE]


def test_every_section_is_filled(inputs, full):
    assert full['schema_version'] == 3
    assert all(full[name]['missing'] == '' for name in SECTIONS)
    assert all(full[name]['needs'] == [] for name in SECTIONS)
    rows = {row['module']: row for row in full['modules']['rows']}
    first = inputs['result'].history[0]
    assert set(rows) == set(first['sensitivity'])
    assert rows['user_embedding']['mask'] == 1
    assert rows['item_embedding']['mask'] == 0  # No row of the request.
    shift = inputs['result'].shift['item_embedding.weight']
    assert rows['item_embedding']['shift'] == pytest.approx(shift, rel=1e-4)
    assert full['branches']['scales']['id'][0] == first['alpha']['id']
    assert [p['forget'] for p in full['curve']['points']] == [
        row['forget_hit_rate']
        for row in inputs['result'].history
        if 'forget_hit_rate' in row
    ]
    assert sum(p['selected'] for p in full['curve']['points']) == 1
    for sides in full['scores']['models'].values():
        for side in ('forgotten', 'unseen'):
            assert sum(sides[side]) == pytest.approx(1)
    gaps = {name: sides['gap'] for name, sides in full['scores']['models'].items()}
    assert gaps['original'] > gaps['unlearned']
    assert full['method']['settings']['seed'] == 0
    assert full['method']['name'] == 'TRU'
    audit = full['audits']['membership direct']['models']['unlearned']
    assert 'scores' not in audit
    assert sum(audit['histogram']['members']) == pytest.approx(1)
    assert json.loads(json.dumps(full, allow_nan=False)) == full


def test_a_failing_metric_does_not_hide_the_others(inputs):
    class Broken(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def build_graph(self, data):
            raise FloatingPointError('overflow in the graph')

    content = build_report(**{**inputs, 'controls': {'broken': Broken()}})
    rows = {row['name']: row for row in content['table']['rows']}
    assert 'overflow in the graph' in rows['broken']['errors']['ranking']
    assert rows['unlearned']['values']['retain_ndcg@20'] > 0
    assert {f['where'] for f in content['failures']} == {
        'ranking of broken',
        'exposure of broken',
    }
    assert '>failed</span>' in render_html(content)


def test_missing_inputs_are_named(inputs):
    result = EdgeDrop()(inputs['original'], inputs['data'])
    content = build_report(result)
    for name in SECTIONS:
        assert content[name]['missing'], name
    for name in ('membership', 'backdoor', 'closeness'):
        assert name in content['audits'][name]['missing']
    assert content['verdict']['status'] == 'unknown'
    needs = {name: content[name]['needs'] for name in SECTIONS}
    assert needs == {
        **{name: ['data'] for name in ('request', 'scores', 'exposure')},
        **{name: [] for name in ('branches', 'curve')},  # Nothing to pass would help.
        'table': ['data', 'original', 'retrained', 'controls'],
        'modules': ['original'],
    }
    some = build_report(result, inputs['original'], inputs['data'])
    assert some['table']['needs'] == ['retrained', 'controls']
    for name in ('modules', 'scores', 'exposure'):
        assert some[name]['needs'] == ['retrained']
    for name in SECTIONS:
        assert all(f"'{x}'" in some[name]['missing'] for x in some[name]['needs'])
    assert some['request']['missing'] == ''


def test_request_hash_is_that_of_the_pairs(data):
    marked = ForgetUsers([3, 5])(data)
    pairs = sorted(map(tuple, schema.forgotten_edge_index(marked).t().tolist()))
    raw = b''.join(i.to_bytes(8, 'little') for pair in pairs for i in pair)
    assert request_hash(marked) == hashlib.sha256(b'user\n' + raw).hexdigest()
    shuffled = copy.copy(marked)
    order = torch.randperm(marked[schema.EDGE_TYPE].edge_index.size(1))
    store = shuffled[schema.EDGE_TYPE]
    store.edge_index = store.edge_index[:, order]
    store.forget_mask = store.forget_mask[order]
    assert request_hash(shuffled) == request_hash(marked)
    others = [ForgetUsers([3])(data), ForgetItems([3])(data)]
    assert len({request_hash(x) for x in [marked, *others]}) == 3


@pytest.mark.parametrize(
    ('transform', 'kinds'),
    [
        (ForgetUsers([3, 5]), [{'user'}] * 2),
        (ForgetItems([7]), [{'item'}]),
        (ForgetInteractions(ratio=0.01), [{'user', 'item'}] * 6),
    ],
)
def test_ids_are_pseudonyms_unless_asked_for(transform, kinds, data, trained):
    marked = transform(data)
    result = EdgeDrop()(trained, marked)
    hidden = build_report(result, data=marked)['request']
    assert [set(subject) for subject in hidden['subjects']] == kinds
    digests = [v for subject in hidden['subjects'] for v in subject.values()]
    assert all(re.fullmatch('[0-9a-f]{12}', value) for value in digests)
    if kinds[0] == {'user'}:
        text = f'{request_hash(marked)}:user:3'
        assert digests[0] == hashlib.sha256(text.encode()).hexdigest()[:12]
    shown = build_report(result, data=marked, show_ids=True)['request']
    assert shown['ids'] == 'shown'
    if kinds[0] == {'user'}:
        assert shown['subjects'] == [{'user': 3}, {'user': 5}]
        marked['user'].raw_id = [f'u{i}@shop.org' for i in range(100)]
        named = build_report(result, data=marked, show_ids=True)['request']
        assert named['subjects'][0] == {'user': 'u3@shop.org'}
        assert 'u3@shop.org' not in json.dumps(build_report(result, data=marked))


def test_nan_is_not_available(inputs):
    result = UnlearnResult(
        model=inputs['original'],
        data=DropForgotten()(inputs['data']),
        seconds=math.nan,
        history=[{'epoch': 0, 'forget_hit_rate': 0.1, 'retain_val_ndcg@20': math.nan}],
    )
    content = build_report(result)
    assert content['method']['seconds'] is None
    assert 'no validation pairs' in content['curve']['missing']
    assert 'nan' not in render_html(content).lower().replace('nant', '')


def test_says_why_nothing_was_reversed(inputs):
    history = [{'epoch': 0, 'reversed': False, 'seconds': 0.1}]
    result = replace(inputs['result'], history=history)
    content = build_report(result, original=inputs['original'], data=inputs['data'])
    for section in ('modules', 'branches'):
        assert 'nothing was reversed' in content[section]['missing']
    other = replace(result, history=[{'epoch': 0, 'seconds': 0.1}])
    content = build_report(other, original=inputs['original'], data=inputs['data'])
    assert 'the method scales none' in content['branches']['missing']
