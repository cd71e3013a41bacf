import hashlib
import json

import pytest

from torch_geometric_unlearn.report import (
    build_report,
    read_report,
    render_html,
    write_report,
)
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


def test_the_page_belongs_to_its_json(full, tmp_path):
    path = tmp_path / 'report'
    write_report(full, path)
    for name in ('report', 'report.html', 'report.json'):
        assert read_report(tmp_path / name) == full
    page, content = path.with_suffix('.html'), path.with_suffix('.json')
    digest = hashlib.sha256(content.read_bytes()).hexdigest()
    assert f'<meta name="json-sha256" content="{digest}">' in page.read_text()

    other = tmp_path / 'other'
    write_report(full | {'title': 'Another request'}, other)
    page.write_bytes(other.with_suffix('.html').read_bytes())
    with pytest.raises(ValueError, match=r'was made from another file\. Make it'):
        read_report(path)
    page.unlink()
    with pytest.raises(ValueError, match=r"The page '.*report\.html' is missing. Make"):
        read_report(path)
    # The way that the error tells.
    write_report(json.load(content.open()), page)
    assert read_report(path) == full
    content.write_text(content.read_text().replace('TRU', 'TRV'))
    with pytest.raises(ValueError, match='was made from another file'):
        read_report(path)


def test_what_is_no_report(full, tmp_path):
    path = tmp_path / 'report.json'
    with pytest.raises(FileNotFoundError, match='There is no report'):
        read_report(path)
    for text in ('', '[]', '{"a": 1}', '1', '[' * 99_999, '"schema_version"'):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"report\.json' is not the JSON file"):
            read_report(path)
    path.write_text(json.dumps(full | {'schema_version': 1}))
    with pytest.raises(ValueError, match=r'must have schema_version 3 \(got 1\)'):
        read_report(path)
