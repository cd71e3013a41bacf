import io

import pandas as pd
import pytest

from torch_geometric_unlearn.workspace.filtering import filter_csv, filter_parquet

pa = pytest.importorskip('pyarrow')
pq = pytest.importorskip('pyarrow.parquet')


@pytest.fixture
def asked(ws, ask, shop):
    r"""A workspace that has to keep out a user, an item and a pair."""
    ask(ws, users=[shop.user(3)])
    ask(ws, 'takedown', items=[shop.item(5)])
    ask(ws, 'correction', pairs=[(shop.user(7), shop.item(8))])
    return ws


def through(ws, text, user='user', item='item', **kwargs):
    out = io.BytesIO()
    text = text if isinstance(text, bytes) else text.encode()
    counts = filter_csv(ws, io.BytesIO(text), out, user, item, **kwargs)
    return out.getvalue().decode(), tuple(counts)


def test_rows_stay_as_they_are(asked, shop):
    u, i = shop.user, shop.item
    lines = [
        '\ufeffzip,user, note ,item\r\n',
        f'007,{u(2)},"a, ""b""\r\nc",{i(9)}\r\n',
        f'008,{u(3)},gone,{i(9)}\r\n',
        f'1.50,"{u(2)}",NaN,{i(5)}\r\n',
        '\r\n',
        f',{u(7)},,{i(8)}\r\n',
        f'true, {u(3)} ,spaces,{i(9)}\r\n',
        f'+1,{u(7)},é,"{i(9)}"',
    ]
    found, counts = through(asked, ''.join(lines))
    assert found == ''.join(lines[k] for k in (0, 1, 4, 7))
    assert counts == (6, 2)
    for sep in (';', '\t'):
        text = f'user{sep}item\n{u(3)}{sep}{i(9)}\n{u(2)}{sep}{i(9)}\n'
        found, counts = through(asked, text, separator=sep)
        assert found == f'user{sep}item\n{u(2)}{sep}{i(9)}\n'
        assert counts == (2, 1)
    swapped = f'a,b\n{i(9)},{u(3)}\n'
    assert through(asked, swapped, user='b', item='a')[1] == (1, 0)
    assert through(asked, 'user,item\n') == ('user,item\n', (0, 0))


def test_the_same_rows_as_of_a_frame(asked, data, shop):
    rows = [(shop.user(u), shop.item(i)) for u in range(12) for i in range(12)]
    frame = pd.DataFrame(rows, columns=['user', 'item'])
    kept = asked.filter(frame)
    found, counts = through(asked, frame.to_csv(index=False))
    assert found == kept.to_csv(index=False)
    assert counts == (144, len(kept))


def test_integers(make, tmp_path, shop, data):
    from torch_geometric_unlearn.nn import LightGCN
    from torch_geometric_unlearn.workspace import Workspace

    plain = data.clone()
    del plain['user'].raw_id
    ws = Workspace.create(
        tmp_path / 'w', data=plain, model=LightGCN.from_data(plain),
        build_model=LightGCN.from_data,
    )  # fmt: skip
    ws.submit('erasure', users=[7], client_id='T', verified_by='crm')
    lines = ['user,item\n', '007,sku-01\n', ' 7,sku-01\n', '08,sku-01\n', '7,sku-02']
    assert through(ws, ''.join(lines)) == ('user,item\n08,sku-01\n', (4, 1))
    with pytest.raises(TypeError, match=r'integers .*row 2') as info:
        through(ws, 'user,item\n8,sku-01\nann@shop.org,sku-01\n')
    assert 'ann' not in str(info.value)


@pytest.mark.parametrize(
    ('text', 'match'),
    [
        ('', "'--user' names must be in the first line"),
        ('ann@shop.org,sku-1\n', "'--user' names must be in .*found 0 times in 2"),
        ('user,user,item\nann,b,c\n', 'found 2 times'),
        ('user,what\nann,b\n', "'--item' names must be"),
        ('user,item\nann,b\nann,b,c\n', r'Row 2 .* 3 columns \(expected 2\)'),
        ('user,item\nann\n', 'Row 1 of the table has 1 columns'),
        ('user,item\n"ann,b\n', "Row 1 of the table can't be read"),
        ('user,item\n"ann"x,b\n', "Row 1 of the table can't be read"),
        ('user,item\nann,b\xe9\n'.encode('latin-1'), 'must be text in UTF-8'),
    ],
)
def test_what_is_no_table(ws, text, match):
    with pytest.raises(ValueError, match=match) as info:
        through(ws, text)
    assert 'ann' not in str(info.value)
    with pytest.raises(ValueError, match='must name two columns'):
        through(ws, 'user,item\n', item='user')


def test_parquet_keeps_types(asked, shop, tmp_path):
    rows = [(u, i) for u in (2, 3, 7) for i in (5, 8, 9)]
    users = [shop.user(u) for u, _ in rows]
    table = pa.table({
        'zip': pa.array(['007'] * 9),
        'user': pa.array(users).dictionary_encode(),
        'item': pa.array([shop.item(i) for _, i in rows], pa.large_string()),
        'again': pa.DictionaryArray.from_arrays(
            pa.array([0, 1, 2] * 3, pa.int8()), ['a', 'b', 'c'], ordered=True),
        'stars': pa.array(range(9), pa.int8()),
        'time': pa.array(range(9), pa.timestamp('ns', 'UTC')),
        'list': pa.array([[k] for k in range(9)], pa.list_(pa.float32())),
    }).replace_schema_metadata({'made': 'by us'})  # fmt: skip
    source, out = io.BytesIO(), io.BytesIO()
    pq.write_table(table, source, row_group_size=4)
    counts = filter_parquet(asked, source, out, 'user', 'item')
    found = pq.read_table(io.BytesIO(out.getvalue()))
    before = pq.read_table(source).schema
    assert found.schema.equals(before, check_metadata=True)
    assert [column.type for column in table.columns[:-1]] == found.schema.types[:-1]
    kept = [k for k, row in enumerate(rows) if row in {(2, 8), (2, 9), (7, 9)}]
    assert found.to_pylist() == [table.to_pylist()[k] for k in kept]
    assert tuple(counts) == (9, 3)
    # Nothing of it in a dictionary, or in the statistics.
    assert shop.user(3).encode() in source.getvalue()
    assert shop.user(3).encode() not in out.getvalue()
    # Who reads it with pandas has as many rows.
    frame = table.to_pandas()
    frame.to_parquet(tmp_path / 'pandas.parquet')
    out = io.BytesIO()
    with open(tmp_path / 'pandas.parquet', 'rb') as file:
        filter_parquet(asked, file, out, 'user', 'item')
    again = pd.read_parquet(io.BytesIO(out.getvalue()))
    assert again['stars'].tolist() == kept
    assert list(again['user'].cat.categories) == [shop.user(2), shop.user(7)]


def test_what_is_no_parquet(ws):
    for content in (b'', b'user,item\n' * 9):
        with pytest.raises(ValueError, match='no Parquet file'):
            filter_parquet(ws, io.BytesIO(content), io.BytesIO(), 'user', 'item')
    for kind, match in ((pa.int64(), 'strings'), (pa.float64(), 'strings')):
        file = io.BytesIO()
        columns = {'user': pa.array([1], kind), 'item': pa.array(['sku-01'])}
        pq.write_table(pa.table(columns), file)
        with pytest.raises(TypeError, match=match):
            filter_parquet(ws, file, io.BytesIO(), 'user', 'item')
        with pytest.raises(ValueError, match="'--user' names must be"):
            filter_parquet(ws, file, io.BytesIO(), 'who', 'item')
