import copy
import functools
import json

import pytest
import torch
from sklearn.linear_model import LogisticRegression

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.nn import MGCN, ColumnParallelLightGCN
from torch_geometric_unlearn.nn.models import ShardEnsemble
from torch_geometric_unlearn.testing import check_unlearner
from torch_geometric_unlearn.train import fit
from torch_geometric_unlearn.transforms import (
    DropForgotten,
    ForgetInteractions,
    ForgetItems,
    ForgetUsers,
)
from torch_geometric_unlearn.unlearn import UltraRE, ultrare
from torch_geometric_unlearn.unlearn.ultrare import simplex_weights
from torch_geometric_unlearn.utils.seed import isolated_seed

build = functools.partial(MGCN.from_data, hidden_channels=8)


def make(num_shards=3, grouping='random', **kwargs):
    return UltraRE(build, num_shards, grouping, **{'num_epochs': 2, **kwargs})


def by_hand(data, owner, group, seed=999, **kwargs):
    r"""A shard trained from scratch on the group's part of the data, cut here."""
    view = copy.copy(data)
    store = view[schema.EDGE_TYPE]
    store.edge_index = store.edge_index[:, owner[store.edge_index[0]] == group]
    view.val_edge_label_index = view.val_edge_label_index[
        :, owner[view.val_edge_label_index[0]] == group
    ]
    del view['test_edge_label_index']
    with isolated_seed(seed):
        shard = build(view)
    fit(shard, view, seed=seed, **{'num_epochs': 2, 'patience': 10, **kwargs})
    return shard


def assert_same_state(a, b):
    for (name, value), other in zip(a.state_dict().items(), b.state_dict().values()):
        assert torch.equal(value, other), name


REQUESTS = {
    'user': ForgetUsers([3, 17]),
    'item': ForgetItems([5]),
    'interaction': ForgetInteractions(ratio=0.02),
}


@pytest.mark.parametrize('kwargs', [
    {'grouping': 'data'},
    {'combination': 'mean_items'},
    {'combination': 'calibrated_mean'},
    {'grouping': 'clean', 'solver': 'sinkhorn', 'num_rounds': 2},
])
def test_contract_of_the_variants(kwargs, data, trained):
    if 'grouping' in kwargs:
        pytest.importorskip('ot')
    check_unlearner(make(**kwargs), trained, ForgetUsers([3])(data))


@pytest.mark.parametrize('level', REQUESTS)
def test_equals_training_without_the_data(level, data):
    r"""Every shard, re-trained or not, is the one that training on the retained data
    alone gives.
    """
    unlearner = make(seed=5, num_epochs=4, lr=1e-2)
    unlearner.prepare(None, data)
    before = unlearner.ensemble
    marked = REQUESTS[level](data)
    result = unlearner(before, marked)
    retained = DropForgotten()(marked)
    for k, shard in enumerate(result.model.shards):
        expected = by_hand(retained, before.owner, k, 5, num_epochs=4, lr=1e-2)
        assert_same_state(expected, shard)
    assert torch.equal(result.model.owner, before.owner)


def test_one_deleted_user_re_trains_one_shard(data):
    unlearner = make(num_shards=4)
    unlearner.prepare(None, data)
    before = unlearner.ensemble
    result = unlearner(before, ForgetUsers([3])(data))
    (row,) = result.history
    own = int(before.owner[3])
    assert row['shard'] == own
    for k in range(4):
        same = [
            torch.equal(value, result.model.shards[k].state_dict()[name])
            for name, value in before.shards[k].state_dict().items()
        ]
        assert all(same) == (k != own)
    changed = {name for name, share in result.touched.items() if share > 0}
    assert all(name.startswith(f'shards.{own}.') for name in changed)


