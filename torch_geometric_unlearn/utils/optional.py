r"""Packages that only some parts need."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def import_optional(name: str, what: str, extra: str, instead: str = '') -> Any:
    r"""Returns a package that only some parts need.

    Args:
        name (str): What to import, such as :obj:`'sklearn'`.
        what (str): What needs it, as the beginning of a sentence.
        extra (str): The extra of this package that installs it.
        instead (str, optional): What else to do, as the end of a sentence.
            (default: :obj:`''`)

    Raises:
        ImportError: With the command that installs it.
    """
    try:
        return import_module(name)
    except ImportError as error:
        command = f'pip install "torch_geometric_unlearn[{extra}]"'
        raise ImportError(
            f"{what} needs '{name}'. Install it with '{command}'{instead}."
        ) from error
