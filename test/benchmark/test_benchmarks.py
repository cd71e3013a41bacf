import runpy
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / 'benchmark'
SCRIPTS = sorted(
    path.name for path in FOLDER.glob('*.py') if 'parse_args(' in path.read_text()
)


@pytest.mark.parametrize('name', SCRIPTS)
def test_says_what_it_takes(name, monkeypatch, capsys):
    r"""Every script finds what it imports and explains its options."""
    monkeypatch.setattr(sys, 'argv', [name, '--help'])
    monkeypatch.syspath_prepend(FOLDER)
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(FOLDER / name), run_name='__main__')
    assert stop.value.code == 0
    assert 'usage' in capsys.readouterr().out
