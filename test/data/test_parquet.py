r"""A file that is read row group by row group gives what its whole table gives."""

import datetime
import tracemalloc

import numpy as np
import pytest
import torch

from torch_geometric_unlearn.data import from_frame, from_parquet, schema

pd = pytest.importorskip('pandas')
pa = pytest.importorskip('pyarrow')
pq = pytest.importorskip('pyarrow.parquet')


def make_frame(num_users=30, num_items=20, num_rows=200, name='user {}'):
    rng = np.random.default_rng(0)
    code = rng.permutation(num_users * num_items)[:num_rows]
    return pd.DataFrame({
        'user': [name.format(u) for u in code // num_items],
        'item': code % num_items,
        'split': rng.choice(['train', 'val', 'test', 'control'], num_rows),
        'time': rng.integers(10**9, size=num_rows),
        'rating': rng.random(num_rows).astype('float32'),
        'note': ['ignored'] * num_rows,
    })


def write(df, path, rows=17):
    df.to_parquet(path, row_group_size=rows)
    return path


def same(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    return type(a) is type(b) and a == b


def changed(kind):
    df = make_frame()
    day = datetime.date(2024, 1, 1)
    days = [day + datetime.timedelta(int(k)) for k in range(len(df))]
    if kind == 'categories':
        names = sorted(df.user.unique(), reverse=True)
        df.user = pd.Categorical(df.user, categories=['nobody', *names])
    if kind == 'integers':
        df.user = df.user.str[5:].astype(int) * 10**12
    if kind == 'dates':
        df.time = pd.Series(days, dtype=object)
    if kind == 'moments':
        df.time = pd.to_datetime(df.time, unit='s', utc=True)
    if kind == 'held out without time':
        df.time = (df.time + 2**60).astype('Int64').mask(df.split == 'test')
        df.rating = df.rating.mask(df.split == 'val')
    if kind == 'dates held out without':
        df.time = pd.Series(days, dtype=object).mask(df.split == 'test', None)
    if kind == 'numbers as split':
        df.split = df.split.map({'train': 0, 'val': 1, 'test': 2, 'control': 3})
    if kind == 'duplicates':
        df = pd.concat([df, df.iloc[::3].assign(time=5, split='train')])
    if kind == 'sorted':  # Whole groups of one split, and of one user.
        df = df.sort_values(['split', 'user'])
    return df.reset_index(drop=True)


@pytest.mark.parametrize(
    'kind',
    [
        'plain',
        'categories',
        'integers',
        'dates',
        'moments',
        'held out without time',
        'dates held out without',
        'numbers as split',
        'duplicates',
        'sorted',
    ],
)
def test_the_result_is_that_of_the_table(kind, tmp_path):
    kwargs = {'split': 'split', 'time': 'time', 'rating': 'rating'}
    kwargs |= {'users': ['user 999'] if kind != 'integers' else [5]}
    kwargs |= {'duplicates': 'last' if kind == 'duplicates' else 'error'}
    path = write(changed(kind), tmp_path / 'a.parquet')
    assert pq.ParquetFile(path).num_row_groups > 10
    data = from_parquet(path, **kwargs)
    expected = from_frame(pd.read_parquet(path), **kwargs)
    got, whole = data.to_dict(), expected.to_dict()
    assert got.keys() == whole.keys()
    for key, value in whole.items():
        parts = value if isinstance(value, dict) else {'': value}
        other = got[key] if isinstance(value, dict) else {'': got[key]}
        assert parts.keys() == other.keys()
        assert all(same(other[name], x) for name, x in parts.items()), key


def test_later_files_keep_ids(tmp_path):
    df = make_frame()[['user', 'item']]
    first = from_frame(df.iloc[:50])
    data = from_parquet(write(df, tmp_path / 'a.parquet'), like=first)
    assert torch.equal(
        data[schema.EDGE_TYPE].edge_index,
        from_frame(df, like=first)[schema.EDGE_TYPE].edge_index,
    )


def test_no_more_than_a_row_group_is_held(tmp_path, monkeypatch):
    name = 'a name of {} ' + 'that is long ' * 40
    df = make_frame(60, 100, 5000, name)[['user', 'item', 'time']]
    path = write(df, tmp_path / 'a.parquet', 100)
    read, held = pq.ParquetFile.read_row_group, []
    pool = pa.default_memory_pool()

    def counting(file, group, **kwargs):
        assert set(kwargs['columns']) == {'user', 'item'}
        held.append(pool.bytes_allocated() - before)
        return read(file, group, **kwargs)

    monkeypatch.setattr(pq.ParquetFile, 'read_row_group', counting)
    before = pool.bytes_allocated()
    from_parquet(path)  # Loads what is loaded once.
    held.clear()
    before = pool.bytes_allocated()
    tracemalloc.start()
    data = from_parquet(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(held) == 50
    group = 100 * len(df.user[0])
    assert max(held) < group  # Nothing of earlier groups.
    names = sum(map(len, data['user'].raw_id))
    assert peak < 64 * len(df) + 3 * names + 3 * group + 10**5
    assert peak < 0.4 * df.user.str.len().sum()


def test_what_is_refused(tmp_path):
    df, path = make_frame(), tmp_path / 'a.parquet'
    with pytest.raises(ValueError, match=r"one column of '.*a.parquet' \(got 'buyer'"):
        from_parquet(write(df, path), user='buyer')
    lacking = df.assign(user=df.user.where(df.index != 150, None))
    with pytest.raises(ValueError, match=r'1 rows lack it \(got none at index 150\)'):
        from_parquet(write(lacking, path))
    lacking = df.assign(item=df['item'].astype('Int64').where(df.index < 190))
    with pytest.raises(ValueError, match='must hold an id in every row, but'):
        from_parquet(write(lacking, path))
    with pytest.raises(ValueError, match='at least one interaction'):
        from_parquet(write(df.iloc[:0], path))
    again = pd.concat([df, df.iloc[3:5]])
    with pytest.raises(ValueError, match=r'2 rows repeat one \(at position 200, 201'):
        from_parquet(write(again, path))
    path.write_text('user,item\n1,2\n')
    with pytest.raises(ValueError, match=r"must be a Parquet file .*use 'from_csv'"):
        from_parquet(path)
    with pytest.raises(FileNotFoundError):
        from_parquet(tmp_path / 'none.parquet')
    lists = df.assign(user=[[1]] * len(df))
    with pytest.raises(TypeError, match='must hold hashable ids'):
        from_parquet(write(lists, path))


def test_a_damaged_row_group_is_named(tmp_path):
    path = write(make_frame(), tmp_path / 'a.parquet')
    place = pq.ParquetFile(path).metadata.row_group(7).column(0).data_page_offset
    content = bytearray(path.read_bytes())
    content[place - 60 : place + 30] = bytes(90)
    path.write_bytes(bytes(content))
    with pytest.raises(ValueError, match=r"Row group \d of '.*' can't be read"):
        from_parquet(path)


def test_ids_of_two_types_are_refused(tmp_path, monkeypatch):
    path = write(make_frame(), tmp_path / 'a.parquet')
    read = pq.ParquetFile.read_row_group

    def other(file, group, **kwargs):
        table = read(file, group, **kwargs)
        if group < 4:
            return table
        place = table.schema.get_field_index('item')
        column = table.column(place).cast(pa.string())
        return table.set_column(place, 'item', column)

    monkeypatch.setattr(pq.ParquetFile, 'read_row_group', other)
    match = r'of one type in all row groups, Int64 \(got .* in row group 4\)'
    with pytest.raises(ValueError, match=match):
        from_parquet(path)


def test_a_folder_is_read_as_a_whole(tmp_path):
    df = make_frame()
    (tmp_path / 'shop').mkdir()
    write(df.iloc[:120], tmp_path / 'shop' / '0.parquet')
    write(df.iloc[120:], tmp_path / 'shop' / '1.parquet')
    for data in (
        from_parquet(tmp_path / 'shop'),
        from_parquet(tmp_path / 'shop', read_options={'engine': 'pyarrow'}),
    ):
        assert data['user'].raw_id == from_frame(df)['user'].raw_id
