import json
import math

import pytest
import torch
from torch.distributions import Normal

from torch_geometric_unlearn.audit import likelihood_ratio
from torch_geometric_unlearn.audit.likelihood_ratio import (
    _margins,
    _train_data,
    log_likelihood_ratio,
)
from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.nn import EmbeddingTable, Served
from torch_geometric_unlearn.train import fit
from torch_geometric_unlearn.transforms import ForgetItems, ForgetUsers
from torch_geometric_unlearn.unlearn import EdgeDrop, Retrain, RowReset

FIT = {'num_epochs': 8, 'lr': 0.1, 'batch_size': 128, 'eval_every': 8}
FEW = {'num_models': 4, 'num_bootstrap': 100}


def build(data):
    sizes = schema.num_users(data), schema.num_items(data)
    return EmbeddingTable(*(0.1 * torch.randn(size, 8) for size in sizes))


@pytest.fixture
def marked(data):
    return ForgetUsers(ratio=0.4)(data)


def test_ratio_against_torch_distributions():
    rng = torch.Generator().manual_seed(0)
    for num in (6, 80):
        value = torch.randn(num, 3, generator=rng, dtype=torch.float64)
        inside = torch.rand(num, 3, generator=rng).argsort(dim=0) < num // 2
        value += 2.0 * inside * torch.tensor([1.0, 2, 3])
        own = torch.tensor([0.3, 1, -1], dtype=torch.float64)
        out = log_likelihood_ratio(own, value, inside)
        parts = {}
        for side in (True, False):
            rows = [value[inside[:, t] == side, t] for t in range(3)]
            pooled = sum(((r - r.mean()) ** 2).sum() for r in rows)
            pooled = (pooled / (sum(r.numel() for r in rows) - 3)).sqrt()
            parts[side] = torch.stack(
                [
                    Normal(r.mean(), r.std() if num == 80 else pooled).log_prob(x)
                    for r, x in zip(rows, own)
                ]
            )
        assert torch.allclose(out, parts[True] - parts[False])


def test_catches_what_is_left_and_nothing_after_a_reset(marked):
    kept = likelihood_ratio(marked, build, EdgeDrop(), FIT, **FEW)
    assert kept.auc > 0.9
    assert kept.balanced_accuracy > 0.8
    assert kept.direction == 'remembered'
    assert kept.num_members + kept.num_nonmembers == 4 * 20
    reset = RowReset(init=lambda x: torch.nn.init.normal_(x, std=0.1))
    gone = likelihood_ratio(marked, build, reset, FIT, **FEW)
    assert abs(gone.auc - 0.5) < 0.2
    assert kept.auc - gone.auc > 0.3
    again = likelihood_ratio(marked, build, reset, FIT, **FEW)
    assert again.to_dict() == gone.to_dict()
    json.dumps(gone.to_dict())


def test_judges_a_given_model(marked):
    torch.manual_seed(0)
    original = build(marked)
    fit(original, _train_data(marked, schema.forgotten_edge_index(marked)), **FIT)
    fresh = Retrain(build, **FIT)(original, marked).model
    flagged = {}
    for name, model in (('original', original), ('retrained', fresh)):
        result = likelihood_ratio(marked, build, EdgeDrop(), FIT, model, **FEW)
        flagged[name] = result.details['flagged']
    assert flagged['original'] > 0.7
    assert flagged['retrained'] < 0.3


def test_pairs_as_targets(data):
    marked = ForgetItems(ratio=0.2)(data)
    options = {'level': 'pair', 'num_targets': 100, 'num_models': 8}
    result = likelihood_ratio(marked, build, EdgeDrop(), FIT, **options)
    assert result.intervals['auc'][0] > 0.5
    assert result.details['num_targets'] == 100
    with pytest.raises(ValueError, match="'level' must be 'pair' for a request"):
        likelihood_ratio(marked, build, EdgeDrop())


def test_shadow_data_holds_the_chosen_half_only(marked):
    forgotten = schema.forgotten_edge_index(marked)
    half = forgotten[:, forgotten[0] % 2 == 0]
    out = _train_data(marked, half)
    schema.validate(out)
    want = torch.cat([schema.retained_edge_index(marked), half], dim=1)
    codes = schema.pair_codes(out[schema.EDGE_TYPE].edge_index, 60).sort()[0]
    assert torch.equal(codes, schema.pair_codes(want, 60).sort()[0])
    assert 'forget_users' not in out
    assert not torch.isin(out.val_edge_label_index[0], marked['forget_users']).any()
    assert 'forget_mask' in marked[schema.EDGE_TYPE]


def test_margins_against_loops(marked):
    model = build(marked)
    pairs = schema.forgotten_edge_index(marked)[:, :30]
    users, target = pairs[0].unique(return_inverse=True)
    out = _margins(Served.of(model, marked), pairs, target)
    scores = (model.user_embedding.weight @ model.item_embedding.weight.t()).detach()
    for n, u in enumerate(users):
        own = scores[u, pairs[1, pairs[0] == u]]
        margin = own.mean() - scores[u].mean()
        assert float(out[n]) == pytest.approx(float(margin), abs=1e-6)


def test_too_few_targets_and_bad_arguments(data, marked):
    few = ForgetUsers([1, 2])(data)
    with pytest.warns(UserWarning, match=r'needs 20 targets \(got 2\)'):
        assert math.isnan(likelihood_ratio(few, build, EdgeDrop()).auc)
    for kwargs, message in [
        ({'num_models': 5}, "'num_models' must be even"),
        ({'num_models': 2}, "'num_models' must be at least 4"),
        ({'level': 'item'}, "'level' must be one of"),
        ({'num_targets': 0}, "'num_targets' must be at least 1"),
        ({'seed': -1}, "'seed' must be an integer in"),
    ]:
        with pytest.raises(ValueError, match=message):
            likelihood_ratio(marked, build, EdgeDrop(), **kwargs)
