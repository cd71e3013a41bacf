r"""Nothing that is not finite counts: whatever takes a model or figures says what is
not, and gives no number.
"""

import copy
import functools
import inspect
import json
import math
from types import SimpleNamespace

import pytest
import torch

from torch_geometric_unlearn import audit, evaluation, metrics, report
from torch_geometric_unlearn.audit import _attack
from torch_geometric_unlearn.audit.backdoor import backdoor_table
from torch_geometric_unlearn.audit.completion import completion_yardstick
from torch_geometric_unlearn.audit.likelihood_ratio import log_likelihood_ratio
from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.datasets import SyntheticMultimodal
from torch_geometric_unlearn.metrics import _similarity, exposure
from torch_geometric_unlearn.nn import MGCN, LightGCN, RecommenderAdapter, Served
from torch_geometric_unlearn.train import fit
from torch_geometric_unlearn.transforms import (
    DropForgotten,
    ForgetInteractions,
    ForgetUsers,
    InjectBackdoor,
)
from torch_geometric_unlearn.unlearn import EdgeDrop, GNNDelete, MMRecUn, UnlearnResult
from torch_geometric_unlearn.utils import topk
from torch_geometric_unlearn.utils.finite import (
    all_finite,
    check_embeddings,
    check_finite,
)

VALUES = [math.nan, math.inf, -math.inf]
EXPOSURE = inspect.getmodule(exposure)

#: What takes no figures: no model, no embeddings, no scores, no results.
WITHOUT_FIGURES = {
    'report.read_report',
    'report.request_hash',
    'report.versions',
    'exposure.deleted_share',
    'topk.PairIndex',
}
#: Where minus infinity is documented to mean that an entry is no candidate.
MASKED = {
    'similarity.jensen_shannon',
    'similarity.kendall_tau_top',
    'topk.topk_lowest_index',
}


def functions(module):
    r"""Public functions and classes that a module itself defines."""
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith('_')
        and getattr(value, '__module__', '') == module.__name__
    ]


PUBLIC = {
    *(f'metrics.{name}' for name in metrics.__all__),
    *(f'audit.{name}' for name in audit.__all__),
    *(f'evaluation.{name}' for name in evaluation.__all__),
    *(f'report.{name}' for name in report.__all__),
    *(f'topk.{name}' for name in functions(topk)),
    *(f'similarity.{name}' for name in functions(_similarity)),
    *(f'exposure.{name}' for name in functions(EXPOSURE)),
}


@functools.cache
def shop():
    data = SyntheticMultimodal('tiny', num_users=400)[0]
    out = SimpleNamespace(data=data, marked=ForgetUsers(ratio=0.3)(data))
    torch.manual_seed(0)
    out.good = MGCN.from_data(data, hidden_channels=4)
    return out


def broken(value, row=5, table='item_embedding'):
    model = copy.deepcopy(shop().good)
    with torch.no_grad():
        getattr(model, table).weight[row, 0] = value
    return model


def graph():
    return shop().good.build_graph(shop().marked)


def emb(value=0.0, rows=8):
    out = torch.randn(rows, 3, generator=torch.Generator().manual_seed(rows))
    out[2, 1] = value
    return out


def vector(value):
    out = torch.linspace(0.1, 0.9, 8)
    out[2] = value
    return out


def row(value, key='retain_ndcg@20'):
    return {'retain_ndcg@20': 0.1, 'forget_recall@20': 0.2, 'exposure@20': 0.3} | {
        key: value
    }


def timed(value):
    data = shop().data.clone()
    store = data[schema.EDGE_TYPE]
    store.time = torch.rand(store.edge_index.size(1))
    store.time[::3] = value
    data.test_edge_time = torch.rand(data.test_edge_label_index.size(1))
    return data


def planted():
    data = InjectBackdoor('interaction', num_triggers=1)(shop().data)
    return ForgetInteractions(data.backdoor_pairs)(data)


def by_name(name, function):
    r"""Cases of a function of models by name, one for every state."""
    return [
        (lambda v, n=n: function({n: broken(v)}), f"'{n}' .MGCN. {ITEM}")
        for n in ('original', 'retrained', 'unlearned')
    ]


