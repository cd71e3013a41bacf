import copy
import itertools

import pytest
import torch

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.metrics import evaluate_request
from torch_geometric_unlearn.transforms import ForgetUsers
from torch_geometric_unlearn.unlearn import MMRecUn


@pytest.mark.parametrize('form', ['swap', 'negate'])
def test_one_step_lowers_the_margin(form, data, trained):
    marked = ForgetUsers(ratio=0.2)(data)
    graph = trained.build_graph(marked)
    pairs = schema.forgotten_edge_index(marked)

    @torch.no_grad()
    def margin(model):
        user_emb, item_emb = model(graph)
        scores = user_emb[pairs[0]] @ item_emb.t()
        own = scores.gather(1, pairs[1:].t()).squeeze(1)
        return float((own - scores.mean(dim=1)).mean())

    unlearner = MMRecUn(form=form, num_epochs=1, repair_batches=0)
    result = unlearner(trained, marked)
    assert margin(result.model) < margin(copy.deepcopy(trained))


@pytest.mark.parametrize('schedule', ['alternate', 'joint'])
def test_forgets_and_retains(schedule, data, trained):
    marked = ForgetUsers(ratio=0.1)(data)
    before = evaluate_request(trained, marked, ks=(5,))
    own = {'alternate': {'lr_reverse': 2e-2}, 'joint': {'alpha': 0.2}}[schedule]
    unlearner = MMRecUn(schedule=schedule, lr_repair=5e-3, batch_size=128, **own)
    result = unlearner(trained, marked)
    after = evaluate_request(result.model, marked, ks=(5,))
    assert after['forget_recall@5'] < 0.6 * before['forget_recall@5']
    assert after['retain_recall@5'] > 0.7 * before['retain_recall@5']


def test_stops_reversing_once_the_target_is_met(data, trained):
    marked = ForgetUsers(ratio=0.1)(data)
    history = MMRecUn(lr_reverse=2e-2, batch_size=128)(trained, marked).history
    for before, row in itertools.pairwise(history):
        assert row['reversed'] != bool(before['target_met'])
    assert sum(row['selected'] for row in history) == 1
    chosen = next(row for row in history if row['selected'])
    met = [row for row in history if row['target_met']]
    assert chosen in met
    assert chosen['retain_val_ndcg@20'] == max(r['retain_val_ndcg@20'] for r in met)


def test_row_reset_is_a_separate_switch(data, trained):
    marked = ForgetUsers([3])(data)
    plain = MMRecUn(num_epochs=1)(trained, marked).model
    reset = MMRecUn(num_epochs=1, row_reset=True)(trained, marked).model
    changed = (plain.user_embedding.weight != reset.user_embedding.weight).any(dim=1)
    assert changed.nonzero().view(-1).tolist() == [3]


def test_bad_arguments():
    for kwargs, message in [
        ({'form': 'flip'}, "'form' must be one of"),
        ({'schedule': 'both'}, "'schedule' must be one of"),
        ({'alpha': 1.5}, "'alpha' must be a finite number in"),
        ({'num_epochs': 0}, "'num_epochs' must be at least 1"),
        ({'lr_reverse': -1.0}, "'lr_reverse' must be a finite number in"),
        ({'seed': -1}, "'seed' must be an integer in"),
    ]:
        with pytest.raises(ValueError, match=message):
            MMRecUn(**kwargs)
    with pytest.raises(TypeError, match=r'rounds'):
        MMRecUn(rounds=3)
