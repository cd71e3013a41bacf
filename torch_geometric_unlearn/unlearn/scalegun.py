from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.data.request import without_request
from torch_geometric_unlearn.nn.models.base import RecommenderLike
from torch_geometric_unlearn.utils.check import (
    check_bool,
    check_choice,
    check_float,
    check_int,
)

from ._second_order import (
    FixedTriples,
    Product,
    RankingProblem,
    conjugate_gradient,
    drawable_pairs,
    mean_curvature,
    near_nodes,
    regulariser_weight,
    table_masks,
)
from .base import Unlearner
from .selection import ForgetTarget

_SCOPES = ('all_but_raw', 'all', 'khop', 'rows')


class ScaleGUN(Unlearner):
    r"""One Newton step from the loss with the forgotten interactions to the loss
    without them, in the style of the `"Scalable and Certifiable Graph Unlearning:
    Overcoming the Approximation Error Barrier" <https://arxiv.org/abs/2408.09212>`_
    paper.

    **Nothing is certified here.** The paper certifies a convex linear model over
    propagated, fixed features that was trained with noise in its objective. A
    recommender trained end to end by BPR has trainable inputs, bilinear scores and no
    stationary point, and was trained without noise. This is an influence-type step that
    accounts for the change of the graph; write *ScaleGUN-style* in tables.
    :class:`~torch_geometric_unlearn.nn.CertifiedHead` is the part whose claim
    holds, and :class:`~torch_geometric_unlearn.ops.LazyPropagation` the paper's local
    propagation.

    With fixed triples and :math:`\mathcal{L}` = BPR + the L2 regulariser, summed,

    .. math::
        \mathbf{g} = \nabla \mathcal{L}(\mathcal{D}; \mathcal{G})
        - \nabla \mathcal{L}(\mathcal{D}_r; \mathcal{G}_r), \qquad
        \theta^{\prime} = \theta
        + \eta \, (\mathbf{H} + \mu \mathbf{I})^{-1} \mathbf{g},

    with :math:`\mathbf{H}` the Gauss-Newton matrix of
    :math:`\mathcal{L}(\mathcal{D}_r; \mathcal{G}_r)`. The difference removes what early
    stopping has left in both gradients. Everything about the carry-over is ours: the
    paper is about node classification. There are no repair epochs.

    Args:
        num_negatives (int, optional): Negatives per pair. (default: :obj:`4`)
        weight_decay (float, optional): Weight of the L2 regulariser per triple; if
            :obj:`None`, :obj:`model.weight_decay` where there is one, else 1e-4.
            (default: :obj:`None`)
        damping (float, optional): :math:`\mu` over the mean diagonal entry of
            :math:`\mathbf{H}`; at least 1e-6 is used. (default: :obj:`1e-2`)
        max_iter (int, optional): Largest number of products with
            :math:`\mathbf{H}` per system. (default: :obj:`100`)
        tol (float, optional): Relative tolerance of the solver.
            (default: :obj:`1e-4`)
        hessian (str, optional): :obj:`'full'`, or :obj:`'block'` for one system per
            parameter, as in the paper's released multi-layer variant.
            (default: :obj:`'full'`)
        scope (str, optional): What may move: :obj:`'all_but_raw'` (everything but
            trainable copies of raw features), :obj:`'all'`, :obj:`'khop'` (rows of
            nodes near the deleted edges, and what all nodes share), or :obj:`'rows'`
            (these rows alone). (default: :obj:`'all_but_raw'`)
        num_hops (int, optional): How far *near* reaches. (default: :obj:`2`)
        step (float, optional): :math:`\eta`. (default: :obj:`1.0`)
        max_change (float, optional): Largest change of a row over its norm, before
            :obj:`step`. (default: :obj:`1.0`)
        max_halvings (int, optional): How often the step may be halved while retained
            validation NDCG@20 has fallen by more than 20 %. (default: :obj:`5`)
        noise_std (float, optional): Standard deviation of Gaussian noise on the result:
            output perturbation without a proof. (default: :obj:`0.0`)
        graph_change (bool, optional): Whether the gradient without the forgotten
            interactions uses the graph without them, as it should; :obj:`False` is
            an ablation. (default: :obj:`True`)
        seed (int, optional): Seed of every random choice. (default: :obj:`0`)

    Raises:
        ValueError: If an argument is out of range, or can't act beside the others.

    Example:
        >>> result = ScaleGUN(max_iter=5)(model, ForgetUsers([3])(data))
        >>> result.exact, result.history[0]['cg_iterations']
        (False, 5)
    """

    def __init__(
        self,
        num_negatives: int = 4,
        weight_decay: float | None = None,
        damping: float = 1e-2,
        max_iter: int = 100,
        tol: float = 1e-4,
        hessian: str = 'full',
        scope: str = 'all_but_raw',
        num_hops: int = 2,
        step: float = 1.0,
        max_change: float = 1.0,
        max_halvings: int = 5,
        noise_std: float = 0.0,
        graph_change: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__(seed)
        self.num_negatives = check_int(num_negatives, 'num_negatives', 1)
        if weight_decay is not None:
            weight_decay = check_float(weight_decay, 'weight_decay', 0.0)
        self.weight_decay = weight_decay
        self.damping = check_float(damping, 'damping', 0.0)
        self.max_iter = check_int(max_iter, 'max_iter', 1)
        self.tol = check_float(tol, 'tol', 0.0)
        self.hessian = check_choice(hessian, 'hessian', ('full', 'block'))
        self.scope = check_choice(scope, 'scope', _SCOPES)
        self.num_hops = check_int(num_hops, 'num_hops', 0)
        self.step = check_float(step, 'step', 0.0)
        self.max_change = check_float(max_change, 'max_change', 0.0)
        self.max_halvings = check_int(max_halvings, 'max_halvings', 0)
        self.noise_std = check_float(noise_std, 'noise_std', 0.0)
        self.graph_change = check_bool(graph_change, 'graph_change')
        if scope in ('all_but_raw', 'all'):
            self._refuse_idle({'num_hops': f"scope='{scope}'"})

    def supports(self, model: RecommenderLike, data: HeteroData) -> tuple[bool, str]:
        ok, reason = super().supports(model, data)
        no_rows = ok and all(table.is_raw for table in model.tables())
        if ok and self.scope in ('khop', 'rows') and no_rows:
            return False, (
                f"scope='{self.scope}' needs to know which rows belong to nodes, but "
                f"'{type(model).__name__}' tells no such 'tables()'"
            )
        if ok and not schema.retained_edge_index(data).size(1):
            return False, 'there is no retained interaction left to hold on to'
        return ok, reason

    def _unlearn(
        self, model: RecommenderLike, data: HeteroData, retained: HeteroData
    ) -> tuple[RecommenderLike, list[dict[str, Any]]]:
        device = next(model.parameters()).device
        target = ForgetTarget(data, retained)
        decay = regulariser_weight(model, self.weight_decay)
        problem = RankingProblem(model, decay, self._masks(model, data))
        direction, row = self._direction(problem, data, retained, device)
        change, row['num_capped_rows'] = problem.cap(direction, self.max_change)

        graph = model.build_graph(retained)
        ndcg_key = f'retain_val_ndcg@{target.k}'
        before = target.measure(model, graph)[ndcg_key]
        step, previous = self.step, 0.0
        for halving in range(self.max_halvings + 1):
            problem.move((step - previous) * change)
            measured = target.measure(model, graph)
            if not measured[ndcg_key] < 0.8 * before or halving == self.max_halvings:
                break
            step, previous = step / 2, step
        if self.noise_std > 0:
            problem.move(self.noise_std * problem.mask * torch.randn_like(change))
            measured = target.measure(model, graph)
        row |= {'step': step, 'num_halvings': halving, 'epoch': 0} | measured
        model.zero_grad(set_to_none=True)
        return model, [row]

    def _direction(
        self,
        problem: RankingProblem,
        data: HeteroData,
        retained: HeteroData,
        device: torch.device,
    ) -> tuple[Tensor, dict[str, Any]]:
        build_graph: Any = problem.model.build_graph
        old_graph, new_graph = build_graph(without_request(data)), build_graph(retained)
        pairs, forgotten = drawable_pairs(data, device)
        num_items = schema.num_items(data)
        triples = FixedTriples.draw(
            pairs, pairs, num_items, self.num_negatives, self.seed
        )
        kept = triples.rows(~forgotten)
        old = problem.gradient(old_graph, triples)
        new = problem.gradient(new_graph if self.graph_change else old_graph, kept)
        product = problem.gauss_newton(new_graph, kept)
        # Rows without a retained interaction have no curvature: a floor, and the bound
        # on the change of a row, keep their step finite.
        damping = max(1e-6, self.damping * mean_curvature(product, problem.mask))
        row: dict[str, Any] = {
            'gradient_norm': float((old - new).norm()),
            'damping': damping,
            'moved_share': float(problem.mask.sum()) / _num_parameters(problem.model),
        }
        direction, log = self._solve(problem, product, old - new, damping)
        return direction, row | log

    def _solve(
        self, problem: RankingProblem, product: Product, target: Tensor, damping: float
    ) -> tuple[Tensor, dict[str, Any]]:
        if self.hessian == 'full':
            return conjugate_gradient(
                product, target, damping, self.max_iter, self.tol
            )
        total, logs = torch.zeros_like(target), []
        for name in problem.parameters:
            one = problem.split(torch.zeros_like(target))
            one[name].fill_(1.0)
            block = torch.cat([x.reshape(-1) for x in one.values()])

            def block_product(vector: Tensor, block: Tensor = block) -> Tensor:
                return block * product(block * vector)

            solution, log = conjugate_gradient(
                block_product, block * target, damping, self.max_iter, self.tol
            )
            total += solution
            logs.append(log)
        return total, {
            'cg_iterations': sum(log['cg_iterations'] for log in logs),
            'cg_residual': max(log['cg_residual'] for log in logs),
            'negative_curvature': any(log['negative_curvature'] for log in logs),
        }

    def _masks(
        self, model: RecommenderLike, data: HeteroData
    ) -> dict[str, Tensor | None]:
        named = {k: p for k, p in model.named_parameters() if p.requires_grad}
        raw = {id(table.parameter) for table in model.tables() if table.is_raw}
        masks: dict[str, Tensor | None] = dict.fromkeys(named)
        if self.scope != 'all':
            masks = {k: None for k, p in named.items() if id(p) not in raw}
        if self.scope in ('khop', 'rows'):
            pairs = schema.forgotten_edge_index(data)
            rows = table_masks(model, *near_nodes(data, pairs, self.num_hops))
            if self.scope == 'rows':
                return {k: rows[k] for k in masks if k in rows}
            masks |= {k: rows[k] for k in masks if k in rows}
        return masks


def _num_parameters(model: RecommenderLike) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
