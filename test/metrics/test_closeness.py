import math

import pytest
import torch
from scipy import stats
from scipy.spatial.distance import jensenshannon
from sklearn.metrics import jaccard_score

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.metrics import closeness, embed, parameter_shift
from torch_geometric_unlearn.metrics._similarity import (
    jaccard_at_k,
    jensen_shannon,
    kendall_tau_top,
    ks_statistic,
    linear_cka,
    overlap_at_k,
    rank_biased_overlap,
)
from torch_geometric_unlearn.nn import MGCN, Served
from torch_geometric_unlearn.transforms import ForgetItems, ForgetUsers
from torch_geometric_unlearn.unlearn import RowReset
from torch_geometric_unlearn.utils.seed import generator, isolated_seed
from torch_geometric_unlearn.utils.topk import topk_items

SIMILARITIES = ('cka', 'jaccard', 'overlap', 'rbo', 'kendall')


def random_lists(num=7, k=12, num_items=20, seed=0):
    gen = generator(seed)
    lists = [torch.randperm(num_items, generator=gen)[:k] for _ in range(num)]
    return torch.stack(lists)


def random_scores(num=5, num_items=80, seed=0, correlated_with=None):
    scores = torch.randn(num, num_items, generator=generator(seed))
    return scores if correlated_with is None else scores + correlated_with


# Representations #####################################################################


def test_linear_cka_against_gram_matrices():
    x = torch.randn(30, 5, generator=generator(0)) + 3
    y = torch.randn(30, 9, generator=generator(1)) + x[:, :1]
    centre = torch.eye(30).double() - 1 / 30
    gram = [centre @ z.double() @ z.double().t() @ centre for z in (x, y)]
    expected = (gram[0] * gram[1]).sum() / (gram[0].norm() * gram[1].norm())
    assert linear_cka(x, y) == pytest.approx(float(expected), abs=1e-12)
    assert 0 < linear_cka(x, y) < 1


def test_linear_cka_invariances():
    x = torch.randn(40, 6, generator=generator(0), dtype=torch.double)
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=generator(1)).double())[0]
    shift = torch.randn(6, generator=generator(2))
    for scale in (1.0, 1e-60, 1e60):
        assert linear_cka(x, scale * (x @ rotation + shift)) == pytest.approx(1.0)
    stretch = torch.diag(torch.tensor([9.0, 1, 1, 1, 1, 1]).double())
    assert linear_cka(x, x @ stretch) < 0.9  # A linear map is no rotation.


def test_linear_cka_undefined():
    x = torch.rand(5, 3)
    assert math.isnan(linear_cka(x, torch.full((5, 2), 0.1)))
    assert math.isnan(linear_cka(x[:1], x[:1]))
    with pytest.raises(ValueError, match=r'same number of rows \(got \[5, 3\] and \[4'):
        linear_cka(x, x[:4])


# Lists ###############################################################################


@pytest.mark.parametrize('k', [1, 5, 12])
def test_jaccard_and_overlap(k):
    first, second = random_lists(seed=0), random_lists(seed=1)
    out = jaccard_at_k(first, second, k), overlap_at_k(first, second, k)
    for row in range(first.size(0)):
        sides = [torch.zeros(20, dtype=torch.bool) for _ in range(2)]
        for side, lists in zip(sides, (first, second)):
            side[lists[row, :k]] = True
        assert float(out[0][row]) == pytest.approx(jaccard_score(*sides))
        common = set(first[row, :k].tolist()) & set(second[row, :k].tolist())
        assert float(out[1][row]) == pytest.approx(len(common) / k)


def test_short_lists():
    first = torch.tensor([[3, 1, -1, -1], [3, 1, -1, -1], [-1, -1, -1, -1]])
    second = torch.tensor([[1, 3, -1, -1], [2, 4, 3, -1], [-1, -1, -1, -1]])
    assert jaccard_at_k(first, second, 4).tolist() == [1, 1 / 4, 1]
    assert overlap_at_k(first, second, 4).tolist() == pytest.approx([1, 1 / 3, 1])
    assert rank_biased_overlap(first, first).tolist() == pytest.approx([1, 1, 1])
    # Depth 2 of the first row: agreement 0 and 1, and 1 from there on.
    assert float(rank_biased_overlap(first, second)[0]) == pytest.approx(0.9)
    assert float(rank_biased_overlap(first, second)[1]) == 0


