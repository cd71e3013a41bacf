import json
import random
import shutil
from hashlib import sha256

import pytest

from torch_geometric_unlearn.workspace import Workspace, verify
from torch_geometric_unlearn.workspace.evidence import json_bytes

FILES = [
    'decisions.json',
    'events.json',
    'gates.json',
    'index.html',
    'limits.txt',
    'lineage.json',
    'manifest.json',
    'report.html',
    'report.json',
    'requests.json',
]
SUBJECTS = [3, 4, 5]
_ANY = r'\S'  # Some are no longer JSON, others another manifest.


@pytest.fixture(scope='module')
def finished(template, shop, tmp_path_factory):
    r"""The evidence of a job whose requests are at their end, in a folder of its own,
    and the one as it was before.
    """
    root = tmp_path_factory.mktemp('finished') / 'shop'
    shutil.copytree(template, root)
    now = [1e9]
    ws = Workspace(root, shop.build, lambda: now[0])
    for i in SUBJECTS:
        ws.submit('erasure', users=[shop.user(i)], items=[shop.item(i)][: i - 4],
                  client_id=f'T-{i}', verified_by='crm')  # fmt: skip
    ws.hold(1, 'eve', 'a lawsuit')
    ws.release(1, 'eve', 'it is over')
    [job] = ws.work(now=True)
    early = root.with_name('early')
    shutil.copytree(ws.evidence(job.id), early)
    while ws.status()['requests'] != {'completed': 3}:
        now[0] += 4 * 86_400
        ws.work()
    late = root.with_name('late')
    shutil.copytree(root / 'evidence' / job.id, late)
    shutil.rmtree(root)  # Nothing else is needed.
    ws.ledger.close()
    return {'early': early, 'late': late, 'job': job}


@pytest.fixture
def bundle(finished, tmp_path):
    return shutil.copytree(finished['late'], tmp_path / 'bundle')


def forge(bundle, name, change):
    r"""Changes a file, and the manifest so that it fits."""
    path = bundle / name
    content = json.loads(path.read_text())
    change(content)
    path.write_bytes(json_bytes(content))
    manifest = json.loads((bundle / 'manifest.json').read_text())
    manifest['files'][name] = sha256(path.read_bytes()).hexdigest()
    (bundle / 'manifest.json').write_bytes(json_bytes(manifest))


@pytest.mark.parametrize('time', ['early', 'late'])
def test_verify_needs_nothing_else(finished, time):
    assert sorted(path.name for path in finished[time].iterdir()) == FILES
    found = verify(str(finished[time]))
    job = finished['job']
    assert found['job'] == job.id
    assert found['verdict'] == (job.verdict if time == 'early' else 'pass')
    assert found['gates'] == job.gates['0 PartialRetrain']


def test_bundle_names_nobody(finished, shop):
    words = [f'{shop.user(i)}' for i in range(200)]
    words += [f'"{shop.item(i)}"' for i in range(60)]
    for time in ('early', 'late'):
        assert shop.places(finished[time], *words) == []


def test_bundle_says_what_was_done(finished):
    folder, job = finished['late'], finished['job']
    lineage = json.loads((folder / 'lineage.json').read_text())
    assert (lineage['job'], lineage['version']) == (job.id, job.version)
    assert lineage['watermark'] == 3
    assert 'key' not in lineage['settings']
    requests = json.loads((folder / 'requests.json').read_text())
    assert {r['state'] for r in requests['requests']} == {'completed'}
    assert {t['outcome'] for t in requests['targets']} == {'erased'}
    reviews = json.loads((folder / 'decisions.json').read_text())['reviews']
    assert [r['decision'] for r in reviews] == ['held', 'queued']
    events = json.loads((folder / 'events.json').read_text())['events']
    assert [e['kind'] for e in events][:2] == ['started', 'promoted']
    [end] = [e for e in events if e['kind'] == 'completed']
    assert lineage['parent'] in json.loads(end['body'])['purged']


