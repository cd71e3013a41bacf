import threading
from functools import partial

import numpy as np
import pytest
import torch
from torch_geometric.data import Data, HeteroData
from torch_geometric.transforms import Compose

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.datasets import TikTok
from torch_geometric_unlearn.datasets._stored import StoredDataset
from torch_geometric_unlearn.transforms import ForgetUsers


@pytest.fixture
def tiktok(tmp_path, write_mmrec):
    features = {name: np.ones((4, 2), np.float32) for name in ('image', 'audio')}
    write_mmrec(tmp_path / 'raw', 'tiktok', features=features)
    return tmp_path


class Rows:
    r"""Keeps some training pairs; tells nobody which."""

    def __init__(self, rows):
        self.rows = rows

    def __call__(self, data):
        store = data[schema.EDGE_TYPE]
        store.edge_index = store.edge_index[:, self.rows]
        return data

    def __repr__(self):
        return 'Rows()'


def by_closure(rows):
    return lambda data: Rows(rows)(data)


@pytest.mark.parametrize(
    'make',
    [
        Rows,
        lambda rows: Rows(torch.tensor(rows)),
        lambda rows: Rows(np.array(rows)),
        lambda rows: Compose([Rows([0, 1]), Rows(rows)]),
        by_closure,
        lambda rows: partial(lambda data, rows: Rows(rows)(data), rows=rows),
    ],
)
def test_no_other_processed_file_is_taken(tiktok, make):
    for rows in ([0], [1], [0]):
        data = TikTok(tiktok, pre_transform=make(rows))[0]
        expected = TikTok(tiktok)[0][schema.EDGE_TYPE].edge_index[:, rows]
        assert torch.equal(data[schema.EDGE_TYPE].edge_index, expected)
    assert len(list((tiktok / 'processed').iterdir())) == 3


def test_request_as_pre_transform(tiktok):
    for user in (1, 0, 1):
        dataset = TikTok(tiktok, pre_transform=ForgetUsers([user]))
        assert dataset[0].forget_users.tolist() == [user]
    # Nothing is processed again as long as nothing changes.
    name = dataset.processed_file_names
    stamp = (tiktok / 'processed' / name).stat().st_mtime_ns
    again = TikTok(tiktok, pre_transform=ForgetUsers([1]))
    assert again.processed_file_names == name
    assert (tiktok / 'processed' / name).stat().st_mtime_ns == stamp


def test_pre_filter_decides_the_name(tiktok):
    class Filtered(TikTok):
        def __init__(self, root, keep):
            self.keep = keep
            super().__init__(root)

        @property
        def pre_filter(self):
            return self.keep

        @pre_filter.setter
        def pre_filter(self, value):
            pass

    names = {Filtered(tiktok, Rows(n)).processed_file_names for n in (1, 2, 1)}
    assert len(names) == 2


def test_transform_that_changes_at_work(tiktok):
    class Counter(Rows):
        def __call__(self, data):
            self.rows = [0]
            return data

    for _ in range(2):
        TikTok(tiktok, pre_transform=Counter([1]))
    assert len(list((tiktok / 'processed').iterdir())) == 1


def test_pre_transform_without_content(tiktok):
    with pytest.raises(TypeError, match=r"'pre_transform\.rows' is a 'lock'"):
        TikTok(tiktok, pre_transform=Rows(threading.Lock()))
    with pytest.raises(TypeError, match=r"'data\._global_store\.x' is a 'Rows'"):
        TikTok(tiktok, pre_transform=keep_an_object)
    assert not list((tiktok / 'processed').iterdir())


def keep_an_object(data):
    data.x = Rows([0])
    return data


def test_raw_ids_and_everything_else_come_back(tiktok):
    ids = ['a', 7, ('b', 1), 'ü', None, 2.5]

    def add(data):
        data['user'].raw_id = ids[: data['user'].num_nodes]
        data.note = {'k': [1, 'x'], 'array': np.arange(3)}
        data.nothing = None
        return data

    expected = TikTok(tiktok, pre_transform=add, force_reload=True)
    data = TikTok(tiktok, pre_transform=add)[0]
    assert data['user'].raw_id == ids[: data['user'].num_nodes]
    assert data.note['k'] == [1, 'x']
    assert data.note['array'].tolist() == [0, 1, 2]
    assert isinstance(data, HeteroData)
    assert expected[0].to_dict().keys() == data.to_dict().keys()
    for store, other in zip(data.stores, TikTok(tiktok)[0].stores):
        for key, value in other.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(store[key], value)


def test_several_data_objects(tmp_path):
    parts = [Data(x=torch.full((n, 1), float(n)), y=n) for n in (1, 2, 3)]
    path = str(tmp_path / 'file')
    StoredDataset.save(parts, path)
    dataset = StoredDataset.__new__(StoredDataset)
    dataset.transform = dataset._indices = dataset._data_list = None
    dataset.load(path)
    assert len(dataset) == 3
    assert dataset[1].x.tolist() == [[2.0], [2.0]]
    assert isinstance(dataset[2], Data)
    with pytest.raises(TypeError, match=r"the class 'Data' or 'Hetero.*\(got 'Own'"):
        StoredDataset.save([type('Own', (Data,), {})(x=torch.ones(1))], path)
