r"""Membership inference with a likelihood ratio per example."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.data.request import Request, without_request
from torch_geometric_unlearn.nn.models.base import RecommenderLike
from torch_geometric_unlearn.nn.models.served import Served
from torch_geometric_unlearn.train import fit
from torch_geometric_unlearn.transforms import (
    DropForgotten,
    ForgetInteractions,
    ForgetUsers,
)
from torch_geometric_unlearn.unlearn import Unlearner
from torch_geometric_unlearn.utils.check import check_choice, check_int
from torch_geometric_unlearn.utils.finite import check_finite
from torch_geometric_unlearn.utils.seed import generator, isolated_seed

from ._attack import (
    MembershipResult,
    best_threshold,
    fill_direction,
    fill_result,
)

#: Targets on either side of the threshold, below which a figure would be noise.
MIN_TARGETS = 10


def likelihood_ratio(
    data: HeteroData,
    build_model: Callable[[HeteroData], RecommenderLike],
    unlearner: Unlearner,
    fit_args: Mapping[str, Any] | None = None,
    model: Any = None,
    level: str = 'user',
    num_models: int = 16,
    num_targets: int | None = None,
    num_bootstrap: int = 1000,
    seed: int = 0,
) -> MembershipResult:
    r"""Attacks an unlearning method with models of its own, after the `"Membership
    Inference Attacks From First Principles" <https://arxiv.org/abs/2112.03570>`_ and
    `"Inexact Unlearning Needs More Careful Evaluations to Avoid a False Sense of
    Privacy" <https://arxiv.org/abs/2403.01218>`_ papers (U-LiRA).

    Targets are drawn from the request. Every shadow model is trained on the retained
    data and a random half of the targets, and then unlearns that half in one request,
    so that every target has been unlearned by one half of the models and never seen by
    the other. The value of a target is the margin

    .. math::
        \phi = \frac{1}{|H|} \sum_{i \in H} \Big( s_{ui} - \frac{1}{I} \sum_j s_{uj}
        \Big)

    over its forgotten pairs :math:`H`, the logit of the probability that BPR gives a
    forgotten item over an average one. One Gaussian for each half gives the
    log-likelihood ratio.

    As a single audited model holds no target that it has never seen, every shadow
    model plays the audited one in turn, judged by Gaussians from the others, and
    metrics are pooled [ours: leave one out]. The threshold is the best on one half of
    the targets, all metrics come from the other half. With few models, variances are
    shared between targets [as in the first paper].

    This trains :obj:`num_models` models. They can't tell anything about a method other
    than :obj:`unlearner`.

    Args:
        data (HeteroData): The data with the request still marked.
        build_model (callable): Returns a fresh model for some data, drawing its
            parameters from torch's global generator.
        unlearner (Unlearner): The audited method.
        fit_args (dict, optional): Arguments of
            :meth:`~torch_geometric_unlearn.train.fit` but the seed.
            (default: :obj:`None`)
        model (torch.nn.Module, optional): A model that :obj:`unlearner` has returned
            for the request itself. What it gives away about the targets goes to
            :obj:`details`: :obj:`flagged`, the share taken for unlearned rather than
            never seen, and :obj:`mean_ratio`. (default: :obj:`None`)
        level (str, optional): :obj:`'user'` for whole users of the request,
            :obj:`'pair'` for pairs. (default: :obj:`'user'`)
        num_models (int, optional): Number of shadow models, even, at least 4.
            (default: :obj:`16`)
        num_targets (int, optional): Number of targets at most; 200 users or 2,000 pairs
            if not given. (default: :obj:`None`)
        num_bootstrap (int, optional): Resamples of targets for the intervals.
            (default: :obj:`1000`)
        seed (int, optional): Seed of targets and halves; model :math:`n` is trained
            with :obj:`seed + n`. (default: :obj:`0`)

    Returns:
        MembershipResult: Members are unlearned targets, non-members never seen ones;
        :obj:`scores` holds log-likelihood ratios. NaN with a warning with fewer than 20
        targets.

    Raises:
        ValueError: If an argument is out of range, or users are to be targets of a
            request that deletes none.

    Example:
        >>> from torch_geometric_unlearn.audit import likelihood_ratio
        >>> marked = ForgetUsers(ratio=0.3)(data)
        >>> result = likelihood_ratio(
        ...     marked, lambda data: MGCN.from_data(data, hidden_channels=8),
        ...     EdgeDrop(), {'num_epochs': 1}, num_models=4)
        >>> result.num_members
        30
    """
    check_choice(level, 'level', ('user', 'pair'))
    check_int(num_models, 'num_models', 4)
    if num_models % 2 == 1:
        raise ValueError(
            f"'num_models' must be even (got {num_models}), so that every target is "
            f'in half of the models. Pass {num_models + 1}.'
        )
    check_int(num_bootstrap, 'num_bootstrap', 1)
    if num_targets is None:
        num_targets = 200 if level == 'user' else 2000
    check_int(num_targets, 'num_targets', 1)
    rng = generator(seed)
    data = schema.validate(data)
    if level == 'user' and Request.of(data).users.numel() == 0:
        raise ValueError(
            "'level' must be 'pair' for a request that deletes no user (got 'user')."
        )
    forgotten = schema.forgotten_edge_index(data).cpu()
    if level == 'user':
        keys = forgotten[0]
        pool = keys.unique()
    else:
        keys = pool = torch.arange(forgotten.size(1))
    targets = pool[torch.randperm(pool.numel(), generator=rng)[:num_targets]]
    targets = targets.sort()[0]
    result = MembershipResult('likelihood_ratio', level)
    if targets.numel() < 2 * MIN_TARGETS:
        result.reason = (
            f'The attack needs {2 * MIN_TARGETS} targets (got {targets.numel()}), so '
            f'its metrics are NaN. Mark more.'
        )
        warnings.warn(result.reason, stacklevel=2)
        return result
    chosen = torch.isin(keys, targets)
    pairs, keys = forgotten[:, chosen], keys[chosen]
    target_of_pair = torch.searchsorted(targets, keys)

    # Every target is in exactly one half of the models.
    order = torch.rand(targets.numel(), num_models, generator=rng).argsort(dim=1)
    inside = (order < num_models // 2).t()
    values = []
    for n in range(num_models):
        part = pairs[:, inside[n, target_of_pair]]
        shadow = _train_data(data, part)
        with isolated_seed(seed + n):
            fresh = build_model(shadow)
        fit(fresh, shadow, seed=seed + n, **(fit_args or {}))
        if level == 'user':
            request = ForgetUsers(part[0].unique())(shadow)
        else:
            request = ForgetInteractions(part)(shadow)
        out = unlearner(fresh, request)
        graph = out.model.build_graph(out.data)
        served = Served(out.model, graph, f'shadow model {n}')
        values.append(_margins(served, pairs, target_of_pair))
    value = torch.stack(values)

    others = ~torch.eye(num_models, dtype=torch.bool)
    ratio = torch.stack(
        [
            log_likelihood_ratio(value[n], value[others[n]], inside[others[n]])
            for n in range(num_models)
        ]
    )
    half = torch.randperm(targets.numel(), generator=rng) % 2 == 0
    threshold = best_threshold(ratio[:, half].reshape(-1), inside[:, half].reshape(-1))
    score, label = ratio[:, ~half].reshape(-1), inside[:, ~half].reshape(-1)
    group = (targets if level == 'user' else pairs[0])[~half].repeat(num_models)
    fill_result(result, score, score > threshold, label, group, num_bootstrap, seed)
    result.classifier = 'likelihood_ratio'
    fill_direction(result, bool(value[inside].mean() > value[~inside].mean()))
    result.details = {'num_models': num_models, 'num_targets': targets.numel()}
    if model is not None:
        own = _margins(Served.of(model, data), pairs, target_of_pair)
        ratio = log_likelihood_ratio(own, value, inside)
        result.details['flagged'] = float((ratio > threshold).double().mean())
        result.details['mean_ratio'] = float(ratio.mean())
    return result


def log_likelihood_ratio(own: Tensor, value: Tensor, inside: Tensor) -> Tensor:
    r"""Returns :math:`\log p(\textrm{unlearned}) - \log p(\textrm{never seen})` per
    target, float64 :obj:`[n]`.

    Means belong to the target, variances are those of both halves pooled over all
    targets if there are fewer than 64 models, as such small samples tell no variance.

    Args:
        own (torch.Tensor): Values under the judged model :obj:`[n]`.
        value (torch.Tensor): Values under the shadow models :obj:`[N, n]`.
        inside (torch.Tensor): Which targets they have unlearned, bool :obj:`[N, n]`.

    Raises:
        ValueError: If a value is not finite.
    """
    check_finite(own, 'own')
    check_finite(value, 'value')
    out = torch.zeros_like(own)
    for sign, side in ((1, inside), (-1, ~inside)):
        count = side.sum(dim=0).clamp(min=1)
        mean = (value * side).sum(dim=0) / count
        square = ((value - mean).pow(2) * side).sum(dim=0)
        if value.size(0) < 64:
            freedom = side.sum() - side.size(1)
            variance = (square.sum() / freedom.clamp(min=1)).expand_as(mean)
        else:
            variance = square / (count - 1).clamp(min=1)
        variance = variance.clamp(min=1e-12)
        out += sign * -0.5 * ((own - mean).pow(2) / variance + variance.log())
    return out


def _train_data(data: HeteroData, pairs: Tensor) -> HeteroData:
    r"""Returns the retained data and some of the pairs of the request, unmarked."""
    out, request = without_request(data), Request.of(data)
    num_items = schema.num_items(data)
    codes = schema.pair_codes(data[schema.EDGE_TYPE].edge_index, num_items)
    wanted = schema.pair_codes(pairs, num_items).to(codes.device)
    gone = schema.forget_mask(data) & ~torch.isin(codes, wanted)
    for key in schema.HELD_OUT:  # No shadow model stops by what is to be forgotten.
        if key in data:
            out[key] = data[key][:, ~request.covers(data[key])]
    out[schema.EDGE_TYPE].forget_mask = gone
    return DropForgotten(keep=('*',))(out)


def _margins(served: Served, pairs: Tensor, target: Tensor) -> Tensor:
    user_emb, item_emb = served.embeddings
    pairs = pairs.to(user_emb.device)
    user = user_emb[pairs[0]].double()
    centred = item_emb[pairs[1]].double() - item_emb.double().mean(dim=0)
    margin = (user * centred).sum(dim=1).cpu()
    total = torch.zeros(int(target.max()) + 1, dtype=torch.float64)
    return total.index_add_(0, target, margin) / target.bincount()