ITEM = 'must give finite (user|item) embeddings'
PAIRS = torch.tensor([[0, 1, 2], [3, 4, 5]])
FIRST = torch.arange(20.0).view(2, 10)


def lists(value):
    out = FIRST.clone()
    out[0, 3] = value
    return out


def report_of(value, write=None):
    s = shop()
    result = UnlearnResult(model=broken(value), data=DropForgotten()(s.marked))
    args = {'original': s.good, 'data': s.marked, 'retrained': s.good}
    if write is not None:
        out = report.write_report(result, write, **args)
    else:
        out = report.build_report(result, **args)
    assert out['verdict']['status'] != 'within'
    reasons = ' '.join(failure['reason'] for failure in out['failures'])
    raise ValueError(reasons)  # What has failed is counted and named there.


#: Calls by function, with what the error must name; None for a documented NaN.
CASES = {
    'metrics.closeness': [
        (lambda v: metrics.closeness(broken(v), shop().good, shop().marked), "'model'"),
        (
            lambda v: metrics.closeness(shop().good, broken(v), shop().marked),
            f"'reference' .MGCN. {ITEM}",
        ),
        (
            lambda v: metrics.closeness(
                *(shop().good, shop().good, shop().marked, broken(v))
            ),
            f"'original' .MGCN. {ITEM}",
        ),
        (
            lambda v: metrics.closeness(
                *(shop().good, shop().good, shop().marked), second=broken(v)
            ),
            f"'second' .MGCN. {ITEM}",
        ),
    ],
    'metrics.cross_modal_cka': [
        (lambda v: metrics.cross_modal_cka(broken(v), graph()), ITEM)
    ],
    'metrics.embed': [(lambda v: metrics.embed(broken(v), graph()), ITEM)],
    'metrics.evaluate_request': [
        (lambda v: metrics.evaluate_request(broken(v), shop().marked), ITEM)
    ],
    'metrics.evaluate_split': [
        (lambda v: metrics.evaluate_split(broken(v), shop().data), ITEM)
    ],
    'metrics.exposure': [
        (lambda v: metrics.exposure(broken(v), shop().marked), ITEM)
    ],
    'metrics.item_persistence': [
        (
            lambda v: metrics.item_persistence(broken(v), shop().good, shop().marked),
            f"'before' .MGCN. {ITEM}",
        ),
        (
            lambda v: metrics.item_persistence(shop().good, broken(v), shop().marked),
            f"'after' .MGCN. {ITEM}",
        ),
    ],
    'metrics.layer_shift': [
        (
            lambda v: metrics.layer_shift(shop().good, broken(v)),
            r"'model\.item_embedding\.weight' must be finite",
        ),
        (
            lambda v: metrics.layer_shift(shop().good, shop().good, broken(v)),
            r"'reference\.item_embedding\.weight' must be finite",
        ),
    ],
    'metrics.parameter_shift': [
        (
            lambda v: metrics.parameter_shift(shop().good, broken(v)),
            r"'original\.item_embedding\.weight' .* first is row 5",
        )
    ],
    'metrics.ranking_metrics': [
        (lambda v: metrics.ranking_metrics(emb(v), emb(), PAIRS), "'user_emb'"),
        (lambda v: metrics.ranking_metrics(emb(), emb(v), PAIRS), "'item_emb'"),
        (lambda v: metrics.ranking_metrics(emb(v), emb(), PAIRS[:, :0]), "'user_emb'"),
    ],
    'metrics.trade_off': [
        (lambda v, a=a: metrics.trade_off(*a(v)), message)
        for a, message in [
            (lambda v: (row(v), row(0.1), row(0.1)), "'original' .* 'retain_ndcg"),
            (lambda v: (row(0.1), row(v), row(0.1)), "'retrained' .* 'retain_ndcg"),
            (
                lambda v: (row(0.1), row(0.1), row(v, 'forget_recall@20')),
                "'unlearned' .* 'forget_recall",
            ),
        ]
    ],
    'audit.backdoor': [
        (lambda v: audit.backdoor(broken(v), planted()), ITEM),
        (
            lambda v: audit.backdoor(shop().good, planted(), original=v).valid,
            "'original' must be a finite number",
        ),
        (lambda v: backdoor_table({'tru': broken(v)}, planted()), ITEM),
    ],
    'audit.compare_completion': by_name(
        'compare_completion', lambda m: audit.compare_completion(m, shop().marked)
    ),
    'audit.compare_membership': by_name(
        'compare_membership', lambda m: audit.compare_membership(m, shop().marked)
    ),
    'audit.completion': [
        (lambda v: audit.completion(broken(v), shop().marked), ITEM),
        (lambda v: completion_yardstick(broken(v), shop().data, PAIRS), ITEM),
    ],
    'audit.exchangeability': [
        (lambda v: audit.exchangeability(timed(v)), "'time' must be finite")
    ],
    'audit.hold_out_users': [
        (lambda v: audit.hold_out_users(shop().data, ratio=v), "'ratio' must be in")
    ],
    'audit.likelihood_ratio': [
        (
            lambda v: audit.likelihood_ratio(
                *(shop().marked, lambda data: broken(v), EdgeDrop(), {'num_epochs': 1}),
                num_models=4,
            ),
            'no longer finite in epoch 0',
        ),
        (
            lambda v: audit.likelihood_ratio(
                shop().marked,
                lambda data: MGCN.from_data(data, hidden_channels=2),
                EdgeDrop(),
                {'num_epochs': 1},
                broken(v),
                num_models=4,
            ),
            ITEM,
        ),
        (lambda v: log_likelihood_ratio(vector(v), emb().t(), emb().t() > 0), "'own'"),
    ],
    'audit.membership': [
        (lambda v: audit.membership(broken(v), shop().marked), ITEM),
        (
            lambda v: _attack.cross_validate(
                emb(v), torch.arange(8) < 4, torch.arange(8), ['logistic'], 2, 0
            ),
            "'features' must be finite",
        ),
        (
            lambda v: _attack.Attacker(['boosting'], 0).fit(
                emb(v), torch.arange(8) < 4, torch.arange(8)
            ),
            "'features' must be finite",
        ),
        (
            lambda v: _attack.ranking_figures(vector(v), torch.arange(8) < 4),
            "'score' must be finite",
        ),
        (
            lambda v: _attack.best_threshold(vector(v), torch.arange(8) < 4),
            "'score' must be finite",
        ),
    ],
    'audit.relearn_time': [
        (
            lambda v: audit.relearn_time(broken(v), shop().marked, 0.5, max_steps=1),
            f"'model' .MGCN. {ITEM}",
        ),
        (
            lambda v: audit.relearn_time(
                *(shop().good, shop().marked, 0.5, broken(v)), max_steps=1
            ),
            f"'retrained' .MGCN. {ITEM}",
        ),
        (
            lambda v: audit.relearn_time(shop().good, shop().marked, broken(v)),
            f"'original' .MGCN. {ITEM}",
        ),
        (
            lambda v: audit.relearn_time(shop().good, shop().marked, v),
            "'original' must be a finite number",
        ),
    ],
    'audit.self_check': [
        (lambda v: audit.self_check(broken(v), shop().marked), f"'original' .*{ITEM}")
    ],
    'audit.shadow': [
        (
            lambda v: audit.shadow(
                broken(v),
                ForgetUsers(ratio=0.3)(audit.hold_out_users(shop().data, 0.2)),
                lambda data: MGCN.from_data(data, hidden_channels=2),
                {'num_epochs': 1},
            ),
            ITEM,
        ),
        (
            lambda v: audit.shadow(
                shop().good,
                ForgetUsers(ratio=0.3)(audit.hold_out_users(shop().data, 0.2)),
                lambda data: broken(v),
                {'num_epochs': 1},
            ),
            'no longer finite in epoch 0',
        ),
    ],
    'evaluation.Comparison': by_name(
        'Comparison', lambda m: evaluation.Comparison(m, shop().marked).measure()
    ),
    'report.build_report': [(report_of, f"'unlearned' .MGCN. {ITEM}")],
    'report.write_report': [
        (lambda v: report_of(v, 'out.html'), f"'unlearned' .MGCN. {ITEM}")
    ],
    'report.format_table': [
        (
            lambda v: report.format_table([{'a': v}], ['a']),
            r"'rows\[0\]\.a' must be finite",
        )
    ],
    'report.render_html': [
        (
            lambda v: report.render_html({'audits': {}, 'table': {'rows': [v]}}),
            r"'content\.table\.rows\[0\]' must be finite",
        )
    ],
    'report.save_json': [
        (
            lambda v: report.save_json('out.json', {'a': [{'b': v}]}),
            r"'content\.a\[0\]\.b' must be finite",
        )
    ],
    'exposure.exposure': [
        (lambda v: metrics.exposure(broken(v), shop().marked), ITEM)
    ],
    'exposure.listed_pairs': [
        (
            lambda v: EXPOSURE.listed_pairs(Served(broken(v), graph()), shop().marked),
            ITEM,
        )
    ],
    'exposure.item_reach': [
        (lambda v: EXPOSURE.item_reach(broken(v), shop().marked), ITEM)
    ],
    'exposure.exposure_profile': [
        (
            lambda v, a=a: EXPOSURE.exposure_profile(*a(v))['correlation'],
            message,
        )
        for a, message in [
            (lambda v: (vector(v), vector(0.1), vector(0.2)), "'before' must be"),
            (lambda v: (vector(0.1), vector(v), vector(0.2)), "'after' must be"),
        ]
    ],
    'exposure.exposure_drop': [
        (
            lambda v: EXPOSURE.exposure_drop(row(v, 'exposure@20'), row(0.1)),
            "'before' must have a finite 'exposure@20'",
        ),
        (
            lambda v: EXPOSURE.exposure_drop(row(0.1), row(v, 'exposure@20')),
            "'after' must have a finite 'exposure@20'",
        ),
    ],
    'similarity.linear_cka': [
        (lambda v: _similarity.linear_cka(emb(v), emb()), "'x' .* the first is row 2"),
        (lambda v: _similarity.linear_cka(emb(), emb(v)), "'y' must be finite"),
    ],
    **{
        f'similarity.{name}': [
            (
                lambda v, name=name: getattr(_similarity, name)(lists(v), FIRST, k=5),
                "'first' must hold items as integers",
            )
        ]
        for name in ('jaccard_at_k', 'overlap_at_k', 'rank_biased_overlap')
    },
    **{
        f'similarity.{name}': [
            (lambda v, n=name, a=a: getattr(_similarity, n)(*a(v)), message)
            for a, message in [
                (lambda v: (lists(v), FIRST), "'first' must be finite"),
                (lambda v: (FIRST, lists(v)), "'second' must be finite"),
            ]
        ]
        for name in ('kendall_tau_top', 'jensen_shannon', 'ks_statistic')
    },
    'topk.Scores': [
        (lambda v: topk.Scores(emb(v), emb()), "'user_emb' must be"),
        (lambda v: topk.Scores(emb(), emb(v)), "'item_emb' must be"),
    ],
    'topk.score_blocks': [
        (lambda v: next(topk.score_blocks(emb(v), emb(), PAIRS[0])), "'user_emb'")
    ],
    'topk.topk_items': [
        (lambda v: topk.topk_items(emb(v), emb(), PAIRS[0], 2), "'user_emb' must be"),
        (lambda v: topk.topk_items(emb(), emb(v), PAIRS[0], 2), "'item_emb' must be"),
    ],
    'topk.topk_lowest_index': [
        (lambda v: topk.topk_lowest_index(lists(v), 3), "'scores' must be finite")
    ],
    'topk.pair_ranks': [
        (lambda v: topk.pair_ranks(emb(), emb(v), PAIRS, PAIRS), "'item_emb' must be")
    ],
    'topk.pair_hits': [
        (lambda v: topk.pair_hits(emb(v), emb(), PAIRS, PAIRS, 2), "'user_emb' must be")
    ],
}  # fmt: skip

