r"""Rows of result files, and tables in Markdown of them."""

from __future__ import annotations

import json

from cells import FOLDER


def load(name):
    r"""Returns the rows of a result file."""
    return json.loads((FOLDER / 'results' / f'{name}.json').read_text())['rows']


def start(header):
    r"""Returns the first two lines of a table."""
    return [line(header), '|---' * len(header) + '|']


def line(cells):
    r"""Returns a line of a table."""
    return f'| {" | ".join(map(str, cells))} |'.replace('|  |', '| |')


def text(lines):
    r"""Returns a table of its lines."""
    return '\n'.join(lines) + '\n'


def seconds(x):
    r"""Returns a time with as many digits as mean something."""
    if x is None:
        return '–'
    return f'{x:.0f}' if x >= 100 else f'{x:.1f}'


def percent(x, digits=1):
    r"""Returns a change in percent, or a share without a sign if it is none."""
    return '–' if x is None else f'{x:+.{digits}%}'.replace('%', ' %')
