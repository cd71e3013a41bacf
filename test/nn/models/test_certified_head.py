import copy
import math
import sys
from functools import partial

import pytest
import torch
from sklearn.linear_model import LogisticRegression

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.metrics import evaluate_split
from torch_geometric_unlearn.nn import CertifiedHead
from torch_geometric_unlearn.testing._snapshot import assert_same, snapshot
from torch_geometric_unlearn.train import load_model, save_model
from torch_geometric_unlearn.transforms import (
    DropForgotten,
    ForgetInteractions,
    ForgetItems,
    ForgetUsers,
)


def examples(head, data, user, item_emb):
    r"""A user's examples, item by item."""
    pairs = schema.retained_edge_index(data).t().tolist()
    liked = {item for owner, item in pairs if owner == user}
    disliked = [j for j in head.negatives[user].tolist() if j not in liked]
    items = sorted(liked) + disliked
    target = torch.tensor([1.0] * len(liked) + [0.0] * len(disliked)).double()
    return item_emb[items], target


def gradient(head, data, user, item_emb, weight):
    r"""Gradient of a user's loss without the noise, by autograd."""
    z, target = examples(head, data, user, item_emb)
    weight = weight.clone().requires_grad_()
    loss = torch.nn.functional.binary_cross_entropy_with_logits(
        z @ weight, target, reduction='sum'
    )
    loss = loss + 0.5 * head.weight_decay * z.size(0) * weight.square().sum()
    return torch.autograd.grad(loss, weight)[0]


def all_gradients(head, data):
    item_emb = head.build_graph(data).item_emb
    return torch.stack(
        [
            gradient(head, data, user, item_emb, weight)
            for user, weight in enumerate(head.weight)
        ]
    )


def test_budget():
    head = CertifiedHead(alpha=0.1, epsilon=1.0, delta=1e-4)
    assert head.alpha * head.epsilon / head.budget == pytest.approx(4.385, abs=1e-3)
    assert head.budget == pytest.approx(0.0228, abs=1e-4)
    assert CertifiedHead(alpha=0.2, epsilon=0.5).budget == pytest.approx(head.budget)


def test_heads_are_the_minimisers(data):
    head = CertifiedHead(8, alpha=1e-9, weight_decay=0.05, noise_seed=0).fit(data)
    item_emb = head.build_graph(data).item_emb
    for user in range(0, schema.num_users(data), 25):
        z, target = examples(head, data, user, item_emb)
        expected = LogisticRegression(
            C=1 / (0.05 * z.size(0)), fit_intercept=False, tol=1e-10, max_iter=10000
        ).fit(z.numpy(), target.numpy())
        expected = torch.from_numpy(expected.coef_[0])
        assert torch.allclose(head.weight[user], expected, atol=1e-5)


def test_noise_has_the_right_distribution(data):
    head = CertifiedHead(16, alpha=0.3, noise_seed=0).fit(data)
    noise = -all_gradients(head, data)
    assert noise.std() == pytest.approx(0.3, rel=0.06)
    assert noise.mean().abs() < 0.03
    correlation = torch.corrcoef(noise.t()) - torch.eye(noise.size(1))
    assert correlation.abs().max() < 0.5
    assert head.bound().max() < 1e-10


@pytest.mark.parametrize('r_max', [0.0, 1e-3])
@pytest.mark.parametrize(
    'request_of', [lambda d: ForgetUsers(ratio=0.05)(d), lambda d: ForgetItems([5])(d)]
)
def test_true_gradient_stays_within_the_bound(data, request_of, r_max):
    # Much decay and noise, so that hardly any head is over its budget.
    head = CertifiedHead(8, weight_decay=0.2, alpha=3.0, r_max=r_max, noise_seed=0)
    head.fit(data)
    noise = -all_gradients(head, data)
    kept = torch.ones(head.weight.size(0), dtype=torch.bool)
    marked = request_of(data)
    for _ in range(3):
        update = head.forget(marked)
        assert update.certified
        data = DropForgotten()(marked)
        kept[update.retrained_heads] = False
        residual = (all_gradients(head, data) + noise).norm(dim=1)
        bound = update.bound
        assert (residual[kept] <= bound[kept] + 1e-9).all()
        touched = kept.clone()
        touched[:] = False
        touched[update.touched_heads] = True
        assert (residual[touched & kept] > 1e-9).any()
        if r_max == 0:  # The bound must say something, too.
            sizeable = kept & (residual > 1e-6)
            assert (bound[sizeable] / residual[sizeable]).median() < 100
        pairs = data[schema.EDGE_TYPE].edge_index
        marked = ForgetInteractions(pairs[:, 11::97])(data)
    assert kept.sum() > 50


