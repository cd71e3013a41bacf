import datetime
import sys

import numpy as np
import pytest
import torch
from torch_geometric.testing import withPackage

from torch_geometric_unlearn.data import (
    from_csv,
    from_frame,
    from_parquet,
    raw_to_internal,
    schema,
    to_frame,
)
from torch_geometric_unlearn.datasets import SyntheticMultimodal
from torch_geometric_unlearn.transforms import DropForgotten, ForgetUsers

pd = pytest.importorskip('pandas')

COLUMNS = {'split': 'split', 'time': 'time', 'rating': 'rating'}


def make_frame():
    return pd.DataFrame(
        {
            'user': ['ann', 'bob', 'ann', 'eve', 'bob'],
            'item': ['pen', 'ink', 'cup', 'pen', 'pen'],
            'split': ['test', 'train', 'train', 'train', 'val'],
            'time': [50, 10, 30, 20, 40],
            'rating': [5.0, 1.0, 3.0, 2.0, 4.0],
        }
    )


def assert_same(first, second):
    for name in ('user', 'item'):
        assert first[name].num_nodes == second[name].num_nodes
        assert first[name].raw_id == second[name].raw_id
    first_store, second_store = first[schema.EDGE_TYPE], second[schema.EDGE_TYPE]
    assert set(first_store.keys()) == set(second_store.keys())
    for key, value in first_store.items():
        assert value.dtype == second_store[key].dtype
        assert torch.equal(value, second_store[key])
    for key in schema.HELD_OUT:
        assert (key in first) == (key in second)
        if key in first:
            assert torch.equal(first[key], second[key])


def test_from_frame():
    df = make_frame()
    before = df.copy(deep=True)
    data = from_frame(df, **COLUMNS)
    pd.testing.assert_frame_equal(df, before)

    assert data['user'].raw_id == ['ann', 'bob', 'eve']
    assert data['item'].raw_id == ['pen', 'ink', 'cup']
    store = data[schema.EDGE_TYPE]
    assert store.edge_index.tolist() == [[1, 0, 2], [1, 2, 0]]
    assert store.time.tolist() == [10, 30, 20]
    assert store.time.dtype == torch.int64
    assert store.rating.tolist() == [1, 3, 2]
    assert store.rating.dtype == torch.float32
    assert data.val_edge_label_index.tolist() == [[1], [0]]
    assert data.test_edge_label_index.tolist() == [[0], [0]]


def test_from_frame_without_split_keeps_all_for_training():
    df = make_frame().rename(columns={'user': 'who', 'item': 'what'})
    data = from_frame(df, user='who', item='what')
    assert data[schema.EDGE_TYPE].edge_index.size(1) == 5
    assert list(data[schema.EDGE_TYPE].keys()) == ['edge_index']
    assert 'val_edge_label_index' not in data


def test_from_frame_numeric_split():
    df = make_frame()
    named = from_frame(df, split='split')
    df['split'] = df['split'].map({'train': 0, 'val': 1, 'test': 2})
    assert_same(from_frame(df, split='split'), named)


@pytest.mark.parametrize(
    'ids',
    [
        [7, 3, 9],
        ['7', '3', '9'],
        [7, '7', ('a', 1)],
        [2.5, 1.5, 0.5],
        [datetime.date(2020, 1, 1), 'x', 4],
    ],
)
def test_any_hashable_ids(ids):
    df = pd.DataFrame({'user': pd.Series(ids, dtype=object), 'item': [5, 4, 5]})
    data = from_frame(df)
    assert data['user'].raw_id == ids
    assert data['item'].raw_id == [5, 4]
    assert all(type(raw) is int for raw in data['item'].raw_id)
    assert_same(from_frame(to_frame(data), split='split'), _with_empty_splits(data))


def _with_empty_splits(data):
    for key in schema.HELD_OUT:
        data[key] = torch.empty(2, 0, dtype=torch.int64)
    return data


