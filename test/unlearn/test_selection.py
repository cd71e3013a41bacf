import copy
import math

import pytest
import torch

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.metrics import embed, evaluate_split
from torch_geometric_unlearn.transforms import DropForgotten, ForgetItems, ForgetUsers
from torch_geometric_unlearn.unlearn import selection
from torch_geometric_unlearn.unlearn.selection import ForgetTarget, Selector


def share_in_top(model, graph, pairs, known, k):
    user_emb, item_emb = embed(model, graph)
    known = set(map(tuple, known.t().tolist()))
    hits = 0
    for u, i in pairs.t().tolist():
        scores = (user_emb[u] @ item_emb.t()).tolist()
        above = [
            j
            for j, s in enumerate(scores)
            if j != i and (u, j) not in known and (s > scores[i])
        ]
        hits += len(above) < k
    return hits / pairs.size(1)


@pytest.mark.parametrize(('transform', 'row'), [(ForgetUsers, 0), (ForgetItems, 1)])
def test_levels_by_brute_force(transform, row, data, trained, monkeypatch):
    monkeypatch.setattr(selection, 'MIN_PAIRS', 1)
    marked = transform(list(range(10)))(data)
    retained = DropForgotten()(marked)
    graph = trained.build_graph(retained)
    out = ForgetTarget(marked, retained, k=5).measure(trained, graph)

    forgotten = schema.forgotten_edge_index(marked)
    train = data[schema.EDGE_TYPE].edge_index
    val = data.val_edge_label_index
    known = torch.cat([train, val], dim=1)
    reference = val[:, torch.isin(val[row], torch.arange(10))]
    level = share_in_top(trained, graph, forgotten, known, 5)
    assert out['forget_hit_rate'] == pytest.approx(level, abs=1e-6)
    level = share_in_top(trained, graph, reference, known, 5)
    assert out['reference_hit_rate'] == pytest.approx(level, abs=1e-6)
    if row == 0:
        ndcg = evaluate_split(trained, retained, 'val', graph, ks=(5,))['ndcg@5']
        assert out['retain_val_ndcg@5'] == pytest.approx(ndcg)


def test_few_validation_pairs_of_the_same_users(data):
    marked = ForgetUsers([3])(data)
    target = ForgetTarget(marked, DropForgotten()(marked))
    assert torch.equal(target.reference, data.val_edge_label_index)


def test_nothing_non_finite_counts(data, trained):
    marked = ForgetUsers([3])(data)
    retained = DropForgotten()(marked)
    broken = copy.deepcopy(trained)
    with torch.no_grad():
        broken.user_embedding.weight[5, 0] = torch.nan
    target = ForgetTarget(marked, retained)
    row = target.measure(broken, broken.build_graph(retained))
    assert row['target_met'] == 0.0
    assert math.isnan(row['forget_hit_rate'])
    selector = Selector('retain_val_ndcg@20')
    assert not selector.update(broken, row, 0)
    finite = target.measure(trained, trained.build_graph(retained))
    assert not selector.update(broken, finite, 1)  # Figures of another state.
    assert selector.state is None
    assert selector.update(trained, finite, 2)


def test_selector_rule():
    model = torch.nn.Linear(1, 1)
    selector = Selector('ndcg')
    rows = [
        {'target_met': 1.0, 'miss': math.nan, 'ndcg': 0.9},
        {'target_met': 0.0, 'miss': 0.5, 'ndcg': 0.9},
        {'target_met': 0.0, 'miss': 0.3, 'ndcg': 0.1},
        {'target_met': 0.0, 'miss': 0.4, 'ndcg': 0.9},
        {'target_met': 1.0, 'miss': 0.1, 'ndcg': 0.2},
        {'target_met': 1.0, 'miss': 0.2, 'ndcg': 0.3},
        {'target_met': 1.0, 'miss': 0.0, 'ndcg': 0.3},
        {'target_met': 0.0, 'miss': 0.0, 'ndcg': 1.0},
    ]
    taken = []
    for index, row in enumerate(rows):
        with torch.no_grad():
            model.weight.fill_(index)
        taken.append(selector.update(model, row, index))
    assert taken == [False, True, True, False, True, True, False, False]
    assert selector.index == 5
    assert float(selector.state['weight']) == 5
