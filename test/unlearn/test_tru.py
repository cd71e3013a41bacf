import copy
import math

import pytest
import torch
from torch_geometric.testing import onlyCUDA

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.metrics import evaluate_request
from torch_geometric_unlearn.nn import MGCN
from torch_geometric_unlearn.transforms import (
    ForgetInteractions,
    ForgetItems,
    ForgetUsers,
)
from torch_geometric_unlearn.unlearn import TRU, MMRecUn
from torch_geometric_unlearn.unlearn.branch_scaling import branch_names
from torch_geometric_unlearn.unlearn.layer_isolation import leaf_modules

REVERSE_ONLY = {'num_epochs': 1, 'num_passes': 1, 'repair_batches': 0}


@pytest.fixture
def marked(data):
    return ForgetUsers(ratio=0.1)(data)


def changed(before, after):
    return {
        name
        for name, value in after.named_parameters()
        if not torch.equal(value, dict(before.named_parameters())[name])
    }


def test_all_off_equals_reverse_repair(marked, trained):
    r"""MMRecUn steps with torch's Adam, TRU with its own; both must agree."""
    shared = {'lr_reverse': 3e-3, 'num_epochs': 3, 'repair_batches': 4, 'patience': 3}
    plain = TRU(gate=False, scaling=False, isolation=False, num_passes=1, **shared)
    a, b = plain(trained, marked), MMRecUn(**shared)(trained, marked)
    for (name, x), (_, y) in zip(
        a.model.named_parameters(), b.model.named_parameters()
    ):
        assert torch.allclose(x, y, atol=2e-6), name
    assert [r['forget_hit_rate'] for r in a.history] == pytest.approx(
        [r['forget_hit_rate'] for r in b.history]
    )


@pytest.mark.parametrize('switch', ['gate', 'scaling', 'isolation'])
def test_every_switch_matters(switch, marked, trained):
    full = TRU(**REVERSE_ONLY)(trained, marked).model
    without = TRU(**{switch: False}, **REVERSE_ONLY)(trained, marked).model
    assert changed(full, without)


def test_forgets_and_retains(marked, trained):
    before = evaluate_request(trained, marked, ks=(5,))
    result = TRU(batch_size=128)(trained, marked)
    after = evaluate_request(result.model, marked, ks=(5,))
    assert before['forget_recall@5'] > 0.5
    assert after['forget_recall@5'] < 0.4 * before['forget_recall@5']
    assert after['retain_recall@5'] > 0.95 * before['retain_recall@5']


def test_history_holds_the_diagnostics(marked, trained):
    row = TRU(num_epochs=1)(trained, marked).history[0]
    assert set(row['alpha']) == {'id', 'image', 'text'}
    for key in ('forget_energy', 'retain_energy'):
        assert set(row[key]) == {'id', 'image', 'text'}
    assert set(row['mask']) == set(row['sensitivity'])
    assert len(row['mask']) == 12
    for key in ('mean_gate', 'reverse_loss', 'gate_loss', 'repair_loss', 'seconds'):
        assert row[key] >= 0
    assert 0 < row['touched_share'] <= 1
    assert 0 < row['touched_share_without_raw'] <= 1


# 1. Ranking fusion gate.


def test_gate_term_reaches_fusion_only(marked, trained):
    weak = TRU(scaling=False, gate_weight=0.0, **REVERSE_ONLY)(trained, marked)
    strong = TRU(scaling=False, gate_weight=50.0, **REVERSE_ONLY)(trained, marked)
    branches = branch_names(trained)
    moved = changed(weak.model, strong.model)
    assert moved
    assert {branches[name] for name in moved} == {'fusion'}


# 2. Branch-wise modality scaling.


def test_doubling_alpha_doubles_the_first_step(marked, trained, monkeypatch):
    from torch_geometric_unlearn.unlearn import tru

    moves = []
    for scale in (1.0, 2.0):
        monkeypatch.setattr(
            tru,
            'branch_scales',
            lambda *args, scale=scale: {'id': scale, 'image': 1.0, 'text': 1.0},
        )
        unlearner = TRU(gate=False, lr_reverse=1e-4, capacity=1.0, **REVERSE_ONLY)
        result = unlearner(trained, marked)
        moves.append(
            {
                name: value.detach() - dict(trained.named_parameters())[name].detach()
                for name, value in result.model.named_parameters()
            }
        )
    once, twice = moves
    name = 'user_embedding.weight'
    assert once[name].abs().sum() > 0
    assert torch.allclose(twice[name], 2 * once[name], atol=1e-6)
    others = [n for n in once if not n.endswith('embedding.weight')]
    assert any(once[n].abs().sum() > 0 for n in others)
    for n in others:
        assert torch.equal(once[n], twice[n]), n


# 3. Capacity-aware layer isolation.


def test_masked_out_parameters_stay_bit_identical(marked, trained):
    unlearner = TRU(
        gate=False, top_k=1, capacity=0.0, num_epochs=1, repair_batches=0
    )
    result = unlearner(trained, marked)
    mask = result.history[0]['mask']
    moved = changed(trained, result.model)
    assert moved == {
        name
        for module in leaf_modules(trained)
        for name in module.parameters
        if mask[module.name]
    }
    assert len(mask) > sum(mask.values()) == 1