def naive_rbo(a, b, p, far=2000):
    agreement = [len(set(a[:d]) & set(b[:d])) / d for d in range(1, len(a) + 1)]
    agreement += [agreement[-1]] * far
    return (1 - p) * sum(p**d * value for d, value in enumerate(agreement))


@pytest.mark.parametrize('p', [0.5, 0.9, 0.98])
def test_rank_biased_overlap(p):
    first, second = random_lists(seed=0), random_lists(seed=1)
    expected = [naive_rbo(a, b, p) for a, b in zip(first.tolist(), second.tolist())]
    out = rank_biased_overlap(first, second, p)
    assert out.tolist() == pytest.approx(expected, abs=1e-9)
    assert torch.equal(out, rank_biased_overlap(second, first, p))
    shorter = rank_biased_overlap(first, second, p, k=5)
    expected = [
        naive_rbo(a, b, p)
        for a, b in zip(first[:, :5].tolist(), second[:, :5].tolist())
    ]
    assert shorter.tolist() == pytest.approx(expected, abs=1e-9)


def test_extreme_lists():
    lists = random_lists(num=300, k=10)  # More rows than a block holds.
    assert torch.allclose(rank_biased_overlap(lists, lists), torch.ones(300).double())
    assert torch.equal(jaccard_at_k(lists, lists, 10), torch.ones(300).double())
    assert float(rank_biased_overlap(lists, lists + 20).sum()) == 0
    assert float(overlap_at_k(lists, lists + 20, 10).sum()) == 0
    # A swap at the top costs more than one at the bottom.
    top, bottom = lists.clone(), lists.clone()
    top[:, [0, 1]], bottom[:, [8, 9]] = lists[:, [1, 0]], lists[:, [9, 8]]
    assert (rank_biased_overlap(lists, top) < rank_biased_overlap(lists, bottom)).all()


def test_bad_lists():
    with pytest.raises(ValueError, match=r'with m >= 20 \(got \[7, 12\]'):
        jaccard_at_k(random_lists(), random_lists())
    twice = random_lists().clone()
    twice[3, 4] = twice[3, 1]
    for pair in ((twice, random_lists()), (random_lists(), twice)):
        name = 'first' if pair[0] is twice else 'second'
        match = rf"'{name}' must hold every item once .*item {twice[3, 1]} .*row 3"
        for measure in (jaccard_at_k, overlap_at_k, rank_biased_overlap):
            with pytest.raises(ValueError, match=match):
                measure(*pair, k=5)
    with pytest.raises(ValueError, match="'k' must be at least 1"):
        overlap_at_k(random_lists(), random_lists(), 0)
    with pytest.raises(ValueError, match=r"'p' must be in \(0, 1\) \(got 1.0\)"):
        rank_biased_overlap(random_lists(), random_lists(), p=1.0)


# Scores ##############################################################################


@pytest.mark.parametrize('k', [3, 10, 100])
@pytest.mark.parametrize('ties', [False, True])
def test_kendall_tau_against_scipy(k, ties):
    first = random_scores()
    second = random_scores(seed=1, correlated_with=first)
    if ties:
        first, second = (first * 2).round(), (second * 2).round()
    first[:, :7] = second[:, :7] = -torch.inf
    out = kendall_tau_top(first, second, k)
    for row in range(first.size(0)):
        union = set()
        for scores in (first[row], second[row]):
            order = scores.sort(descending=True, stable=True)[1][:k]
            union |= set(order[scores[order] > -torch.inf].tolist())
        index = sorted(union)
        expected = stats.kendalltau(first[row, index], second[row, index]).statistic
        assert float(out[row]) == pytest.approx(expected, abs=1e-12, nan_ok=True)


def test_kendall_tau_extremes():
    scores = random_scores()
    assert torch.equal(kendall_tau_top(scores, 2 * scores + 1), torch.ones(5).double())
    assert torch.equal(kendall_tau_top(scores, -scores), -torch.ones(5).double())
    assert kendall_tau_top(scores, torch.zeros_like(scores)).isnan().all()


@pytest.mark.parametrize('k', [None, 10])
def test_jensen_shannon_against_scipy(k):
    first = random_scores()
    second = random_scores(seed=1, correlated_with=first)
    first[:, :7] = second[:, :7] = -torch.inf
    out = jensen_shannon(first, second, k)
    for row in range(first.size(0)):
        sides = []
        for scores in (first[row, 7:].double(), second[row, 7:].double()):
            sides.append((scores / scores.std(correction=0)).softmax(0))
        if k is not None:
            keep = torch.zeros(73, dtype=torch.bool)
            for scores in (first[row, 7:], second[row, 7:]):
                keep[scores.topk(k)[1]] = True
            sides = [side[keep] / side[keep].sum() for side in sides]
        expected = jensenshannon(*sides, base=2) ** 2
        assert float(out[row]) == pytest.approx(expected, abs=1e-9)


