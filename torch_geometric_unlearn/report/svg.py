r"""Small plots as inline SVG, without any dependency.

Colours, fonts and line widths come from the style sheet of the page (the classes
:obj:`s0`, :obj:`s1`, ... are its series), so that a plot follows light and dark. Series
differ by colour *and* by dash, marker or hatching, and every plot says in its label
what it shows. All plots are drawn on a canvas as wide as a phone and scaled up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape

Number = float | None

#: Width of every canvas, in its own units.
WIDTH = 400

#: The hatching of every second kind of bar; a page needs it once.
HATCH = (
    '<svg class="defs" width="0" height="0" aria-hidden="true"><defs>'
    '<pattern id="hatch" width="5" height="5" patternUnits="userSpaceOnUse" '
    'patternTransform="rotate(45)"><rect class="hatch" width="2" height="5"/>'
    '</pattern></defs></svg>'
)

_LEFT, _RIGHT, _TOP = 66, 14, 10
_CELL, _CELL_HEIGHT = 62, 26


def line_plot(
    x: Sequence[float],
    series: Mapping[str, Sequence[Number]],
    label: str,
    x_name: str,
    y_name: str,
    reference: float | None = None,
    reference_name: str = '',
) -> str:
    r"""Returns lines over common places, e.g. epochs.

    Args:
        x (sequence): Places.
        series (dict): Values by name; :obj:`None` interrupts the line.
        label (str): What the plot shows, for those who can't see it.
        x_name (str): Name of the horizontal axis.
        y_name (str): Name of the vertical axis.
        reference (float, optional): Value of a horizontal line.
            (default: :obj:`None`)
        reference_name (str, optional): Its name. (default: :obj:`''`)

    Raises:
        ValueError: If there is no value to draw.
    """
    values = [v for line in series.values() for v in line if v is not None]
    frame = _Frame(list(x), values + ([] if reference is None else [reference]))
    parts = [frame.axes(x_name, y_name, integers=True)]
    if reference is not None:
        y = frame.y(reference)
        parts.append(_line(frame.left, y, frame.right, y, 'reference'))
        parts.append(_text(frame.right, y - 4, reference_name, 'end'))
    for place, line in enumerate(series.values()):
        points = [(a, b) for a, b in zip(x, line) if b is not None]
        path = ' '.join(f'{frame.x(a):.1f},{frame.y(b):.1f}' for a, b in points)
        parts.append(f'<polyline class="line s{place}" points="{path}"/>')
        parts += [_marker(frame.x(a), frame.y(b), place) for a, b in points]
    legend, height = _legend(list(series), frame.height + 8, _line_key)
    return _svg([*parts, legend], height, label)


def path_plot(
    points: Sequence[tuple[float, float]],
    names: Sequence[str],
    chosen: int | None,
    label: str,
    x_name: str,
    y_name: str,
    reference: float | None = None,
    reference_name: str = '',
) -> str:
    r"""Returns points joined in order, e.g. the way of a model through two measures.

    Args:
        points (sequence): Pairs of values.
        names (sequence): What to write at each point.
        chosen (int, optional): Place of the point to emphasise, or :obj:`None`.
        label (str): What the plot shows, for those who can't see it.
        x_name (str): Name of the horizontal axis.
        y_name (str): Name of the vertical axis.
        reference (float, optional): Value of a vertical line. (default: :obj:`None`)
        reference_name (str, optional): Its name. (default: :obj:`''`)

    Raises:
        ValueError: If there is no point to draw.
    """
    xs = [x for x, _ in points] + ([] if reference is None else [reference])
    frame = _Frame(xs, [y for _, y in points], pad=True)
    parts = [frame.axes(x_name, y_name)]
    if reference is not None:
        x = frame.x(reference)
        parts.append(_line(x, frame.top, x, frame.bottom, 'reference'))
        end = 'start' if x < WIDTH / 2 else 'end'
        shift = 4 if end == 'start' else -4
        parts.append(_text(x + shift, frame.bottom - 5, reference_name, end))
    path = ' '.join(f'{frame.x(x):.1f},{frame.y(y):.1f}' for x, y in points)
    parts.append(f'<polyline class="line s0" points="{path}"/>')
    # Names keep off each other and off the points.
    taken = [(frame.x(x), frame.y(y) + 4) for x, y in points]
    for place, ((x, y), name) in enumerate(zip(points, names)):
        px, py = frame.x(x), frame.y(y)
        parts.append(_marker(px, py, 0))
        if place == chosen:
            parts.append(f'<circle class="ring" cx="{px:.1f}" cy="{py:.1f}" r="8"/>')
        places = [(px, py - 12), (px + 18, py + 4), (px - 18, py + 4), (px, py + 22)]
        free = [
            (a, b)
            for a, b in places
            if all(abs(a - c) > 14 or abs(b - d) > 12 for c, d in taken)
        ]
        taken.append((free or places)[0])
        parts.append(_text(*taken[-1], name, 'middle'))
    return _svg(parts, frame.height + 4, label)


def histogram(
    edges: Sequence[float],
    series: Mapping[str, Sequence[float]],
    label: str,
    x_name: str,
    y_name: str,
) -> str:
    r"""Returns outlines of histograms over common bins.

    Args:
        edges (sequence): Borders of the bins, one more than there are bins.
        series (dict): Share of every bin by name.
        label (str): What the plot shows, for those who can't see it.
        x_name (str): Name of the horizontal axis.
        y_name (str): Name of the vertical axis.

    Raises:
        ValueError: If there is no value to draw.
    """
    values = [v for line in series.values() for v in line]
    frame = _Frame(list(edges), [*values, 0.0])
    parts = [frame.axes(x_name, y_name)]
    for place, heights in enumerate(series.values()):
        path = f'M{frame.x(edges[0]):.1f},{frame.y(0):.1f}'
        for left, right, height in zip(edges, edges[1:], heights):
            y = frame.y(height)
            path += f'L{frame.x(left):.1f},{y:.1f}L{frame.x(right):.1f},{y:.1f}'
        path += f'L{frame.x(edges[-1]):.1f},{frame.y(0):.1f}'
        parts.append(f'<path class="area s{place}" d="{path}Z"/>')
        parts.append(f'<path class="line s{place}" d="{path}"/>')
    legend, height = _legend(list(series), frame.height + 8, _outline_key)
    return _svg([*parts, legend], height, label)


def bar_plot(
    groups: Sequence[str],
    series: Mapping[str, Sequence[Number]],
    label: str,
    form: Callable[[float], str] = '{:.4f}'.format,
) -> str:
    r"""Returns horizontal bars with their values, one group below the other.

    Args:
        groups (sequence): Names of the groups.
        series (dict): One value per group by name; :obj:`None` is said in words.
        label (str): What the plot shows, for those who can't see it.
        form (callable, optional): Returns a value as text, by default with four
            decimals.
    """
    known = [v for line in series.values() for v in line if v is not None]
    largest = max([abs(v) for v in known], default=0.0) or 1.0
    room, y = WIDTH - 90, 4.0
    parts: list[str] = []
    for place, group in enumerate(groups):
        parts.append(_text(0, y + 12, group, 'start', 'strong'))
        y += 17
        for number, line in enumerate(series.values()):
            value = line[place]
            width = 0.0 if value is None else room * abs(value) / largest
            shown = 'not available' if value is None else form(value)
            box = f'x="0" y="{y:.1f}" width="{width:.1f}" height="13"'
            parts.append(f'<rect class="bar s{number}" {box}/>')
            if number % 2:
                parts.append(f'<rect fill="url(#hatch)" {box}/>')
            parts.append(_text(width + 5, y + 11, shown, 'start'))
            y += 16
        y += 8
    legend, height = '', y
    if len(series) > 1:
        legend, height = _legend(list(series), y + 4, _bar_key)
    return _svg([*parts, legend], height, label)


def heat_map(
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[Number]],
    shown: Sequence[Sequence[str]],
    label: str,
) -> str:
    r"""Returns a table of shaded cells with their values.

    Args:
        rows (sequence): Names of the rows.
        columns (sequence): Names of the columns.
        values (sequence): Shade of every cell in :math:`[0, 1]`; :obj:`None` for a
            cell without one.
        shown (sequence): What to write into every cell.
        label (str): What the plot shows, for those who can't see it.
    """
    left = WIDTH - _CELL * len(columns)
    words = [name.split(' ') for name in columns]
    top = 14 * max(len(lines) for lines in words) + 6
    parts = []
    for place, lines in enumerate(words):
        x = left + _CELL * (place + 0.5)
        for number, word in enumerate(lines):
            y = top - 6 - 14 * (len(lines) - 1 - number)
            parts.append(_text(x, y, word, 'middle', 'head'))
    for number, (name, shades, texts) in enumerate(zip(rows, values, shown)):
        y = top + _CELL_HEIGHT * number
        parts.append(_text(left - 6, y + 17, _short(name, left), 'end'))
        for place, (shade, text) in enumerate(zip(shades, texts)):
            x = left + _CELL * place
            size = f'width="{_CELL - 2}" height="{_CELL_HEIGHT - 2}"'
            fill = 'class="empty"'
            if shade is not None:  # Never so dark that the value is hard to read.
                opacity = 0.04 + 0.66 * min(1.0, max(0.0, shade))
                fill = f'class="heat" fill-opacity="{opacity:.2f}"'
            parts.append(f'<rect {fill} x="{x}" y="{y}" {size}/>')
            parts.append(_text(x + _CELL / 2 - 1, y + 16, text, 'middle'))
    return _svg(parts, top + _CELL_HEIGHT * len(rows) + 2, label)


class _Frame:
    r"""The plotting area with its two scales."""

    left, right, top, bottom = _LEFT, WIDTH - _RIGHT, _TOP, _TOP + 180
    height = bottom + 40

    def __init__(
        self, xs: Sequence[float], ys: Sequence[float], pad: bool = False
    ) -> None:
        if not xs or not ys:
            raise ValueError('A plot needs at least one value (got none)')
        self.x_range = _span(min(xs), max(xs), 0.1 if pad else 0.02)
        self.y_range = _span(min(ys), max(ys), 0.2 if pad else 0.05)
        self.x_ticks, self.y_ticks = _ticks(*self.x_range), _ticks(*self.y_range)

    def x(self, value: float) -> float:
        low, high = self.x_range
        return self.left + (value - low) / (high - low) * (self.right - self.left)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return self.bottom - (value - low) / (high - low) * (self.bottom - self.top)

    def axes(self, x_name: str, y_name: str, integers: bool = False) -> str:
        parts = [_line(self.left, self.bottom, self.right, self.bottom, 'axis')]
        for tick in self.y_ticks:
            y = self.y(tick)
            parts.append(_line(self.left, y, self.right, y, 'grid'))
            parts.append(_text(self.left - 5, y + 4, _tick(tick), 'end'))
        for tick in self.x_ticks:
            if integers and abs(tick - round(tick)) > 1e-9:
                continue
            parts.append(
                _text(self.x(tick), self.bottom + 15, _tick(tick), 'middle')
            )
        middle = (self.top + self.bottom) / 2
        parts.append(
            _text((self.left + self.right) / 2, self.bottom + 32, x_name, 'middle')
        )
        parts.append(
            f'<text text-anchor="middle" transform="translate(11 {middle:.1f}) '
            f'rotate(-90)">{escape(y_name)}</text>'
        )
        return ''.join(parts)


def _span(low: float, high: float, pad: float) -> tuple[float, float]:
    width = high - low or 0.5 * abs(high) or 1.0
    pad = pad if high > low else 0.5
    return low - pad * width, high + pad * width


def _ticks(low: float, high: float, wanted: int = 4) -> list[float]:
    r"""Returns round numbers within a range."""
    raw = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * next(f for f in (1, 2, 5, 10) if f * power >= raw * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [step * place for place in range(first, last + 1)]


def _tick(value: float) -> str:
    return f'{value:.4g}'.replace('-', '−')


def _text(x: float, y: float, text: str, anchor: str, kind: str = '') -> str:
    css = f' class="{kind}"' if kind else ''
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text{css} {place}>{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line class="{kind}" {ends}/>'


def _marker(x: float, y: float, place: int) -> str:
    kind = f'class="mark s{place}"'
    if place % 3 == 0:
        return f'<circle {kind} cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>'
    if place % 3 == 1:
        return f'<rect {kind} x="{x - 3:.1f}" y="{y - 3:.1f}" width="6" height="6"/>'
    corners = f'{x:.1f},{y - 4:.1f} {x + 4:.1f},{y + 3:.1f} {x - 4:.1f},{y + 3:.1f}'
    return f'<polygon {kind} points="{corners}"/>'


def _outline_key(x: float, y: float, place: int) -> str:
    return f'<polyline class="line s{place}" points="{x},{y} {x + 28},{y}"/>'


def _line_key(x: float, y: float, place: int) -> str:
    return _outline_key(x, y, place) + _marker(x + 14, y, place)


def _bar_key(x: float, y: float, place: int) -> str:
    box = f'x="{x}" y="{y - 6}" width="28" height="12"'
    out = f'<rect class="bar s{place}" {box}/>'
    return out + (f'<rect fill="url(#hatch)" {box}/>' if place % 2 else '')


def _legend(
    names: Sequence[str], y: float, key: Callable[[float, float, int], str]
) -> tuple[str, float]:
    r"""Returns the keys, two in a row, and where they end."""
    parts = []
    for place, name in enumerate(names):
        x, row = (place % 2) * WIDTH / 2, y + 18 * (place // 2) + 6
        parts += [key(x, row, place), _text(x + 34, row + 4, name, 'start')]
    return ''.join(parts), y + 18 * ((len(names) + 1) // 2)


def _short(name: str, room: float) -> str:
    most = int(room / 7) - 1
    return name if len(name) <= most else '…' + name[-most + 1 :]


def _svg(parts: Sequence[str], height: float, label: str) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" '
        f'aria-label="{escape(label)}">{"".join(parts)}</svg>'
    )
