import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest

from torch_geometric_unlearn.report import svg


def parse(text):
    root = ET.fromstring(text)
    assert root.get('role') == 'img'
    assert root.get('aria-label')
    left, top, width, height = map(float, root.get('viewBox').split())
    assert (left, top, width) == (0, 0, svg.WIDTH)
    for element in root.iter():
        for name, bound in [('x', width), ('x1', width), ('cx', width)]:
            assert 0 <= float(element.get(name, 0)) <= bound
        for name in ('y', 'y1', 'cy'):
            assert -1 <= float(element.get(name, 0)) <= height
    return root


def texts(root):
    return [element.text for element in root.iter('text')]


def test_lines_keep_order_and_gaps():
    values = {'a': [1.0, None, 3.0]}
    root = parse(svg.line_plot([0, 1, 2], values, 'l', 'x', 'y', 2.0))
    points = next(root.iter('polyline')).get('points').split()
    (x0, y0), (x1, y1) = (map(float, point.split(',')) for point in points)
    assert x0 < x1
    assert y0 > y1  # Upwards is smaller.
    assert {'a', 'x', 'y'} <= set(texts(root))


def test_path_shows_the_choice_and_separates_names():
    points = [(0.5, 0.2), (0.1, 0.2), (0.1, 0.199)]
    root = parse(svg.path_plot(points, ['0', '1', '2'], 2, 'l', 'x', 'y', 0.2, 'r'))
    rings = [e for e in root.iter('circle') if e.get('class') == 'ring']
    assert len(rings) == 1
    names = [e for e in root.iter('text') if e.text in ('0', '1', '2')]
    places = {(e.get('x'), e.get('y')) for e in names}
    assert len(places) == len(names)


def test_histogram_bars_and_heat_map_scale():
    shares = {'a': [0.0, 1.0], 'b': [0.5, 0.5]}
    root = parse(svg.histogram([0, 1, 2], shares, 'l', 'x', 'y'))
    assert len([e for e in root.iter('path') if e.get('class') == 'area s0']) == 1
    root = parse(svg.bar_plot(['p', 'q'], {'a': [1.0, 0.5], 'b': [None, 0.0]}, 'l'))
    bars = [e for e in root.iter('rect') if e.get('class') == 'bar s0']
    long, short = (float(bar.get('width')) for bar in bars[:2])  # Then the legend.
    assert long == pytest.approx(2 * short)
    assert long > 100
    assert {'1.0000', '0.5000', 'not available'} <= set(texts(root))
    shades = [[0.0, 1.0, None]]
    root = parse(svg.heat_map(['r'], ['a', 'b', 'c'], shades, [list('xyz')], 'l'))
    cells = list(root.iter('rect'))
    assert [e.get('class') for e in cells] == ['heat', 'heat', 'empty']
    assert float(cells[0].get('fill-opacity')) < float(cells[1].get('fill-opacity'))
    assert texts(root)[-3:] == ['x', 'y', 'z']


@pytest.mark.parametrize('value', [0.0, 1e-9, 0.5, 123456.0, -3.0])
def test_a_single_value_can_be_drawn(value):
    root = parse(svg.line_plot([0], {'a': [value]}, 'l', 'epoch', 'y'))
    assert len(texts(root)) >= 4
    parse(svg.path_plot([(value, value)], ['0'], None, 'l', 'x', 'y'))


def test_strings_are_escaped_and_nothing_is_refused():
    text = svg.bar_plot(['<b>&"'], {'"><script>': [1.0]}, '"<i>')
    assert parse(text).get('aria-label') == '"<i>'
    assert '<script>' not in text
    assert '<b>' not in text
    with pytest.raises(ValueError, match='at least one value'):
        svg.line_plot([], {}, 'l', 'x', 'y')


@pytest.mark.parametrize(
    ('low', 'high'),
    [(0, 1), (-0.3, 0.7), (0.1823, 0.1831), (-1e6, 3e6), (1e-12, 2e-12)],
)
def test_ticks_are_round_and_inside(low, high):
    ticks = svg._ticks(low, high)
    assert 2 <= len(ticks) <= 6
    steps = [b - a for a, b in pairwise(ticks)]
    assert steps == pytest.approx([steps[0]] * len(steps))
    assert f'{steps[0]:e}'[:8] in ('1.000000', '2.000000', '5.000000')
    assert low - 1e-9 * abs(low) <= ticks[0]
    assert ticks[-1] <= high + 1e-9 * abs(high)