def test_a_lost_validation_pair_touches_its_group(data):
    r"""An item whose training interactions are all in one group, but which another
    group validates on.
    """
    unlearner = make(num_shards=2)
    unlearner.prepare(None, data)
    owner = unlearner.ensemble.owner
    store, validation = data[schema.EDGE_TYPE], data.val_edge_label_index
    item = int(validation[1, owner[validation[0]] == 1][0])
    foreign = (store.edge_index[1] == item) & (owner[store.edge_index[0]] == 1)
    store.edge_index = store.edge_index[:, ~foreign]
    unlearner.prepare(None, data)
    result = unlearner(unlearner.ensemble, ForgetItems([item])(data))
    assert [row['shard'] for row in result.history] == [0, 1]
    expected = by_hand(result.data, owner, 1)
    assert_same_state(expected, result.model.shards[1])


def test_shards_start_from_equal_tables(data):
    r"""Rows of foreign users are never trained, so they still show the start."""
    unlearner = make(num_shards=3)
    unlearner.prepare(None, data)
    ensemble = unlearner.ensemble
    tables = [shard.user_embedding.weight for shard in ensemble.shards]
    for k in range(3):
        foreign = ensemble.owner == k
        assert torch.equal(tables[(k + 1) % 3][foreign], tables[(k + 2) % 3][foreign])
        assert not torch.equal(tables[k][foreign], tables[(k + 1) % 3][foreign])


def test_deleted_user_keeps_its_initial_row(data):
    unlearner = make()
    unlearner.prepare(None, data)
    model = unlearner(unlearner.ensemble, ForgetUsers([3])(data)).model
    with isolated_seed(999):
        fresh = build(data)
    row = model.shards[int(model.owner[3])].user_embedding.weight[3]
    assert torch.equal(row, fresh.user_embedding.weight[3])


def test_the_groups_do_not_depend_on_the_request(data, trained):
    pytest.importorskip('ot')
    unlearner = make(grouping='data', num_epochs=1)
    first = unlearner(trained, ForgetUsers([3])(data)).model
    second = unlearner(trained, ForgetItems([5])(data)).model
    assert torch.equal(first.owner, second.owner)


def test_clean_groups_ignore_the_forgotten(data):
    pytest.importorskip('ot')
    marked = ForgetUsers(ratio=0.3)(data)
    owners = []
    for source in (marked, DropForgotten()(marked)):
        unlearner = make(grouping='clean', num_epochs=1)
        unlearner.prepare(None, source)
        owners.append(unlearner.ensemble.owner)
    assert torch.equal(*owners)
    unlearner.prepare(None, data)
    assert not torch.equal(owners[0], unlearner.ensemble.owner)


def test_content_vectors(data):
    marked = ForgetUsers([3])(data)
    vectors = ultrare._content_vectors(marked)
    edge_index = schema.retained_edge_index(marked)
    for user in (0, 3, 50):
        items = edge_index[1, edge_index[0] == user]
        expected = torch.zeros(28)
        if items.numel() > 0:
            x = [data['item'].x_image[items], data['item'].x_text[items]]
            unit = [part / part.norm(dim=1, keepdim=True) for part in x]
            expected = torch.cat(unit, dim=1).mean(dim=0)
        assert torch.allclose(vectors[user], expected, atol=1e-6)


def test_preparation_is_done_once_and_not_counted(data, trained, monkeypatch):
    trained_groups = []
    run = ultrare._Job.run
    monkeypatch.setattr(
        ultrare._Job, 'run', lambda job: trained_groups.append(job.group) or run(job)
    )
    unlearner = make()
    marked = ForgetUsers([3])(data)
    first = unlearner(trained, marked)
    own = first.history[0]['shard']
    assert trained_groups == [0, 1, 2, own]
    second = unlearner(trained, marked)
    assert trained_groups == [0, 1, 2, own, own]
    assert_same_state(first.model, second.model)
    assert sum(row['seconds'] for row in unlearner.prepare_history) > 0
    assert first.seconds < sum(row['seconds'] for row in first.history) + 1

    data['item'].x_text = data['item'].x_text + 1
    unlearner(trained, ForgetUsers([3])(data))
    assert trained_groups[5:] == [0, 1, 2, own]


def test_prepared_and_original_give_the_same(data, trained):
    pytest.importorskip('ot')
    marked = ForgetUsers([3, 4])(data)
    direct = make(grouping='data')(trained, marked)
    unlearner = make(grouping='data')
    unlearner.prepare(build, data, model=trained)
    state = copy.deepcopy(unlearner.ensemble)
    staged = unlearner(unlearner.ensemble, marked)
    assert_same_state(direct.model, staged.model)
    assert_same_state(state, unlearner.ensemble)


