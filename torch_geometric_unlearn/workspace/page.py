r"""What pages of a workspace are built from."""

from __future__ import annotations

import math
from datetime import datetime, timezone
from typing import Any

from markupsafe import Markup

from torch_geometric_unlearn.report.html import Cell, environment, grid

from .book import DAY
from .gates import FAIL, INCONCLUSIVE, LIMITS, PASS, SIGNED

SIGNS = {
    PASS: '✓',
    FAIL: '✗',
    INCONCLUSIVE: '?',
    SIGNED: '✎',
    'nothing': '–',
    None: '…',
}
_WIDTH = 160


def render_page(template: str, **content: Any) -> str:
    r"""Returns a page from a template."""
    page = environment('torch_geometric_unlearn.workspace').get_template(template)
    return page.render(sign=SIGNS, **content)


def utc(seconds: float) -> str:
    r"""Returns a time in words, to the minute."""
    return datetime.fromtimestamp(seconds, timezone.utc).strftime('%Y-%m-%d %H:%M UTC')


def span(seconds: float) -> str:
    r"""Returns how long something takes, in days or hours."""
    days = abs(seconds) / DAY
    return f'{days:.1f} days' if days >= 1 else f'{24 * days:.1f} hours'


def gates_table(gates: list[dict[str, Any]]) -> Any:
    r"""Returns a table of gates with their intervals over what is allowed; each has
    its content, its verdict, and as :obj:`'attempt'` the method.
    """
    rows = []
    for gate in gates:
        kind = 'failed' if gate['verdict'] == FAIL else ''
        verdict = Cell(f'{SIGNS[gate["verdict"]]} {gate["verdict"]}', kind)
        rows.append([gate['name'], gate['attempt'], verdict, *_interval(gate)])
    return grid(['Gate', 'Method', 'Verdict', 'Interval', 'Figures'], rows)


def _interval(gate: dict[str, Any]) -> tuple[Any, Any]:
    r"""Returns a small plot of the interval over what is allowed, and its figures."""
    figures = gate['figures']
    if not figures:
        return Cell('–', 'soft'), '; '.join(gate['faults']) or 'nothing found'
    low, high = figures.get('low'), figures.get('high')
    if low is None or high is None:
        return Cell('–', 'soft'), 'too few to tell'
    middle = 0.5 if gate['name'] == 'membership' else 0.0
    limit = LIMITS['service' if gate['name'] == 'utility' else gate['name']]
    top = math.inf if gate['name'] == 'utility' else middle + limit
    words, small = f'{_points(low)} to {_points(high)}', ''
    allowed = f'{_points(middle - limit)} to {_points(top)}'
    if math.isinf(top):
        allowed = f'{_points(middle - limit)} or more'
    if figures.get('to_full') is not None:
        small = f'; to the last full training {_points(figures["to_full"])}, allowed: '
        small += f'{_points(-LIMITS["full"])} or more'

    def place(value: float) -> float:
        share = (value - middle) / (8 * limit) + 0.5
        return round(_WIDTH * min(max(share, 0.0), 1.0), 1)

    left, right = place(middle - limit), place(top)
    ends = place(low), place(high)
    plot = Markup(
        '<svg class="interval" viewBox="0 0 {0} 14" role="img" aria-label="{1}; '
        'allowed {2}"><rect class="band" x="{3}" y="0" width="{4}" height="14"/>'
        '<line class="axis" x1="{5}" x2="{5}" y1="0" y2="14"/>'
        '<rect class="bar s0" x="{6}" y="4" width="{7}" height="6"/></svg>'
    ).format(
        _WIDTH,
        words,
        allowed,
        left,
        round(right - left, 1),
        place(middle),
        ends[0],
        round(max(ends[1] - ends[0], 2.0), 1),
    )
    if figures.get('exact'):
        return Cell(plot), Cell(words, small='trained from scratch: any is allowed')
    return Cell(plot), Cell(words, small=f'allowed: {allowed}{small}')


def _points(value: float) -> str:
    return f'{100 * value:.1f} %'
