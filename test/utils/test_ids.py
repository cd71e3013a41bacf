import numpy as np
import pytest
import torch
from torch_geometric import EdgeIndex, Index

from torch_geometric_unlearn.utils.ids import check_ids, check_pair_ids, to_ids

pd = pytest.importorskip('pandas')


@pytest.mark.parametrize(
    'ids',
    [
        [3, 5],
        (3, 5),
        range(3, 7, 2),
        {3: 'a', 5: 'b'},
        torch.tensor([3, 5], dtype=torch.int16),
        Index([3, 5]),
        [torch.tensor(3), torch.tensor(5)],
        np.array([3, 5], 'uint16'),
        np.array([3, 5], 'uint64'),
        np.array([3, 5], object),
        [np.uint64(3), np.int64(5)],
        [np.int8(3), 5],
        pd.Series([3, 5], index=[1, 0]),
        pd.Series([3, 5], index=[7, 8], dtype='Int64'),
        pd.Series([3, 5], dtype='uint32[pyarrow]'),
        pd.Index([3, 5]),
    ],
    ids=lambda x: f'{type(x).__name__} {getattr(x, "dtype", "")}',
)
def test_integers_of_any_kind(ids):
    out = to_ids(ids, 'users')
    assert type(out) is torch.Tensor
    assert out.dtype == torch.int64
    assert out.tolist() == [3, 5]
    assert torch.equal(check_ids(ids, 6, 'users'), out)
    with pytest.raises(ValueError, match=r"'users' must hold ids from 0 to 4 \(got 1 "):
        check_ids(ids, 5, 'users')


@pytest.mark.parametrize(
    'ids', [[3.0], ['3'], [None], [2**70], [True], [np.True_], [[1], [2, 3]], ['a', 3]]
)
def test_refuses_what_is_no_integer(ids):
    with pytest.raises(TypeError, match="'users' must hold integer ids"):
        to_ids(ids, 'users')


def test_no_ids():
    for empty in ([], (), np.array([], 'int64'), torch.empty(0, dtype=torch.int64)):
        assert check_ids(empty, 5, 'users').shape == (0,)


def test_pairs():
    pairs = EdgeIndex([[0, 3], [4, 1]], sparse_size=(4, 5))
    out = check_pair_ids(pairs, 4, 5, 'exclude')
    assert type(out) is torch.Tensor
    assert out.tolist() == [[0, 3], [4, 1]]
    for sizes in ((3, 5), (4, 4)):
        with pytest.raises(ValueError, match=r"'exclude' must hold users from 0 to "):
            check_pair_ids(pairs, *sizes, 'exclude')
