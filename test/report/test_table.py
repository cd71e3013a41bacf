import json
import math

import pytest
import torch

from torch_geometric_unlearn.report import format_table, save_json, versions


def test_table_is_aligned():
    rows = [
        {'method': 'original', 'recall@20': 0.123456, 'seconds': 12.34},
        {'method': 'tru', 'recall@20': math.nan, 'other': 3},
    ]
    lines = format_table(rows, ['method', 'recall@20', 'seconds']).split('\n')
    assert lines == [
        'method    recall@20  seconds',
        '----------------------------',
        'original     0.1235     12.3',
        'tru               -        -',
    ]
    assert len({len(line) for line in lines}) == 1
    assert format_table([], ['method']) == 'method\n------'


def test_json_is_valid_and_atomic(tmp_path):
    path = tmp_path / 'new' / 'result.json'
    save_json(path, {'a': math.nan, 'b': [1, {'c': math.nan}], 3: 'x'})
    assert json.loads(path.read_text()) == {'a': None, 'b': [1, {'c': None}], '3': 'x'}
    before = path.read_text()
    with pytest.raises(TypeError):
        save_json(path, {'a': object()})
    assert path.read_text() == before
    assert [p.name for p in path.parent.iterdir()] == ['result.json']


def test_versions():
    out = versions()
    assert out['torch'] == torch.__version__
    assert all(isinstance(value, str) for value in out.values())