#: Figures that are NaN where nothing is defined, so that NaN may come in and goes on.
PASSES_NAN = {
    'metrics.trade_off',
    'exposure.exposure_profile',
    'exposure.exposure_drop',
    'report.format_table',
    'report.render_html',
    'report.save_json',
}


def test_no_public_function_is_forgotten():
    assert set(CASES) | WITHOUT_FIGURES == PUBLIC


CALLS = [(name, *case) for name, cases in CASES.items() for case in cases]


@pytest.mark.usefixtures('few_trees')
@pytest.mark.parametrize('value', VALUES)
@pytest.mark.parametrize(
    ('name', 'call', 'message'),
    CALLS,
    ids=[f'{name}-{place}' for place, (name, *_) in enumerate(CALLS)],
)
def test_an_error_names_it(name, call, message, value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if name in PASSES_NAN and math.isnan(value):
        return
    if name in MASKED and value < 0:
        call(value)
        return
    if 'original' in message and name == 'audit.backdoor' and math.isnan(value):
        assert call(value) is None  # Not valid, and not invalid either.
        return
    with pytest.raises((ValueError, FloatingPointError), match=message):
        call(value)


def test_nan_goes_on_where_nothing_is_defined(tmp_path):
    for name in ('metrics.trade_off', 'exposure.exposure_profile'):
        for call, _ in CASES[name]:
            assert math.isnan(call(math.nan))
    for call, _ in CASES['exposure.exposure_drop']:
        assert math.isnan(call(math.nan))
    assert report.format_table([{'a': math.nan}], ['a']).endswith('-')
    path = tmp_path / 'history.json'
    report.save_json(path, {'history': [{'epoch': 0, 'miss': math.nan}]})
    assert json.loads(path.read_text())['history'] == [{'epoch': 0, 'miss': None}]


@pytest.mark.parametrize('value', VALUES)
def test_recommendations_branches_and_content(value):
    model = broken(value, 3, 'user_embedding')
    served = Served(model, graph(), 'tru')
    assert not served.is_finite
    with pytest.raises(ValueError, match=r"'tru' .MGCN. must give finite user"):
        _ = served.embeddings
    with pytest.raises(ValueError, match=r"'model' .MGCN. must give finite user"):
        model.recommend(graph(), torch.tensor([0]))
    model, place = copy.deepcopy(shop().good), {'image': 405}

    def of_branches(graph):
        out = MGCN.branch_embeddings(model, graph)
        out['image'][place['image'], 0] = value
        return out

    def of_content(graph):
        out = MGCN.content_embeddings(model, graph)
        out['text'][7, 0] = value
        return out

    served = Served(model, graph())
    assert all_finite(served.embeddings)
    model.branch_embeddings, model.content_embeddings = of_branches, of_content
    with pytest.raises(ValueError, match=r"item embeddings .* 'image' .* rows: 5\)"):
        _ = served.branches
    with pytest.raises(ValueError, match=r"content embeddings of 'text' .* rows: 7\)"):
        _ = served.content


class Mean(torch.nn.Module):
    r"""Users are the mean of their items, as many write it at first."""

    def __init__(self, sizes, floor=0):
        super().__init__()
        self.item = torch.nn.Parameter(torch.randn(sizes[1], 4))
        self.sizes, self.floor = sizes, floor

    def forward(self, edge_index):
        edge_index = edge_index[:, edge_index[1] < self.sizes[0]]  # Items to users.
        item, user = edge_index - torch.tensor([[self.sizes[0]], [0]])
        total = torch.zeros(self.sizes[0], 4).index_add(0, user, self.item[item])
        count = user.bincount(minlength=self.sizes[0]).clamp(min=self.floor)
        return total / count.unsqueeze(1), self.item


def test_an_empty_history_is_named_with_the_way_out(data):
    marked = ForgetUsers([3, 17])(data)
    sizes = data['user'].num_nodes, data['item'].num_nodes
    model = RecommenderAdapter(Mean(sizes), *sizes)
    assert Served.of(model, data).is_finite
    message = (
        r'NaN or infinity in 2 of 100 rows: 3, 17\). None of these users has .* '
        r'give an empty history a zero vector'
    )
    for call in (
        lambda: metrics.evaluate_request(model, marked),
        lambda: audit.completion(model, marked),
        lambda: model.recommend(model.build_graph(marked), torch.tensor([0])),
        lambda: MMRecUn(num_epochs=1)(model, marked),
        lambda: GNNDelete(num_epochs=1)(model, marked),
        lambda: fit(model, DropForgotten()(marked), num_epochs=1),
    ):
        with pytest.raises((ValueError, FloatingPointError), match=message):
            call()
    result = EdgeDrop()(model, marked)  # Looks at no embedding.
    content = report.build_report(result, model, marked)
    reasons = {failure['reason'] for failure in content['failures']}
    assert reasons
    assert all("'unlearned' (RecommenderAdapter)" in reason for reason in reasons)
    assert content['verdict']['status'] == 'unknown'
    fixed = RecommenderAdapter(Mean(sizes, floor=1), *sizes)
    content = report.build_report(EdgeDrop()(fixed, marked), fixed, marked)
    assert content['failures'] == []


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_read_as_single(dtype, data, trained):
    marked = ForgetUsers([3, 17])(data)
    half = copy.deepcopy(trained).to(dtype)
    wanted = [x.float() for x in half.eval()(half.build_graph(marked))]
    served = Served.of(half, marked)
    for x, y in zip(served.embeddings, wanted):
        assert x.dtype == torch.float32
        assert torch.equal(x, y)
    assert all(x.dtype == torch.float32 for x in served.content.values())
    assert served.branches['id'][0].dtype == torch.float32
    raw = [x.to(dtype) for x in wanted]
    exclude = data.val_edge_label_index
    users = torch.arange(10)
    for a, b in zip(*(topk.topk_items(*x, users, 5) for x in (raw, wanted))):
        assert torch.equal(a, b)
    assert metrics.ranking_metrics(*raw, exclude) == metrics.ranking_metrics(
        *wanted, exclude
    )
    with torch.no_grad():
        half.user_embedding.weight.fill_(torch.finfo(dtype).max)
        half.item_embedding.weight.fill_(torch.finfo(dtype).max)
    advice = r"overflows early: convert the model with '\.float\(\)'"
    with pytest.raises(ValueError, match=advice):
        metrics.evaluate_request(half, marked)
    with pytest.raises(ValueError, match=r"GNNDelete.*with '\.float\(\)'"):
        GNNDelete()(half, marked)


def test_finite_embeddings_with_scores_that_are_not():
    for scale in (1e19, 1e30):
        with pytest.raises(ValueError, match='small enough for finite scores'):
            topk.topk_items(scale * emb(), scale * emb(), PAIRS[0], 2)
    large, small = 1e30 * emb(), 1e-30 * emb()
    ours, _ = topk.topk_items(large, small, PAIRS[0], 4)
    assert torch.equal(ours, topk.topk_items(emb(), emb(), PAIRS[0], 4)[0])


def test_checks_of_tensors():
    assert all_finite([torch.empty(0, 3), torch.ones(2, dtype=torch.int64), emb()])
    most = torch.full((1000,), 6e4, dtype=torch.float16)  # Its sum overflows.
    assert check_finite(most, 'x') is most
    assert check_finite(emb(-math.inf), 'x', masked=True)[2, 1] == -math.inf
    with pytest.raises(ValueError, match=r"'x' .* in 1 of 1 rows, the first is row 0"):
        check_finite(torch.tensor(math.nan), 'x')
    assert check_embeddings(most[:, None], most[:, None])[0].dtype == torch.float32


def test_no_training_ends_in_it(data):
    class Jump(LightGCN):
        r"""Its last step of an epoch is too long, which no loss of it shows."""

        def loss(self, graph, batch):
            return super().loss(graph, batch) + 0 * self.user_embedding.weight.sum()

    model = Jump.from_data(data, hidden_channels=4)
    del data.val_edge_label_index, data.test_edge_label_index
    model.user_embedding.weight.register_hook(lambda grad: grad * math.inf)
    with pytest.raises(FloatingPointError, match='a parameter is no longer finite'):
        fit(model, data, num_epochs=1, batch_size=10**6)


class Diverging(EdgeDrop):
    def _unlearn(self, model, data, retained):
        with torch.no_grad():
            model.item_embedding.weight[2] = math.inf
        return model, []


def test_no_method_returns_it(data, trained):
    marked = ForgetUsers([3])(data)
    message = r"ended with .* in the parameter 'item_embedding\.weight'"
    with pytest.raises(FloatingPointError, match=message):
        Diverging()(trained, marked)
    assert all_finite(trained.parameters())