def test_known_users_and_items_follow():
    data = from_frame(
        make_frame(),
        users=['zoe', 'ann'],
        items=['cap', 'pen'],
        item_features={
            'text': {'pen': [1.0], 'ink': [2.0], 'cup': [3.0], 'cap': [4.0], 'x': [5]}
        },
    )
    assert data['user'].raw_id == ['ann', 'bob', 'eve', 'zoe']
    assert data['item'].raw_id == ['pen', 'ink', 'cup', 'cap', 'x']
    assert data['item'].x_text.tolist() == [[1], [2], [3], [4], [5]]


def test_categorical_columns_fix_the_ids():
    df = make_frame()
    df['user'] = pd.Categorical(df['user'], categories=['zoe', 'eve', 'bob', 'ann'])
    data = from_frame(df)
    assert data['user'].raw_id == ['zoe', 'eve', 'bob', 'ann']
    assert data[schema.EDGE_TYPE].edge_index[0].tolist() == [3, 2, 3, 1, 2]


@pytest.mark.parametrize('columns', [{}, {'time': 'time'}, COLUMNS])
def test_round_trip(columns):
    data = from_frame(make_frame(), **{'split': 'split', **columns}, users=['zoe'])
    df = to_frame(data)
    assert set(df.columns) == {'user', 'item', *columns, 'split'}
    again = from_frame(df, **{'split': 'split', **columns})
    assert_same(again, data)


def test_round_trip_after_deletion_keeps_ids():
    data = from_frame(make_frame(), split='split')
    store = data[schema.EDGE_TYPE]
    store.edge_index = store.edge_index[:, store.edge_index[0] != 0]  # All of 'ann'.
    data.test_edge_label_index = data.test_edge_label_index[:, :0]
    again = from_frame(to_frame(data), split='split')
    assert_same(again, data)
    assert raw_to_internal(again, 'user', ['ann']).tolist() == [0]


def test_round_trip_of_data_without_id_map():
    data = SyntheticMultimodal('tiny')[0]
    again = from_frame(to_frame(data), split='split')
    assert again['user'].raw_id == list(range(100))
    edge_index = again[schema.EDGE_TYPE].edge_index
    assert torch.equal(edge_index, data[schema.EDGE_TYPE].edge_index)


@pytest.mark.parametrize('unit', ['s', 'ms', 'us', 'ns'])
@pytest.mark.parametrize('zone', [None, 'UTC', 'Europe/Berlin'])
def test_round_trip_of_datetimes(unit, zone):
    df = make_frame()
    time = pd.to_datetime(df['time'], unit='s').astype(f'datetime64[{unit}]')
    df['time'] = time if zone is None else time.dt.tz_localize(zone)
    data = from_frame(df, split='split', time='time')
    scale = {'s': 1, 'ms': 10**3, 'us': 10**6, 'ns': 10**9}[unit]
    offset = 3600 if zone == 'Europe/Berlin' else 0
    expected = [(t - offset) * scale for t in (10, 30, 20)]
    assert data[schema.EDGE_TYPE].time.tolist() == expected
    df2 = to_frame(data)
    assert df2['time'].dtype == df['time'].dtype
    assert not df2['time'].isna().any()
    assert_same(from_frame(df2, split='split', time='time'), data)


def test_round_trip_of_large_times():
    df = make_frame()
    df['time'] += 2**60  # More than float64 can hold.
    data = from_frame(df, split='split', time='time')
    assert data[schema.EDGE_TYPE].time.tolist() == [2**60 + t for t in (10, 30, 20)]
    assert_same(from_frame(to_frame(data), split='split', time='time'), data)


