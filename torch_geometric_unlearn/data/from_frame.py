r"""Tables of interactions to data objects and back, with the caller's own ids."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from os import PathLike
from os.path import isdir
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.data._frame import (
    ItemFeatures,
    align_features,
    as_time,
    assign_ids,
    check_columns,
    check_ids,
    continue_ids,
    extend,
    import_pandas,
    is_datetime,
    read_features,
    read_rating,
    read_split,
    read_time,
    some,
    to_list,
    unique_pairs,
    with_known_features,
)
from torch_geometric_unlearn.data._parquet import read_parquet
from torch_geometric_unlearn.utils.check import check_choice
from torch_geometric_unlearn.utils.optional import import_optional

if TYPE_CHECKING:
    import pandas as pd


def from_frame(
    df: pd.DataFrame,
    *,
    user: str = 'user',
    item: str = 'item',
    split: str | None = None,
    time: str | None = None,
    rating: str | None = None,
    users: Iterable[Any] | None = None,
    items: Iterable[Any] | None = None,
    item_features: Mapping[str, ItemFeatures] | None = None,
    duplicates: str = 'error',
    missing: str = 'error',
    like: HeteroData | None = None,
) -> HeteroData:
    r"""Builds a data object from a table with one interaction per row.

    Users and items get internal ids in order of their first appearance in
    :obj:`df`; then follow the ids that only :obj:`users`, :obj:`items` and
    :obj:`item_features` name. A categorical column fixes the order itself: its ids are
    those of its categories, also where a category has no row. The caller's ids are
    kept as the lists :obj:`data['user'].raw_id` and :obj:`data['item'].raw_id`, whose
    position is the internal id. Needs the optional dependency :obj:`pandas`.

    .. note::
        Held-out pairs carry neither time nor rating: both are attributes of the
        training edges, and :meth:`to_frame` leaves them missing elsewhere.

    Args:
        df (pandas.DataFrame): The interactions; left as it is.
        user (str, optional): Column of user ids, of any hashable type.
            (default: :obj:`'user'`)
        item (str, optional): Column of item ids, of any hashable type.
            (default: :obj:`'item'`)
        split (str, optional): Column that holds :obj:`'train'`, :obj:`'val'`,
            :obj:`'test'` or :obj:`'control'` (or 0, 1, 2, 3), the last for pairs that
            are set aside for audits. Held-out rows keep their time and rating as
            :obj:`data.val_edge_time` and so on, unless one is missing. Without it,
            every interaction is for training;
            :class:`~torch_geometric_unlearn.transforms.SplitInteractions` splits them.
            (default: :obj:`None`)
        time (str, optional): Column of integers, kept in their unit, or of datetimes
            or dates, stored as integers since 1970 (UTC) in the unit of the column
            (seconds for dates), which :obj:`data.time_dtype` records.
            (default: :obj:`None`)
        rating (str, optional): Column of numbers, stored as float32.
            (default: :obj:`None`)
        users (iterable, optional): Further known users. (default: :obj:`None`)
        items (iterable, optional): Further known items, and the meaning of the rows of
            feature arrays. (default: :obj:`None`)
        item_features (dict, optional): By modality, a frame or series indexed by item
            id, whose cells may hold whole vectors, a mapping from item id to vector,
            or an array or tensor of any precision whose row :obj:`k` belongs to
            :obj:`items[k]`. Copied. (default: :obj:`None`)
        duplicates (str, optional): What to do if a pair occurs more than once:
            :obj:`'error'`, or keep the :obj:`'first'` or the :obj:`'last'`, by time if
            given (missing times count as earliest) and by row otherwise.
            (default: :obj:`'error'`)
        missing (str, optional): What to do with items that a modality lacks:
            :obj:`'error'`, or fill in :obj:`'zero'` or the :obj:`'mean'` of the
            others. (default: :obj:`'error'`)
        like (HeteroData, optional): Earlier data, whose users and items keep their
            internal ids, also without a row; new ones follow. What :obj:`item_features`
            lacks of their features is taken from there. See
            :meth:`~torch_geometric_unlearn.nn.models.grow.grow` for the model.
            (default: :obj:`None`)

    Shapes:
        - **interactions:** :obj:`edge_index` :math:`(2, E)`, :obj:`time` :math:`(E)`
          int64, :obj:`rating` :math:`(E)` float32
        - **features:** ``x_<modality>`` :math:`(N_{item}, F)` float32

    Raises:
        ImportError: If :obj:`pandas` is not installed.
        TypeError: If an argument or a column has the wrong type.
        ValueError: If a column is absent, an id is missing, a pair occurs twice, an
            item lacks features, a value is not finite, or :obj:`like` has ids of
            another type.

    Example:
        >>> import pandas as pd
        >>> df = pd.DataFrame({'user': ['ann', 'bob'], 'item': ['pen', 'ink']})
        >>> data = from_frame(df, item_features={'text': {'pen': [0.1], 'ink': [0.7]}})
        >>> data['item'].raw_id
        ['pen', 'ink']
    """
    pd = import_pandas()
    check_choice(duplicates, 'duplicates', ('error', 'first', 'last'))
    check_choice(missing, 'missing', ('error', 'mean', 'zero'))
    if not isinstance(df, pd.DataFrame):
        raise TypeError(
            f"'df' must be a pandas DataFrame (got {type(df).__name__}). For a file, "
            f"use 'from_csv' or 'from_parquet'."
        )
    names = {'user': user, 'item': item, 'split': split, 'time': time}
    check_columns("'df'", list(df.columns), len(df), **names, rating=rating)
    if time is not None:
        df = df.copy(deep=False)
        df[time] = as_time(df[time])
    catalogue = None if items is None else check_ids(items, 'items')
    tables = {
        name: read_features(name, table, catalogue)
        for name, table in (item_features or {}).items()
    }
    user_code, user_ids = assign_ids(df[user], user)
    item_code, item_ids = assign_ids(df[item], item)
    if like is not None:
        like = schema.validate(like)
        known = [_raw_ids(like, kind) for kind in (schema.USER, schema.ITEM)]
        user_code, user_ids = continue_ids(user_code, user_ids, known[0], user)
        item_code, item_ids = continue_ids(item_code, item_ids, known[1], item)
        tables = with_known_features(tables, known[1], schema.features(like))
    user_ids = extend(user_ids, [] if users is None else check_ids(users, 'users'))
    item_ids = extend(item_ids, catalogue or [], *(ids for ids, _ in tables.values()))

    part = np.zeros(len(df), np.int64) if split is None else read_split(df[split])
    keep = unique_pairs(df, user_code, item_code, time, duplicates)
    pairs = torch.from_numpy(np.stack([user_code, item_code]))
    train = torch.from_numpy(keep & (part == 0))

    data = HeteroData()
    data['user'].num_nodes, data['user'].raw_id = len(user_ids), user_ids
    data['item'].num_nodes, data['item'].raw_id = len(item_ids), item_ids
    for name, (ids, x) in tables.items():
        data['item'][f'x_{name}'] = align_features(name, ids, x, item_ids, missing)
    store = data[schema.EDGE_TYPE]
    store.edge_index = pairs if train.all() else pairs[:, train]
    if time is not None:
        store.time = read_time(df[time], train.numpy())
        if is_datetime(df[time]):
            data.time_dtype = str(df[time].dtype)
    if rating is not None:
        store.rating = read_rating(df[rating], train.numpy())
    for place, name in enumerate(schema.SPLITS, start=1):
        rows = keep & (part == place)
        if split is None or (name == 'control' and not rows.any()):
            continue
        data[f'{name}_edge_label_index'] = pairs[:, torch.from_numpy(rows)]
        # Held-out rows may lack what only training needs.
        if time is not None and not df.loc[rows, time].isna().any():
            data[f'{name}_edge_time'] = read_time(df[time], rows)
        if rating is not None and not df.loc[rows, rating].isna().any():
            data[f'{name}_edge_rating'] = read_rating(df[rating], rows)
    return schema.validate(data)


def from_csv(
    path: str | PathLike[str],
    *,
    read_options: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> HeteroData:
    r"""Builds a data object from a CSV file with one interaction per row.

    Ids are read as strings, so that :obj:`007` stays :obj:`'007'` and a column of
    digits and letters has one type; :obj:`read_options` can say otherwise.

    Args:
        path (str or PathLike): The file.
        read_options (dict, optional): Further arguments of :meth:`pandas.read_csv`,
            *e.g.* :obj:`{'sep': '\t', 'parse_dates': ['time']}`.
            (default: :obj:`None`)
        **kwargs (optional): Arguments of :meth:`from_frame`.
    """
    pd = import_pandas()
    columns = (kwargs.get('user', 'user'), kwargs.get('item', 'item'))
    options = {'dtype': dict.fromkeys(columns, str), **(read_options or {})}
    return from_frame(pd.read_csv(path, **options), **kwargs)


def from_parquet(
    path: str | PathLike[str],
    *,
    read_options: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> HeteroData:
    r"""Builds a data object from a Parquet file with one interaction per row, as
    :meth:`from_frame` does from the whole table.

    The file is read row group by row group and only in the columns that are named, so
    that at no time more than one row group is held beside a few numbers per
    interaction. With :obj:`read_options`, and for a folder of files, pandas reads the
    whole table. Needs the optional dependencies :obj:`pandas` and :obj:`pyarrow`.

    Args:
        path (str or PathLike): The file.
        read_options (dict, optional): Further arguments of
            :meth:`pandas.read_parquet`. (default: :obj:`None`)
        **kwargs (optional): Arguments of :meth:`from_frame`.

    Raises:
        ImportError: If :obj:`pandas` or :obj:`pyarrow` is not installed.
        FileNotFoundError: If there is no file.
        ValueError: If it is no Parquet file or damaged, or as for :meth:`from_frame`.

    Example:
        >>> import pandas as pd
        >>> df = pd.DataFrame({'user': ['ann', 'bob'], 'item': ['pen', 'ink']})
        >>> df.to_parquet('shop.parquet', row_group_size=1)
        >>> from_parquet('shop.parquet')['item'].raw_id
        ['pen', 'ink']
    """
    pd = import_pandas()
    import_optional('pyarrow', 'Reading Parquet files', 'frame')
    if read_options or isdir(path):
        return from_frame(pd.read_parquet(path, **(read_options or {})), **kwargs)
    columns = ('user', 'item', 'split', 'time', 'rating')
    named = {role: kwargs[role] for role in columns if role in kwargs}
    return from_frame(read_parquet(path, **named), **kwargs)


def to_frame(data: HeteroData) -> pd.DataFrame:
    r"""Returns all interactions as a table, with the caller's ids where known.

    Columns are :obj:`user`, :obj:`item`, :obj:`split` and, where the training edges
    have them, :obj:`time` and :obj:`rating`, missing in held-out rows that lack them.
    The id columns are categorical and list every user and item by internal id, so that
    :obj:`from_frame(to_frame(data), split='split')` assigns the same ids again, also
    to users and items without rows. Features are not part of the table.

    Raises:
        ImportError: If :obj:`pandas` is not installed.
        TypeError, ValueError: If :obj:`data` breaks the data contract.
    """
    pd = import_pandas()
    data = schema.validate(data)
    store = data[schema.EDGE_TYPE]
    parts = [store.edge_index]
    parts += [schema.held_out(data, split) for split in schema.SPLITS]
    sizes = [part.size(1) for part in parts]
    pairs = torch.cat(parts, dim=1).cpu().numpy()

    out = {}
    for codes, node_type in zip(pairs, (schema.USER, schema.ITEM)):
        ids = pd.Index(_raw_ids(data, node_type), tupleize_cols=False)
        out[node_type] = pd.Categorical.from_codes(codes, categories=ids)
    out['split'] = np.repeat(['train', *schema.SPLITS], sizes)
    rows = pd.RangeIndex(len(out['split']))
    for key in ('time', 'rating'):
        if key not in store:
            continue
        values, index = [store[key].cpu().numpy()], [rows[: sizes[0]]]
        end = sizes[0]
        for split, size in zip(schema.SPLITS, sizes[1:]):
            if f'{split}_edge_{key}' in data:
                values.append(data[f'{split}_edge_{key}'].cpu().numpy())
                index.append(rows[end : end + size])
            end += size
        column = pd.Series(np.concatenate(values))
        column.index = index[0].append(index[1:])
        if key == 'time' and 'time_dtype' in data:
            column = column.astype(data.time_dtype)
        elif key == 'time' and len(column) < len(rows):
            column = column.astype('Int64')  # Integers with missing ones, lossless.
        out[key] = column.reindex(rows)
    return pd.DataFrame(out)


def raw_to_internal(
    data: HeteroData,
    node_type: str,
    raw_ids: Iterable[Any],
) -> Tensor:
    r"""Returns the internal ids of the caller's own user or item ids.

    Args:
        data (HeteroData): Data with an id map, as built by :meth:`from_frame`.
        node_type (str): :obj:`'user'` or :obj:`'item'`.
        raw_ids (iterable): The caller's own ids; order and repetitions are kept.

    Returns:
        torch.Tensor: Internal ids, int64 :obj:`[len(raw_ids)]`.

    Raises:
        TypeError: If :obj:`raw_ids` is a single id, or holds unhashable values.
        ValueError: If :obj:`data` has no id map or does not know an id.
    """
    check_choice(node_type, 'node_type', (schema.USER, schema.ITEM))
    ids = to_list(raw_ids, 'raw_ids')
    if 'raw_id' not in data[node_type]:
        raise ValueError(
            f"data['{node_type}'] must hold the id map 'raw_id' to look up raw ids "
            f"(got none). Build the data with 'from_frame', or pass internal ids."
        )
    internal = {raw: i for i, raw in enumerate(_raw_ids(data, node_type))}
    unknown = [place for place, raw in enumerate(ids) if raw not in internal]
    if unknown:
        # Positions only: an id may be an address, which has no place in a log.
        raise ValueError(
            f"'raw_ids' must name known {node_type}s, but {len(unknown)} of {len(ids)} "
            f'are unknown (at position {some(unknown)}). Ids are compared with their '
            f"type: 7 is not '7'; those of deleted {node_type}s are gone."
        )
    return torch.tensor([internal[raw] for raw in ids], dtype=torch.int64)


def _raw_ids(data: HeteroData, node_type: str) -> list[Any]:
    r"""Returns the caller's ids by internal id, or the internal ids themselves."""
    size = int(data[node_type].num_nodes)
    ids = data[node_type].get('raw_id', range(size))
    if len(ids) != size:
        raise ValueError(
            f"data['{node_type}'].raw_id must hold one id per {node_type}: expected "
            f'{size} (got {len(ids)})'
        )
    return list(ids)
