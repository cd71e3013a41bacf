from __future__ import annotations

from fractions import Fraction

import pytest

from torch_geometric_unlearn.unlearn import TRU
from torch_geometric_unlearn.unlearn._plan import plan_for

FIELDS = (
    'rows',
    'reach',
    'shared_rate',
    'num_epochs',
    'num_passes',
    'repair_batches',
    'anchor',
    'final_rate',
)


def documented_rows():
    r"""Rows of the table in the docstring, each with the heading that it is under."""
    table = TRU.__doc__.split('reach  shared')[1].split('Raises:')[0]
    heading = ''
    for line in table.splitlines()[1:]:
        words = line.split()
        if line.strip().startswith('*'):
            heading = line.strip(' *')
        elif words and not words[0].startswith('='):
            yield heading, words[0], words[1:]


@pytest.mark.parametrize(('heading', 'level', 'values'), list(documented_rows()))
def test_docstring_table(heading, level, values):
    target = 'lowest' if heading == 'lowest' else 'never_seen'
    levels = ['interaction', 'mixed'] if level == 'other' else [level]
    for name in levels:
        plan = plan_for(target, name, heading != 'without item table')
        assert plan.rows == values[0]
        assert plan.capacity == (0.3 if target == 'lowest' else 1.0)
        for key, value in zip(FIELDS[1:], values[1:]):
            assert getattr(plan, key) == pytest.approx(float(Fraction(value))), key


def test_every_plan_is_documented():
    assert len(list(documented_rows())) == 10
