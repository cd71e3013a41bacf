r"""Reads and checks the columns and the features of a table of interactions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Union

import numpy as np
import torch
from torch import Tensor

from torch_geometric_unlearn.utils.optional import import_optional

if TYPE_CHECKING:
    import pandas as pd

# One modality: a frame or series by item id, item id -> vector, or rows as in 'items'.
ItemFeatures = Union[
    'pd.DataFrame', 'pd.Series', Mapping[Any, Any], np.ndarray, Tensor
]

SPLITS = {'train': 0, 'val': 1, 'test': 2, 'control': 3, 0: 0, 1: 1, 2: 2, 3: 3}


def import_pandas() -> Any:
    return import_optional('pandas', 'Converting from and to tables', 'frame')


def some(values: Iterable[Any], limit: int = 5) -> str:
    r"""Returns a few values for a message."""
    values = list(values)
    plain = (v.item() if isinstance(v, np.generic) else v for v in values[:limit])
    text = ', '.join(map(repr, plain))
    return text + (', ...' if len(values) > limit else '')


def to_list(values: Iterable[Any], name: str) -> list[Any]:
    r"""Returns hashable ids as a list of Python objects."""
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise TypeError(
            f"'{name}' must be an iterable of ids (got one of type "
            f"'{type(values).__name__}'). For a single id, pass a list of length one."
        )
    ids = values.tolist() if hasattr(values, 'tolist') else list(values)
    try:
        set(ids)
    except TypeError as error:
        raise TypeError(f"'{name}' must hold hashable ids (got {error})") from error
    return _python_ids(ids)


def _python_ids(ids: list[Any]) -> list[Any]:
    r"""Returns NumPy's numbers and strings as the Python objects that they equal."""
    kinds = (np.bool_, np.number, np.str_)
    return [raw.item() if isinstance(raw, kinds) else raw for raw in ids]


def check_ids(values: Iterable[Any], name: str) -> list[Any]:
    r"""Returns unique, present ids as a list. Errors tell positions, since an id may
    be an address, which has no place in a log.
    """
    pd = import_pandas()
    ids = to_list(values, name)
    column = pd.Series(ids, dtype=object)
    missing, repeated = column.isna(), column.duplicated()
    if missing.any():
        places = some(np.flatnonzero(missing))
        raise ValueError(f"'{name}' must not hold missing ids (at position {places})")
    if repeated.any():
        places = some(np.flatnonzero(repeated))
        raise ValueError(
            f"'{name}' must hold unique ids (repeated at position {places})"
        )
    return ids


def check_columns(
    owner: str, names: list[Any], num_rows: int, **columns: str | None
) -> None:
    for role, name in columns.items():
        if name is None:
            continue
        count = sum(column == name for column in names)
        if count != 1:
            raise ValueError(
                f"'{role}' must name one column of {owner} (got {name!r}, which occurs "
                f'{count} times among {names})'
            )
    if columns['user'] == columns['item']:
        raise ValueError(
            f"'user' and 'item' must name different columns "
            f'(got {columns["user"]!r} for both)'
        )
    if num_rows == 0:
        raise ValueError(f'{owner} must hold at least one interaction (got no rows)')


def assign_ids(column: pd.Series, name: str) -> tuple[np.ndarray, list[Any]]:
    r"""Returns the internal id of every row and the raw id of every internal id."""
    pd = import_pandas()
    absent = column.isna()
    if absent.any():
        raise ValueError(
            f"Column '{name}' must hold an id in every row, but {int(absent.sum())} "
            f'rows lack it (got none at index {some(column.index[absent].tolist())}). '
            f"Remove them with df.dropna(subset=['{name}'])."
        )
    if isinstance(column.dtype, pd.CategoricalDtype):
        codes, ids = column.cat.codes.to_numpy(), column.cat.categories
    else:
        try:
            codes, ids = pd.factorize(column)
        except TypeError as error:
            raise TypeError(
                f"Column '{name}' must hold hashable ids, such as strings or integers "
                f'(got {error})'
            ) from error
    return codes.astype(np.int64), _python_ids(ids.tolist())


def continue_ids(
    code: np.ndarray, ids: list[Any], known: list[Any], name: str
) -> tuple[np.ndarray, list[Any]]:
    r"""Returns the same as :meth:`assign_ids` with the known ids first."""
    got, old = ({type(raw).__name__ for raw in part} for part in (ids, known))
    if not got & old:
        raise ValueError(
            f"Column '{name}' must hold ids of the types in 'like', {sorted(old)} (got "
            f"{sorted(got)}): 7 is not '7', so all would count as new. Convert it."
        )
    out = extend(known, ids)
    internal = {raw: i for i, raw in enumerate(out)}
    return np.array([internal[raw] for raw in ids], dtype=np.int64)[code], out


