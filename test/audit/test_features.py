import math

import pytest
import torch

from torch_geometric_unlearn.audit._features import (
    PairFeatures,
    weighted_list,
)
from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.metrics import embed
from torch_geometric_unlearn.nn import EmbeddingTable, Served
from torch_geometric_unlearn.transforms import ForgetUsers
from torch_geometric_unlearn.utils.knn import content_neighbors


@pytest.fixture
def marked(data):
    return ForgetUsers(ratio=0.2)(data)


@pytest.fixture
def source(marked, trained):
    graph = trained.build_graph(marked)
    near = content_neighbors(schema.features(marked).values())
    return PairFeatures(Served(trained, graph), marked, near, batch_size=64)


def pairs_of(data):
    forgotten = schema.forgotten_edge_index(data)[:, ::9]
    test = schema.held_out(data, 'test')[:, ::9]
    return torch.cat([forgotten, test, schema.retained_edge_index(data)[:, ::41]], 1)


def ranked(row, item, banned):
    others = [j for j in range(row.numel()) if j != item and j not in banned]
    above = sum(float(row[j] > row[item]) for j in others)
    above += 0.5 * sum(float(row[j] == row[item]) for j in others)
    best = sorted((float(row[j]) for j in others), reverse=True)
    return math.log(1 + above), float(row[item]) - best[19]


def test_pair_features_against_loops(source, marked, trained):
    pairs = pairs_of(marked)
    x = {name: column for name, column in zip(source.names, source(pairs).t())}
    graph = trained.build_graph(marked)
    user_emb, item_emb = embed(trained, graph)
    scores = user_emb @ item_emb.t()
    trained.eval()
    with torch.no_grad():
        parts = trained.branch_embeddings(graph)
    trained.train()
    branches = {name: emb.split([100, 60]) for name, emb in parts.items()}
    retained = schema.retained_edge_index(marked)
    near = content_neighbors(schema.features(marked).values())
    assert x.keys() == {
        *('score', 'score_row', 'score_column', 'log_rank', 'margin', 'cosine'),
        *('user_norm', 'item_norm', 'neighbor_score', 'id_score', 'id_log_rank'),
        *('image_score', 'image_log_rank', 'text_score', 'text_log_rank'),
    }
    for n, (u, i) in enumerate(pairs.t().tolist()):
        row, column = scores[u], scores[:, i]
        banned = set(retained[1, retained[0] == u].tolist())
        norms = float(user_emb[u].norm()), float(item_emb[i].norm())
        log_rank, margin = ranked(row, i, banned)
        want = {
            'score': row[i],
            'score_row': (row[i] - row.mean()) / row.std(),
            'score_column': (row[i] - column.mean()) / column.std(),
            'log_rank': log_rank,
            'margin': margin,
            'cosine': row[i] / norms[0] / norms[1],
            'user_norm': norms[0],
            'item_norm': norms[1],
            'neighbor_score': row[near[i]].mean(),
        }
        for name, (user, item) in branches.items():
            branch_row = user[u] @ item.t()
            want[f'{name}_score'] = branch_row[i]
            want[f'{name}_log_rank'] = ranked(branch_row, i, banned)[0]
        assert want.keys() == x.keys()
        for name, value in want.items():
            assert float(x[name][n]) == pytest.approx(float(value), abs=2e-4), name


def test_other_backbones(marked, trained_miggt):
    graph = trained_miggt.build_graph(marked)
    source = PairFeatures(Served(trained_miggt, graph), marked)
    x = source(pairs_of(marked))
    assert x.isfinite().all()
    assert 'text_log_rank' in source.names
    again = PairFeatures(Served(trained_miggt, graph), marked)
    assert torch.equal(x, again(pairs_of(marked)))


def test_ties_and_constant_scores_stay_finite(marked):
    table = EmbeddingTable(torch.ones(100, 2), torch.ones(60, 2))
    source = PairFeatures(Served.of(table, marked), marked)
    pairs = pairs_of(marked)
    x = source(pairs)
    known = schema.retained_edge_index(marked)[0].bincount(minlength=100)[pairs[0]]
    own = torch.isin(
        schema.pair_codes(pairs, 60),
        schema.pair_codes(schema.retained_edge_index(marked), 60),
    )
    others = (60 - known - (~own).long()).double()
    assert torch.allclose(x[:, 3], (1 + others / 2).log().double(), atol=1e-6)
    assert (x[:, 1] == 0).all()
    assert (x[:, 2] == 0).all()
    assert x.isfinite().all()
    assert 'neighbor_score' not in source.names


def test_own_interaction_does_not_change_the_rank(marked, trained):
    # A retained pair must look as if it had not been masked, or the mask would tell.
    graph = trained.build_graph(marked)
    retained = schema.retained_edge_index(marked)
    pair = retained[:, :1]
    open_data = marked.clone()
    mask = schema.forget_mask(marked).clone()
    store = open_data[schema.EDGE_TYPE]
    mask |= (store.edge_index == pair).all(dim=0)
    store.forget_mask = mask
    masked = PairFeatures(Served(trained, graph), marked)(pair)
    unmasked = PairFeatures(Served(trained, graph), open_data)(pair)
    assert torch.equal(masked, unmasked)


def test_histories_against_loops(source, marked, trained):
    forgotten = schema.forgotten_edge_index(marked)
    users = forgotten[0].unique().flip(0)
    x, names = source.of_histories(schema.forgotten_edge_index(marked), users)
    pair_x = source(forgotten)
    _, item_emb = source.user_emb, source.item_emb
    retained = source.retained
    for n, u in enumerate(users.tolist()):
        part = pair_x[forgotten[0] == u]
        want = [part.mean(0), part.amin(0), part.amax(0), part.std(0, correction=0)]
        assert torch.allclose(x[n, :-2], torch.cat(want), atol=1e-6)
        row = source.user_emb[u] @ item_emb.t()
        row[retained[1, retained[0] == u]] = -torch.inf
        order = row.argsort(descending=True)
        order = order[row[order] > -torch.inf]
        shown = sum((60 - r) / (60 * 61 / 2) * item_emb[i] for r, i in enumerate(order))
        history = item_emb[forgotten[1, forgotten[0] == u]].mean(0)
        assert float(x[n, -2]) == pytest.approx(float((history - shown).norm()), 1e-4)
        cosine = torch.cosine_similarity(history, shown, dim=0)
        assert float(x[n, -1]) == pytest.approx(float(cosine), abs=1e-4)
    assert len(names) == x.size(1)
    assert names[0] == 'mean_score'


def test_weighted_list():
    emb = torch.tensor([[1.0], [10.0]])
    assert weighted_list(torch.tensor([[1, 0], [0, -1]]), emb).view(-1).tolist() == (
        pytest.approx([21 / 3, 2 / 3])
    )
