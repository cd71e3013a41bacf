from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.loader import TripletLoader
from torch_geometric_unlearn.metrics import ranking_metrics
from torch_geometric_unlearn.nn.models import Served, Triplets
from torch_geometric_unlearn.nn.models.base import half_precision
from torch_geometric_unlearn.utils.check import check_float, check_int, check_ratio
from torch_geometric_unlearn.utils.seed import generator, isolated_seed


def relearn_time(
    model: Any,
    data: HeteroData,
    original: Any,
    retrained: Any = None,
    share: float = 0.5,
    ratio: float = 0.1,
    num_subsets: int = 3,
    max_steps: int = 500,
    k: int = 20,
    lr: float = 1e-3,
    batch_size: int = 2048,
    seed: int = 0,
) -> dict[str, Any]:
    r"""Measures how fast forgotten interactions come back when a few of them are shown
    again: what was only hidden returns sooner than what is gone.

    A copy of the model is trained by its own loss with Adam on a random part
    :obj:`ratio` of the forgotten interactions. The relearn time :math:`t_x` is the
    number of steps until the Recall@K of the *other* forgotten interactions reaches
    :math:`x` times that of the original model. Below that of a retrained model, it
    shows residual knowledge.

    The model propagates over the retained interactions throughout, the original one
    over all. Masked are the retained pairs and the ones shown again; negatives are
    items that the user has neither among these; pairs of users who would then have
    every item are left out, as long as others are left. [Protocol and defaults ours.]

    Args:
        model (torch.nn.Module): The unlearned model; left as it is.
        data (HeteroData): The data with the request still marked.
        original (torch.nn.Module, Served or float): The original model, or its Recall@K
            of the forgotten interactions.
        retrained (torch.nn.Module, optional): The model retrained without the forgotten
            interactions. (default: :obj:`None`)
        share (float, optional): :math:`x`, in :math:`(0, 1)`. (default: :obj:`0.5`)
        ratio (float, optional): Part that is shown again, in :math:`(0, 1)`; at least
            one interaction. (default: :obj:`0.1`)
        num_subsets (int, optional): Random parts to average over.
            (default: :obj:`3`)
        max_steps (int, optional): Steps after which to give up; the time is then this
            number. (default: :obj:`500`)
        k (int, optional): Length of the lists. (default: :obj:`20`)
        lr (float, optional): Learning rate, that of the training.
            (default: :obj:`1e-3`)
        batch_size (int, optional): Pairs per step. (default: :obj:`2048`)
        seed (int, optional): Seed of parts, batches and dropout. (default: :obj:`0`)

    Returns:
        dict: :obj:`steps`, the mean of :math:`t_x`; :obj:`steps_per_subset` (0 if the
        recall is there before the first step), :obj:`reached`, the share of the subsets
        that got there within :obj:`max_steps`, and :obj:`start`, the mean recall before
        any step; :obj:`goal`, the mean recall to reach; with a retrained model,
        :obj:`retrained_steps`, :obj:`retrained_reached`, and :obj:`relative`, the
        quotient of both mean times (NaN where that of the retrained model is 0, and a
        bound only where a share is below 1); :obj:`missing`, :obj:`['retrained']` or
        nothing; :obj:`reason`, empty or why all is NaN, which is warned of: fewer than
        two interactions are marked, or the original model recalls none.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> marked = ForgetUsers([3, 17, 40])(data)
        >>> out = relearn_time(model, marked, original=model, max_steps=2)
        >>> len(out['steps_per_subset']), out['missing']
        (3, ['retrained'])
    """
    share = check_ratio(share, 'share')
    ratio = check_ratio(ratio, 'ratio')
    num_subsets = check_int(num_subsets, 'num_subsets', 1)
    max_steps = check_int(max_steps, 'max_steps', 1)
    k = check_int(k, 'k', 1)
    lr = check_float(lr, 'lr', 1e-12)
    batch_size = check_int(batch_size, 'batch_size', 1)
    if not isinstance(original, (torch.nn.Module, Served)):
        original = check_float(original, 'original', 0.0, 1.0)
    for name, which in (('model', model), ('retrained', retrained)):
        coarse = None if which is None else half_precision(which)
        if coarse is not None:
            raise ValueError(
                f"'{name}' must not be {coarse}, too coarse for the steps of "
                f"relearning. Convert a copy with '.float()'."
            )
    data = schema.validate(data)
    forgotten = _with_negatives(data)
    num_shown = max(1, round(ratio * forgotten.size(1)))
    if forgotten.size(1) <= num_shown:
        return _empty('Too few interactions are marked', num_subsets, retrained)

    gen = generator(seed)
    orders = [
        torch.randperm(forgotten.size(1), generator=gen) for _ in range(num_subsets)
    ]
    parts = [
        (forgotten[:, order[:num_shown]], forgotten[:, order[num_shown:]])
        for order in orders
    ]
    goals = [original] * num_subsets
    if not isinstance(original, float):
        emb = Served.before(original, data).embeddings
        goals = [_recall(emb, data, shown, rest, k) for shown, rest in parts]
    goals = [share * goal for goal in goals]
    if min(goals) == 0:
        reason = 'The original model recalls none of the forgotten interactions'
        return _empty(reason, num_subsets, retrained)

    def run(which: Any, name: str) -> tuple[list[int], list[bool], list[float]]:
        rows = []
        for place, ((shown, rest), goal) in enumerate(zip(parts, goals)):
            with torch.enable_grad(), isolated_seed(seed + place):
                own = copy.deepcopy(which)
                loader = _loader(data, shown, batch_size, seed + place)
                recalls = _relearn(own, name, data, shown, rest, loader, k, lr)
                rows.append(_first_step(recalls, goal, max_steps))
        steps, reached, start = (list(column) for column in zip(*rows))
        return steps, reached, start

    steps, reached, start = run(model, 'model')
    out: dict[str, Any] = {
        'steps': _mean(steps),
        'steps_per_subset': steps,
        'reached': _mean(reached),
        'start': _mean(start),
        'goal': _mean(goals),
        'missing': ['retrained'] if retrained is None else [],
        'reason': '',
    }
    if retrained is not None:
        steps, reached, _ = run(retrained, 'retrained')
        out['retrained_steps'] = _mean(steps)
        out['retrained_reached'] = _mean(reached)
        out['relative'] = math.nan
        if out['retrained_steps'] > 0:
            out['relative'] = out['steps'] / out['retrained_steps']
    return out


