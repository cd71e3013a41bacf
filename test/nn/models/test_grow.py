import copy

import pytest
import torch
from torch.nn import Embedding, Module
from torch_geometric.nn import LightGCN as PyGLightGCN

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.datasets import SyntheticMultimodal
from torch_geometric_unlearn.nn import (
    MGCN,
    MIGGT,
    LightGCN,
    RecommenderAdapter,
    Table,
    grow,
)
from torch_geometric_unlearn.nn.models import DeletionOperators
from torch_geometric_unlearn.testing import check_model
from torch_geometric_unlearn.train import fit
from torch_geometric_unlearn.transforms import ForgetUsers
from torch_geometric_unlearn.unlearn import PartialRetrain

OLD, NEW = (100, 60), (130, 67)


def adapted(data):
    sizes = schema.num_users(data), schema.num_items(data)
    return RecommenderAdapter(PyGLightGCN(sum(sizes), 8, 2), *sizes)


BUILD = {
    'MGCN': lambda data: MGCN.from_data(data, hidden_channels=8),
    'MIGGT': lambda data: MIGGT.from_data(data, hidden_channels=8),
    'LightGCN': lambda data: LightGCN.from_data(data, hidden_channels=8),
    'adapter': adapted,
}


@pytest.fixture
def later(data):
    r"""The same shop with new users and items, and some of their interactions."""
    out = SyntheticMultimodal('tiny', num_users=NEW[0], num_items=NEW[1])[0]
    for name, x in schema.features(data).items():
        out['item'][f'x_{name}'][: OLD[1]] = x
    pairs = out[schema.EDGE_TYPE].edge_index
    fresh = (pairs[0] >= OLD[0]) | (pairs[1] >= OLD[1])
    pairs = torch.cat([data[schema.EDGE_TYPE].edge_index, pairs[:, fresh]], dim=1)
    out[schema.EDGE_TYPE].edge_index = pairs
    if schema.REV_EDGE_TYPE in out.edge_types:
        out[schema.REV_EDGE_TYPE].edge_index = pairs.flip(0)
    for key in schema.HELD_OUT:
        out[key] = data[key]
    return out


@pytest.mark.parametrize('name', BUILD)
def test_old_rows_stay_and_new_ones_work(name, data, later):
    model = BUILD[name](data)
    fit(model, data, num_epochs=1)
    before = copy.deepcopy(model.state_dict())
    grown = grow(model, later)
    check_model(grown, later)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])
    rows = {'user': [range(OLD[0])], 'item': [range(OLD[1])]}
    shifted = range(NEW[0], NEW[0] + OLD[1])
    rows['node'] = [range(OLD[0]), shifted]
    tables = grown.tables()
    as_new = BUILD[name](later).tables()
    for table, old, built in zip(tables, model.tables(), as_new):
        index = torch.tensor([i for part in rows[table.rows] for i in part])
        assert torch.equal(table.parameter[index], old.parameter)
        new = torch.ones(table.parameter.size(0), dtype=torch.bool)
        new[index] = False
        fresh = table.parameter[new].detach()
        assert fresh.size(0) in (30, 7, 37)
        if table.is_raw:
            assert torch.equal(fresh, later['item'][f'x_{table.modality}'][OLD[1] :])
        else:
            assert 0.7 < fresh.std() / built.parameter.std() < 1.4
    own = {id(table.parameter) for table in tables}
    for key, value in grown.named_parameters():
        if id(value) not in own:
            assert torch.equal(value, before[key])
    again, other = grow(model, later), grow(model, later, seed=1)
    same = [torch.equal(x, y) for x, y in zip(grown.parameters(), again.parameters())]
    assert all(same)
    same = [torch.equal(x, y) for x, y in zip(grown.parameters(), other.parameters())]
    assert not all(same)

    result = fit(grown, later, num_epochs=2)
    assert len(result.history) == 2
    result = PartialRetrain(num_epochs=1, min_steps=5)(grown, ForgetUsers([110])(later))
    assert all(torch.isfinite(p).all() for p in result.model.parameters())


def test_nothing_new(data):
    model = BUILD['MGCN'](data)
    grown = grow(model, data)
    assert grown is not model
    for x, y in zip(model.parameters(), grown.parameters()):
        assert x is not y
        assert torch.equal(x, y)


@pytest.mark.parametrize('name', BUILD)
def test_optimizer_moves_along(name, data, later):
    model = BUILD[name](data)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained)
    fit(model, data, num_epochs=1, optimizer=optimizer)
    before = {k: optimizer.state[p] for k, p in model.named_parameters()}
    moments = {k: state['exp_avg'].clone() for k, state in before.items() if state}
    grown = grow(model, later, optimizer=optimizer)
    tables = {id(table.parameter): table for table in grown.tables()}
    stepped = {id(p) for group in optimizer.param_groups for p in group['params']}
    for key, parameter in grown.named_parameters():
        assert id(parameter) in stepped
        moment = optimizer.state[parameter]['exp_avg']
        assert moment.shape == parameter.shape
        if id(parameter) not in tables:
            assert torch.equal(moment, moments[key])
            continue
        index = torch.arange(moments[key].size(0))
        if tables[id(parameter)].rows == 'node':
            index[OLD[0] :] += NEW[0] - OLD[0]
        assert torch.equal(moment[index], moments[key])
        assert moment.abs().sum() == moments[key].abs().sum()  # Others are zero.
    fit(grown, later, num_epochs=1, optimizer=optimizer)
    with pytest.raises(ValueError, match="'optimizer' must step the parameters"):
        grow(model, later, optimizer=optimizer)


def test_shared_and_frozen_tables(data, later):
    class Twice(Module):
        def __init__(self):
            super().__init__()
            self.users, self.items = Embedding(100, 4), Embedding(60, 4)
            self.again = self.users
            self.items.weight.requires_grad_(False)

        def forward(self):
            return self.again.weight, self.items.weight

    module = Twice()
    tables = [Table(module.users.weight, 'user'), Table(module.items.weight, 'item')]
    grown = grow(RecommenderAdapter(module, *OLD, tables=tables), later).module
    assert grown.users.weight is grown.again.weight
    assert grown.users.num_embeddings == NEW[0]
    assert grown.users.weight.requires_grad
    assert not grown.items.weight.requires_grad


def test_refuses(data, later):
    model = BUILD['MGCN'](later)
    with pytest.raises(ValueError, match='at least the 130 users and 67 items'):
        grow(model, data)
    operators = DeletionOperators(BUILD['MGCN'](data), torch.ones(160) > 0, {'out': 8})
    with pytest.raises(ValueError, match="must have the attribute 'num_users'"):
        grow(operators, later)
    operators.num_users, operators.num_items = OLD
    with pytest.raises(ValueError, match="'DeletionOperators' can't grow"):
        grow(operators, later)
    raw = Embedding(60, 4)
    module = torch.nn.ModuleDict({'user': Embedding(100, 4), 'item': raw})
    tables = [Table(module['user'].weight, 'user'), Table(raw.weight, 'item', True)]
    model = RecommenderAdapter(
        module, *OLD, embed=lambda m, g: (m['user'].weight, m['item'].weight),
        tables=tables,
    )
    with pytest.raises(ValueError, match=r"'module.item.weight'.*'modality'"):
        grow(model, later)
    tables = [Table(module['user'].weight, 'user')]
    model = RecommenderAdapter(
        module, *OLD, embed=lambda m, g: (m['user'].weight, m['item'].weight),
        tables=tables,
    )
    with pytest.raises(ValueError, match="can't grow"):
        grow(model, later)