@pytest.mark.parametrize(
    ('transform', 'table', 'row'),
    [(ForgetUsers, 'user_embedding', 0), (ForgetItems, 'item_embedding', 1)],
)
def test_only_rows_of_the_request_move(transform, table, row, data, trained):
    marked = transform([2, 7])(data)
    result = TRU(gate=False, capacity=1.0, num_epochs=1, repair_batches=0)(
        trained, marked
    )
    old = getattr(trained, table).weight
    new = getattr(result.model, table).weight
    rows = (old != new).any(dim=1).nonzero().view(-1).tolist()
    assert rows == [2, 7]
    other = 'item_embedding' if row == 0 else 'user_embedding'
    assert torch.equal(getattr(trained, other).weight, getattr(
        result.model, other).weight)


def test_rows_both_and_all(data, trained):
    marked = ForgetInteractions(ratio=0.02)(data)
    pairs = schema.forgotten_edge_index(marked)
    shared = {'gate': False, 'capacity': 1.0, 'num_epochs': 1, 'repair_batches': 0}
    both = TRU(rows='both', **shared)(trained, marked).model
    moved = (both.item_embedding.weight != trained.item_embedding.weight).any(dim=1)
    assert set(moved.nonzero().view(-1).tolist()) == set(pairs[1].tolist())
    whole = TRU(rows='all', **shared)(trained, marked).model
    moved = (whole.item_embedding.weight != trained.item_embedding.weight).any(dim=1)
    assert moved.sum() > pairs[1].unique().numel()


def test_shared_modules_move_less(marked, trained):
    def shift(rate):
        unlearner = TRU(
            shared_rate=rate, capacity=1.0, num_epochs=1, repair_batches=0, top_k=12
        )
        return unlearner(trained, marked).shift['purifier.image.weight']

    assert shift(0.0) == 0
    assert 0 < shift(0.01) < 0.5 * shift(0.1)


class Rebranched(MGCN):
    r"""An MGCN that tells other branches."""

    def branches(self):
        return self.rebranch(super().branches())


def test_partition_is_checked(data):
    marked = ForgetUsers([3])(data)
    model = Rebranched.from_data(data, hidden_channels=8)
    model.rebranch = lambda branches: {'id': branches['id']}
    with pytest.raises(ValueError, match=r'must be a partition .* but misses'):
        TRU()(model, marked)
    model.rebranch = lambda branches: {'id': branches['id'], 'b': branches['id']}
    with pytest.raises(ValueError, match=r"'b' holds 'user_embedding.weight' again"):
        TRU()(model, marked)
    model.rebranch = lambda branches: {'id': [torch.nn.Parameter(torch.ones(1))]}
    with pytest.raises(ValueError, match=r"'id' holds a foreign one"):
        TRU()(model, marked)


def test_no_fusion_and_single_modality(data):
    del data['item'].x_text
    model = Rebranched.from_data(data, hidden_channels=8)
    model.rebranch = lambda branches: branches
    result = TRU(num_epochs=1)(model, ForgetUsers([3])(data))
    assert set(result.history[0]['alpha']) == {'id', 'image'}
    assert all(math.isfinite(a) for a in result.history[0]['alpha'].values())
    assert 'attention_query' in result.history[0]['gate_modules']

    model.rebranch = lambda branches: {
        'id': branches['id'] + branches['fusion'],
        'image': branches['image'],
    }
    result = TRU(num_epochs=1)(model, ForgetUsers([3])(data))
    assert result.history[0]['gate_modules'] == ['preference.image']


def test_bad_arguments():
    for kwargs, message in [
        ({'rows': 'users'}, "'rows' must be one of"),
        ({'alpha_range': (2.0, 4.0)}, "'alpha_range' must satisfy"),
        ({'capacity': 1.5}, "'capacity' must be a finite number in"),
        ({'top_k': 0}, "'top_k' must be at least 1"),
        ({'sensitivity': 'big'}, "'sensitivity' must be one of"),
        ({'lr_reverse': float('nan')}, "'lr_reverse' must be a finite number"),
        ({'num_passes': 0}, "'num_passes' must be at least 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            TRU(**kwargs)
    with pytest.raises(TypeError, match=r'epochs'):
        TRU(epochs=3)


@onlyCUDA
def test_on_cuda(data, trained):
    marked = ForgetUsers(ratio=0.1)(data)
    settings = {'num_epochs': 2, 'repair_batches': 2}
    expected = TRU(**settings)(trained, marked)
    model = copy.deepcopy(trained).cuda()
    for request in (marked, copy.copy(marked).to('cuda')):
        result = TRU(**settings)(model, request)
        assert result.model.user_embedding.weight.is_cuda
        for x, y in zip(result.model.parameters(), expected.model.parameters()):
            assert torch.allclose(x.cpu(), y, atol=1e-3)