def with_known_features(
    tables: Mapping[str, tuple[list[Any], np.ndarray]],
    known: list[Any],
    features: Mapping[str, Tensor],
) -> dict[str, tuple[list[Any], np.ndarray]]:
    r"""Returns ids and feature rows by modality, with those of known items that
    :obj:`tables` lacks.
    """
    out = dict(tables)
    for name, old in features.items():
        x = old.cpu().numpy()
        ids, rows = tables.get(name, ([], x[:0]))
        if rows.shape[1] != x.shape[1]:
            raise ValueError(
                f"item_features['{name}'] must have the {x.shape[1]} channels of "
                f"'like' (got {rows.shape[1]})"
            )
        named = set(ids)
        absent = [i for i, raw in enumerate(known) if raw not in named]
        ids = [*ids, *(known[i] for i in absent)]
        out[name] = ids, np.concatenate([rows, x[absent]])
    return out


def extend(ids: list[Any], *more: list[Any]) -> list[Any]:
    return list(dict.fromkeys([raw for part in (ids, *more) for raw in part]))


def read_split(column: pd.Series) -> np.ndarray:
    # Booleans equal 0 and 1, but mean something else.
    values = column.drop_duplicates().tolist()
    unknown = [v for v in values if isinstance(v, bool) or v not in SPLITS]
    if unknown:
        raise ValueError(
            f"Column '{column.name}' must hold 'train', 'val', 'test' or 'control' "
            f'(or 0, 1, 2, 3) in every row (got {some(unknown)})'
        )
    if column.dtype.kind == 'i':
        return column.to_numpy(np.int64)
    return column.astype(object).map(SPLITS).to_numpy(np.int64)


def unique_pairs(
    df: pd.DataFrame,
    user_code: np.ndarray,
    item_code: np.ndarray,
    time: str | None,
    duplicates: str,
) -> np.ndarray:
    r"""Returns which rows to keep so that every pair occurs once, as a mask."""
    pd = import_pandas()
    codes = user_code * (item_code.max() + 1)
    codes += item_code
    codes.sort()
    if not (codes[1:] == codes[:-1]).any():
        return np.ones(len(df), dtype=bool)
    code = pd.Series(user_code * (item_code.max() + 1) + item_code)
    repeated = code.duplicated()
    if duplicates == 'error' and repeated.any():
        again = some(np.flatnonzero(repeated))
        raise ValueError(
            f"'df' must hold every pair once, but {int(repeated.sum())} rows repeat "
            f'one (at position {again}). To keep one row per pair, pass '
            f"duplicates='first' or duplicates='last'."
        )
    if time is not None and repeated.any():
        _check_time(df[time])
        order = df[time].reset_index(drop=True)
        order = order.sort_values(kind='stable', na_position='first').index
        code = code.loc[order]
    keep = ~code.duplicated(keep='last' if duplicates == 'last' else 'first')
    return keep.sort_index().to_numpy()


def is_datetime(column: pd.Series) -> bool:
    return bool(import_pandas().api.types.is_datetime64_any_dtype(column))


def as_time(column: pd.Series) -> pd.Series:
    r"""Returns a column of dates, or of Python's datetimes or integers as objects, in
    pandas' own type; others as they are.
    """
    pd = import_pandas()
    # Arrow's dates pass as datetimes.
    is_date = str(column.dtype).startswith(('date32', 'date64'))
    if column.dtype.kind != 'O' and not is_date:
        return column
    kind = pd.api.types.infer_dtype(column, skipna=True)
    try:
        if kind == 'date':
            return column.astype(object).astype('datetime64[s]')
        if kind in ('datetime', 'datetime64'):
            return pd.to_datetime(column)
        return column.astype('Int64') if kind == 'integer' else column
    except (TypeError, ValueError, OverflowError) as error:
        raise TypeError(
            f"Column '{column.name}' must hold integers or datetimes as time, all of "
            f'one kind (got: {error}). Convert it first, e.g. with pandas.to_datetime.'
        ) from error


def _check_time(column: pd.Series) -> None:
    is_number = column.dtype.kind in 'iuf'
    if not is_number and not is_datetime(column):
        raise TypeError(
            f"Column '{column.name}' must hold integers or datetimes as time (got "
            f'{column.dtype}). Convert it first, e.g. with pandas.to_datetime.'
        )


def _train_values(column: pd.Series, train: np.ndarray) -> pd.Series:
    r"""Returns the rows of training interactions, none of which may be missing."""
    values = column[train]
    absent = values.isna()
    if absent.any():
        raise ValueError(
            f"Column '{column.name}' must hold a value for every training "
            f'interaction, but {int(absent.sum())} are missing (got none at index '
            f'{some(values.index[absent].tolist())})'
        )
    return values


