from __future__ import annotations

import copy

import pytest
import torch

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.metrics import embed
from torch_geometric_unlearn.nn import MIGGT, EmbeddingTable
from torch_geometric_unlearn.testing import check_unlearner
from torch_geometric_unlearn.transforms import (
    ForgetInteractions,
    ForgetItems,
    ForgetUsers,
)
from torch_geometric_unlearn.unlearn import TRU, NeverSeen, RowReset
from torch_geometric_unlearn.unlearn.calibration import (
    _content_mean,
    standard_scores,
)
from torch_geometric_unlearn.unlearn.selection import ForgetTarget
from torch_geometric_unlearn.utils.seed import isolated_seed


def test_standard_scores_against_dense():
    torch.manual_seed(0)
    user_emb, item_emb = torch.randn(7, 5).double(), torch.randn(11, 5).double()
    user_emb[3] = 0  # Scores all items alike.
    pairs = torch.stack([torch.arange(7), torch.randint(11, (7,))])
    score = user_emb @ item_emb.t()
    std = score.std(dim=1, correction=0, keepdim=True).clamp(min=1e-12)
    expected = ((score - score.mean(dim=1, keepdim=True)) / std)[tuple(pairs)]
    out = standard_scores(user_emb, item_emb, pairs)
    assert torch.allclose(out, expected, atol=1e-10)
    assert out[3] == 0


def test_content_mean_by_loops(data):
    mean = _content_mean(data)
    dense = torch.zeros(60, 60)
    dense[tuple(mean.edge_index.flip(0))] = mean.edge_weight
    unit = [torch.nn.functional.normalize(x) for x in schema.features(data).values()]
    score = sum(x @ x.t() for x in unit)
    score.fill_diagonal_(-9.0)
    near = torch.zeros(60, 60, dtype=torch.bool)
    near.scatter_(1, score.topk(10)[1], True)
    assert torch.allclose(dense.sum(dim=1), torch.ones(60))
    assert torch.equal(dense > 0, near)
    for name in schema.modalities(data):
        del data['item'][f'x_{name}']
    assert _content_mean(data) is None


def goal_of(marked, reference, anchor=0.0, model=None):
    if model is None:
        torch.manual_seed(0)
        model = EmbeddingTable(torch.randn(100, 8), torch.randn(60, 8))
    return NeverSeen(model, model.build_graph(marked), marked, reference, anchor, 0)


def smooth_l1(gap):
    return torch.where(gap.abs() < 1, gap.pow(2) / 2, gap.abs() - 0.5).mean()


def test_loss_is_the_mean_distance_of_sorted_views(data):
    for name in schema.modalities(data):
        del data['item'][f'x_{name}']
    marked = ForgetUsers(ratio=0.2)(data)
    pairs = schema.forgotten_edge_index(marked)
    reference = schema.held_out(marked, 'val')[:, : pairs.size(1)]
    pairs = schema.forgotten_edge_index(marked)
    goal = goal_of(marked, reference)
    user_emb, item_emb = goal.model(goal.graph)
    score = user_emb @ item_emb.t()
    norms = user_emb.norm(dim=1, keepdim=True) * item_emb.norm(dim=1)
    views = [
        (score - score.mean(1, True)) / score.std(1, correction=0, keepdim=True),
        (score - score.mean(0)) / score.std(0, correction=0),
        score / norms / (score / norms)[tuple(reference)].std(correction=0),
    ]
    expected = torch.stack([
        smooth_l1(
            goal.strata.sort(view[tuple(pairs)])
            - goal.strata.goals(view[tuple(reference)])
        )
        for view in views
    ]).mean()
    assert torch.allclose(goal(), expected, atol=1e-5)


def test_views_follow_the_model(data, trained):
    marked = ForgetInteractions(ratio=0.1)(data)
    reference = schema.held_out(marked, 'val')
    goal = goal_of(marked, reference, model=trained)
    views = {'row', 'column', 'cosine', 'neighbors'}
    assert set(goal.measure()['auc']) == views | {'id', *schema.modalities(data)}
    assert set(goal_of(marked, reference).measure()['auc']) == views


def test_same_pairs_are_met_at_once(data, trained):
    marked = ForgetInteractions(ratio=0.1)(data)
    goal = goal_of(marked, schema.forgotten_edge_index(marked), model=trained)
    assert float(goal().detach()) == pytest.approx(0.0, abs=1e-9)
    out = goal.measure()
    assert out['target_met'] == 1.0
    assert out['miss'] == pytest.approx(0.0, abs=1e-9)
    anything = torch.stack([torch.randint(100, (400,)), torch.randint(60, (400,))])
    assert goal_of(marked, anything, model=trained).measure()['target_met'] == 0.0


def test_anchor_is_zero_at_the_start_and_holds_near_pairs(data):
    marked = ForgetUsers([3])(data)
    reference = schema.held_out(marked, 'val')
    plain, held = goal_of(marked, reference), goal_of(marked, reference, anchor=5.0)
    assert torch.allclose(plain(), held(), atol=1e-5)
    torch.manual_seed(1)
    for goal in (plain, held):
        with torch.no_grad(), isolated_seed(1):
            user_emb = goal.model.user_embedding.weight
            user_emb += torch.randn_like(user_emb)
    assert held() > plain() + 0.1
    items = schema.forgotten_edge_index(marked)[1]
    assert torch.isin(held.retained[1], items).all()  # The user itself has none left.