def test_bound_is_below_the_published_one(data):
    head = CertifiedHead(8, weight_decay=0.2, alpha=3.0, noise_seed=0).fit(data)
    before = head.weight.clone()
    marked = ForgetInteractions(data[schema.EDGE_TYPE].edge_index[:, ::40])(data)
    update = head.forget(marked)
    item_emb = head.item_emb
    users = set(update.touched_heads.tolist()) - set(update.retrained_heads.tolist())
    assert len(users) > 20
    for user in users:
        z, _ = examples(head, marked, user, item_emb)
        step = head.weight[user] - before[user]
        published = torch.linalg.matrix_norm(z, 2) * step.norm() * (z @ step).norm() / 4
        published = published * max(1.0, float(z.norm(dim=1).max()))
        assert 0 < update.bound[user] <= published + 1e-11


def test_newton_step_comes_close_to_retraining(data):
    marked = ForgetInteractions(data[schema.EDGE_TYPE].edge_index[:, ::50])(data)
    kwargs = {'weight_decay': 0.5, 'alpha': 3.0, 'noise_seed': 4}
    head = CertifiedHead(8, **kwargs).fit(data)
    old = head.weight.clone()
    update = head.forget(marked)
    assert update.retrained_heads.numel() == 0
    # The same seed draws the same noise, so that only the data differ.
    fresh = CertifiedHead(8, **kwargs).fit(DropForgotten()(marked)).weight
    users = marked[schema.EDGE_TYPE].edge_index[0, ::50].unique()
    error = (head.weight - fresh).norm(dim=1)
    assert (error[users] < 0.05 * (old - fresh).norm(dim=1)[users]).all()
    assert error.mean() < 0.01 * (old - fresh).norm(dim=1).mean()


def test_only_affected_heads_move(data):
    head = CertifiedHead(8, num_negatives=1, noise_seed=0).fit(data)
    before, old_emb = head.weight.clone(), head.item_emb
    # A rare item of a small user reaches few others.
    pairs = data[schema.EDGE_TYPE].edge_index
    degree = [pairs[0].bincount(), pairs[1].bincount()]
    place = int((degree[0][pairs[0]] * degree[1][pairs[1]]).argmin())
    marked = ForgetInteractions(pairs[:, place : place + 1])(data)
    update = head.forget(marked)

    changed = (head.item_emb != old_emb).any(dim=1)
    exact = head.build_graph(marked).item_emb
    assert torch.allclose(head.item_emb, exact, atol=1e-12)
    expected = {int(pairs[0, place])}
    for user, item in pairs.t().tolist():
        expected |= {user} if changed[item] else set()
    for user, items in enumerate(head.negatives.tolist()):
        expected |= {user} if changed[items].any() else set()
    assert set(update.touched_heads.tolist()) == expected
    same = (head.weight == before).all(dim=1)
    assert not same[update.touched_heads].any()
    untouched = torch.ones_like(same)
    untouched[update.touched_heads] = False
    assert same[untouched].all()
    assert untouched.sum() > 0


