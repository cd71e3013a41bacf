import copy
import math
from functools import partial

import pytest
import torch

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.nn import MGCN
from torch_geometric_unlearn.testing import check_unlearner
from torch_geometric_unlearn.transforms import (
    DropForgotten,
    ForgetInteractions,
    ForgetItems,
    ForgetUsers,
)
from torch_geometric_unlearn.unlearn import (
    TRU,
    EdgeDrop,
    MMRecUn,
    PartialRetrain,
    Retrain,
    RowReset,
)

UNLEARNERS = {
    'edge_drop': EdgeDrop(),
    'row_reset': RowReset(),
    'retrain': Retrain(lambda data: MGCN.from_data(data, hidden_channels=16)),
    'mmrecun': MMRecUn(num_epochs=2, batch_size=128),
    'mmrecun_joint': MMRecUn(schedule='joint', num_epochs=2, row_reset=True),
    'tru': TRU(num_epochs=2, batch_size=128),
    'partial_retrain': PartialRetrain(num_epochs=2, min_steps=20, batch_size=128),
    'tru_plain': TRU(gate=False, scaling=False, isolation=False, num_epochs=1),
}
UNLEARNERS['retrain'].kwargs = {'num_epochs': 2}
REQUESTS = {
    'user': ForgetUsers([3, 17]),
    'item': ForgetItems([3, 17]),
    'interaction': ForgetInteractions(ratio=0.05),
}


CASES = [(name, 'interaction') for name in UNLEARNERS]
CASES += [('edge_drop', 'user'), ('edge_drop', 'item')]  # The same for all methods.


@pytest.mark.parametrize(('name', 'regime'), CASES)
def test_contract(name, regime, data, trained):
    store = data[schema.EDGE_TYPE]
    store.time = torch.arange(store.edge_index.size(1))
    reverse = data[schema.REV_EDGE_TYPE]
    reverse.edge_index, reverse.time = store.edge_index.flip(0), store.time
    result = check_unlearner(UNLEARNERS[name], trained, REQUESTS[regime](data))
    after = result.data[schema.EDGE_TYPE]
    assert torch.equal(store.edge_index[:, after.time], after.edge_index)


def test_mixed_request(data, trained):
    marked = ForgetItems([5])(ForgetUsers([3])(data))
    assert marked.forget_level == 'mixed'
    result = check_unlearner(TRU(num_epochs=1), trained, marked)
    edge_index = result.data[schema.EDGE_TYPE].edge_index
    assert not (edge_index[0] == 3).any()
    assert not (edge_index[1] == 5).any()


def test_deleted_twice(data, trained):
    first = EdgeDrop()(trained, ForgetUsers([3])(data))
    again = ForgetUsers([3])(first.data)
    assert not again[schema.EDGE_TYPE].forget_mask.any()
    result = TRU()(first.model, again)
    assert result.history == []
    assert max(result.touched.values()) == 0
    assert result.data[schema.EDGE_TYPE].num_edges == (
        first.data[schema.EDGE_TYPE].num_edges
    )


def test_shift_and_touched_by_hand(data, trained):
    result = RowReset()(trained, ForgetUsers([3, 17])(data))
    name = 'user_embedding.weight'
    old, new = trained.user_embedding.weight, result.model.user_embedding.weight
    assert result.touched[name] == pytest.approx(2 / 100)
    assert result.shift[name] == pytest.approx(
        float((new - old).detach().norm() / old.detach().norm())
    )
    assert sum(result.touched.values()) == pytest.approx(2 / 100)


def test_refuses_other_sizes_and_foreign_models(data, trained):
    other = copy.copy(data)
    other['user'].num_nodes = 101
    with pytest.raises(ValueError, match=r'60 items, but the data has 101'):
        TRU()(trained, ForgetUsers([3])(other))
    with pytest.raises(ValueError, match=r"'Linear' lacks .'build_graph'"):
        EdgeDrop()(torch.nn.Linear(2, 2), ForgetUsers([3])(data))


@pytest.mark.parametrize('unlearner', [EdgeDrop(), TRU(), MMRecUn()])
def test_refuses_a_bad_mask(unlearner, data, trained):
    num_edges = data[schema.EDGE_TYPE].num_edges
    for mask, error, message in [
        (torch.zeros(3, dtype=torch.bool), ValueError, "'forget_mask' must have shape"),
        (torch.zeros(num_edges), TypeError, "'forget_mask' must be a bool tensor"),
        (torch.ones(num_edges, dtype=torch.bool), ValueError, 'deletes every training'),
    ]:
        bad = copy.copy(data)
        bad[schema.EDGE_TYPE].forget_mask = mask
        with pytest.raises(error, match=message):
            unlearner(trained, bad)


