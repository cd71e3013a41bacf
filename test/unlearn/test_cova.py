import numpy as np
import pytest
import torch

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.metrics import embed
from torch_geometric_unlearn.nn import EmbeddingTable
from torch_geometric_unlearn.transforms import (
    DropForgotten,
    ForgetInteractions,
    ForgetItems,
    ForgetUsers,
)
from torch_geometric_unlearn.unlearn import COVA
from torch_geometric_unlearn.unlearn.cova import ScoreStack, truncated_svd

REQUESTS = [ForgetUsers(ratio=0.1), ForgetItems([2, 4]), ForgetInteractions(ratio=0.1)]


def dense_parts(model, marked):
    r"""The three matrices, row by row as they are defined, in NumPy."""
    emb = embed(model, model.build_graph(marked))
    user_emb, item_emb = (x.double().numpy() for x in emb)
    scores = user_emb @ item_emb.T
    positive = np.zeros(scores.shape, dtype=bool)
    removed = positive.copy()
    positive[tuple(marked[schema.EDGE_TYPE].edge_index.numpy())] = True
    removed[tuple(schema.forgotten_edge_index(marked).numpy())] = True
    first, second = np.empty_like(scores), np.empty_like(scores)
    for row in range(len(scores)):
        known = positive[row]
        first[row, ~known] = scores[row, ~known].mean()
        if known.any():
            first[row, known] = scores[row, known].mean()
        second[row] = first[row]
        second[row, removed[row]] = scores[row].min()
    return first, second, scores


def test_gives_a_table(data, trained):
    assert isinstance(COVA()(trained, ForgetItems([2, 4])(data)).model, EmbeddingTable)


def build_stack(model, marked):
    emb = embed(model, model.build_graph(marked))
    pairs = marked[schema.EDGE_TYPE].edge_index
    return ScoreStack(*emb, pairs, schema.forgotten_edge_index(marked))


@pytest.mark.parametrize('request_', REQUESTS, ids=lambda x: type(x).__name__)
def test_operator_is_the_dense_stack(request_, data, trained):
    # A user without interactions is left from an earlier request.
    marked = request_(DropForgotten()(ForgetUsers([5])(data)))
    dense = torch.from_numpy(np.concatenate(dense_parts(trained, marked)))
    stack = build_stack(trained, marked)
    x, y = torch.randn(60, 7).double(), torch.randn(300, 7).double()
    assert torch.allclose(stack.matmul(x), dense @ x, atol=1e-9)
    assert torch.allclose(stack.t_matmul(y), dense.t() @ y, atol=1e-9)


def test_a_user_who_knows_every_item():
    user_emb, item_emb = torch.randn(2, 3).double(), torch.randn(4, 3).double()
    pairs = torch.tensor([[0, 0, 0, 0, 1], [0, 1, 2, 3, 2]])
    stack = ScoreStack(user_emb, item_emb, pairs, pairs[:, 1:2])
    dense = stack.matmul(torch.eye(4).double())
    scores = user_emb @ item_emb.t()
    assert torch.allclose(dense[0], scores[0].mean().expand(4))
    assert torch.allclose(dense[2, 1], scores[0].min())
    assert torch.allclose(dense[4:], scores)


@pytest.mark.parametrize('rank', [3, 16, 60])
def test_svd_agrees_with_numpy(rank, data, trained):
    marked = ForgetUsers(ratio=0.1)(data)
    dense = np.concatenate(dense_parts(trained, marked))
    left, values, right = np.linalg.svd(dense, full_matrices=False)
    best = left[:, :rank] * values[:rank] @ right[:rank]
    u, s, v = truncated_svd(build_stack(trained, marked), rank, 30, seed=0)
    assert u.shape == (300, rank)
    assert np.allclose(s, values[:rank], rtol=1e-6, atol=1e-9)
    assert np.allclose(u * s @ v.t(), best, atol=1e-4)
    eye = torch.eye(rank).double()
    assert torch.allclose(v.t() @ v, eye, atol=1e-9)
    assert torch.allclose(u.t() @ u, eye, atol=1e-9)


def test_scores_follow_the_formula(data, trained):
    marked = ForgetInteractions(ratio=0.1)(data)
    first, second, scores = dense_parts(trained, marked)
    right = np.linalg.svd(np.concatenate([first, second, scores]))[2][:12]
    alpha, beta = 2.0, 0.7
    target = (1 - beta) * scores + beta * first - alpha * (first - second)
    expected = target @ right.T @ right
    model = COVA(alpha, beta, rank=12, num_iters=60)(trained, marked).model
    assert model.user_embedding.embedding_dim == 12
    got = model.user_embedding.weight @ model.item_embedding.weight.t()
    error = np.abs(got.detach().numpy() - expected).max()
    assert error < 1e-4 * np.abs(expected).max()


def test_only_deleted_pairs_fall(data, trained):
    # At full rank nothing is lost, so all other scores stay as they were.
    marked = ForgetInteractions(ratio=0.1)(data)
    first, second, scores = dense_parts(trained, marked)
    model = COVA(1.0, 0.0, rank=60)(trained, marked).model
    got = model.user_embedding.weight @ model.item_embedding.weight.t()
    change = got.detach().numpy() - scores
    removed = np.zeros_like(scores, dtype=bool)
    removed[tuple(schema.forgotten_edge_index(marked).numpy())] = True
    assert (change[removed] < 0).all()
    assert np.allclose(change[removed], (second - first)[removed], atol=1e-4)
    assert np.abs(change[~removed]).max() < 1e-4


def test_bad_arguments():
    for kwargs, message in [
        ({'alpha': -1.0}, "'alpha' must be a finite number in"),
        ({'beta': float('nan')}, "'beta' must be a finite number in"),
        ({'rank': 0}, "'rank' must be at least 1"),
        ({'num_iters': -1}, "'num_iters' must be at least 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            COVA(**kwargs)
