import pytest
import torch

from torch_geometric_unlearn.audit import hold_out_users
from torch_geometric_unlearn.audit.hold_out_users import never_trained_pairs
from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.transforms import ForgetUsers


def test_users_are_set_aside(full):
    kept = hold_out_users(full, ratio=0.45, seed=3)
    pairs = kept['never_trained_edge_label_index']
    unseen = pairs[0].unique()
    assert unseen.numel() == 135
    assert torch.equal(never_trained_pairs(kept), pairs)
    assert not torch.isin(kept[schema.EDGE_TYPE].edge_index[0], unseen).any()
    assert not torch.isin(schema.held_out(kept, 'test')[0], unseen).any()
    more = hold_out_users(kept, ratio=0.1)['never_trained_edge_label_index']
    assert torch.equal(more[:, : pairs.size(1)], pairs)
    assert more.size(1) > pairs.size(1)
    with pytest.raises(ValueError, match="'data' must hold no request yet"):
        hold_out_users(ForgetUsers([3])(full))


def test_users_without_training_pairs_are_never_trained_on(full):
    data = hold_out_users(full, ratio=0.4)
    held = schema.held_out(data, 'test')
    extra = data['never_trained_edge_label_index']
    data['test_edge_label_index'] = torch.cat([held, extra], dim=1)
    del data['never_trained_edge_label_index']
    assert torch.equal(never_trained_pairs(ForgetUsers(ratio=0.5)(data)), extra)