def read_time(column: pd.Series, train: np.ndarray) -> Tensor:
    _check_time(column)
    values = _train_values(column, train)
    if column.dtype.kind == 'u' and (values > np.iinfo(np.int64).max).any():
        large = values[values > np.iinfo(np.int64).max]
        raise ValueError(
            f"Column '{column.name}' must hold times below 2**63 (got "
            f'{some(large.tolist())}). Use a coarser unit.'
        )
    if column.dtype.kind == 'f':
        values = values.astype('float64')
        # Integers beside missing values, as in CSV files: exact up to 2**53.
        bad = (values % 1 != 0) | (values.abs() > 2**53)
        if bad.any():
            raise ValueError(
                f"Column '{column.name}' must hold integers or datetimes as time "
                f'(got {some(values[bad].tolist())}). Round it, or choose a finer '
                f'unit.'
            )
    return torch.tensor(values.astype('int64').to_numpy())


def read_rating(column: pd.Series, train: np.ndarray) -> Tensor:
    if column.dtype.kind not in 'iuf':
        raise TypeError(
            f"Column '{column.name}' must hold numbers as rating (got {column.dtype})"
        )
    with np.errstate(over='ignore'):  # Refused as infinite below.
        values = _train_values(column, train).astype('float32')
    bad = ~np.isfinite(values.to_numpy())
    if bad.any():
        raise ValueError(
            f"Column '{column.name}' must hold finite ratings (got "
            f'{some(values[bad].tolist())})'
        )
    return torch.tensor(values.to_numpy())


def read_features(
    name: str,
    table: ItemFeatures,
    catalogue: list[Any] | None,
) -> tuple[list[Any], np.ndarray]:
    r"""Returns item ids and their feature rows, float32."""
    pd = import_pandas()
    where = f"item_features['{name}']"
    if not isinstance(name, str) or not name.isidentifier() or name.startswith('x_'):
        raise ValueError(
            f"'item_features' must have modality names such as 'image' as keys "
            f"(got {name!r}). They are stored as 'x_<name>'."
        )
    rows: Any
    if isinstance(table, (pd.DataFrame, pd.Series)):
        ids, rows = check_ids(table.index, f'{where}.index'), _read_rows(table)
    elif isinstance(table, Mapping):
        ids, rows = check_ids(table.keys(), where), map(_to_numpy, table.values())
        rows = list(rows)
    elif catalogue is None:
        raise ValueError(
            f"'{where}' must be a frame or series indexed by item id or a mapping from "
            f'item id to vector (got {type(table).__name__}). For rows in a known '
            f"order, pass that order as 'items'."
        )
    else:
        ids, rows = catalogue, _to_numpy(table)
    if isinstance(rows, np.ndarray) and rows.dtype.kind in 'cmM':
        raise TypeError(
            f"'{where}' must hold real numbers (got {rows.dtype}). Convert them first."
        )
    try:
        with np.errstate(over='ignore'):  # Refused as infinite below.
            x = np.array(rows, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"'{where}' must hold numeric vectors of one length (got: {error})"
        ) from error
    if x.ndim != 2 or len(x) != len(ids) or x.size == 0:
        raise ValueError(
            f"'{where}' must have shape [{len(ids)}, F] with F >= 1, one row per named "
            f'item (got {list(x.shape)})'
        )
    bad = ~np.isfinite(x).all(axis=1)
    if bad.any():
        raise ValueError(
            f"'{where}' must be finite in float32, but {int(bad.sum())} items hold NaN "
            f'or infinity (got {some(ids[k] for k in np.flatnonzero(bad))}). Leave '
            f"them out and pass missing='mean' or missing='zero'."
        )
    return ids, x


def _to_numpy(x: Any) -> Any:
    r"""Returns a tensor of any layout and precision as an array, others as they are."""
    if not isinstance(x, Tensor):
        return x
    x = x.detach().to_dense().cpu()
    return (x.float() if x.dtype == torch.bfloat16 else x).numpy()


def _read_rows(table: pd.DataFrame | pd.Series) -> Any:
    r"""Returns the rows of a table whose cells hold numbers or vectors."""
    frame = table.to_frame() if table.ndim == 1 else table
    if all(dtype.kind != 'O' for dtype in frame.dtypes):
        return frame.to_numpy()
    return [
        np.concatenate([np.ravel(_to_numpy(cell)) for cell in row])
        for row in frame.itertuples(index=False, name=None)
    ]


def align_features(
    name: str,
    ids: list[Any],
    x: np.ndarray,
    item_ids: list[Any],
    missing: str,
) -> Tensor:
    r"""Returns feature rows in the order of internal ids, :obj:`[I, F]`."""
    row = {raw: k for k, raw in enumerate(ids)}
    absent = [raw for raw in item_ids if raw not in row]
    if absent and missing == 'error':
        raise ValueError(
            f"item_features['{name}'] must cover every item, but {len(absent)} of "
            f'{len(item_ids)} lack a vector (got none for {some(absent)}). To fill '
            f"them in, pass missing='mean' or missing='zero'."
        )
    fill = x.mean(axis=0, dtype=np.float64) if missing == 'mean' else 0.0
    out = np.full((len(item_ids), x.shape[1]), fill, dtype=np.float32)
    internal = {raw: i for i, raw in enumerate(item_ids)}
    out[[internal[raw] for raw in ids]] = x
    return torch.from_numpy(out)