SECONDS = [86400, 0, 259200]  # Whole days, so that dates can tell them.
DAYS = [datetime.date(1970, 1, 1 + s // 86400) for s in SECONDS]
STAMPS = [datetime.datetime(1970, 1, 1 + s // 86400) for s in SECONDS]
ZONE = datetime.timezone(datetime.timedelta(hours=2))


@pytest.mark.parametrize(
    ('times', 'scale', 'dtype'),
    [
        (np.array(SECONDS, 'uint64'), 1, None),
        (np.array(SECONDS, 'int32'), 1, None),
        (pd.array(SECONDS, 'UInt64'), 1, None),
        (pd.array(SECONDS, 'Int64'), 1, None),
        (pd.array(SECONDS, 'int64[pyarrow]'), 1, None),
        (pd.array(SECONDS, 'uint64[pyarrow]'), 1, None),
        (pd.array([float(s) for s in SECONDS], 'double[pyarrow]'), 1, None),
        (pd.array(SECONDS, object), 1, None),
        (pd.array(STAMPS, 'timestamp[ms][pyarrow]'), 1000, 'timestamp[ms][pyarrow]'),
        (pd.array(DAYS, object), 1, 'datetime64[s]'),
        (pd.array(DAYS, 'date32[day][pyarrow]'), 1, 'datetime64[s]'),
        (pd.array(DAYS, 'date64[ms][pyarrow]'), 1, 'datetime64[s]'),
        (pd.Series(STAMPS, dtype=object), None, None),
        (pd.Series([pd.Timestamp(s) for s in STAMPS], dtype=object), None, None),
        (
            pd.Series([s.replace(tzinfo=ZONE) for s in STAMPS], dtype=object),
            None,
            None,
        ),
    ],
    ids=lambda x: str(getattr(x, 'dtype', x)),
)
def test_times_as_shops_have_them(times, scale, dtype):
    df = pd.DataFrame({'user': [1, 2, 1], 'item': [5, 5, 6], 'time': times})
    before = df.copy(deep=True)
    data = from_frame(df, time='time')
    pd.testing.assert_frame_equal(df, before)
    time = data[schema.EDGE_TYPE].time
    assert time.dtype == torch.int64
    assert (time - time[1]).argsort().tolist() == [1, 0, 2]
    if scale is not None:
        assert time.tolist() == [scale * s for s in SECONDS]
        assert data.get('time_dtype') == dtype
    else:  # The unit of what pandas makes of them.
        expected = pd.to_datetime(pd.Series(list(times)))
        assert pd.Series(to_frame(data)['time']).tolist() == expected.tolist()
    assert_same(from_frame(to_frame(data), time='time'), data)
    last = from_frame(df.assign(item=5), time='time', duplicates='last')
    assert last[schema.EDGE_TYPE].time.tolist() == [time[1], time[2]]


@pytest.mark.parametrize(
    ('times', 'error', 'match'),
    [
        (np.array([2**63, 1], 'uint64'), ValueError, r'below 2\*\*63 .*92233720368'),
        (pd.array([2**63, 1], 'UInt64'), ValueError, r'below 2\*\*63'),
        (pd.array([2**63, 1], object), TypeError, 'integers or datetimes'),
        (['2020', '2021'], TypeError, 'integers or datetimes'),
        ([DAYS[0], 5], TypeError, 'integers or datetimes'),
        (pd.array([1, None], 'Int64'), ValueError, r'1 are missing \(got none at'),
    ],
)
def test_refuses_other_times(times, error, match):
    df = pd.DataFrame({'user': [1, 2], 'item': [5, 5], 'time': times})
    with pytest.raises(error, match=match):
        from_frame(df, time='time')


@pytest.mark.parametrize(
    'ids',
    [
        np.array([7, 9, 7], 'uint32'),
        np.array([2**63 + 1, 9, 2**63 + 1], 'uint64'),
        pd.array([7, 9, 7], 'UInt64'),
        pd.array([7, 9, 7], 'int64[pyarrow]'),
        pd.array(['a', 'b', 'a'], 'string[pyarrow]'),
        pd.Categorical(['b', 'a', 'b']),
        pd.Series([np.int64(7), np.int32(9), 7], dtype=object),
        pd.Series([np.str_('a'), 'b', 'a'], dtype=object),
    ],
    ids=lambda x: str(x.dtype),
)
def test_ids_as_shops_have_them(ids):
    df = pd.DataFrame({'user': ids, 'item': [5, 5, 6]})
    data = from_frame(df)
    raw = data['user'].raw_id
    assert {type(value) for value in raw} <= {int, str}
    codes = data[schema.EDGE_TYPE].edge_index[0].tolist()
    assert [raw[code] for code in codes] == list(df['user'])
    assert raw_to_internal(data, 'user', df['user']).tolist() == codes
    assert raw_to_internal(data, 'user', list(df['user'])).tolist() == codes
    assert from_frame(to_frame(data), split='split')['user'].raw_id == raw


def test_csv(tmp_path):
    df = make_frame()
    df['user'] = ['007', '8', '007', '9', '8']
    df.to_csv(tmp_path / 'a.csv', index=False)
    data = from_csv(tmp_path / 'a.csv', **COLUMNS)
    assert data['user'].raw_id == ['007', '8', '9']
    assert_same(data, from_frame(df, **COLUMNS))

    to_frame(data).to_csv(tmp_path / 'b.csv', index=False, sep='\t')
    again = from_csv(tmp_path / 'b.csv', read_options={'sep': '\t'}, **COLUMNS)
    pairs = raw_to_internal(again, 'user', ['8', '007', '9']).tolist()
    assert again[schema.EDGE_TYPE].edge_index[0].tolist() == pairs
    assert again[schema.EDGE_TYPE].time.tolist() == [10, 30, 20]


def test_csv_read_options_and_column_names(tmp_path):
    path = tmp_path / 'a.csv'
    path.write_text('u,i,t\n1,x,2020-01-01\n2,y,2020-01-02\n')
    options = {'dtype': {'u': int}, 'parse_dates': ['t']}
    data = from_csv(path, user='u', item='i', time='t', read_options=options)
    assert data['user'].raw_id == [1, 2]
    assert data.time_dtype.startswith('datetime64')


@withPackage('pyarrow')
def test_parquet(tmp_path):
    data = from_frame(make_frame(), users=['zoe'], **COLUMNS)
    to_frame(data).to_parquet(tmp_path / 'a.parquet')
    again = from_parquet(tmp_path / 'a.parquet', **COLUMNS)
    assert_same(again, data)
    columns = {'columns': ['user', 'item']}
    data = from_parquet(tmp_path / 'a.parquet', read_options=columns)
    assert data[schema.EDGE_TYPE].edge_index.size(1) == 5


def test_features_in_all_forms():
    items = ['cup', 'ink', 'pen']
    rows = [[1, 2], [3, 4], [5, 6]]
    frame = pd.DataFrame(rows, index=items)
    data = from_frame(
        make_frame(),
        items=items,
        item_features={
            'frame': frame,
            'dict': dict(zip(items, rows)),
            'tensors': {i: torch.tensor(r) for i, r in zip(items, rows)},
            'list': rows,
            'array': frame.to_numpy(),
            'tensor': torch.tensor(rows, dtype=torch.float64),
        },
    )
    assert data['item'].raw_id == ['pen', 'ink', 'cup']
    for x in schema.features(data).values():
        assert x.dtype == torch.float32
        assert x.tolist() == [[5, 6], [3, 4], [1, 2]]


X = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
LISTS = pd.Series([[1, 2], [4, 5]], ['pen', 'ink'])


@pytest.mark.parametrize(
    'table',
    [
        X.bfloat16(),
        X.half(),
        X.double(),
        X.long(),
        X.clone().requires_grad_(),
        X.clone().requires_grad_() * 1,
        torch.nn.Parameter(X.clone()),
        X.to_sparse(),
        X.numpy().astype('float16'),
        X.tolist(),
        pd.Series(X.tolist(), ['pen', 'ink']),
        pd.Series([X[1], X[0].numpy()], ['ink', 'pen']),
        pd.DataFrame({'a': LISTS, 'b': [3.0, 6.0]}),
        pd.DataFrame({'a': [[1.0], [4]], 'b': [(2, 3), (5, 6)]}, ['pen', 'ink']),
        pd.DataFrame(X.numpy(), ['pen', 'ink']).astype('float[pyarrow]'),
        {'ink': X[1].bfloat16().requires_grad_(), 'pen': X[0].to_sparse()},
    ],
)
def test_features_as_shops_have_them(table):
    df = pd.DataFrame({'user': ['ann', 'bob'], 'item': ['pen', 'ink']})
    features = {'text': table}
    data = from_frame(df, items=['pen', 'ink'], item_features=features)
    x = data['item'].x_text
    assert torch.equal(x, X)
    assert not x.requires_grad
    single = from_frame(df, item_features={'text': pd.Series([1, 2.5], df['item'])})
    assert single['item'].x_text.tolist() == [[1.0], [2.5]]


@pytest.mark.filterwarnings('ignore:Sparse CSR')
def test_features_in_csr():
    df = pd.DataFrame({'user': ['ann', 'bob'], 'item': ['pen', 'ink']})
    features = {'text': X.to_sparse_csr()}
    data = from_frame(df, items=['pen', 'ink'], item_features=features)
    assert torch.equal(data['item'].x_text, X)


def test_features_are_copied():
    df = pd.DataFrame({'user': ['ann', 'bob'], 'item': ['pen', 'ink']})
    for table in (X.clone(), X.numpy().copy()):
        features = {'text': table}
        data = from_frame(df, items=['pen', 'ink'], item_features=features)
        table[:] = 0
        assert torch.equal(data['item'].x_text, X)


@pytest.mark.parametrize(
    'table',
    [
        X.to(torch.complex64),
        pd.DataFrame({'a': pd.to_datetime([1, 2])}, ['pen', 'ink']),
        pd.Series([[1, 2], [3]], ['pen', 'ink']),
        pd.Series([[1, 2], None], ['pen', 'ink']),
    ],
)
def test_refuses_what_is_no_vector(table):
    df = pd.DataFrame({'user': ['ann', 'bob'], 'item': ['pen', 'ink']})
    with pytest.raises(TypeError, match=r"'item_features\['text'\]' must hold"):
        from_frame(df, items=['pen', 'ink'], item_features={'text': table})


@pytest.mark.parametrize(('missing', 'row'), [('mean', [2, 3]), ('zero', [0, 0])])
def test_missing_features(missing, row):
    features = {'text': {'cup': [1, 2], 'ink': [3, 4]}}
    data = from_frame(make_frame(), item_features=features, missing=missing)
    assert data['item'].x_text.tolist() == [row, [3, 4], [1, 2]]


@pytest.mark.parametrize(
    ('duplicates', 'time', 'ratings'),
    [
        ('first', None, [1, 2]),
        ('last', None, [2, 3]),
        ('first', 'time', [2, 3]),
        ('last', 'time', [1, 2]),
    ],
)
def test_duplicates(duplicates, time, ratings):
    df = pd.DataFrame(
        {
            'user': [1, 1, 1],
            'item': [1, 2, 1],
            'time': [5, 4, 3],
            'rating': [1, 2, 3],
        }
    )
    data = from_frame(df, time=time, rating='rating', duplicates=duplicates)
    assert data[schema.EDGE_TYPE].rating.tolist() == ratings


def test_raw_to_internal():
    data = from_frame(make_frame())
    assert raw_to_internal(data, 'item', ['cup', 'pen', 'cup']).tolist() == [2, 0, 2]
    assert raw_to_internal(data, 'user', pd.Series(['eve'])).tolist() == [2]
    out = raw_to_internal(data, 'user', [])
    assert out.dtype == torch.int64
    assert out.numel() == 0
    data = from_frame(pd.DataFrame({'user': [30, 20], 'item': [1, 2]}))
    assert raw_to_internal(data, 'user', torch.tensor([20, 30])).tolist() == [1, 0]


@pytest.mark.parametrize(
    ('args', 'error', 'match'),
    [
        (('user', 'ann'), TypeError, "type 'str'.*list of length one"),
        (('user', 7), TypeError, "'raw_ids' must be an iterable of ids"),
        (('user', [['ann']]), TypeError, "'raw_ids' must hold hashable ids"),
        (('user', ['tom', 'ann', 3]), ValueError, "2 of 3 .*\\(at position 0, 2\\)"),
        (('shop', ['ann']), ValueError, "'node_type' must be one of"),
    ],
)
def test_raw_to_internal_refuses(args, error, match):
    with pytest.raises(error, match=match):
        raw_to_internal(from_frame(make_frame()), *args)


def test_raw_to_internal_needs_an_intact_id_map():
    with pytest.raises(ValueError, match=r"must hold the id map 'raw_id'.*got none"):
        raw_to_internal(SyntheticMultimodal('tiny')[0], 'user', [1])
    data = from_frame(make_frame())
    data['user'].raw_id = ['ann']
    with pytest.raises(ValueError, match=r'one id per user: expected 3 \(got 1\)'):
        raw_to_internal(data, 'user', ['ann'])


FEATURES = {'pen': [1.0], 'ink': [2.0], 'cup': [3.0]}
PARTIAL = {'pen': [1.0]}


@pytest.mark.parametrize(
    ('kwargs', 'error', 'match'),
    [
        ({'user': 'name'}, ValueError, "'user' must name one column .*got 'name'"),
        ({'split': 'part'}, ValueError, "'split' must name one column"),
        ({'user': 'item'}, ValueError, "must name different columns .*'item' for"),
        ({'duplicates': 'any'}, ValueError, "'duplicates' must be one of"),
        ({'missing': 'skip'}, ValueError, "'missing' must be one of"),
        ({'users': 'zoe'}, TypeError, "'users' must be an iterable of ids"),
        ({'users': [None]}, ValueError, "'users' must not hold missing ids"),
        ({'users': [['a']]}, TypeError, "'users' must hold hashable ids"),
        ({'items': ['a', 'b', 'a']}, ValueError, "unique ids .repeated at position 2"),
        ({'split': 'user'}, ValueError, "'test' or 'control'.*got 'ann', 'bob'"),
        ({'time': 'user'}, TypeError, "Column 'user' must hold integers or datetimes"),
        ({'rating': 'user'}, TypeError, "Column 'user' must hold numbers as rating"),
        (
            {'item_features': {'x_text': FEATURES}},
            ValueError,
            "modality names such as 'image' as keys \\(got 'x_text'\\)",
        ),
        (
            {'item_features': {'text': [[1.0], [2.0], [3.0]]}},
            ValueError,
            "frame or series indexed by item id .*pass that order as 'items'",
        ),
        (
            {'item_features': {'text': [[1.0]]}, 'items': ['pen', 'ink']},
            ValueError,
            r'must have shape \[2, F\] with F >= 1.*got \[1, 1\]',
        ),
        (
            {'item_features': {'text': {'pen': 1.0}}},
            ValueError,
            r'must have shape \[1, F\] with F >= 1.*got \[1\]',
        ),
        (
            {'item_features': {'text': {**FEATURES, 'cup': [1.0, 2.0]}}},
            TypeError,
            'must hold numeric vectors of one length',
        ),
        (
            {'item_features': {'text': {**FEATURES, 'cup': ['red']}}},
            TypeError,
            'must hold numeric vectors of one length',
        ),
        (
            {'item_features': {'text': {**FEATURES, 'cup': [float('nan')]}}},
            ValueError,
            "finite in float32, but 1 items hold NaN or infinity \\(got 'cup'\\)",
        ),
        (
            {'item_features': {'text': {**FEATURES, 'cup': [1e300]}}},
            ValueError,
            'must be finite in float32',
        ),
        (
            {'item_features': {'text': PARTIAL}},
            ValueError,
            "2 of 3 lack a vector \\(got none for 'ink', 'cup'\\).*missing='mean'",
        ),
        (
            {'item_features': {'text': pd.DataFrame([[1], [2]], index=['pen'] * 2)}},
            ValueError,
            r"must hold unique ids \(repeated at position 1\)",
        ),
    ],
)
def test_from_frame_refuses_arguments(kwargs, error, match):
    with pytest.raises(error, match=match):
        from_frame(make_frame(), **kwargs)


@pytest.mark.parametrize(
    ('column', 'values', 'error', 'match'),
    [
        ('user', ['a', None, 'c', None, 'e'], ValueError, 'got none at index 1, 3'),
        ('item', [1, 2, float('nan'), 4, 5], ValueError, "Column 'item' must hold an"),
        ('user', [['a']] * 5, TypeError, "Column 'user' must hold hashable ids"),
        ('split', ['train'] * 4 + [None], ValueError, 'or 0, 1, 2, 3. in every row'),
        ('split', [True, False] * 2 + [True], ValueError, 'got True, False'),
        ('split', ['val'] * 5, ValueError, 'no training interaction'),
        ('time', [1, None, 3, 4, 5], ValueError, '1 are missing .got none at index 1'),
        ('time', [1.5, 2.5, 3, 4, 5], ValueError, 'integers or datetimes .* .got 2.5'),
        ('time', ['2020'] * 5, TypeError, 'e.g. with pandas.to_datetime'),
        ('rating', [1, 2, None, 4, 5], ValueError, '1 are missing .got none at inde'),
        ('rating', [1, 2, 3, 1e60, 5], ValueError, 'must hold finite ratings .got in'),
    ],
)
def test_from_frame_refuses_columns(column, values, error, match):
    df = make_frame()
    df[column] = pd.Series(values)
    with pytest.raises(error, match=match):
        from_frame(df, **COLUMNS)


def test_from_frame_refuses_duplicate_pairs():
    df = pd.concat([make_frame(), make_frame().iloc[2:4]])
    match = r"2 rows repeat one \(at position \d+, \d+\).*duplicates='first"
    with pytest.raises(ValueError, match=match):
        from_frame(df)


def test_from_frame_refuses_other_tables():
    with pytest.raises(TypeError, match=r"must be a pandas DataFrame \(got dict\)"):
        from_frame({'user': [1], 'item': [1]})
    with pytest.raises(ValueError, match=r'at least one interaction \(got no rows\)'):
        from_frame(make_frame().iloc[:0])
    df = make_frame()
    df.columns = ['user', 'item', 'item', 'time', 'rating']
    with pytest.raises(ValueError, match="got 'item', which occurs 2 times"):
        from_frame(df)


def test_missing_packages_are_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, 'pyarrow', None)
    with pytest.raises(ImportError, match=r'pip install "torch_geometric_unlearn\[fr'):
        from_parquet(tmp_path / 'a.parquet')
    df = make_frame()
    monkeypatch.setitem(sys.modules, 'pandas', None)
    with pytest.raises(ImportError, match=r"needs 'pandas'.*Install it with 'pip ins"):
        from_frame(df)


def test_later_tables_keep_ids():
    first = from_frame(make_frame(), item_features={'text': FEATURES})
    rows = pd.DataFrame({'user': ['zoe', 'bob', 'zoe'], 'item': ['cup', 'mug', 'pen']})
    both = pd.concat([rows, to_frame(first)[['user', 'item']].astype(object)])
    data = from_frame(both, item_features={'text': {'mug': [4.0]}}, like=first)
    for kind, new in (('user', 'zoe'), ('item', 'mug')):
        assert data[kind].raw_id == [*first[kind].raw_id, new]
        assert data[kind].num_nodes == first[kind].num_nodes + 1
    expected = [FEATURES.get(raw, [4.0]) for raw in data['item'].raw_id]
    assert data['item'].x_text.tolist() == expected
    names = [data['user'].raw_id, data['item'].raw_id]
    pairs = data[schema.EDGE_TYPE].edge_index.t().tolist()
    found = {(names[0][u], names[1][i]) for u, i in pairs}
    assert found == set(zip(both.user, both.item))
    texts = {'text': {'mug': [4.0], 'pen': [9.0]}}
    updated = from_frame(both, item_features=texts, like=first)
    assert updated['item'].x_text[first['item'].raw_id.index('pen')] == 9


def test_later_tables_leave_erased_ids_alone():
    first = from_frame(make_frame())
    marked = ForgetUsers(raw_users=['ann'])(first)
    left = DropForgotten()(marked)
    slot = first['user'].raw_id.index('ann')
    again = from_frame(make_frame(), like=left)  # She is back.
    assert again['user'].raw_id[slot] == left['user'].raw_id[slot]
    assert again['user'].raw_id.index('ann') == first['user'].num_nodes
    assert slot not in again[schema.EDGE_TYPE].edge_index[0]


@pytest.mark.parametrize(
    ('kwargs', 'match'),
    [
        ({}, 'must cover every item, but 1 of 4 lack'),
        ({'item_features': {'text': {'mug': [1.0, 2.0]}}}, 'the 1 channels of'),
        ({'user': 'number'}, r"types in 'like', \['str'\] \(got \['int'\]\)"),
    ],
)
def test_later_tables_refuse(kwargs, match):
    first = from_frame(make_frame(), item_features={'text': FEATURES})
    rows = pd.DataFrame({'user': ['ann'], 'item': ['mug'], 'number': [7]})
    with pytest.raises(ValueError, match=match):
        from_frame(rows, like=first, **kwargs)
