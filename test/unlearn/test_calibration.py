from __future__ import annotations

import pytest
import torch
from sklearn.metrics import roc_auc_score

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.loader import TripletLoader
from torch_geometric_unlearn.metrics import embed
from torch_geometric_unlearn.nn import EmbeddingTable
from torch_geometric_unlearn.testing import check_unlearner
from torch_geometric_unlearn.transforms import (
    ForgetInteractions,
    ForgetItems,
    ForgetUsers,
)
from torch_geometric_unlearn.unlearn import TRU, NeverSeen
from torch_geometric_unlearn.unlearn.calibration import _content_mean, standard_scores
from torch_geometric_unlearn.unlearn.selection import ForgetTarget, _auc


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


def test_auc_against_sklearn():
    torch.manual_seed(0)
    positive, negative = torch.randn(30).round(decimals=1), torch.randn(50).round()
    label = torch.cat([torch.ones(30), torch.zeros(50)])
    expected = roc_auc_score(label, torch.cat([positive, negative]))
    assert _auc(positive, negative) == pytest.approx(expected)
    assert torch.isnan(torch.tensor(_auc(positive[:0], negative)))


def test_content_mean_by_loops(data):
    mean = _content_mean(data)
    dense = torch.zeros(60, 60)
    dense[tuple(mean.edge_index.flip(0))] = mean.edge_weight
    near = torch.zeros(60, 60, dtype=torch.bool)
    for x in schema.features(data).values():
        x = torch.nn.functional.normalize(x)
        score = x @ x.t()
        score.fill_diagonal_(2.0)  # First of its own neighbours.
        near.scatter_(1, score.topk(11)[1], True)
    near.fill_diagonal_(False)
    assert torch.allclose(dense.sum(dim=1), torch.ones(60))
    assert torch.equal(dense > 0, near)
    for name in schema.modalities(data):
        del data['item'][f'x_{name}']
    assert _content_mean(data) is None


def one_step(marked, reference, anchor=0.0):
    torch.manual_seed(0)
    model = EmbeddingTable(torch.randn(100, 8), torch.randn(60, 8))
    embeddings = model(model.build_graph(marked))
    goal = NeverSeen(marked, reference, anchor, batch_size=64, seed=0)
    goal.start(tuple(x.detach() for x in embeddings))
    pairs = schema.forgotten_edge_index(marked)
    loader = TripletLoader(pairs, 60, batch_size=1000)
    return goal, next(iter(loader)), embeddings


def test_loss_is_the_distance_of_sorted_scores(data):
    for name in schema.modalities(data):  # No neighbours, hence one view.
        del data['item'][f'x_{name}']
    marked = ForgetUsers(ratio=0.2)(data)
    reference = schema.held_out(marked, 'val')[:, :1]  # Always the same draw.
    goal, batch, (user_emb, item_emb) = one_step(marked, reference)
    own = standard_scores(
        user_emb, item_emb, torch.stack([batch.user, batch.pos_item])
    )
    other = standard_scores(user_emb, item_emb, reference)
    gap = (own - other).abs()
    expected = torch.where(gap < 1, gap.pow(2) / 2, gap - 0.5).mean()
    assert torch.allclose(goal(batch, (user_emb, item_emb)), expected)


def test_anchor_is_zero_at_the_start_and_holds_near_pairs(data):
    marked = ForgetUsers([3])(data)
    reference = schema.forgotten_edge_index(marked)[:, :1]  # Always the same draw.
    goal, batch, embeddings = one_step(marked, reference)
    held, _, _ = one_step(marked, reference, anchor=5.0)
    held.start(tuple(x.detach() for x in embeddings))
    plain, with_anchor = goal(batch, embeddings), held(batch, embeddings)
    assert torch.allclose(plain, with_anchor, atol=1e-5)
    moved = (embeddings[0] + torch.randn(100, 8), embeddings[1])
    assert held(batch, moved) > goal(batch, moved) + 0.1
    items = schema.forgotten_edge_index(marked)[1]
    assert torch.isin(held.retained[1], items).all()  # The user itself has none left.


@pytest.mark.parametrize(
    'request_',
    [ForgetUsers(ratio=0.1), ForgetItems(ratio=0.1), ForgetInteractions(ratio=0.1)],
    ids=lambda x: type(x).__name__,
)
def test_brings_pairs_to_never_seen(request_, data, trained):
    marked = request_(data)
    result = check_unlearner(TRU('never_seen', num_epochs=8), trained, marked)
    target = ForgetTarget(marked, result.data, two_sided=True)
    before = target.measure(trained, trained.build_graph(result.data))
    after = target.measure(result.model, result.model.build_graph(result.data))
    assert before['auc'] > 0.65
    assert abs(after['auc'] - 0.5) < 0.6 * (before['auc'] - 0.5)
    assert after['miss'] == pytest.approx(abs(after['auc'] - 0.5))


def test_user_level_moves_deleted_users_only(data, trained):
    marked = ForgetUsers([3, 17])(data)
    unlearner = TRU('never_seen', shared_rate=0.0, repair_batches=0, num_epochs=2)
    model = unlearner(trained, marked).model
    changed = (model.user_embedding.weight != trained.user_embedding.weight).any(dim=1)
    assert changed.nonzero().view(-1).tolist() == [3, 17]
    assert torch.equal(model.item_embedding.weight, trained.item_embedding.weight)
    assert all(torch.isfinite(x).all() for x in embed(model, model.build_graph(data)))
