import pytest
import torch
import torch.nn.functional as F
from torch_geometric.nn import LightGCN

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.loader import TripletLoader
from torch_geometric_unlearn.metrics import evaluate_request
from torch_geometric_unlearn.nn import RecommenderAdapter
from torch_geometric_unlearn.testing import check_unlearner
from torch_geometric_unlearn.transforms import (
    DropForgotten,
    ForgetInteractions,
    ForgetItems,
    ForgetUsers,
)
from torch_geometric_unlearn.unlearn import MMRecUn, NegGrad

REQUESTS = [ForgetUsers(ratio=0.1), ForgetItems([2, 4]), ForgetInteractions(ratio=0.1)]


def test_contract_without_a_side_that_is_kept(data, trained):
    unlearner = NegGrad(0.0, num_epochs=2, batch_size=128)
    check_unlearner(unlearner, trained, ForgetItems([2, 4])(data))


@pytest.mark.parametrize(('beta', 'max_norm'), [(0.95, 1e-2), (0.0, 1.0), (0.3, None)])
def test_steps_by_hand(beta, max_norm, data, trained):
    marked = ForgetUsers(ratio=0.1)(data)
    result = NegGrad(beta, 1e-2, max_norm, num_epochs=1)(trained, marked)

    retained = DropForgotten()(marked)
    with torch.random.fork_rng():
        twin = type(trained).from_data(data, hidden_channels=16)
    twin.load_state_dict(trained.state_dict())
    parameters = list(twin.parameters())
    optimizer = torch.optim.Adam(parameters, lr=1e-2, fused=True)
    graph = twin.build_graph(retained)
    forgotten = schema.forgotten_edge_index(marked)
    forget = next(iter(TripletLoader(
        forgotten,
        60,
        forgotten.size(1),
        known=data[schema.EDGE_TYPE].edge_index,
        negative_items=torch.arange(60),
    )))
    pairs = retained[schema.EDGE_TYPE].edge_index
    retain = next(iter(TripletLoader(pairs, 60, seed=1)))
    user_emb, item_emb = twin(graph)
    score = user_emb @ item_emb.t()
    margin = score[forget.user, forget.pos_item] - score[forget.user, forget.neg_item]
    loss = (1 - beta) * F.logsigmoid(margin).mean() + beta * twin.loss(graph, retain)
    loss.backward()
    if max_norm is not None:
        norm = torch.cat([p.grad.view(-1) for p in parameters]).norm()
        for p in parameters:
            p.grad *= min(1.0, max_norm / float(norm))
    optimizer.step()
    # Adam divides by the gradient, so tiny ones turn rounding into steps.
    for p, q in zip(result.model.parameters(), parameters):
        known = q.grad.abs() > 1e-6
        assert torch.allclose(p[known], q[known], atol=1e-5)


def test_is_mmrecun_in_other_words(data, trained):
    marked = ForgetUsers(ratio=0.1)(data)
    ours = NegGrad(0.6, max_norm=None, num_epochs=1, batch_size=64)(trained, marked)
    theirs = MMRecUn('negate', 'joint', 0.6, num_epochs=1, batch_size=64)
    for p, q in zip(
        ours.model.parameters(), theirs(trained, marked).model.parameters()
    ):
        assert torch.equal(p, q)


def test_forgets_and_stops(data, trained):
    marked = ForgetUsers(ratio=0.1)(data)
    before = evaluate_request(trained, marked, ks=(5,))
    result = NegGrad(0.2, lr=1e-2, num_epochs=30, batch_size=128)(trained, marked)
    after = evaluate_request(result.model, marked, ks=(5,))
    assert after['forget_recall@5'] < 0.6 * before['forget_recall@5']
    assert after['retain_recall@5'] > 0.6 * before['retain_recall@5']
    met = [row['target_met'] for row in result.history]
    assert met == [0.0] * (len(met) - 1) + [1.0]
    assert result.history[-1]['selected']


def test_ascent_looks_at_no_retained_batch(data):
    def loss(model, graph, batch):
        raise RuntimeError('looked at a retained batch')

    model = RecommenderAdapter(LightGCN(160, 8, 2), 100, 60, loss=loss)
    marked = ForgetUsers([3, 17])(data)
    NegGrad(0.0, num_epochs=1)(model, marked)
    with pytest.raises(RuntimeError, match='looked at a retained batch'):
        NegGrad(0.5, num_epochs=1)(model, marked)


def test_bad_arguments():
    for kwargs, message in [
        ({'beta': 1.5}, "'beta' must be a finite number in"),
        ({'lr': -1.0}, "'lr' must be a finite number in"),
        ({'max_norm': 0.0}, "'max_norm' must be a finite number in"),
        ({'num_epochs': 0}, "'num_epochs' must be at least 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            NegGrad(**kwargs)
