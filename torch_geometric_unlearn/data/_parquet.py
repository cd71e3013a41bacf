r"""Reads a Parquet file row group by row group into a table of codes."""

from __future__ import annotations

from os import PathLike, fspath
from typing import TYPE_CHECKING, Any

import numpy as np

from torch_geometric_unlearn.utils.optional import import_optional

from ._frame import assign_ids, check_columns, import_pandas, read_split

if TYPE_CHECKING:
    import pandas as pd


def read_parquet(
    path: str | PathLike[str],
    user: str = 'user',
    item: str = 'item',
    split: str | None = None,
    time: str | None = None,
    rating: str | None = None,
) -> pd.DataFrame:
    r"""Returns the named columns of a file, with users and items as categories in the
    order of their first appearance, so that only one row group is ever held as it is.

    Raises:
        ValueError: If it is no Parquet file or damaged, a column is absent, an id is
            missing, or a column changes its type from one row group to another.
    """
    pd = import_pandas()
    columns = {'user': user, 'item': item, 'split': split}
    columns |= {'time': time, 'rating': rating}
    wanted = [name for name in columns.values() if name is not None]
    ids = {user: _Ids(user), item: _Ids(item)}
    parts: dict[str, list[Any]] = {name: [] for name in wanted}
    start = 0
    with _opened(path) as file:
        names, num_rows = file.schema_arrow.names, file.metadata.num_rows
        check_columns(f"'{fspath(path)}'", names, num_rows, **columns)
        for group in range(file.num_row_groups):
            frame = _read_group(file, group, wanted, path)
            frame.index = pd.RangeIndex(start, start + len(frame))  # What errors name.
            start += len(frame)
            for name, values in parts.items():
                column = frame[name]
                if name in ids:
                    values.append(ids[name].codes(column, group))
                elif name == split:
                    values.append(read_split(column).astype(np.int8))
                else:
                    values.append(column.copy())
            del frame, column
    out = {}
    for name in wanted:
        if name in ids:
            out[name] = pd.Categorical.from_codes(
                np.concatenate(parts.pop(name)), categories=ids[name].categories
            )
        elif name == split:
            out[name] = np.concatenate(parts.pop(name))
        else:
            out[name] = pd.concat(parts.pop(name))
    return pd.DataFrame(out, copy=False)


class _Ids:
    r"""The ids of a column by their first appearance over all row groups."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.dtype: Any = None
        self.internal: dict[Any, int] = {}

    def codes(self, column: pd.Series, group: int) -> np.ndarray:
        code, ids = assign_ids(column, self.name)
        is_category = hasattr(column, 'cat')
        dtype = column.cat.categories.dtype if is_category else column.dtype
        if self.dtype is not None and dtype != self.dtype:
            raise ValueError(
                f"Column '{self.name}' must hold ids of one type in all row groups, "
                f'{self.dtype} (got {dtype} in row group {group}): 7 is not 7.0 or '
                f"'7'. Write the file anew with one type."
            )
        self.dtype = dtype
        known = self.internal
        place = [known.setdefault(raw, len(known)) for raw in ids]
        return np.array(place, dtype=np.int64)[code].astype(np.int32)

    @property
    def categories(self) -> Any:
        return import_pandas().Index(list(self.internal), tupleize_cols=False)


def _opened(path: str | PathLike[str]) -> Any:
    import_optional('pyarrow', 'Reading Parquet files', 'frame')
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        return ParquetFile(fspath(path))
    except pyarrow.ArrowInvalid as error:
        raise ValueError(
            f"'{fspath(path)}' must be a Parquet file (got: {error}). For comma-"
            f"separated text, use 'from_csv'."
        ) from error


def _read_group(
    file: Any, group: int, columns: list[str], path: str | PathLike[str]
) -> pd.DataFrame:
    import pyarrow

    pd = import_pandas()
    try:
        table = file.read_row_group(group, columns=columns)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(
            f"Row group {group} of '{fspath(path)}' can't be read (got: {error}). "
            f'Fetch or write the file anew.'
        ) from error
    for place, field in enumerate(table.schema):
        if pyarrow.types.is_date(field.type):  # Or every date becomes an object.
            times = table.column(place).cast(pyarrow.timestamp('ms'))
            times = times.cast(pyarrow.timestamp('s'))
            table = table.set_column(place, field.name, times)
    # Or integers beside missing ones would be rounded to floating point numbers.
    exact = {pyarrow.int64(): pd.Int64Dtype()}
    return table.to_pandas(ignore_metadata=True, types_mapper=exact.get)
