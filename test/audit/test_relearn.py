import math

import pytest
import torch

from torch_geometric_unlearn.audit.relearn import relearn_time
from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.metrics import evaluate_request
from torch_geometric_unlearn.testing._snapshot import assert_same, snapshot
from torch_geometric_unlearn.transforms import DropForgotten, ForgetUsers
from torch_geometric_unlearn.unlearn import EdgeDrop, RowReset


class Steps(torch.nn.Module):
    r"""Shows every forgotten pair once it has made :obj:`needed` gradient steps."""

    def __init__(self, data, needed, share=1.0):
        super().__init__()
        self.steps = torch.nn.Parameter(torch.zeros(1))
        self.needed = needed
        rows = torch.zeros(schema.num_users(data), schema.num_items(data))
        pairs = schema.forgotten_edge_index(data)
        keep = pairs[0] % round(1 / share) == 0
        rows[tuple(pairs[:, keep])] = 1.0
        self.register_buffer('rows', rows)
        self.seen = []

    def build_graph(self, data):
        self.seen.append(schema.forget_mask(data).any())
        return schema.retained_edge_index(data)

    def forward(self, graph):
        # Adam moves the parameter by 'lr' a step, downhill.
        known = float(-self.steps.detach()) >= self.needed * 0.1 - 1e-4
        sign = 1.0 if known else -1.0
        return sign * self.rows, torch.eye(self.rows.size(1))

    def loss(self, graph, batch):
        return self.steps.sum() * batch.user.numel()


@pytest.fixture
def marked(data):
    return ForgetUsers(list(range(0, 100, 5)))(data)


def test_counts_steps(marked):
    original = Steps(marked, 0)
    fast, slow = Steps(marked, 3), Steps(marked, 12)
    out = relearn_time(fast, marked, original, slow, lr=0.1)
    assert out['steps_per_subset'] == [3, 3, 3]
    assert (out['steps'], out['reached'], out['start']) == (3, 1, 0)
    assert out['goal'] == pytest.approx(0.5, abs=0.05)
    assert (out['retrained_steps'], out['relative']) == (12, 0.25)
    assert out['missing'] == []
    # The model itself and its parameter stay.
    assert float(fast.steps.detach()) == 0
    assert fast.training

    out = relearn_time(slow, marked, original, lr=0.1, max_steps=5)
    assert (out['steps'], out['reached'], out['missing']) == (5, 0, ['retrained'])
    assert 'relative' not in out
    out = relearn_time(original, marked, original, original, lr=0.1)
    assert (out['steps'], out['reached']) == (0, 1)
    assert math.isnan(out['relative'])


def test_goal(marked):
    half = Steps(marked, 3, share=0.5)  # Shows the pairs of every other user only.
    assert relearn_time(half, marked, 0.6, lr=0.1)['steps'] == 3
    out = relearn_time(half, marked, 1.0, share=0.9, lr=0.1, max_steps=6)
    assert (out['steps'], out['reached']) == (6, 0)
    assert out['goal'] == 0.9


def test_trained_model(marked, trained):
    before = snapshot(marked)
    state = {k: v.clone() for k, v in trained.state_dict().items()}
    rng = torch.get_rng_state()
    reset = RowReset()(trained, marked).model
    kwargs = {'lr': 5e-3, 'max_steps': 30, 'num_subsets': 1, 'k': 10}
    out = relearn_time(reset, marked, trained, **kwargs)
    assert out == relearn_time(reset, marked, trained, **kwargs)
    kept = relearn_time(EdgeDrop()(trained, marked).model, marked, trained, **kwargs)
    assert kept['start'] > out['start']
    assert kept['steps'] <= out['steps']
    assert_same(before, snapshot(marked), 'The data')
    assert torch.equal(rng, torch.get_rng_state())
    assert all(torch.equal(state[k], v) for k, v in trained.state_dict().items())
    # The start is about the usual forget recall, on the part that is not shown.
    usual = evaluate_request(reset, marked, ks=(10,))['forget_recall@10']
    assert out['start'] == pytest.approx(usual, abs=0.1)
    assert 0 < out['goal'] < 0.5


def test_original_is_scored_on_all_interactions(marked):
    original = Steps(marked, 0)
    relearn_time(Steps(marked, 1), marked, original, lr=0.1)
    assert original.seen == [False]


def test_nothing_to_relearn(data, trained, marked):
    with pytest.warns(UserWarning, match='Too few interactions are marked'):
        out = relearn_time(trained, data, trained, trained)
    assert math.isnan(out['steps'])
    assert math.isnan(out['relative'])
    assert out['missing'] == []
    with pytest.warns(UserWarning, match='recalls none of the forgotten'):
        out = relearn_time(trained, marked, original=0.0)
    assert math.isnan(out['goal'])
    assert out['missing'] == ['retrained']
    dropped = DropForgotten()(marked)
    with pytest.warns(UserWarning, match='Too few interactions are marked'):
        relearn_time(trained, dropped, original=0.5)


@pytest.mark.parametrize(
    ('kwargs', 'match'),
    [
        ({'share': 1.0}, r"'share' must be in \(0, 1\) \(got 1.0\)"),
        ({'ratio': 0}, r"'ratio' must be in \(0, 1\) \(got 0\)"),
        ({'max_steps': 0}, "'max_steps' must be at least 1"),
        ({'original': 1.5}, r"'original' must be a finite number in \[0.0, 1.0\]"),
    ],
)
def test_errors(trained, marked, kwargs, match):
    with pytest.raises(ValueError, match=match):
        relearn_time(trained, marked, **({'original': 0.5} | kwargs))
