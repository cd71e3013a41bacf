r"""How near a model is to the retrained one: representations, lists, scores, weights.

All measures compare two models of the same users and items, which may have different
embedding sizes.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.data.request import Request
from torch_geometric_unlearn.nn.models.base import (
    RecommenderLike,
    named_tables,
)
from torch_geometric_unlearn.nn.models.served import Served
from torch_geometric_unlearn.utils.check import check_int
from torch_geometric_unlearn.utils.finite import check_finite
from torch_geometric_unlearn.utils.seed import generator
from torch_geometric_unlearn.utils.topk import (
    pair_hits,
    score_blocks,
    topk_lowest_index,
)

from ._similarity import (
    BLOCK,
    jaccard_at_k,
    jensen_shannon,
    kendall_tau_top,
    ks_statistic,
    linear_cka,
    overlap_at_k,
    rank_biased_overlap,
)

NODE_SETS = ('users', 'forget_items', 'other_items')
DEPTH = 100  # Of rank-biased overlap, and of the lists that limit 'jsd_top@100'.

@torch.no_grad()
def parameter_shift(
    model: RecommenderLike,
    original: RecommenderLike,
    reference: RecommenderLike | None = None,
    data: HeteroData | None = None,
) -> dict[str, dict[str, float]]:
    r"""Measures how far every module has moved away from the original model.

    Per module, :math:`\|\theta - \theta_o\|_F / \|\theta_o\|_F`, the same for the
    retrained model, and the cosine between both ways. Way and cosine of a retrained
    model only mean something where it started from the same initial values.

    Args:
        model (torch.nn.Module): The model to look at.
        original (torch.nn.Module): The model before unlearning.
        reference (torch.nn.Module, optional): The retrained model.
            (default: :obj:`None`)
        data (HeteroData, optional): The data with the request still marked. If given,
            tables with a row per user or item are split into the rows of users and
            items in the request (:obj:`'<module>[touched]'`) and the others
            (:obj:`'<module>[untouched]'`). (default: :obj:`None`)

    Returns:
        dict: By module, :obj:`shift` and, with a retrained model,
        :obj:`reference_shift` and :obj:`cosine`; NaN where shapes differ or the
        original is zero, and a cosine is NaN where either has not moved.

    Raises:
        ValueError: If a parameter is not finite.

    Example:
        >>> parameter_shift(model, model)['user_embedding']['shift']
        0.0
    """
    rows = {} if data is None else _touched_rows(original, data)
    models = {'model': model, 'original': original, 'reference': reference}
    parameters = [_parameters(m, n) for n, m in models.items() if m is not None]
    groups: dict[str, list[tuple[Tensor | None, ...]]] = {}
    for name, old in parameters[1].items():
        module = name.rpartition('.')[0] or 'model'
        values: list[Tensor | None] = []
        for own in parameters:
            value = own.get(name)
            if value is None or value.shape != old.shape:
                values.append(None)
            else:
                values.append(value.to(old))
        if name not in rows:
            groups.setdefault(module, []).append(tuple(values))
            continue
        for suffix, mask in (('touched', rows[name]), ('untouched', ~rows[name])):
            part = tuple(None if v is None else v[mask] for v in values)
            groups.setdefault(f'{module}[{suffix}]', []).append(part)
    return {
        name: _shift_row(members, reference is not None)
        for name, members in groups.items()
    }


def _parameters(model: RecommenderLike, role: str) -> dict[str, Tensor]:
    return {
        name: check_finite(value, f'{role}.{name}')
        for name, value in model.named_parameters()
    }


def _shift_row(
    members: list[tuple[Tensor | None, ...]], has_reference: bool
) -> dict[str, float]:
    moved, old = _flat(members, 0), _flat(members, 1)
    assert old is not None
    norm = float(old.norm())
    moved = None if moved is None else moved - old
    out = {'shift': _ratio(moved, norm)}
    if has_reference:
        goal = _flat(members, 2)
        goal = None if goal is None else goal - old
        out['reference_shift'] = _ratio(goal, norm)
        out['cosine'] = math.nan
        if moved is not None and goal is not None:
            length = float(moved.norm()) * float(goal.norm())
            out['cosine'] = float(moved @ goal) / length if length > 0 else math.nan
    return out


def _flat(members: list[tuple[Tensor | None, ...]], place: int) -> Tensor | None:
    values = [member[place] for member in members]
    known = [value.double().flatten() for value in values if value is not None]
    return torch.cat(known) if len(known) == len(values) else None


def _ratio(change: Tensor | None, norm: float) -> float:
    return math.nan if change is None or norm == 0 else float(change.norm()) / norm


def _touched_rows(model: RecommenderLike, data: HeteroData) -> dict[str, Tensor]:
    r"""Returns which rows of every table belong to the request, by parameter."""
    request = Request.of(data)
    sizes = schema.num_users(data), schema.num_items(data)
    masks = []
    for ids, named, size in zip(request.pairs, (request.users, request.items), sizes):
        mask = torch.zeros(size, dtype=torch.bool, device=ids.device)
        mask[ids] = True
        mask[named.to(ids.device)] = True
        masks.append(mask)
    return {
        name: table.of(*masks).to(table.parameter.device)
        for name, table in named_tables(model).items()
        if table.parameter.size(0) == table.of(*masks).numel()
    }


def closeness(
    model: Any,
    reference: Any,
    data: HeteroData,
    original: Any = None,
    second: Any = None,
    num_users: int = 5000,
    num_items: int = 5000,
    seed: int = 0,
) -> dict[str, Any]:
    r"""Compares a model with the retrained one on fixed sets of nodes.

    Node sets are retained users, the items of the forgotten interactions, and other
    items. All models propagate over the retained interactions, the original one over
    all. Lists and scores are those of the retained users with their retained training
    pairs masked, and deleted items in an item-level request [ours].

    ===========================  ==================================================
    name                         what
    ===========================  ==================================================
    ``cka_<set>``                :meth:`linear_cka` of the final embeddings
    ``cka_<branch>_<set>``       the same before the fusion, per branch, and of the
                                 content as ``cka_content_<modality>_<set>``, where
                                 the model tells them
    ``jaccard@20``               :meth:`jaccard_at_k`
    ``overlap@20``               :meth:`overlap_at_k`
    ``rbo``                      :meth:`rank_biased_overlap`
    ``kendall@50``               :meth:`kendall_tau_top`
    ``jsd``, ``jsd_top@100``     :meth:`jensen_shannon`, a distance
    ``ks_forget``                :meth:`ks_statistic` between the scores of the
                                 forgotten pairs, standardised over the user's row,
                                 a distance
    ===========================  ==================================================

    A value alone says little. The *ceiling* is that of the original model, the *floor*
    that of a second retrained model, which differs by its seed only, and

    .. math::
        \textrm{recovered} = \frac{c(\theta) - c(\theta_o)}
        {c(\theta_{R^{\prime}}) - c(\theta_o)}

    is the share of the way that has been gone; NaN where there is no way.

    Args:
        model (torch.nn.Module or Served): The model to look at.
        reference (torch.nn.Module or Served, optional): The model retrained without
            the forgotten interactions, or :obj:`None`.
        data (HeteroData): The data with the request still marked.
        original (torch.nn.Module or Served, optional): The model before unlearning.
            (default: :obj:`None`)
        second (torch.nn.Module or Served, optional): Another retrained model.
            (default: :obj:`None`)
        num_users (int, optional): Largest number of retained users, sampled.
            (default: :obj:`5000`)
        num_items (int, optional): Largest number of other items, sampled.
            (default: :obj:`5000`)
        seed (int, optional): Seed of the samples. (default: :obj:`0`)

    Returns:
        dict: :obj:`value`, :obj:`ceiling`, :obj:`floor` and :obj:`recovered`, each by
        measure; :obj:`branch_cka`, every branch of the model (outside) against every
        branch of the retrained one (inside), on the retained users;
        :obj:`parameters`, the result of :meth:`parameter_shift`; :obj:`num_nodes`, the
        sizes of the sets; :obj:`missing`, the parts that are empty because a model was
        not given. Measures of the forgotten pairs are NaN, with a warning, if nothing
        is marked.

    Raises:
        ValueError: If an argument is out of range, or a model does not fit the data.

    Example:
        >>> out = closeness(model, model, ForgetUsers([3])(data))
        >>> out['value']['jaccard@20'], out['missing']
        (1.0, ['ceiling', 'floor', 'recovered', 'parameters'])
    """
    check_int(num_users, 'num_users', 1)
    check_int(num_items, 'num_items', 1)
    data = schema.validate(data)
    if schema.forgotten_edge_index(data).size(1) == 0:
        warnings.warn(
            'Nothing is marked, so closeness on forgotten pairs is NaN', stacklevel=2
        )
    sets = _node_sets(data, num_users, num_items, seed)
    out: dict[str, Any] = {
        key: {}
        for key in (
            'value', 'ceiling', 'floor', 'recovered', 'branch_cka', 'parameters'
        )
    }  # fmt: skip
    if reference is not None:
        view = Served.of(model, data, name='model')
        goal = Served.of(reference, data, name='reference')
        out['value'] = _compare(view, goal, data, sets)
        out['branch_cka'] = _branch_matrix(view, goal, sets['users'])
        if original is not None:
            served = Served.before(original, data)
            out['ceiling'] = _compare(served, goal, data, sets)
        if second is not None:
            served = Served.of(second, data, name='second')
            out['floor'] = _compare(served, goal, data, sets)
        if original is not None and second is not None:
            out['recovered'] = _recovered(out)
    if original is not None:
        now, before, after = (
            m.model if isinstance(m, Served) else m
            for m in (model, original, reference)
        )
        out['parameters'] = parameter_shift(now, before, after, data)
    out['missing'] = [
        key
        for key, needed in {
            'value': [reference],
            'ceiling': [reference, original],
            'floor': [reference, second],
            'recovered': [reference, original, second],
            'branch_cka': [reference],
            'parameters': [original],
        }.items()
        if any(x is None for x in needed)
    ]
    if original is not None and reference is None:
        out['missing'] += ['reference_shift', 'cosine']
    out['num_nodes'] = {name: nodes.numel() for name, nodes in sets.items()}
    return out


def _layers(served: Served) -> dict[str, tuple[Tensor | None, Tensor]]:
    r"""Returns users and items of every layer, by the infix of the measure."""
    out: dict[str, tuple[Tensor | None, Tensor]] = {'': served.embeddings}
    out |= {f'{name}_': pair for name, pair in served.branches.items()}
    out |= {f'content_{name}_': (None, x) for name, x in served.content.items()}
    return out


def _node_sets(
    data: HeteroData, num_users: int, num_items: int, seed: int
) -> dict[str, Tensor]:
    users = schema.retained_edge_index(data)[0].unique().cpu()
    targets = schema.forgotten_edge_index(data)[1].unique().cpu()
    items = torch.arange(schema.num_items(data))
    others = items[~torch.isin(items, targets)]
    gen = generator(seed)

    def sample(nodes: Tensor, size: int) -> Tensor:
        return nodes[torch.randperm(nodes.numel(), generator=gen)[:size]].sort()[0]

    sets = (sample(users, num_users), targets, sample(others, num_items))
    return dict(zip(NODE_SETS, sets))


def _compare(
    view: Served, goal: Served, data: HeteroData, sets: dict[str, Tensor]
) -> dict[str, float]:
    out = {}
    other = _layers(goal)
    for infix, pair in _layers(view).items():
        if infix not in other:
            continue
        for name, nodes in sets.items():
            side = 0 if name == 'users' else 1
            x, y = pair[side], other[infix][side]
            if x is not None and y is not None:
                x, y = x[nodes.to(x.device)], y[nodes.to(y.device)]
                out[f'cka_{infix}{name}'] = linear_cka(x, y)
    out |= _compare_lists(view, goal, data, sets['users'])
    forgotten = schema.forgotten_edge_index(data)
    scores = []
    for shown in (view, goal):
        emb = shown.embeddings
        pairs = forgotten.to(emb[0].device)
        scores.append(pair_hits(*emb, pairs, pairs[:, :0], 1)[1])
    out['ks_forget'] = ks_statistic(scores[0], scores[1])
    return out


@torch.no_grad()
def _compare_lists(
    view: Served, goal: Served, data: HeteroData, users: Tensor
) -> dict[str, float]:
    banned = Request.of(data).items
    sides = []
    for side in (view, goal):
        device = side.embeddings[0].device
        sides.append(
            score_blocks(
                *side.embeddings,
                users.to(device),
                schema.retained_edge_index(data).to(device),
                banned.to(device),
                BLOCK,
            )
        )
    values: dict[str, list[Tensor]] = {}
    for (_, a), (_, b) in zip(*sides):
        b = b.to(a.device)
        first, second = _top_list(a, DEPTH), _top_list(b, DEPTH)
        k = min(20, first.size(1))
        block = {
            'jaccard@20': jaccard_at_k(first, second, k),
            'overlap@20': overlap_at_k(first, second, k),
            'rbo': rank_biased_overlap(first, second),
            'kendall@50': kendall_tau_top(a, b),
            'jsd': jensen_shannon(a, b),
            'jsd_top@100': jensen_shannon(a, b, DEPTH),
        }
        for name, value in block.items():
            values.setdefault(name, []).append(value)
    out = {name: torch.cat(parts) for name, parts in values.items()}
    # A user with fewer than two candidates has no order to compare.
    mean = {name: value.mean() for name, value in out.items()}
    mean['kendall@50'] = out['kendall@50'].nanmean()
    return {name: float(value) for name, value in mean.items()}


def _branch_matrix(
    view: Served, goal: Served, users: Tensor
) -> dict[str, dict[str, float]]:
    return {
        row: {
            column: linear_cka(x[users.to(x.device)], y[users.to(y.device)])
            for column, (y, _) in goal.branches.items()
        }
        for row, (x, _) in view.branches.items()
    }


def _recovered(parts: dict[str, dict[str, float]]) -> dict[str, float]:
    out = {}
    for name, value in parts['value'].items():
        start, goal = parts['ceiling'].get(name), parts['floor'].get(name)
        if start is None or goal is None or abs(goal - start) < 1e-9:
            out[name] = math.nan
        else:
            out[name] = (value - start) / (goal - start)
    return out


def _top_list(scores: Tensor, k: int) -> Tensor:
    value, index = topk_lowest_index(scores, min(k, scores.size(1)))
    return index.masked_fill(value == -torch.inf, -1)