def test_heads_over_budget_are_trained_anew(data):
    head = CertifiedHead(8, alpha=1e-4, noise_seed=0).fit(data)
    noise = -all_gradients(head, data)
    marked = ForgetUsers([3, 8])(data)
    update = head.forget(marked)
    retrained = update.retrained_heads
    assert torch.isin(torch.tensor([3, 8]), retrained).all()
    assert update.certified
    assert update.bound[retrained].max() < 1e-10
    data = DropForgotten()(marked)
    fresh = -all_gradients(head, data)
    assert (fresh[retrained] - noise[retrained]).norm(dim=1).min() > 1e-5
    assert fresh[retrained].std() == pytest.approx(1e-4, rel=0.3)
    # Users without interactions keep a head of negatives.
    z, target = examples(head, data, 3, head.item_emb)
    assert target.sum() == 0
    assert (head.weight[3] @ z.t()).max() < 0


def test_a_deleted_interaction_can_become_a_negative(data):
    head = CertifiedHead(8, num_negatives=30, alpha=1e-6, noise_seed=0).fit(data)
    pairs = data[schema.EDGE_TYPE].edge_index
    drawn = (head.negatives[pairs[0]] == pairs[1].unsqueeze(1)).any(dim=1)
    pair = pairs[:, drawn][:, :1]
    user, item = pair.view(-1).tolist()
    score = (head.weight[user] @ head.item_emb[item]).clone()
    head.forget(ForgetInteractions(pair)(data))
    assert head.weight[user] @ head.item_emb[item] < score


def test_residues_are_flushed_before_they_cost_the_certificate(data):
    marked = ForgetUsers(ratio=0.1)(data)
    lazy = CertifiedHead(8, r_max=1e9, alpha=0.1, noise_seed=0).fit(data)
    update = lazy.forget(marked)
    assert len(update.propagation) == 2
    assert update.certified
    exact = lazy.build_graph(marked).item_emb
    assert torch.allclose(lazy.item_emb, exact, atol=1e-12)
    # With a large budget, they stay and are counted.
    lazy = CertifiedHead(8, r_max=1e9, alpha=1e6, weight_decay=1e3, noise_seed=0)
    update = lazy.fit(data).forget(marked)
    assert len(update.propagation) == 1
    error = lazy.propagation.residue().norm()
    assert error > 0
    assert (update.bound >= error).all()


def test_joint_epsilon(data):
    head = CertifiedHead(8, noise_seed=0).fit(data)
    update = head.forget(ForgetUsers([3])(data))
    c = math.sqrt(2 * math.log(1.5 / 1e-4))
    expected = c * float(update.bound.norm()) / 0.1
    assert update.joint_epsilon == pytest.approx(expected)
    assert update.joint_epsilon >= c * float(update.bound.max()) / 0.1


def test_empty_request(data):
    head = CertifiedHead(8, noise_seed=0).fit(data)
    before = copy.deepcopy([head.weight, head.item_emb, head.bound()])
    update = head.forget(data)
    assert update.touched_heads.numel() == update.retrained_heads.numel() == 0
    assert update.propagation == []
    assert update.certified
    for old, new in zip(before, [head.weight, head.item_emb, head.bound()]):
        assert torch.equal(old, new)


def test_seeds_and_inputs(data):
    marked = ForgetUsers([3])(data)
    before, rng = snapshot(marked), torch.get_rng_state()

    def run(**kwargs):
        head = CertifiedHead(8, **kwargs).fit(data)
        head.forget(marked)
        return head

    first, again = run(noise_seed=1), run(noise_seed=1)
    assert torch.equal(first.weight, again.weight)
    assert_same(before, snapshot(marked), 'The data of a request')
    assert torch.equal(rng, torch.get_rng_state())
    # What is public agrees, the noise is secret.
    one, two = run(), run()
    assert torch.equal(one.item_emb, two.item_emb)
    assert torch.equal(one.negatives, two.negatives)
    assert not torch.allclose(one.weight, two.weight, atol=1e-3)
    assert not torch.equal(first.negatives, run(seed=1).negatives)