def test_jensen_shannon_properties():
    first, second = random_scores(), 30 * random_scores(seed=1) + 5
    out = jensen_shannon(first, second)
    assert torch.allclose(out, jensen_shannon(second, first))
    assert ((out > 0) & (out < 1)).all()
    assert torch.allclose(out, jensen_shannon(3 * first - 7, second), atol=1e-6)
    assert float(jensen_shannon(first, first).max()) == 0
    apart = torch.full((2, 2, 50), 0.0)
    apart[0, :, 0] = apart[1, :, 1] = 1.0  # One item each, 7 deviations above.
    assert (jensen_shannon(apart[0], apart[1]) > 0.8).all()
    constant = torch.zeros(5, 80)
    assert torch.isfinite(jensen_shannon(first, constant)).all()
    with pytest.raises(ValueError, match=r'scores of the same shape \[n, num_items\]'):
        jensen_shannon(first, second[:, 1:])


def test_ks_statistic():
    x, y = torch.randn(50, generator=generator(0)), torch.randn(31) * 2
    x[:5] = y[:5]  # Ties across the samples.
    expected = stats.ks_2samp(x.numpy(), y.numpy()).statistic
    assert ks_statistic(x, y) == pytest.approx(expected, abs=1e-12)
    assert ks_statistic(y, x) == pytest.approx(expected, abs=1e-12)
    assert ks_statistic(x, x) == 0
    assert math.isnan(ks_statistic(x, x[:0]))


def test_no_rows():
    lists, scores = random_lists()[:0], random_scores()[:0]
    for out in (
        jaccard_at_k(lists, lists, 5),
        rank_biased_overlap(lists, lists),
        kendall_tau_top(scores, scores),
        jensen_shannon(scores, scores),
    ):
        assert out.dtype == torch.double
        assert out.numel() == 0


# Models ##############################################################################


@pytest.fixture
def fresh(data):
    with isolated_seed(7):
        return MGCN.from_data(data, hidden_channels=8)


def test_parameter_shift(data, trained, fresh):
    marked = ForgetUsers([3, 17])(data)
    reset = RowReset()(trained, marked).model
    out = parameter_shift(reset, trained, data=marked)
    assert out['user_embedding[untouched]']['shift'] == 0
    assert out['projection.image'] == {'shift': 0.0}
    old, new = (m.user_embedding.weight.detach() for m in (trained, reset))
    expected = (new - old)[[3, 17]].norm() / old[[3, 17]].norm()
    assert out['user_embedding[touched]']['shift'] == pytest.approx(float(expected))
    # The items of the request are touched rows, though no method has moved them.
    assert out['item_embedding[touched]']['shift'] == 0

    same = parameter_shift(reset, trained, reset)
    assert same['user_embedding']['cosine'] == pytest.approx(1.0)
    row = same['user_embedding']
    assert row['reference_shift'] == row['shift'] > 0
    assert math.isnan(same['projection.image']['cosine'])  # Neither has moved.
    other = parameter_shift(fresh, trained)  # Sizes differ.
    assert math.isnan(other['user_embedding']['shift'])
    assert set(other) == set(same)


def test_identical_models(data, trained):
    marked = ForgetUsers([3, 17, 40])(data)
    out = closeness(trained, trained, marked, fresh_like(trained), trained)
    assert out['missing'] == []
    assert len(out['value']) == 3 * 4 + 2 * 2 + 7
    for name, value in out['value'].items():
        goal = 1.0 if name.startswith(SIMILARITIES) else 0.0
        assert value == pytest.approx(goal, abs=1e-9), name
        assert out['floor'][name] == value
        assert out['recovered'][name] == pytest.approx(1.0), name
    for name, shift in out['parameters'].items():
        assert shift['cosine'] == pytest.approx(1.0), name
    assert out['branch_cka']['id']['id'] == pytest.approx(1.0)
    matrix = out['branch_cka']
    assert matrix['image']['text'] == pytest.approx(matrix['text']['image'])
    assert matrix['image']['text'] < 1


