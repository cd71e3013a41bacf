r"""Whoever gets a bundle needs nothing but the package."""

import json
import shutil
from hashlib import sha256

import pytest

from torch_geometric_unlearn.workspace import verify
from torch_geometric_unlearn.workspace.evidence import json_bytes
from torch_geometric_unlearn.workspace.ledger import chained

ELSEWHERE = '''
import builtins, os, socket, sys
from pathlib import Path

def refuse(*args, **kwargs):
    raise OSError('there is no network')

socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
os.chdir({elsewhere!r})
os.environ.pop('TGU_WORKSPACE', None)
for name in ('pandas', 'sklearn', 'cryptography', 'pyarrow'):
    sys.modules[name] = None
from torch_geometric_unlearn.workspace.cli import main
sys.stdout = open('out', 'w')
code = main(['verify', {bundle!r}])
sys.stdout.close()
os._exit(code)
'''


@pytest.fixture
def bundle(cheap, quick, ask, shop, tmp_path):
    r"""The evidence of a job, after the workspace and its key are gone."""
    ask(cheap, users=[shop.user(3)])
    [job] = cheap.work(now=True)
    out = shutil.copytree(cheap.evidence(job.id), tmp_path / 'sent' / 'bundle')
    cheap.ledger.close()
    shutil.rmtree(cheap.root)
    cheap.root.with_name('shop.key').unlink()
    return out


def test_elsewhere_and_offline(bundle, tmp_path, run_code):
    elsewhere = tmp_path / 'elsewhere'
    elsewhere.mkdir()
    before = {path: path.read_bytes() for path in bundle.iterdir()}
    code = ELSEWHERE.format(elsewhere=str(elsewhere), bundle=str(bundle))
    assert run_code(code) == 0
    out = (elsewhere / 'out').read_text()
    assert 'inconclusive, nothing was changed' in out
    assert out.endswith('signature: none\n')
    assert {path: path.read_bytes() for path in bundle.iterdir()} == before
    (bundle / 'limits.txt').write_text('none')
    assert run_code(code) == 1


def rewrite(bundle, change, later=()):
    r"""Writes a bundle anew as somebody could who has all of it: with events appended,
    and with a manifest that fits.
    """
    content = {
        name: json.loads((bundle / name).read_text())
        for name in ('gates.json', 'decisions.json', 'events.json', 'manifest.json')
    }
    events = content['events.json']['events']
    for kind, body in later:
        last, text = events[-1], json.dumps(body, sort_keys=True)
        link = chained(last['hash'], last['id'] + 1, last['at'], kind, text)
        event = {'id': last['id'] + 1, 'at': last['at'], 'kind': kind, 'body': text}
        events.append(event | {'hash': link})
    change(content)
    manifest = content.pop('manifest.json')
    for name, part in content.items():
        (bundle / name).write_bytes(json_bytes(part))
        manifest['files'][name] = sha256((bundle / name).read_bytes()).hexdigest()
    (bundle / 'manifest.json').write_bytes(json_bytes(manifest))


def entry(job, at=None, **kwargs):
    body = {'job': job, 'attempt': 0, 'although': ['forget', 'membership']}
    body |= {'who': 'dpo', 'why': 'few', 'has_role': True} | kwargs
    return body if at is None else body | {'at': at}


@pytest.mark.parametrize(
    ('body', 'named', 'match'),
    [
        ({}, True, None),
        ({}, False, "'decisions.json' must name who has signed"),
        ({'although': ['forget']}, True, "'dpo' has signed for another attempt"),
        ({'although': []}, True, "'dpo' has signed for another attempt"),
        ({'attempt': 1}, True, "'dpo' has signed for another attempt"),
        ({'job': 'x'}, True, "'signed' does not follow from the gates"),
    ],
)
def test_a_signature_must_fit(bundle, body, named, match):
    assert set(verify(bundle)['gates'].values()) == {'pass', 'inconclusive'}
    job = json.loads((bundle / 'manifest.json').read_text())['job']
    body = entry(job) | body

    def change(content):
        at = content['events.json']['events'][-1]['at']
        content['gates.json']['verdict'] = 'signed'
        if named and body['job'] == job:
            content['decisions.json']['signatures'] = [body | {'at': at}]

    rewrite(bundle, change, [('signed', body)])
    if match is None:
        assert verify(bundle)['verdict'] == 'signed'
    else:
        with pytest.raises(ValueError, match=match):
            verify(bundle)


def test_nobody_signs_after_a_rollback(bundle):
    job = json.loads((bundle / 'manifest.json').read_text())['job']
    later = [('rolled_back', {'jobs': [job]}), ('signed', entry(job))]
    rewrite(bundle, lambda c: c['gates.json'].update(verdict='signed'), later)
    with pytest.raises(ValueError, match='or after a rollback'):
        verify(bundle)


def test_a_signature_counts_after_the_job_is_done_anew(bundle):
    job = json.loads((bundle / 'manifest.json').read_text())['job']
    body = entry(job)
    later = [
        ('signed', entry(job, attempt=7)),  # For one of the run before.
        ('rolled_back', {'jobs': [job]}),
        ('started', {'job': job}),
        ('signed', body),
    ]

    def change(content):
        at = content['events.json']['events'][-1]['at']
        content['gates.json']['verdict'] = 'signed'
        found = [text | {'at': at} for kind, text in later if kind == 'signed']
        content['decisions.json']['signatures'] = found

    rewrite(bundle, change, later)
    assert verify(bundle)['verdict'] == 'signed'


def test_nobody_signs_for_a_hard_gate(bundle):
    job = json.loads((bundle / 'manifest.json').read_text())['job']
    body = entry(job, although=['data', 'forget', 'membership'])

    def change(content):
        (gate,) = (g for g in content['gates.json']['attempts']['0']
                   if g['name'] == 'data')  # fmt: skip
        gate.update(faults=['planted'], verdict='fail')
        content['gates.json']['verdict'] = 'signed'

    rewrite(bundle, change, [('signed', body)])
    with pytest.raises(ValueError, match='for a hard one'):
        verify(bundle)


def test_the_attempt_that_is_served_must_be_there(bundle):
    rewrite(bundle, lambda c: c['gates.json'].update(promoted='1'))
    with pytest.raises(ValueError, match='served must have gone through all gates'):
        verify(bundle)