def test_recommends_and_serves_request_after_request(data):
    head = CertifiedHead(8, noise_seed=0).fit(data)
    random = 20 / schema.num_items(data)
    assert evaluate_split(head, data)['recall@20'] > 1.2 * random
    user_emb, item_emb = head(head.build_graph(data))
    assert user_emb.dtype == item_emb.dtype == torch.float32
    assert user_emb.shape == (100, 10)
    assert head.negatives.sort(dim=1)[0].diff(dim=1).min() > 0
    assert head.content.norm(dim=1).max() <= 1 + 1e-12
    for user in (3, 4, 5):
        marked = ForgetUsers([user])(data)
        assert head.forget(marked).certified
        data = DropForgotten()(marked)
        left = head.propagation.edge_index
        assert not (left[0] == user).any()
        assert torch.allclose(head.item_emb, head.build_graph(data).item_emb)


def test_bad_arguments(data):
    for kwargs, message in [
        ({'alpha': 0.0}, "'alpha' must be a finite number"),
        ({'epsilon': 2.0}, "'epsilon' must be a finite number"),
        ({'delta': 0.0}, "'delta' must be a finite number"),
        ({'weight_decay': 0.0}, "'weight_decay' must be a finite number"),
        ({'num_negatives': 0}, "'num_negatives' must be at least 1"),
        ({'r_max': -1.0}, "'r_max' must be a finite number"),
        ({'seed': -1}, "'seed' must be an integer"),
        ({'noise_seed': -1}, "'seed' must be an integer"),
    ]:
        with pytest.raises(ValueError, match=message):
            CertifiedHead(**kwargs)
    head = CertifiedHead(8, noise_seed=0)
    with pytest.raises(ValueError, match='must be fitted first'):
        head.forget(data)
    head.fit(data)
    marked = ForgetUsers([3])(data)
    head.forget(marked)
    with pytest.raises(ValueError, match='interactions that the heads know'):
        head.forget(marked)
    smaller = copy.deepcopy(data)
    smaller['user'].num_nodes = 200
    with pytest.raises(ValueError, match="'data' must hold 100 users and 60 items"):
        head.build_graph(smaller)
    for name in schema.modalities(data):
        del data['item'][f'x_{name}']
    with pytest.raises(ValueError, match='must hold item features'):
        CertifiedHead().fit(data)


def state_of(head):
    return {name: tensor.clone() for name, tensor in head.state_dict().items()}