def fresh_like(model):
    with isolated_seed(11):
        out = MGCN(
            model.num_users,
            model.num_items,
            {k: torch.rand_like(v.weight) for k, v in model.features.items()},
            hidden_channels=model.hidden_channels,
        )
    return out.requires_grad_(True)


@pytest.mark.parametrize('level', ['user', 'item'])
def test_against_public_parts(data, trained, fresh, level):
    users, items = [3, 17, 40], [2, 30]
    marked = ForgetUsers(users)(data) if level == 'user' else ForgetItems(items)(data)
    original = fresh_like(trained)
    out = closeness(trained, fresh, marked, original, num_items=9)
    assert out['missing'] == ['floor', 'recovered']
    value = out['value']
    forgotten = schema.forgotten_edge_index(marked)
    targets = forgotten[1].unique()
    kept = schema.retained_edge_index(marked)[0].unique()
    assert out['num_nodes'] == {
        'users': kept.numel(),
        'forget_items': targets.numel(),
        'other_items': min(9, 60 - targets.numel()),
    }
    sides = [embed(model, model.build_graph(marked)) for model in (trained, fresh)]
    assert sides[0][0].size(1) != sides[1][0].size(1)
    pair = [side[0][kept] for side in sides]
    assert value['cka_users'] == pytest.approx(linear_cka(*pair))
    pair = [side[1][targets] for side in sides]
    assert value['cka_forget_items'] == pytest.approx(linear_cka(*pair))
    retained = schema.retained_edge_index(marked)
    banned = torch.tensor(items) if level == 'item' else None
    lists = [topk_items(*side, kept, 60, retained, banned)[0] for side in sides]
    assert value['jaccard@20'] == pytest.approx(float(jaccard_at_k(*lists).mean()))
    assert value['rbo'] == pytest.approx(float(rank_biased_overlap(*lists).mean()))
    scores = []
    for user_emb, item_emb in sides:
        rows = user_emb[forgotten[0]] @ item_emb.t()
        own = rows.gather(1, forgotten[1:].t()).squeeze(1)
        scores.append((own - rows.mean(dim=1)) / rows.std(dim=1))
    expected = stats.ks_2samp(*(x.numpy() for x in scores)).statistic
    assert value['ks_forget'] == pytest.approx(expected, abs=1e-6)
    served = embed(original, original.build_graph(data))  # With all interactions.
    expected = linear_cka(served[0][kept], sides[1][0][kept])
    assert out['ceiling']['cka_users'] == pytest.approx(expected, abs=1e-12)


def test_recovered_is_zero_for_the_original(data, trained, fresh):
    marked = ForgetUsers([3])(data)
    out = closeness(trained, fresh, marked, trained, fresh_like(trained))
    value, ceiling = out['value'], out['ceiling']
    # Content does not depend on the graph, so the original has recovered nothing.
    name = 'cka_content_image_other_items'
    assert value[name] == ceiling[name]
    assert out['recovered'][name] == 0


def test_missing_models_and_requests(data, trained):
    marked = ForgetUsers([3])(data)
    out = closeness(trained, None, marked)
    assert out['missing'] == [
        'value', 'ceiling', 'floor', 'recovered', 'branch_cka', 'parameters'
    ]  # fmt: skip
    assert all(out[name] == {} for name in out['missing'])
    out = closeness(trained, None, marked, original=trained)
    assert {'reference_shift', 'cosine'} <= set(out['missing'])
    assert out['parameters']['user_embedding[touched]'] == {'shift': 0.0}
    with pytest.warns(UserWarning, match='so closeness on forgotten pairs is'):
        out = closeness(trained, trained, data)
    assert math.isnan(out['value']['ks_forget'])
    assert math.isnan(out['value']['cka_forget_items'])
    assert out['value']['jaccard@20'] == 1


def test_samples_and_inputs(data, trained, fresh):
    marked = ForgetUsers([3])(data)
    draws = [closeness(trained, fresh, marked, num_users=20, seed=s) for s in (0, 0, 1)]
    assert draws[0]['value'] == draws[1]['value'] != draws[2]['value']
    assert marked[schema.EDGE_TYPE].forget_mask.any()
    views = [Served.of(model, marked) for model in (trained, fresh)]
    before = Served.before(trained, marked)
    out = closeness(*views, marked, before, views[1])
    assert repr(out) == repr(closeness(trained, fresh, marked, trained, fresh))
    with pytest.raises(ValueError, match="'num_users' must be at least 1"):
        closeness(trained, fresh, marked, num_users=0)