def test_any_changed_byte_is_found(bundle):
    rng = random.Random(0)
    for name in FILES:
        path = bundle / name
        content = path.read_bytes()
        size, step = len(content), 1
        spots = range(0, size, step) if name == 'manifest.json' else [
            0, size // 2, size - 1, *(rng.randrange(size) for _ in range(5))
        ]  # fmt: skip
        for place in spots:
            changed = bytearray(content)
            changed[place] ^= 1 << rng.randrange(8)
            path.write_bytes(bytes(changed))
            with pytest.raises(ValueError, match=_ANY):
                verify(bundle)
        for changed in (content[:-1], content + b'\n', b''):
            path.write_bytes(changed)
            with pytest.raises(ValueError, match=_ANY):
                verify(bundle)
        path.write_bytes(content)
    verify(bundle)


def test_missing_and_added_files_are_found(bundle):
    for name in FILES:
        (bundle / name).rename(bundle.with_name('away'))
        with pytest.raises(ValueError, match=r'must hold the files|be read'):
            verify(bundle)
        bundle.with_name('away').rename(bundle / name)
    (bundle / 'more.txt').write_text('')
    with pytest.raises(ValueError, match=r"must hold the files .*'more.txt'"):
        verify(bundle)
    (bundle / 'more.txt').unlink()
    verify(bundle)
    with pytest.raises(ValueError, match="can't be read"):
        verify(bundle.with_name('none'))


def test_a_file_left_out_of_the_manifest_is_found(bundle):
    content = json.loads((bundle / 'manifest.json').read_text())
    for name in [name for name in FILES if name != 'manifest.json']:
        rest = {k: v for k, v in content['files'].items() if k != name}
        (bundle / 'manifest.json').write_bytes(json_bytes(content | {'files': rest}))
        (bundle / name).rename(bundle.with_name('away'))
        with pytest.raises(ValueError, match='does not name the evidence'):
            verify(bundle)
        bundle.with_name('away').rename(bundle / name)


def gate(content, name):
    return next(e for e in content['attempts']['0'] if e['name'] == name)


@pytest.mark.parametrize(
    ('name', 'change', 'match'),
    [
        ('gates.json', lambda c: gate(c, 'forget').update(verdict='pass'), 'forget'),
        (
            'gates.json',
            lambda c: gate(c, 'utility')['figures'].update(low=-0.9, high=-0.8),
            "verdict on 'utility' in attempt 0",
        ),
        (
            'gates.json',
            lambda c: gate(c, 'data')['faults'].append('erased pairs'),
            "verdict on 'data'",
        ),
        (
            'gates.json',
            lambda c: gate(c, 'data').update(faults=['x'], verdict='fail'),
            "came after them, which say 'fail'",
        ),
        ('gates.json', lambda c: c['attempts']['0'].pop(), 'all gates'),
        ('gates.json', lambda c: c['attempts'].clear(), 'all gates'),
        ('gates.json', lambda c: c.update(verdict='fail'), "The verdict 'fail'"),
        ('gates.json', lambda c: gate(c, 'data').update(name='dato'), 'all gates'),
        ('gates.json', lambda c: gate(c, 'forget')['figures'].clear(), 'another form'),
        ('gates.json', lambda c: c.pop('attempts'), 'another form'),
        ('lineage.json', lambda c: c.update(job='x'), 'different jobs'),
        ('events.json', lambda c: c['events'].pop(1), 'gap before|broken at'),
        ('events.json', lambda c: c['events'][0].update(at=1.0), 'broken at'),
        ('events.json', lambda c: c['events'].reverse(), 'gap before|broken at'),
        ('events.json', lambda c: c.update(before='0' * 64), 'broken at'),
        ('events.json', lambda c: c['events'][0].pop('hash'), 'another form'),
    ],
)
def test_forged_content_is_found(bundle, name, change, match):
    forge(bundle, name, change)
    with pytest.raises(ValueError, match=match):
        verify(bundle)


def test_forged_verdict_of_an_undecided_job_is_found(finished, tmp_path):
    bundle = shutil.copytree(finished['early'], tmp_path / 'bundle')
    assert finished['job'].verdict == 'inconclusive'
    forge(bundle, 'gates.json', lambda c: c.update(verdict='pass'))
    with pytest.raises(ValueError, match="The verdict 'pass' does not follow"):
        verify(bundle)


def test_unknown_jobs(ws):
    with pytest.raises(ValueError, match="no evidence of a job 'x'"):
        ws.evidence('x')
    assert not (ws.root / 'evidence').exists()