def same_state(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


def interrupted(function, when):
    r"""Runs until some line of the package is reached, and tells how many were."""
    count = 0

    def trace(frame, event, _):
        nonlocal count
        if 'torch_geometric_unlearn' not in frame.f_code.co_filename:
            return None
        if event == 'line':
            count += 1
            if count == when:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        function()
    except KeyboardInterrupt:
        assert count == when
    finally:
        sys.settrace(before)
    return count


def test_an_interrupted_request_changes_nothing(data):
    marked = ForgetUsers([3, 8])(data)
    # Some heads are over their budget, and residues are pushed.
    fitted = CertifiedHead(8, alpha=1e-3, r_max=1e9, noise_seed=0).fit(data)
    old, done = state_of(fitted), copy.deepcopy(fitted)
    expected = done.forget(marked)
    assert expected.retrained_heads.numel() > 0
    assert len(expected.propagation) == 2
    new = state_of(done)
    num_lines = interrupted(lambda: copy.deepcopy(fitted).forget(marked), None)
    stops = torch.linspace(1, num_lines, 25).int().tolist()
    head, num_unchanged = copy.deepcopy(fitted), 0
    for stop in stops:
        interrupted(lambda head=head: head.forget(marked), stop)
        if same_state(old, state_of(head)):
            num_unchanged += 1
        else:
            assert same_state(new, state_of(head))
            head = copy.deepcopy(fitted)
    assert num_unchanged >= len(stops) - 1  # All but what follows the last step.
    update = copy.deepcopy(fitted).forget(marked)
    assert torch.equal(update.bound, expected.bound)


@pytest.mark.parametrize(
    'name', ['_affected', '_step', '_train', 'bound', '_examples', '_propagate']
)
def test_a_failing_fit_or_request_changes_nothing(name, data, monkeypatch):
    def fail(*args):
        raise MemoryError

    marked = ForgetUsers([3])(data)
    fresh = CertifiedHead(8, alpha=1e-4, noise_seed=0)
    head = CertifiedHead(8, alpha=1e-4, noise_seed=0).fit(data)
    before = state_of(head)
    with monkeypatch.context() as patch:
        patch.setattr(CertifiedHead, name, fail)
        if name not in ('_affected', '_step', 'bound'):
            for one in (fresh, head):
                with pytest.raises(MemoryError):
                    one.fit(DropForgotten()(marked))
        if name != '_propagate':
            with pytest.raises(MemoryError):
                head.forget(marked)
    assert same_state(before, state_of(head))
    assert same_state(before, state_of(fresh.fit(data)))


def test_two_threads_forget_one_after_the_other(data, run_in_threads):
    pairs = data[schema.EDGE_TYPE].edge_index
    requests = [ForgetInteractions(pairs[:, n : n + 1])(data) for n in (0, 1)]
    head = CertifiedHead(8, noise_seed=0).fit(data)

    def forget(marked):
        try:
            head.forget(marked)
        except ValueError as error:  # The second one has to look at what is left.
            return str(error)

    refused = run_in_threads(*(partial(forget, marked) for marked in requests))
    assert sum(message is not None for message in refused) == 1
    assert head.propagation.num_edges == pairs.size(1) - 1


@pytest.mark.parametrize('r_max', [0.0, 1e9])
def test_a_restored_head_gives_the_same_answers(r_max, data, tmp_path):
    path = tmp_path / 'head.safetensors'
    kwargs = {'alpha': 0.02, 'r_max': r_max}
    head = CertifiedHead(8, noise_seed=0, **kwargs).fit(data)
    head.forget(marked := ForgetUsers([3, 8])(data))
    data = DropForgotten()(marked)
    save_model(head, path)
    other = CertifiedHead(8, noise_seed=5, **kwargs).fit(data)
    assert not torch.equal(other.weight, head.weight)
    load_model(other, path)
    for user in (20, 40):
        assert same_state(state_of(head), state_of(other))
        marked = ForgetUsers([user])(data)
        first, second = head.forget(marked), other.forget(marked)
        assert first.retrained_heads.numel() > 0  # New noise was drawn.
        assert torch.equal(first.bound, second.bound)
        assert torch.equal(first.touched_heads, second.touched_heads)
        data = DropForgotten()(marked)
    nested = torch.nn.ModuleList([CertifiedHead(8, **kwargs)])
    nested.load_state_dict({f'0.{k}': v for k, v in head.state_dict().items()})
    assert same_state(state_of(head), state_of(nested[0]))
    nested[0].forget(ForgetUsers([50])(data))
    assert not same_state(state_of(head), state_of(nested[0]))  # Nothing is shared.


def test_refuses_another_state(data, tmp_path):
    head = CertifiedHead(8, noise_seed=0).fit(data)
    path = tmp_path / 'head.safetensors'
    for action in (save_model, load_model):
        save_model(head, tmp_path / 'other.safetensors')
        with pytest.raises(ValueError, match='must be fitted before its state'):
            action(CertifiedHead(8), tmp_path / 'other.safetensors')
    before, state = state_of(head), state_of(head)
    for key, value in [
        ('settings', state_of(CertifiedHead(8, alpha=3.0).fit(data))['settings']),
        ('edge_index', state['edge_index'] + 1000),
        ('gradient_bound', state['gradient_bound'][:-1]),
        ('sent', state['sent'][:, :-1]),
        ('noise', state['noise'][:-1]),
    ]:
        with pytest.raises(RuntimeError, match='Error'):
            head.load_state_dict(state | {key: value})
        assert same_state(before, state_of(head))
    with pytest.raises(RuntimeError, match=r'Missing key.*noise'):
        head.load_state_dict({k: v for k, v in state.items() if k != 'noise'})
    with pytest.raises(RuntimeError, match=r'Unexpected key.*other'):
        head.load_state_dict(state | {'other': state['weight']})
    assert same_state(before, state_of(head))
    save_model(CertifiedHead(8, alpha=3.0).fit(data), path)
    with pytest.raises((RuntimeError, ValueError), match=r'certified with|alpha'):
        load_model(head, path)
    assert same_state(before, state_of(head))
