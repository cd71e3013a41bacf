r"""Aligned text tables and JSON files; nothing is computed here."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from torch_geometric_unlearn.utils.files import atomic_save, make_folder


def format_table(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> str:
    r"""Returns an aligned table, first column to the left, the others to the right.

    Args:
        rows (sequence): One dictionary per row; a missing value and NaN print as a
            dash.
        columns (sequence): Keys to show, in order.

    Raises:
        ValueError: If a value is infinite.

    Example:
        >>> print(format_table([{'method': 'tru', 'recall@20': 0.1}],
        ...                    ['method', 'recall@20']))
        method  recall@20
        -----------------
        tru        0.1000
    """
    known = without_nan(list(rows), 'rows')
    cells = [[_format(column, row.get(column)) for column in columns] for row in known]
    widths = [
        max(len(column), *(len(line[place]) for line in cells), 0)
        for place, column in enumerate(columns)
    ]
    lines = []
    for line in [list(columns), *cells]:
        first = line[0].ljust(widths[0])
        rest = (cell.rjust(width) for cell, width in zip(line[1:], widths[1:]))
        lines.append('  '.join([first, *rest]))
    lines.insert(1, '-' * (sum(widths) + 2 * (len(widths) - 1)))
    return '\n'.join(lines)


def save_json(path: str | os.PathLike[str], content: dict[str, Any]) -> None:
    r"""Writes a result file in one atomic step.

    NaN becomes :obj:`null`, which is valid JSON; infinity is refused.

    Args:
        path (str or Path): The file.
        content (dict): JSON-serialisable values.

    Raises:
        OSError: If the file can't be written.
        ValueError: If a value is infinite; says where it stands.
    """
    text = json_bytes(content)
    make_folder(os.path.dirname(os.fspath(path)) or '.')
    atomic_save(lambda file: file.write(text), path, len(text))


def json_bytes(content: Mapping[str, Any]) -> bytes:
    r"""Returns what :meth:`save_json` writes."""
    text = json.dumps(without_nan(content), indent=2, allow_nan=False)
    return f'{text}\n'.encode()


def _format(column: str, value: Any) -> str:
    if value is None:
        return '-'
    if column == 'seconds':
        return f'{value:.1f}'
    return f'{value:.4f}' if isinstance(value, float) else str(value)


def without_nan(value: Any, where: str = 'content') -> Any:
    r"""Returns values with nothing instead of NaN.

    Raises:
        ValueError: If one is infinite; says where it stands.
    """
    if isinstance(value, Mapping):
        return {str(k): without_nan(v, f'{where}.{k}') for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(v, f'{where}[{n}]') for n, v in enumerate(value)]
    if isinstance(value, float) and math.isinf(value):
        raise ValueError(
            f"'{where}' must be finite, or NaN for none (got {value}). Leave it out."
        )
    return None if isinstance(value, float) and value != value else value
