import pytest
import torch

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.nn import Triplets
from torch_geometric_unlearn.transforms import DropForgotten, ForgetUsers
from torch_geometric_unlearn.unlearn.ranking_fusion_gate import RankingFusionGate


@pytest.fixture
def marked(data):
    return ForgetUsers(ratio=0.1)(data)


def test_threshold_by_brute_force(marked, trained):
    retained = DropForgotten()(marked)
    embeddings = tuple(x.detach() for x in trained(trained.build_graph(retained)))
    gate = RankingFusionGate(retained, k=5)
    users = torch.tensor([4, 0, 4])
    threshold, temperature = gate.thresholds(users, embeddings)
    scores = embeddings[0] @ embeddings[1].t()
    edge_index = retained[schema.EDGE_TYPE].edge_index
    for u, tau in zip(users.tolist(), threshold.tolist()):
        known = set(edge_index[1, edge_index[0] == u].tolist())
        free = [s for i, s in enumerate(scores[u].tolist()) if i not in known]
        assert tau == pytest.approx(sorted(free, reverse=True)[4], abs=1e-6)
    spread = torch.stack([scores[u].std(correction=0) for u in (0, 4)]).mean()
    assert float(temperature) == pytest.approx(float(spread) / 4, rel=1e-5)


def test_gate_opens_in_the_list_and_closes_below(marked, trained):
    retained = DropForgotten()(marked)
    user_emb, item_emb = trained(trained.build_graph(retained))
    user = torch.full((60,), 4)
    item = (user_emb[4] @ item_emb.t()).argsort(descending=True)
    batch = Triplets(user, item, item)
    pos_score = (user_emb[user] * item_emb[item]).sum(dim=-1)
    gate, penalty = RankingFusionGate(retained, k=5)(
        batch, pos_score, (user_emb, item_emb)
    )
    assert (gate.diff() <= 0).all()
    assert gate[0] > 0.5 > gate[-1]
    assert not gate.requires_grad
    assert penalty.requires_grad
    assert penalty > 0


def test_few_items_left_for_a_user(trained, data):
    r"""A user with fewer free items than the list is long has a finite threshold."""
    user_emb, item_emb = trained(trained.build_graph(data))
    gate = RankingFusionGate(data, k=60)
    threshold, _ = gate.thresholds(torch.arange(100), (user_emb, item_emb))
    assert torch.isfinite(threshold).all()
