from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.data.request import without_request
from torch_geometric_unlearn.nn.models.base import RecommenderLike
from torch_geometric_unlearn.utils.check import check_choice, check_float, check_int

from ._second_order import (
    FixedTriples,
    RankingProblem,
    conjugate_gradient,
    drawable_pairs,
    mean_curvature,
    near_nodes,
    regulariser_weight,
    table_masks,
)
from .base import Unlearner
from .row_reset import lacks_id_table
from .selection import ForgetTarget


class InfluenceFunction(Unlearner):
    r"""Subtracts the influence of the forgotten interactions to first order, in the
    style of the `"Recommendation Unlearning via Influence Function"
    <https://arxiv.org/abs/2307.02147>`_ paper (IFRU)

    .. math::
        \theta^{\prime} = \theta + \frac{1}{n} \mathbf{H}^{-1} \left[
        \sum_{\mathcal{D}_f} \nabla \ell(\theta; \mathcal{G}) +
        \sum_{\mathcal{D}_c} \left( \nabla \ell(\theta; \mathcal{G}) -
        \nabla \ell(\theta; \mathcal{G}_r) \right) \right],

    where :math:`\mathbf{H}` is the Hessian of the mean loss over all :math:`n`
    interactions. The first sum is their direct influence, the second their spill-over
    through the graph on :math:`\mathcal{D}_c`, retained interactions whose computation
    changes. Only rows that matter may move: those of the users and items in the
    forgotten interactions, and of neighbours whose share of deleted edges, passed on by
    one hop, exceeds a quantile.

    Differs from the paper: BPR over fixed triples, :math:`\mathcal{D}_c` within one
    hop, a damped system, solved by conjugate gradients with exact Hessian-vector
    products through the propagation (the released code leaves the propagation out
    and runs Adam), a bound on the change of a row, and the defaults are ours.

    Args:
        num_negatives (int, optional): Negatives per pair. (default: :obj:`4`)
        weight_decay (float, optional): Weight of the L2 regulariser per triple; if
            :obj:`None`, :obj:`model.weight_decay` where there is one, else 1e-4.
            (default: :obj:`None`)
        quantile (float, optional): Quantile of the importance that neighbours must
            exceed, in :math:`[0, 1]`. (default: :obj:`0.4`)
        damping (float, optional): Added to the diagonal of :math:`\mathbf{H}`, over the
            mean diagonal entry of the Gauss-Newton matrix. (default: :obj:`1.0`)
        max_iter (int, optional): Largest number of products with
            :math:`\mathbf{H}`. (default: :obj:`100`)
        tol (float, optional): Relative tolerance of the solver.
            (default: :obj:`1e-4`)
        curvature (str, optional): :obj:`'hessian'`, where the solver stops at the first
            direction of negative curvature with what it has, or, if it has nothing yet,
            the gradient; or :obj:`'gauss_newton'`, which has none.
            (default: :obj:`'hessian'`)
        step (float, optional): Factor on the update. (default: :obj:`1.0`)
        max_change (float, optional): Largest change of a row over its norm.
            (default: :obj:`1.0`)
        seed (int, optional): Seed of every random choice. (default: :obj:`0`)

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> result = InfluenceFunction(max_iter=5)(model, ForgetUsers([3])(data))
        >>> result.touched['projection.image.weight']
        0.0
    """

    def __init__(
        self,
        num_negatives: int = 4,
        weight_decay: float | None = None,
        quantile: float = 0.4,
        damping: float = 1.0,
        max_iter: int = 100,
        tol: float = 1e-4,
        curvature: str = 'hessian',
        step: float = 1.0,
        max_change: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__(seed)
        self.num_negatives = check_int(num_negatives, 'num_negatives', 1)
        if weight_decay is not None:
            weight_decay = check_float(weight_decay, 'weight_decay', 0.0)
        self.weight_decay = weight_decay
        self.quantile = check_float(quantile, 'quantile', 0.0, 1.0)
        self.damping = check_float(damping, 'damping', 0.0)
        self.max_iter = check_int(max_iter, 'max_iter', 1)
        self.tol = check_float(tol, 'tol', 0.0)
        self.curvature = check_choice(
            curvature, 'curvature', ('hessian', 'gauss_newton')
        )
        self.step = check_float(step, 'step', 0.0)
        self.max_change = check_float(max_change, 'max_change', 0.0)

    def supports(self, model: RecommenderLike, data: HeteroData) -> tuple[bool, str]:
        ok, reason = super().supports(model, data)
        if ok and lacks_id_table(model):
            return False, f'{lacks_id_table(model)}, and nothing else may move'
        return ok, reason

    def _unlearn(
        self, model: RecommenderLike, data: HeteroData, retained: HeteroData
    ) -> tuple[RecommenderLike, list[dict[str, Any]]]:
        device = next(model.parameters()).device
        raw = {id(table.parameter) for table in model.tables() if table.is_raw}
        named = dict(model.named_parameters())
        users, items = important_nodes(data, self.quantile)
        masks: dict[str, Tensor | None] = {
            name: mask
            for name, mask in table_masks(model, users, items).items()
            if id(named[name]) not in raw
        }
        decay = regulariser_weight(model, self.weight_decay)
        problem = RankingProblem(model, decay, masks)
        build_graph: Any = model.build_graph
        old_graph, new_graph = build_graph(without_request(data)), build_graph(retained)

        pairs, forgotten = drawable_pairs(data, device)
        triples = FixedTriples.draw(
            pairs, pairs, schema.num_items(data), self.num_negatives, self.seed
        )
        near_user, near_item = near_nodes(data, schema.forgotten_edge_index(data), 0)
        affected = near_user.to(device)[pairs[0]] | near_item.to(device)[pairs[1]]
        changed = triples.rows(affected & ~forgotten)
        target = problem.gradient(old_graph, triples.rows(forgotten))
        if changed.user.numel() > 0:
            target += problem.gradient(old_graph, changed)
            target -= problem.gradient(new_graph, changed)

        # Sums instead of means on both sides give the same update.
        product = problem.gauss_newton(old_graph, triples)
        damping = max(1e-6, self.damping * mean_curvature(product, problem.mask))
        if self.curvature == 'hessian':
            product = problem.hessian(old_graph, triples)
        direction, log = conjugate_gradient(
            product, target, damping, self.max_iter, self.tol
        )
        if log['cg_iterations'] == 1 and log['negative_curvature']:
            direction = target / damping  # Downhill at least.
        change, num_capped = problem.cap(self.step * direction, self.max_change)
        problem.move(change)
        model.zero_grad(set_to_none=True)
        row = {
            'epoch': 0,
            'gradient_norm': float(target.norm()),
            'damping': damping,
            'num_capped_rows': num_capped,
            'num_moved_users': int(users.sum()),
            'num_moved_items': int(items.sum()),
            **log,
            **ForgetTarget(data, retained).measure(model, new_graph),
        }
        return model, [row]


def important_nodes(data: HeteroData, quantile: float) -> tuple[Tensor, Tensor]:
    r"""Tells which users and items a deletion matters for, bool :obj:`[N_user]` and
    :obj:`[N_item]`: those in the forgotten interactions, and their neighbours whose
    importance exceeds the :obj:`quantile` of all neighbours'.

    The importance of a node in a forgotten interaction is its share of deleted edges;
    a neighbour receives the sum of these divided by its own degree.
    """
    num_users, num_items = schema.num_users(data), schema.num_items(data)
    user, item = data[schema.EDGE_TYPE].edge_index
    gone = schema.forget_mask(data).float()
    shares, degrees = [], []
    for index, size in ((user, num_users), (item, num_items)):
        degree = torch.zeros(size, device=user.device).index_add_(
            0, index, torch.ones_like(gone)
        )
        lost = torch.zeros_like(degree).index_add_(0, index, gone)
        degrees.append(degree.clamp(min=1))
        shares.append(lost / degrees[-1])
    passed = [
        torch.zeros_like(shares[0]).index_add_(0, user, shares[1][item]) / degrees[0],
        torch.zeros_like(shares[1]).index_add_(0, item, shares[0][user]) / degrees[1],
    ]
    direct = [share > 0 for share in shares]
    values = torch.cat([p[(p > 0) & ~d] for p, d in zip(passed, direct)])
    if values.numel() == 0:
        return direct[0], direct[1]
    # `torch.quantile` takes at most 2^24 values.
    place = min(values.numel() - 1, int(quantile * values.numel()))
    bar = values.sort()[0][place] if quantile > 0 else values.new_zeros(())
    users, items = (d | (p > bar) for p, d in zip(passed, direct))
    return users, items