def _with_negatives(data: HeteroData) -> Tensor:
    r"""Returns the forgotten pairs int64 :obj:`[2, n]`, without those of users who have
    every item once they are shown again, as long as others are left.
    """
    forgotten = schema.forgotten_edge_index(data).cpu()
    retained = schema.retained_edge_index(data)[0].cpu()
    count = retained.bincount(minlength=schema.num_users(data))
    free = count[forgotten[0]] + 1 < schema.num_items(data)
    return forgotten[:, free] if free.any() else forgotten


def _empty(reason: str, num_subsets: int, retrained: Any) -> dict[str, Any]:
    reason = f'{reason}, so the relearn time is NaN'
    warnings.warn(reason, stacklevel=3)
    names = ['steps', 'reached', 'start', 'goal']
    if retrained is not None:
        names += ['retrained_steps', 'retrained_reached', 'relative']
    out: dict[str, Any] = dict.fromkeys(names, math.nan)
    out['steps_per_subset'] = [math.nan] * num_subsets
    out['missing'] = ['retrained'] if retrained is None else []
    out['reason'] = reason
    return out


def _mean(values: list[Any]) -> float:
    return sum(values) / len(values)


def _recall(
    emb: tuple[Tensor, Tensor], data: HeteroData, shown: Tensor, rest: Tensor, k: int
) -> float:
    device = emb[0].device
    exclude = torch.cat([schema.retained_edge_index(data).cpu(), shown], dim=1)
    metrics = ranking_metrics(*emb, rest.to(device), exclude.to(device), ks=(k,))
    return metrics[f'recall@{k}']


def _loader(
    data: HeteroData, shown: Tensor, batch_size: int, seed: int
) -> TripletLoader:
    retained = schema.retained_edge_index(data).cpu()
    return TripletLoader(
        shown,
        schema.num_items(data),
        batch_size,
        known=torch.cat([retained, shown], dim=1),
        negative_items=torch.arange(schema.num_items(data)),
        seed=seed,
    )


def _relearn(
    model: Any,
    name: str,
    data: HeteroData,
    shown: Tensor,
    rest: Tensor,
    loader: TripletLoader,
    k: int,
    lr: float,
) -> Iterator[float]:
    r"""Yields the recall before the first and after every step, without end."""
    graph = model.build_graph(data)
    parameters = [p for p in model.parameters() if p.requires_grad]
    device = parameters[0].device
    optimizer = torch.optim.Adam(parameters, lr=lr)
    yield _recall(Served(model, graph, name).embeddings, data, shown, rest, k)
    name = f'{name} while it relearns'
    model.train()
    for batch in _endless(loader):
        optimizer.zero_grad(set_to_none=True)
        model.loss(graph, batch.to(device)).backward()
        optimizer.step()
        yield _recall(Served(model, graph, name).embeddings, data, shown, rest, k)


def _endless(loader: TripletLoader) -> Iterator[Triplets]:
    while True:
        yield from loader


def _first_step(
    recalls: Iterator[float], goal: float, max_steps: int
) -> tuple[int, bool, float]:
    start = next(recalls)
    if start >= goal:
        return 0, True, start
    for step in range(1, max_steps + 1):
        if next(recalls) >= goal:
            return step, True, start
    return max_steps, False, start
