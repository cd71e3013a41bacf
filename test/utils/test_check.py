import math

import numpy as np
import pytest

from torch_geometric_unlearn.utils.check import (
    check_bool,
    check_choice,
    check_float,
    check_int,
    check_ratio,
)


@pytest.mark.parametrize('value', [1e-9, 0.5, 1 - 1e-9, np.float64(0.25)])
def test_ratio(value):
    out = check_ratio(value)
    assert type(out) is float
    assert out == value


@pytest.mark.parametrize('value', [0, 1, -0.1, 5, math.nan, math.inf, 0.0, 1.0])
def test_ratio_out_of_range(value):
    match = rf"'share' must be in \(0, 1\) \(got {value}\). For 5%, pass 0.05."
    with pytest.raises(ValueError, match=match):
        check_ratio(value, 'share')


@pytest.mark.parametrize('value', ['0.5', None, True, [0.5]])
def test_ratio_of_wrong_type(value):
    match = rf"'ratio' must be a number \(got {type(value).__name__}\)"
    with pytest.raises(TypeError, match=match):
        check_ratio(value)


def test_int():
    assert check_int(3, 'k', 3) == 3
    with pytest.raises(ValueError, match=r"'k' must be at least 3 \(got 2\)"):
        check_int(2, 'k', 3)
    for value in (2.0, '2', None, True):
        with pytest.raises(TypeError, match=r"'k' must be an integer \(got"):
            check_int(value, 'k', 0)


def test_float():
    assert check_float(2, 'lr', 0.0, 2.0) == 2.0
    assert type(check_float(2, 'lr', 0.0)) is float
    for value in (-1e-9, 2.1, math.nan, math.inf):
        match = r"'lr' must be a finite number in \[0.0, 2.0\] \(got "
        with pytest.raises(ValueError, match=match):
            check_float(value, 'lr', 0.0, 2.0)
    with pytest.raises(ValueError, match=r'in \[0.0, inf\] \(got inf\)'):
        check_float(math.inf, 'lr', 0.0)
    for value in ('1', None, False, [1.0]):
        with pytest.raises(TypeError, match=r"'lr' must be a number \(got"):
            check_float(value, 'lr', 0.0)


@pytest.mark.parametrize('value', [True, False, np.True_, np.False_])
def test_bool(value):
    out = check_bool(value, 'resume')
    assert type(out) is bool
    assert out == value


@pytest.mark.parametrize('value', ['no', 'False', '', 1, 0, None, 1.0, []])
def test_no_bool(value):
    match = r"'resume' must be True or False \(got "
    with pytest.raises(TypeError, match=match):
        check_bool(value, 'resume')


def test_choice():
    assert check_choice('val', 'split', ('val', 'test')) == 'val'
    match = r"'split' must be one of \('val', 'test'\) \(got 'train'\)"
    with pytest.raises(ValueError, match=match):
        check_choice('train', 'split', ('val', 'test'))
    with pytest.raises(ValueError, match=r'\(got \[\]\)'):  # An unhashable value.
        check_choice([], 'split', ('val', 'test'))


def test_numpy_numbers_are_numbers():
    assert type(check_int(np.int64(3), 'k', 1)) is int
    assert check_ratio(np.float32(0.5)) == 0.5
    with pytest.raises(ValueError, match='at least'):
        check_int(np.int32(0), 'k', 1)