def test_no_reference_is_explained(data, trained):
    marked = ForgetUsers([3])(data)
    with pytest.raises(ValueError, match="Use TRU\\('lowest'\\)"):
        goal_of(marked, torch.empty(2, 0, dtype=torch.long), model=trained)


@pytest.mark.parametrize(
    'request_',
    [ForgetUsers(ratio=0.1), ForgetItems(ratio=0.1), ForgetInteractions(ratio=0.1)],
    ids=lambda x: type(x).__name__,
)
def test_brings_pairs_to_never_seen(request_, data, trained):
    marked = request_(data)
    result = check_unlearner(TRU('never_seen', num_epochs=8), trained, marked)
    reference = ForgetTarget(marked, result.data).reference
    before = goal_of(marked, reference, model=trained).measure()
    after = goal_of(marked, reference, model=result.model).measure()
    assert before['auc']['row'] > 0.65
    assert after['miss'] < 0.6 * before['miss']
    chosen = next(row for row in result.history if row['selected'])
    assert chosen['miss'] == pytest.approx(after['miss'], abs=1e-3)


def test_user_level_moves_items_and_leaves_fresh_users_as_drawn(data, trained):
    marked = ForgetUsers([3, 17])(data)
    kwargs = {'shared_rate': 0.0, 'repair_batches': 0, 'num_epochs': 2, 'seed': 0}
    result = TRU('never_seen', **kwargs)(trained, marked)
    assert result.history[0]['reversed']
    model, fresh = result.model, RowReset(seed=0)(trained, marked).model
    assert torch.equal(model.user_embedding.weight, fresh.user_embedding.weight)
    changed = (model.item_embedding.weight != trained.item_embedding.weight).any(dim=1)
    items = schema.forgotten_edge_index(marked)[1].unique()
    assert torch.equal(changed.nonzero().view(-1), items)
    assert all(torch.isfinite(x).all() for x in embed(model, model.build_graph(data)))


def test_nothing_is_reversed_where_fresh_rows_suffice(data, trained, monkeypatch):
    met = {'target_met': 1.0, 'miss': 0.0, 'retain_val_ndcg@20': 0.1}
    monkeypatch.setattr(TRU, '_measure', lambda *args: met)
    marked = ForgetUsers(ratio=0.1)(data)
    result = TRU(repair_batches=0, seed=3)(trained, marked)
    assert [row['reversed'] for row in result.history] == [False]
    expected = RowReset(seed=3)(trained, marked).model.state_dict()
    for name, value in result.model.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_item_level_moves_other_items_only(data, trained):
    marked = ForgetItems(ratio=0.1)(data)
    result = TRU(shared_rate=0.0, num_epochs=2, seed=3)(trained, marked)
    fresh = RowReset(seed=3)(trained, marked).model.item_embedding.weight
    gone = marked['forget_items']
    assert result.history[0]['reversed']
    assert torch.equal(result.model.item_embedding.weight[gone], fresh[gone])
    result = TRU(shared_rate=0.0, repair_batches=0, num_epochs=2)(trained, marked)
    model = result.model
    assert torch.equal(model.user_embedding.weight, trained.user_embedding.weight)
    moved = (model.item_embedding.weight != trained.item_embedding.weight).any(dim=1)
    assert moved.all()
    for name in schema.modalities(data):
        assert torch.equal(model.features[name].weight, trained.features[name].weight)


def test_plan_follows_request_and_model(data, trained):
    torch.manual_seed(0)
    miggt = MIGGT.from_data(data, hidden_channels=8, encoder_channels=16)
    marked = ForgetInteractions(ratio=0.1)(data)
    kwargs = {'num_epochs': 1, 'repair_batches': 0}
    with_rows = TRU(**kwargs)(trained, marked).history[0]['plan']
    without = TRU(num_passes=2, **kwargs)(miggt, marked).history[0]['plan']
    assert (with_rows['rows'], with_rows['reach']) == ('both', 0.6)
    assert (without['shared_rate'], without['num_passes']) == (0.1, 2)
    assert with_rows['num_epochs'] == 1
    lowest = TRU('lowest', anchor=3.0)(trained, marked).history[0]['plan']
    assert (lowest['rows'], lowest['capacity'], lowest['anchor']) == ('user', 0.3, 3.0)


def test_step_sizes_follow_the_fresh_rows(data, trained):
    r"""Adam's first step is the step size, whatever the trained rows were like."""
    marked = ForgetUsers([3, 17])(data)
    kwargs = {'num_epochs': 1, 'num_passes': 1, 'repair_batches': 0, 'reach': 0.1}
    kwargs['rows'] = 'user'
    large = copy.deepcopy(trained)
    with torch.no_grad():
        large.user_embedding.weight[[3, 17]] *= 1000
    fresh = RowReset(seed=0)(large, marked).model.user_embedding.weight
    result = TRU(scaling=False, **kwargs)(large, marked)
    assert result.history[0]['reversed']
    moved = (result.model.user_embedding.weight - fresh)[[3, 17]].abs()
    assert 0 < moved.max() < 0.2 * fresh[[3, 17]].abs().max()
