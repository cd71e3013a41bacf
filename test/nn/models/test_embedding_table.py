import pytest
import torch

from torch_geometric_unlearn.metrics import embed
from torch_geometric_unlearn.nn import EmbeddingTable, Triplets
from torch_geometric_unlearn.testing import check_model, check_unlearner
from torch_geometric_unlearn.transforms import ForgetUsers
from torch_geometric_unlearn.unlearn import TRU, RowReset


def test_is_the_given_vectors(data):
    user_emb, item_emb = torch.randn(100, 8), torch.randn(60, 8)
    model = EmbeddingTable(user_emb, item_emb)
    check_model(model, data)
    out = embed(model, model.build_graph(data))
    assert torch.equal(out[0], user_emb)
    assert torch.equal(out[1], item_emb)
    user_emb.zero_()
    assert model.user_embedding.weight.abs().min() > 0
    assert all(p.requires_grad for p in model.parameters())


def test_loss(data):
    model = EmbeddingTable(torch.randn(100, 8), torch.randn(60, 8))
    user, pos, neg = torch.tensor([[3, 70], [5, 59], [7, 2]])
    score = model.user_embedding.weight @ model.item_embedding.weight.t()
    margin = score[user, pos] - score[user, neg]
    loss = model.loss(model.build_graph(data), Triplets(user, pos, neg))
    assert torch.allclose(loss, -margin.sigmoid().log().mean())


@pytest.mark.parametrize('unlearner', [TRU(num_epochs=1), RowReset()])
def test_serves_further_requests(unlearner, data):
    model = EmbeddingTable(torch.randn(100, 8), torch.randn(60, 8))
    check_unlearner(unlearner, model, ForgetUsers([3, 17])(data))


def test_bad_shapes():
    for user_emb in (torch.ones(5), torch.ones(5, 3)):
        with pytest.raises(ValueError, match=r'must have shapes \[N, H\] and \[M, H\]'):
            EmbeddingTable(user_emb, torch.ones(4, 2))
