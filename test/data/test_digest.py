from torch_geometric_unlearn.data.digest import data_digest
from torch_geometric_unlearn.transforms import DropForgotten, ForgetUsers


def test_ids_erased_anew_are_equal(data):
    data['user'].raw_id = [f'u{i}' for i in range(data['user'].num_nodes)]
    erased = [DropForgotten()(ForgetUsers([3])(data)) for _ in range(2)]
    assert erased[0]['user'].raw_id != erased[1]['user'].raw_id
    assert data_digest(erased[0]) == data_digest(erased[1]) != data_digest(data)
    erased[1]['user'].raw_id[4] = 'other'
    assert data_digest(erased[0]) != data_digest(erased[1])
