r"""New tables without what is suppressed: in memory, and as files."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.utils.optional import import_optional

from .keys import keyed

if TYPE_CHECKING:
    import pandas as pd

    from .workspace import Workspace

_KINDS = (schema.USER, schema.ITEM)


class Counts(NamedTuple):
    r"""How many rows a table had, and how many are left."""

    rows: int
    left: int


def check_type(ws: Workspace, level: str, given: type) -> None:
    r"""Raises if all ids are strings but this one is a number, or the other way."""
    known = {isinstance(raw, str) for raw in ws.versions.internal(level)}
    if known and known == {not issubclass(given, str)}:
        raise TypeError(
            f'Ids of {level}s in the data are '
            f'{"strings" if True in known else "integers"} (got a '
            f"{given.__name__}), so that it would name nobody. Pass them as in "
            f"'raw_id' of the data."
        )


def filter_frame(
    ws: Workspace, frame: pd.DataFrame, user: str, item: str
) -> pd.DataFrame:
    r"""Returns a table without what is suppressed."""
    is_gone = _suppressed(ws)
    for level, column in zip(_KINDS, (user, item)):
        for given in {type(raw) for raw in frame[column].tolist()}:
            check_type(ws, level, given)
    rows = zip(frame[user].tolist(), frame[item].tolist())
    keep = [not is_gone(*pair) for pair in rows]
    left = frame.loc[np.array(keep, dtype=bool)].copy()
    out = ws.book.suppressed()
    for level, column in zip(_KINDS, (user, item)):
        # Categories without a row would come into the data all the same.
        if hasattr(left[column], 'cat'):
            known = left[column].cat.categories
            gone = [
                raw for raw in known.tolist() if keyed(ws.key, level, raw) in out[level]
            ]
            left[column] = left[column].cat.remove_categories(gone)
    return left


def _suppressed(ws: Workspace) -> Callable[[Any, Any], bool]:
    r"""Returns a function that tells whether a row of a user and an item is out."""
    out = ws.book.suppressed()

    @lru_cache(maxsize=None, typed=True)
    def names(level: str, raw: Any) -> bool:
        return keyed(ws.key, level, raw) in out[level]

    def is_gone(user: Any, item: Any) -> bool:
        if any(out[x] and names(x, raw) for x, raw in zip(_KINDS, (user, item))):
            return True
        return bool(out['pair']) and keyed(ws.key, 'pair', (user, item)) in out['pair']

    return is_gone


# Files --------------------------------------------------------------------------------


def filter_csv(
    ws: Workspace,
    source: IO[bytes],
    target: IO[bytes],
    user: str,
    item: str,
    separator: str = ',',
) -> Counts:
    r"""Writes the rows of a CSV file that are not suppressed, each byte for byte as it
    is, and its first line.

    Args:
        ws (Workspace): The workspace.
        source (file): UTF-8 text whose first line names the columns.
        target (file): Where to write.
        user (str): Name of the column of user ids.
        item (str): Name of the column of item ids.
        separator (str, optional): What stands between two columns.
            (default: :obj:`','`)

    Raises:
        TypeError: If the ids of the data are integers and one is not; names the row.
        ValueError: If a column is missing or there twice, or the text is no table:
            rows of other lengths, quotes that do not close, another encoding.
    """
    is_gone, read = _suppressed(ws), _readings(ws)
    text = io.TextIOWrapper(source, 'utf-8', newline='')
    try:
        records = _records(text, separator)
        line, head = next(records, ('', []))
        places = _places([name.removeprefix('\ufeff') for name in head], user, item)
        target.write(line.encode())
        num_rows = num_left = 0
        for line, cells in records:
            if cells:  # An empty line is no row.
                num_rows += 1
                if len(cells) != len(head):
                    raise ValueError(
                        f'Row {num_rows} of the table has {len(cells)} columns '
                        f'(expected {len(head)})'
                    )
                ids = [
                    read(level, cells[place], num_rows)
                    for level, place in zip(_KINDS, places)
                ]
                if any(is_gone(u, i) for u in ids[0] for i in ids[1]):
                    continue
                num_left += 1
            target.write(line.encode())
        return Counts(num_rows, num_left)
    except UnicodeDecodeError as error:
        raise ValueError(
            f'The table must be text in UTF-8 ({error.reason} at byte {error.start} of '
            f'a part of it)'
        ) from None
    finally:
        text.detach()  # It is the caller's.


def _records(text: Iterable[str], separator: str) -> Iterator[tuple[str, list[str]]]:
    r"""Yields every record of a CSV file as it is, and its cells."""
    lines: list[str] = []

    def taken() -> Iterator[str]:
        for line in text:
            lines.append(line)
            yield line

    number = 0
    try:
        for cells in csv.reader(taken(), delimiter=separator, strict=True):
            yield ''.join(lines), cells
            lines.clear()
            number += 1
    except csv.Error as error:
        raise ValueError(f"Row {number} of the table can't be read ({error})") from None


def _places(head: list[str], user: str, item: str) -> list[int]:
    # The message repeats no name: the first line may be one of ids.
    out = []
    for level, name in zip(_KINDS, (user, item)):
        if head.count(name) != 1:
            raise ValueError(
                f"The column that '--{level}' names must be in the first line of the "
                f'table once (found {head.count(name)} times in {len(head)} columns)'
            )
        out.append(head.index(name))
    if out[0] == out[1]:
        raise ValueError("'--user' and '--item' must name two columns")
    return out


def _readings(ws: Workspace) -> Callable[[str, str, int], list[Any]]:
    r"""Returns a function that gives all ids that a cell may stand for: its text, that
    without spaces, and an integer if the data have some.
    """
    forms = {
        level: {isinstance(raw, str) for raw in ws.versions.internal(level)}
        for level in _KINDS
    }

    def read(level: str, text: str, row: int) -> list[Any]:
        known, out = forms[level], list(dict.fromkeys((text, text.strip())))
        if False not in known and known:
            return out
        try:
            number = int(text)
        except ValueError:
            if known == {False}:
                raise TypeError(
                    f'Ids of {level}s in the data are integers (got another text in '
                    f'row {row} of the table)'
                ) from None
            return out
        return [number, *out]

    return read


def filter_parquet(
    ws: Workspace, source: IO[bytes], target: IO[bytes], user: str, item: str
) -> Counts:
    r"""Writes the rows of a Parquet file that are not suppressed, with the same schema.

    Args:
        ws (Workspace): The workspace.
        source (file): The file, which can be sought in.
        target (file): Where to write.
        user (str): Name of the column of user ids.
        item (str): Name of the column of item ids.

    Raises:
        ImportError: If pyarrow is missing.
        TypeError: If ids are of another type than in the data.
        ValueError: If a column is missing or there twice, or it is no Parquet file.
    """
    pa = import_optional('pyarrow', 'A Parquet file', 'frame')
    pq = import_optional('pyarrow.parquet', 'A Parquet file', 'frame')
    is_gone = _suppressed(ws)
    try:
        file = pq.ParquetFile(source)
    except pa.ArrowInvalid:
        raise ValueError('The table is no Parquet file') from None
    table_schema = file.schema_arrow
    places = _places(table_schema.names, user, item)
    num_rows = num_left = 0
    with pq.ParquetWriter(target, table_schema) as writer:
        for batch in file.iter_batches():
            ids = [batch.column(place).to_pylist() for place in places]
            for level, column in zip(_KINDS, ids):
                for given in {type(raw) for raw in column}:
                    check_type(ws, level, given)
            keep = pa.array([not is_gone(*pair) for pair in zip(*ids)], pa.bool_())
            left = batch.filter(keep)
            columns = [_compact(pa, column) for column in left.columns]
            writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=table_schema))
            num_rows += batch.num_rows
            num_left += left.num_rows
    return Counts(num_rows, num_left)


def _compact(pa: Any, column: Any) -> Any:
    r"""Returns a column whose dictionary, if it has one, holds no value without a row:
    it would be written with the others.
    """
    kind = column.type
    if not pa.types.is_dictionary(kind):
        return column
    small = column.cast(kind.value_type).dictionary_encode()
    return pa.DictionaryArray.from_arrays(
        small.indices.cast(kind.index_type), small.dictionary, ordered=kind.ordered
    )
