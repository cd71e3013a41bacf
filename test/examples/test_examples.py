import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / 'examples'


def run(name, *args, cwd):
    command = [sys.executable, str(EXAMPLES / name), *args]
    env = os.environ | {'OMP_NUM_THREADS': '1'}
    out = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=env)
    return out


def test_custom_data(tmp_path):
    out = run('custom_data.py', cwd=tmp_path)
    assert out.returncode == 0, out.stderr
    assert 'forgotten' in out.stdout


def test_custom_recommender(tmp_path):
    out = run('custom_recommender.py', cwd=tmp_path)
    assert out.returncode == 0, out.stderr
    header, _, *lines = out.stdout.splitlines()
    columns = header.split()
    rows = {line.split()[0]: dict(zip(columns, line.split())) for line in lines}
    assert list(rows) == ['original', 'retrained', 'TRU', 'PartialRetrain']
    forget = {name: float(row['forget_recall@20']) for name, row in rows.items()}
    assert forget['original'] > 0.5
    assert max(forget[n] for n in ('retrained', 'TRU', 'PartialRetrain')) < 0.1
    for row in rows.values():  # Ranking by popularity gives 0.16.
        assert float(row['retain_recall@20']) > 0.3


def test_tru_writes_what_it_prints(tmp_path):
    args = ['--size', 'tiny', '--json', 'result.json', '--checkpoint', 'mgcn.st']
    out = run('tru.py', *args, cwd=tmp_path)
    assert out.returncode == 0, out.stderr
    content = json.loads((tmp_path / 'result.json').read_text())
    methods = ['original', 'retrained', 'edge_drop', 'row_reset', 'mmrecun', 'tru']
    methods.append('partial_retrain')
    assert [row['method'] for row in content['rows']] == methods
    for row in content['rows']:
        for side in ('retain', 'forget'):
            for metric in ('recall', 'ndcg'):
                assert 0 <= row[f'{side}_{metric}@20'] <= 1
        assert row['seconds'] >= 0
        assert f'{row["method"]} ' in out.stdout
    assert content['config']['regime'] == 'user'
    assert 'torch' in content['versions']
    # The second run takes the saved model.
    again = run('tru.py', *args, '--regime', 'item', cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    repeated = json.loads((tmp_path / 'result.json').read_text())
    assert repeated['rows'][0]['seconds'] == content['rows'][0]['seconds']


def test_audit_writes_a_report(tmp_path):
    out = run('audit.py', '--size', 'tiny', '--out', 'page.html', cwd=tmp_path)
    assert out.returncode == 0, out.stderr
    assert 'of the deleted interactions into the top 20' in out.stdout
    content = json.loads((tmp_path / 'page.json').read_text())
    names = ['original', 'retrained', 'edge drop', 'row reset', 'TRU', 'unlearned']
    assert [row['name'] for row in content['table']['rows']] == names
    assert content['failures'] == []
    assert content['request']['ids'] == 'hashed'
    page = (tmp_path / 'page.html').read_text(encoding='utf-8')
    assert content['request']['hash'] in page


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['--ratio', '5'], "'ratio' must be in (0, 1) (got 5.0). For 5%, pass 0.05."),
        (['--regim', 'user'], 'unrecognized arguments'),
        (['--dataset', 'Baby', '--root', 'file'], 'Cannot write to the folder'),
    ],
)
def test_errors_are_clear(args, message, tmp_path):
    (tmp_path / 'file').write_text('')
    out = run('tru.py', '--size', 'tiny', *args, cwd=tmp_path)
    assert out.returncode != 0
    assert message in out.stderr.replace('\n', ' ')