def test_edge_drop_changes_nothing_but_edges(data, trained):
    marked = ForgetUsers([3])(data)
    result = EdgeDrop()(trained, marked)
    assert max(result.touched.values()) == 0
    expected = DropForgotten()(marked)
    assert torch.equal(
        result.data[schema.EDGE_TYPE].edge_index,
        expected[schema.EDGE_TYPE].edge_index,
    )


def test_mask_set_by_hand(data, trained):
    store = data[schema.EDGE_TYPE]
    store.forget_mask = torch.zeros(store.num_edges, dtype=torch.bool)
    store.forget_mask[:5] = True
    for unlearner in (TRU(num_epochs=1), MMRecUn(num_epochs=1)):
        check_unlearner(unlearner, trained, data)


def test_without_held_out_pairs(data, trained):
    del data.val_edge_label_index, data.test_edge_label_index
    marked = ForgetUsers([3])(data)
    for unlearner in (TRU(), MMRecUn()):
        with pytest.raises(ValueError, match=r'needs 20 validation pairs .* \(got 0'):
            unlearner(trained, marked)
    retrain_rows = PartialRetrain(num_epochs=2, min_steps=20, batch_size=128)
    result = check_unlearner(retrain_rows, trained, marked)
    assert math.isnan(result.history[-1]['touched_val_ndcg@20'])
    assert result.history[-1]['selected']


def test_repr_names_the_settings():
    assert repr(EdgeDrop(seed=3)) == 'EdgeDrop(seed=3)'
    assert "form='negate'" in repr(MMRecUn(form='negate'))
    assert 'capacity=0.5' in repr(TRU(capacity=0.5))


def test_held_out_pairs_need_no_unlearning(data, trained):
    pair = data.val_edge_label_index[:, 4:5]
    marked = ForgetInteractions(pair)(data)
    for unlearner in (EdgeDrop(), TRU(), Retrain(MGCN.from_data)):
        result = unlearner(trained, marked)
        assert result.dropped == {'train': 0, 'val': 1, 'test': 0, 'control': 0}
        assert max(result.touched.values()) == 0
        assert result.history == []
        pairs = result.data.val_edge_label_index
        assert not (pairs == pair).all(dim=0).any()
        assert pairs.size(1) == data.val_edge_label_index.size(1) - 1
    train = data[schema.EDGE_TYPE].edge_index[:, :3]
    both = ForgetInteractions(torch.cat([train, pair], dim=1))(data)
    result = EdgeDrop()(trained, both)
    assert result.dropped == {'train': 3, 'val': 1, 'test': 0, 'control': 0}


def test_what_the_deletion_spares(data, trained):
    data['user'].age = torch.arange(100)
    data['user'].index = {'u3': 3}
    marked = ForgetUsers([3])(data)
    with pytest.raises(ValueError, match=r"would not reach.*\['user'\].index"):
        EdgeDrop()(trained, marked)
    result = EdgeDrop()(trained, marked, DropForgotten(keep=['user.index']))
    assert result.data['user'].index == {'u3': 3}
    assert result.data['user'].age[3] == 0
    assert marked['user'].age[3] == 3


def test_gradients_go(data, trained):
    model = copy.deepcopy(trained)
    graph = model.build_graph(data)
    sum(x.sum() for x in model(graph)).backward()
    result = EdgeDrop()(model, ForgetUsers([3])(data))
    assert all(p.grad is None for p in result.model.parameters())
    assert any(p.grad is not None for p in model.parameters())  # The caller's stay.


def test_threads_get_what_one_after_the_other_gets(data, trained, run_in_threads):
    unlearner, partial_retrain = TRU(num_epochs=1), UNLEARNERS['partial_retrain']
    jobs = [
        partial(unlearner, trained, ForgetUsers([3])(data)),
        partial(unlearner, trained, ForgetItems([5])(data)),
        partial(partial_retrain, trained, ForgetUsers([8])(data)),
    ]
    expected, state = [job().model for job in jobs], torch.get_rng_state()
    results = run_in_threads(*jobs)
    for result, model in zip(results, expected):
        for name, value in result.model.state_dict().items():
            assert torch.equal(value, model.state_dict()[name])
    assert torch.equal(torch.get_rng_state(), state)
