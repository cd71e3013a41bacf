import json
import re

import pytest

from torch_geometric_unlearn.workspace import gates, verify
from torch_geometric_unlearn.workspace.gates import Gate

HOSTILE = '</td><script>alert(1)</script>"\'&\n{{ 7 * 7 }}'


@pytest.fixture
def page(cheap, quick, ask, shop, clock):
    r"""Writes the evidence of a job as it is now, and returns its page."""
    ask(cheap, users=[shop.user(3)], client_id=HOSTILE, verified_by=HOSTILE)
    [job] = cheap.work(now=True)

    def page():
        folder = cheap.evidence(job.id)
        assert verify(folder)['job'] == job.id
        text = (folder / 'index.html').read_text('utf-8')
        assert not shop.places(folder, shop.user(3))
        assert '<script' not in text
        assert '7 * 7' in text
        assert not re.search(r'(https?:)?//[a-z]|url\(|@import| on\w+=', text)
        for link in re.findall(r'href="([^"]*)"', text):
            assert (folder / link).is_file()
        return text

    page.ws, page.job = cheap, job
    return page


def test_what_is_told_of_a_job(page, clock):
    ws, job = page.ws, page.job
    text = page()
    assert '? The model is served on probation' in text
    assert 'Attempt 0: RowReset, which is served' in text
    assert '&lt;script&gt;alert(1)' in text
    assert 'Nothing yet' in text
    assert 'not signed' in text
    places = [text.index(f'>{name}<') for name in gates.NAMES]
    assert places == sorted(places)
    signed = {'although': ['forget', 'membership'], 'who': HOSTILE, 'why': HOSTILE}
    ws.sign(job.id, 0, **signed)
    text = page()
    assert '✎ A person has signed for the model' in text
    assert 'no roles were set' in text
    assert 'not passed: forget, membership' in text
    site = (ws.root / 'site' / 'index.html').read_text('utf-8')
    assert 'not passed: forget, membership' in site
    assert '<script' not in site
    clock.wait(8)
    ws.work()
    text, parent = page(), ws.ledger.row('SELECT parent FROM job')['parent']
    assert f'version {parent[:12]}' in text
    assert 'raw ids of requests 1' in text


@pytest.mark.parametrize('few', [True, False])
def test_why_a_job_has_passed(cheap, quick, ask, shop, clock, monkeypatch, few):
    def good(name, middle=0.0, **kwargs):
        figures = {'low': middle, 'high': middle, 'to_full': 0.0, 'num_pairs': 99.0}
        return lambda *_: Gate(name, figures | kwargs)

    monkeypatch.setattr(gates, 'utility', good('utility'))
    monkeypatch.setattr(gates, 'forget', good('forget'))
    pairs = 9.0 if few else 99.0
    attack = good('membership', 0.5, num_pairs=pairs)
    monkeypatch.setattr(gates, 'attack', attack)
    ask(cheap, users=[shop.user(3)])
    [job] = cheap.work(now=True)
    clock.wait(28)
    cheap.work()  # Decides what it could not tell.
    folder = cheap.evidence(job.id)
    assert json.loads((folder / 'gates.json').read_text())['verdict'] == 'pass'
    text = (folder / 'index.html').read_text('utf-8')
    assert '✓ The model has passed all gates' in text
    assert ('was decided together' in text) == few
    assert ('figures of this job alone' in text) != few
