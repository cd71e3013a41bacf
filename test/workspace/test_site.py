import math
import re
from html.parser import HTMLParser

import pytest
import torch

from torch_geometric_unlearn.datasets import SyntheticMultimodal
from torch_geometric_unlearn.nn import LightGCN
from torch_geometric_unlearn.workspace import Workspace
from torch_geometric_unlearn.workspace.kinds import STATES
from torch_geometric_unlearn.workspace.site import collect, metrics, render, write_site

DAY = 86_400.0
HOSTILE = '</td><script>alert(1)</script>"\'&\n{{ 7 * 7 }}'


class Page(HTMLParser):
    r"""Checks that tags are balanced, and collects what the tests look at."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.rows = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == 'tr':
            self.rows.append('')
        if tag != 'meta':
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        if 'tr' in self.open:
            self.rows[-1] += f'{text} '


@pytest.fixture(scope='module')
def clock():
    return [1e9]


@pytest.fixture(scope='module')
def shop(tmp_path_factory, clock):
    r"""A workspace with requests in several states, and one job."""
    data = SyntheticMultimodal('tiny')[0]
    data['user'].raw_id = [f'user{i:03}@shop.org' for i in range(100)]
    torch.manual_seed(0)
    ws = Workspace.create(
        tmp_path_factory.mktemp('site') / 'shop',
        data=data,
        model=LightGCN.from_data(data, hidden_channels=8),
        build_model=lambda data: LightGCN.from_data(data, hidden_channels=8),
        clock=lambda: clock[0],
        surge_share=0.9,
        fit_args={'num_epochs': 1, 'batch_size': 256},
        method_args={'num_epochs': 1, 'min_steps': 5, 'batch_size': 256},
    )
    ws.submit('erasure', users=['user000@shop.org'], client_id='T-0', verified_by='x')
    ws.work(now=True)
    for number, days in ((1, 30), (2, 3)):
        ws.submit(
            'erasure',
            users=[f'user00{number}@shop.org'],
            client_id=f'T-{number}',
            verified_by='x',
            due_days=days,
        )
    user = 'user004@shop.org'
    ws.submit('erasure', users=[user], client_id=HOSTILE, verified_by=HOSTILE)
    ws.hold(4, HOSTILE, HOSTILE)
    return ws


def samples(text):
    r"""Reads the text format of Prometheus: samples by name and labels."""
    out, known = {}, set()
    for line in text.splitlines():
        if line.startswith('# TYPE '):
            known.add(line.split()[2])
        elif not line.startswith('#'):
            name = re.fullmatch(r'(\w+)(\{\w+="\w+"\})? (\S+)', line)
            assert name is not None, line
            assert name[1] in known
            assert name[1] + (name[2] or '') not in out
            out[name[1] + (name[2] or '')] = float(name[3])
    return out


def test_figures_are_those_of_the_ledger(shop, clock, monkeypatch):
    found = samples(metrics(collect(shop)))
    states = [info.state for info in shop.book.requests()]
    for state in STATES:
        assert found[f'tgu_requests{{state="{state}"}}'] == states.count(state)
    assert sum(states.count(x) for x in ('queued', 'held')) == 3
    assert found['tgu_requests_overdue'] == 0
    assert found['tgu_next_deadline_seconds'] == 3 * DAY
    assert found['tgu_watermark'] == shop.versions.service['watermark']
    verdicts = {k: v for k, v in found.items() if k.startswith('tgu_last_job{')}
    verdict = shop.ledger.row('SELECT verdict FROM job')['verdict']
    assert [k for k, v in verdicts.items() if v] == [
        f'tgu_last_job{{verdict="{verdict}"}}'
    ]
    monkeypatch.setattr(shop, 'clock', lambda: clock[0] + 5 * DAY)
    later = samples(metrics(collect(shop)))
    assert later['tgu_requests_overdue'] == 1
    assert later['tgu_next_deadline_seconds'] == -2 * DAY


def test_overdue_requests_come_first(shop, clock, monkeypatch):
    page = Page(render(collect(shop)))
    due = [row for row in page.rows if 'erasure' in row]
    assert [row.split()[1] for row in due][:2] == ['T-2', 'T-1']
    assert 'in 3.0 days' in due[0]
    monkeypatch.setattr(shop, 'clock', lambda: clock[0] + 5 * DAY)
    text = render(collect(shop))
    assert 'Overdue: 1' in text
    due = [row for row in Page(text).rows if 'erasure' in row]
    assert 'overdue by 2.0 days' in due[0]
    assert ['overdue by' in row for row in due] == [True, False, False]


def test_the_page_runs_and_loads_nothing(shop):
    text = render(collect(shop))
    page = Page(text)
    assert '<script' not in text
    assert '49' not in [part for row in page.rows for part in row.split()]
    assert HOSTILE.split('\n')[0] in ' '.join(page.rows)
    names = {name for name, _ in page.tags}
    assert not names & {'script', 'link', 'img', 'iframe', 'object', 'base', 'form'}
    assert not re.search(r'(https?:)?//[a-z]|url\(|@import', text)
    for _, attrs in page.tags:
        assert not any(key.startswith('on') for key in attrs)


def test_files_and_links(shop):
    path = write_site(shop)
    assert path == shop.root / 'site' / 'index.html'
    page = Page(path.read_text(encoding='utf-8'))
    links = [attrs['href'] for name, attrs in page.tags if name == 'a']
    job = shop.ledger.row('SELECT id, state FROM job')
    is_there = (shop.root / 'evidence' / job['id'] / 'report.html').is_file()
    assert links == ([f'../evidence/{job["id"]}/report.html'] if is_there else [])
    assert all((path.parent / link).is_file() for link in links)
    assert samples((shop.root / 'metrics.prom').read_text())
    for file in (path, shop.root / 'metrics.prom'):
        assert 'user001@shop.org' not in file.read_text(encoding='utf-8')


@pytest.mark.parametrize(
    ('gate', 'figures', 'ends'),
    [
        ('utility', {'low': -0.01, 'high': 0.01, 'to_full': None}, (60, 100)),
        ('forget', {'low': -0.2, 'high': 9.0}, (0, 160)),
        ('membership', {'low': 0.5, 'high': 0.6}, (80, 120)),
    ],
)
def test_bars_are_to_scale(gate, figures, ends, shop):
    r"""The middle is what is expected, and a quarter of half the width a limit."""
    content = collect(shop)
    (job,) = content['jobs']
    entry = {'name': gate, 'figures': figures, 'faults': [], 'verdict': 'pass'}
    job['gates'] = [entry | {'attempt': 'TRU'}]
    page = Page(render(content))
    (bar,) = (a for _, a in page.tags if a.get('class') == 'bar s0')
    left, width = float(bar['x']), float(bar['width'])
    assert (left, left + width) == pytest.approx(ends)
    band, top = next(
        (float(a['x']), float(a['x']) + float(a['width']))
        for _, a in page.tags
        if a.get('class') == 'band'
    )
    assert (band, top) == (60, 160 if gate == 'utility' else 100)


def test_an_empty_workspace(tmp_path, data):
    ws = Workspace.create(
        tmp_path / 'shop',
        data=data,
        model=LightGCN.from_data(data),
        build_model=LightGCN.from_data,
    )
    text = write_site(ws).read_text(encoding='utf-8')
    assert 'Nothing waits' in text
    assert 'No job has run' in text
    found = samples((ws.root / 'metrics.prom').read_text())
    assert math.isnan(found['tgu_next_deadline_seconds'])
    assert not any(v for k, v in found.items() if k.startswith('tgu_last_job{'))


def test_figures_of_a_full_training_are_no_verdict(shop):
    content = collect(shop)
    (job,) = content['jobs']
    figures = {'low': -0.5, 'high': -0.4, 'to_full': -0.3, 'exact': 1.0}
    entry = {'name': 'utility', 'figures': figures, 'faults': [], 'verdict': 'pass'}
    job['gates'] = [entry | {'attempt': 'Retrain'}]
    rows = ' '.join(Page(render(content)).rows)
    assert 'trained from scratch: any is allowed' in rows
    assert '-50.0 % to -40.0 %' in rows