def test_requests_in_a_row_equal_one_request(data):
    unlearner = make()
    unlearner.prepare(None, data)
    first = unlearner(unlearner.ensemble, ForgetUsers([3])(data))
    second = unlearner(first.model, ForgetUsers([17])(first.data))
    both = unlearner(unlearner.ensemble, ForgetUsers([3, 17])(data))
    assert_same_state(second.model, both.model)


def test_history(data):
    unlearner = make(num_epochs=3)
    unlearner.prepare(None, data)
    marked = ForgetUsers([3, 17, 40])(data)
    result = unlearner(unlearner.ensemble, marked)
    rows = json.loads(json.dumps(result.history))
    owner = unlearner.ensemble.owner
    users = schema.retained_edge_index(marked)[0]
    assert [row['shard'] for row in rows] == owner[[3, 17, 40]].unique().tolist()
    for row in rows:
        own = users[owner[users] == row['shard']]
        assert row['num_users'] == own.unique().numel()
        assert row['num_interactions'] == own.numel()
        assert row['num_epochs'] == 3
        assert 0 <= row['best_epoch'] < 3
        assert row['num_touched'] == len(rows)
        assert row['parallel_seconds'] == max(r['seconds'] for r in rows)
    assert len(unlearner.prepare_history) == 3


@pytest.mark.parametrize('combination', ['owner', 'calibrated_mean'])
def test_group_that_loses_every_interaction(combination, data):
    unlearner = make(combination=combination)
    unlearner.prepare(None, data)
    users = (unlearner.ensemble.owner == 1).nonzero().view(-1)
    result = unlearner(unlearner.ensemble, ForgetUsers(users)(data))
    assert result.history[0]['num_epochs'] == 0
    with isolated_seed(999):
        assert_same_state(build(data), result.model.shards[1])
    if combination == 'calibrated_mean':
        assert result.model.weights[1] == 0
        assert float(result.model.weights.sum()) == pytest.approx(1)
    again = unlearner(result.model, ForgetUsers([int(users[0] + 1)])(result.data))
    assert again.model.build_graph(again.data).shards[1] is None


def test_weights_are_fitted_on_retained_pairs(data):
    unlearner = make(combination='calibrated_mean', num_epochs=10, lr=1e-2)
    unlearner.prepare(None, data)
    before = unlearner.ensemble
    uniform = torch.full((3,), 1 / 3)
    assert float(before.weights.sum()) == pytest.approx(1)
    assert not torch.allclose(before.weights, uniform)

    marked = ForgetUsers(ratio=0.2)(data)
    after = unlearner(before, marked).model
    assert not torch.equal(after.weights, before.weights)
    # From scratch, on data that never held the deleted users.
    retained = DropForgotten()(marked)
    shards = [by_hand(retained, before.owner, k, num_epochs=10, lr=1e-2)
              for k in range(3)]
    scratch = ShardEnsemble(shards, before.owner, 'calibrated_mean')
    unlearner._fit_weights(scratch, retained)
    assert_same_state(scratch, after)

    del data['val_edge_label_index']
    unlearner.prepare(None, data)
    assert torch.allclose(unlearner.ensemble.weights, uniform)


def test_fitted_weights_rank_no_worse_than_uniform_ones(data):
    r"""In the pointwise loss that they minimise, on the same pairs and negatives."""
    unlearner = make(combination='calibrated_mean', num_epochs=10, lr=1e-2)
    unlearner.prepare(None, data)
    ensemble = unlearner.ensemble
    graph = ensemble.build_graph(data)
    positive = data.val_edge_label_index
    rng = torch.Generator().manual_seed(0)
    item = torch.randint(60, (50, positive.size(1)), generator=rng)
    score = ensemble.calibrated_scores(graph, positive)
    negative = [torch.stack([positive[0], i]) for i in item]
    gap = torch.stack([score - ensemble.calibrated_scores(graph, n) for n in negative])
    fitted = float((gap @ ensemble.weights > 0).float().mean())
    uniform = float((gap.mean(dim=-1) > 0).float().mean())
    assert fitted > uniform - 0.02


