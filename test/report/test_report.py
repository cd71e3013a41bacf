import copy
import hashlib
import json
import math
import re
from dataclasses import replace
from functools import partial
from html.parser import HTMLParser

import pytest
import torch

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.metrics import closeness, evaluate_request, exposure
from torch_geometric_unlearn.nn import MGCN
from torch_geometric_unlearn.report.html import render_html
from torch_geometric_unlearn.report.report import (
    build_report,
    request_hash,
    write_report,
)
from torch_geometric_unlearn.transforms import (
    DropForgotten,
    ForgetInteractions,
    ForgetItems,
    ForgetUsers,
)
from torch_geometric_unlearn.unlearn import (
    TRU,
    EdgeDrop,
    Retrain,
    RowReset,
    UnlearnResult,
)

SECTIONS = ('request', 'table', 'modules', 'branches', 'curve', 'scores', 'exposure')


class Page(HTMLParser):
    r"""Checks that tags are balanced, and collects what the tests look at."""

    VOID = ('meta', 'br', 'link', 'img', 'input')

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text, self.hints = [], [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append((tag, dict(attrs).get('class')))

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, text):
        if ('style', None) not in self.open:
            hidden = ('details', 'maker') in self.open
            (self.hints if hidden else self.text).append(text)

    def find(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture(scope='module')
def inputs(trained):
    from torch_geometric_unlearn.datasets import SyntheticMultimodal

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


@pytest.fixture(scope='module')
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
    assert full['schema_version'] == 1
    assert [full[name]['missing'] for name in SECTIONS] == [''] * len(SECTIONS)
    rows = {row['module']: row for row in full['modules']['rows']}
    first = inputs['result'].history[0]
    assert set(rows) == set(first['sensitivity'])
    assert rows['user_embedding']['mask'] == 1
    assert rows['item_embedding']['mask'] == 0  # No row of the request.
    shift = inputs['result'].shift['item_embedding.weight']
    assert rows['item_embedding']['shift'] == pytest.approx(shift, rel=1e-4)
    assert full['branches']['scales']['id'][0] == first['alpha']['id']
    assert [p['forget'] for p in full['curve']['points']] == [
        row['forget_level']
        for row in inputs['result'].history
        if 'forget_level' in row
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


def test_failures_are_shown_with_their_reason(full):
    (failure,) = full['failures']
    assert failure['where'] == 'backdoor of unlearned'
    assert 'no plant' in failure['reason']
    assert 'RuntimeError' in ''.join(Page(render_html(full)).text)


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
    text = render_html(content)
    assert not re.search(r'(https?:)?//[a-z]', text)
    page = Page(text)
    notes = [a.get('class') for a in page.find('p')]
    assert notes.count('missing') == 4  # Table, request, scores and exposure.
    assert notes.count('note') >= 4
    # What to write in Python is told to those who do, not to every reader.
    hints = ''.join(page.hints)
    assert hints.startswith('For the person who made this report')
    assert "audits={'membership': {'unlearned': ...}}" in hints
    assert "pass 'data', 'original', 'retrained' and 'controls'" in hints
    assert not re.search(r"[Pp]ass |'data'|[{}]", ''.join(page.text))
    some = build_report(result, inputs['original'], inputs['data'])
    assert "'retrained'" in some['table']['missing']
    assert "'retrained'" in some['exposure']['missing']
    assert some['request']['missing'] == ''


@pytest.mark.parametrize(
    ('forget', 'status', 'words'),
    [
        (0.0, 'within', 'within the tolerance of'),
        (1.0, 'outside', 'still remembers'),
        (-1.0, 'outside', 'over-forgotten'),
    ],
)
def test_verdict_judges_both_sides(inputs, monkeypatch, forget, status, words):
    module = 'torch_geometric_unlearn.evaluation'
    unlearned = inputs['result'].model

    def planted(served, data, k):
        shift = 0.03 * forget if served.model is unlearned else 0.0
        return {'exposure@20': 0.5, 'reach@20': 0.5, 'pair@20': 0.2 + shift}

    def ranking(served, data, **kwargs):
        return {'retain_ndcg@20': 0.04, 'forget_recall@20': 0.1}

    monkeypatch.setattr(f'{module}.exposure', planted)
    monkeypatch.setattr(f'{module}.evaluate_request', ranking)
    verdict = build_report(**inputs)['verdict']
    assert verdict['status'] == status
    text = ' '.join(verdict['sentences'])
    assert words in text
    assert f'ranks {20 + 3 * forget:.1f} % of the deleted interactions' in text
    assert "the comparison 'edge drop' is within the same tolerance" in text
    assert 'not a legal guarantee' in text
    wide = build_report(**inputs, tolerance={'forget': 0.05})['verdict']
    assert wide['status'] == 'within'


def test_edges_left_in_the_data_fail_the_verdict(inputs):
    bad = UnlearnResult(model=inputs['original'], data=inputs['data'].clone())
    del bad.data[schema.EDGE_TYPE].forget_mask
    content = build_report(bad, data=inputs['data'])
    marked = int(schema.forget_mask(inputs['data']).sum())
    assert content['request']['remaining'] == marked
    assert content['verdict']['status'] == 'outside'
    assert 'the deletion failed' in content['verdict']['sentences'][0]


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


def test_page_is_self_contained_and_accessible(full):
    text = render_html(full)
    page = Page(text)
    (html,) = page.find('html')
    assert html['lang'] == 'en'
    assert len(page.find('title')) == len(page.find('h1')) == 1
    for tag in ('script', 'link', 'img', 'iframe', 'object'):
        assert not page.find(tag)
    assert not re.search(r'(https?:)?//[a-z]', text)
    assert not re.search(r'\son[a-z]+="', text)
    assert 'url(#hatch)' in text or 'url(' not in text
    plots = [a for a in page.find('svg') if a.get('role') == 'img']
    assert len(plots) >= 7
    assert all(a['aria-label'] for a in plots)
    assert text.count('How to read it.') >= 6
    assert all('scope' in a for a in page.find('th'))
    assert 'prefers-color-scheme:dark' in text
    assert '@media print' in text
    ids = [a['id'] for _, a in page.tags if 'id' in a]
    assert len(ids) == len(set(ids))


HOSTILE = '</style><script src="//x.org/a.js">\'"&amp;</script><img onload="x()">'


def poison(value):
    r"""Returns content with something hostile after every text but those that choose
    what is shown.
    """
    if isinstance(value, dict):
        codes = ('status', 'role', 'ids', 'columns')
        return {k: v if k in codes else poison(v) for k, v in value.items()}
    if isinstance(value, list):
        return [poison(entry) for entry in value]
    return value + HOSTILE if isinstance(value, str) else value


def test_strings_are_escaped(full):
    content = poison(full)
    audits = content['audits']
    close = audits['closeness']['models']['unlearned']
    content['table']['rows'][0]['errors'] = {'ranking': HOSTILE, 'exposure': HOSTILE}
    for section in ('modules', 'scores', 'exposure'):
        content[section] |= {'error': HOSTILE, 'missing': HOSTILE}
    for names in (
        *(content[x] for x in ('settings', 'sizes', 'masks', 'versions', 'audits')),
        content['method']['settings'],
        content['verdict']['tolerance'],
        content['branches']['scales'],
        content['scores']['models'],
        content['exposure']['values'],
        *content['request']['subjects'],
        *(audit['models'] for audit in audits.values()),
        audits['backdoor']['models']['retrained'],
        *(close[x] for x in ('value', 'branch_cka')),
    ):
        names |= {f'{name}{HOSTILE}': value for name, value in names.items()}
    text, clean = render_html(content), Page(render_html(full))
    page = Page(text)
    for tags in (page.tags, clean.tags):
        tags[:] = [(tag, tuple(attrs)) for tag, attrs in tags]
    extra = set(page.tags) - set(clean.tags)
    assert extra <= {('span', ('class', 'title'))}  # Why a measurement failed.
    assert ''.join(page.text).count(HOSTILE) > 100
    assert not re.search('<script|<img|</style><', text.replace('</style></head>', ''))


def test_a_section_says_why_it_failed(full):
    errors = {x: {'missing': '', 'error': f'E: no {x}'} for x in SECTIONS[-2:]}
    text = ''.join(Page(render_html(full | errors)).text)
    for section in errors:
        assert f'Failed: E: no {section}' in text


def test_files_are_written_and_the_page_follows_from_the_json(full, tmp_path):
    for name in ('a/report', 'b/report.html', 'c/report.json', 'd/v1.2'):
        assert write_report(full, tmp_path / name) == full
        base = tmp_path / name.removesuffix('.html').removesuffix('.json')
        content = json.loads((base.parent / f'{base.name}.json').read_text())
        assert content == full
        page = (base.parent / f'{base.name}.html').read_text(encoding='utf-8')
        assert page == render_html(content)
    assert (tmp_path / 'd' / 'v1.2.html').exists()
    with pytest.raises(ValueError, match=r"schema_version 1 \(got 2\)"):
        write_report({'schema_version': 2}, tmp_path / 'e')
    with pytest.raises(ValueError, match=r"no more arguments \(got \['data'\]\)"):
        write_report(full, tmp_path / 'e', data=None)
    assert not (tmp_path / 'e.json').exists()


def test_nan_is_not_available(inputs):
    result = UnlearnResult(
        model=inputs['original'],
        data=DropForgotten()(inputs['data']),
        seconds=math.nan,
        history=[{'epoch': 0, 'forget_level': 0.1, 'retain_val_ndcg@20': math.nan}],
    )
    content = build_report(result)
    assert content['method']['seconds'] is None
    assert 'no validation pairs' in content['curve']['missing']
    assert 'nan' not in render_html(content).lower().replace('nant', '')


def test_arguments_are_checked(inputs):
    with pytest.raises(ValueError, match=r"'tolerance' must hold some .*\['speed'\]"):
        build_report(inputs['result'], tolerance={'speed': 1.0})
    with pytest.raises(ValueError, match="'controls' must not be named"):
        build_report(inputs['result'], controls={'unlearned': inputs['original']})
    with pytest.raises(ValueError, match="'k' must be at least 1"):
        build_report(inputs['result'], k=0)
    content = build_report(inputs['result'], audits={'backdoor': 3})
    assert 'an audit must be a dictionary' in content['failures'][0]['reason']


def test_result_reports(inputs, tmp_path):
    rest = {key: value for key, value in inputs.items() if key != 'result'}
    content = write_report(inputs['result'], tmp_path / 'out.html', **rest)
    assert content['failures'] == []
    assert {p.name for p in tmp_path.iterdir()} == {'out.html', 'out.json'}
    empty = TRU()(inputs['original'], DropForgotten()(inputs['data']))
    assert empty.settings['method'] == 'TRU'
    assert empty.settings['num_passes'] == 3


def test_says_why_nothing_was_reversed(inputs):
    history = [{'epoch': 0, 'reversed': False, 'seconds': 0.1}]
    result = replace(inputs['result'], history=history)
    content = build_report(result, original=inputs['original'], data=inputs['data'])
    for section in ('modules', 'branches'):
        assert 'nothing was reversed' in content[section]['missing']
    other = replace(result, history=[{'epoch': 0, 'seconds': 0.1}])
    content = build_report(other, original=inputs['original'], data=inputs['data'])
    assert 'the method scales none' in content['branches']['missing']
