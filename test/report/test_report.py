import json

import pytest

from torch_geometric_unlearn.report import render_html
from torch_geometric_unlearn.report.report import build_report, write_report
from torch_geometric_unlearn.transforms import DropForgotten
from torch_geometric_unlearn.unlearn import TRU


def test_files_are_written_and_the_page_follows_from_the_json(full, tmp_path):
    for name in ('a/report', 'b/report.html', 'c/report.json', 'd/v1.2'):
        assert write_report(full, tmp_path / name) == full
        base = tmp_path / name.removesuffix('.html').removesuffix('.json')
        content = json.loads((base.parent / f'{base.name}.json').read_text())
        assert content == full
        page = (base.parent / f'{base.name}.html').read_text(encoding='utf-8')
        assert page == render_html(content)
    assert (tmp_path / 'd' / 'v1.2.html').exists()
    with pytest.raises(ValueError, match=r"schema_version 3 \(got 1\)"):
        write_report({'schema_version': 1}, tmp_path / 'e')
    with pytest.raises(ValueError, match=r"no more arguments \(got \['data'\]\)"):
        write_report(full, tmp_path / 'e', data=None)
    assert not (tmp_path / 'e.json').exists()


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