def test_simplex_weights_equal_logistic_regression():
    rng = torch.Generator().manual_seed(0)
    scores = torch.randn(400, 3, generator=rng)
    truth = torch.tensor([2.0, 0.5, 1.0])
    label = torch.rand(400, generator=rng) < (scores @ truth - 0.3).sigmoid()
    reference = LogisticRegression(C=1 / (400 * 1e-4), tol=1e-10, max_iter=1000)
    coef = torch.from_numpy(reference.fit(scores.numpy(), label.numpy()).coef_[0])
    assert coef.min() > 0
    expected = (coef / coef.sum()).float()
    assert torch.allclose(simplex_weights(scores, label), expected, atol=1e-3)


def test_simplex_weights_drop_what_misleads():
    rng = torch.Generator().manual_seed(1)
    label = torch.rand(300, generator=rng) < 0.5
    noise = torch.randn(300, 2, generator=rng)
    y = label.float()
    scores = torch.stack([y - noise[:, 0], noise[:, 1] - 2 * y], dim=1)
    weights = simplex_weights(scores, label)
    assert weights[1] < 0.02
    assert float(weights.sum()) == pytest.approx(1)


def test_workers_give_the_same_bits(data):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone, parallel = (
            make(num_shards=2, num_epochs=1, num_workers=n) for n in (0, 2)
        )
        for unlearner in (alone, parallel):
            unlearner.prepare(None, data)
    finally:
        torch.set_num_threads(threads)
    assert_same_state(alone.ensemble, parallel.ensemble)
    drop = ('seconds', 'parallel_seconds')
    rows = [
        [{k: v for k, v in row.items() if k not in drop} for row in u.prepare_history]
        for u in (alone, parallel)
    ]
    assert rows[0] == rows[1]


def test_refuses_what_it_cannot_serve(data, trained):
    marked = ForgetUsers([3])(data)
    with pytest.raises(ValueError, match=r"must not exceed the number of users, 100"):
        make(num_shards=101)(trained, marked)
    with pytest.raises(ValueError, match="'model' must be the trained original"):
        make(grouping='data').prepare(None, data)
    ensemble = ShardEnsemble([build(data)] * 2, torch.arange(99) % 2)
    with pytest.raises(ValueError, match='the ensemble has 99 users, but the data has'):
        make()(ensemble, marked)
    unlearner = make()
    unlearner.prepare(None, data)
    other = UltraRE(MGCN.from_data, 3, 'random', num_epochs=1)
    with pytest.raises(ValueError, match="'build_model' must return the model"):
        other(unlearner.ensemble, marked)
    with pytest.raises(ValueError, match='lacks'):
        make()(torch.nn.Linear(1, 1), marked)
    for name in schema.modalities(data):
        del data['item'][f'x_{name}']
    with pytest.raises(ValueError, match="'clean' needs item features"):
        make(grouping='clean').prepare(None, data)


def test_bad_arguments():
    for kwargs, message in [
        ({'num_shards': 1}, "'num_shards' must be at least 2"),
        ({'grouping': 'best'}, "'grouping' must be one of"),
        ({'solver': 'greedy'}, "'solver' must be one of"),
        ({'num_rounds': 0}, "'num_rounds' must be at least 1"),
        ({'combination': 'mean'}, "'combination' must be one of"),
        ({'num_workers': -1}, "'num_workers' must be at least 0"),
        ({'seed': -1}, "'seed' must be an integer in"),
        ({'checkpoint': 'a'}, "'checkpoint' must not be set"),
    ]:
        with pytest.raises(ValueError, match=message):
            UltraRE(build, **kwargs)
    assert 'num_shards=5' in repr(UltraRE(build))


@pytest.mark.parametrize('by_rank', [False, True])
def test_shards_are_whole_models(data, by_rank):
    unlearner = UltraRE(
        ColumnParallelLightGCN.from_data, 2, grouping='random', by_rank=by_rank
    )
    with pytest.raises(ValueError, match='must return a whole model'):
        unlearner.prepare(None, data)
