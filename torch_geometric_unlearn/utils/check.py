r"""Argument checks with one form of message: name, expectation, got, way out."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

import numpy as np


def check_ratio(value: Any, name: str = 'ratio') -> float:
    r"""Returns :obj:`value` if it lies in :math:`(0, 1)`, raises otherwise.

    Raises:
        TypeError: If :obj:`value` is no number.
        ValueError: If it lies outside.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"'{name}' must be a number (got {type(value).__name__})")
    if not 0 < float(value) < 1:
        raise ValueError(
            f"'{name}' must be in (0, 1) (got {value}). For 5%, pass 0.05."
        )
    return float(value)


def check_int(value: Any, name: str, minimum: int) -> int:
    r"""Returns :obj:`value` if it is an integer of at least :obj:`minimum`.

    Raises:
        TypeError: If :obj:`value` is no integer.
        ValueError: If it is too small.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"'{name}' must be an integer (got {value!r})")
    if value < minimum:
        raise ValueError(f"'{name}' must be at least {minimum} (got {value})")
    return int(value)


def check_float(
    value: Any,
    name: str,
    minimum: float,
    maximum: float = math.inf,
) -> float:
    r"""Returns :obj:`value` if it is a finite number in the given closed range.

    Raises:
        TypeError: If :obj:`value` is no number.
        ValueError: If it is not finite or lies outside.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"'{name}' must be a number (got {value!r})")
    if not math.isfinite(value) or not minimum <= float(value) <= maximum:
        raise ValueError(
            f"'{name}' must be a finite number in [{minimum}, {maximum}] (got {value})"
        )
    return float(value)


def check_bool(value: Any, name: str) -> bool:
    r"""Returns :obj:`value` if it is :obj:`True` or :obj:`False`, raises otherwise: a
    string such as :obj:`'no'` would count as true.

    Raises:
        TypeError: If it is no boolean.
    """
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"'{name}' must be True or False (got {value!r})")
    return bool(value)


def check_choice(value: Any, name: str, choices: tuple[Any, ...]) -> Any:
    r"""Returns :obj:`value` if it is one of :obj:`choices`, raises otherwise.

    Raises:
        ValueError: If it is not.
    """
    if value not in choices:
        raise ValueError(f"'{name}' must be one of {choices} (got {value!r})")
    return value
