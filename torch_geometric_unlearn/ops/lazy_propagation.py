from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from torch_geometric_unlearn.utils.check import check_bool, check_float, check_int
from torch_geometric_unlearn.utils.plain import plain

from .sparse_operator import SparseOperator
from .spmm import spmm


@dataclass
class PropagationUpdate:
    r"""What a removal has cost.

    Attributes:
        nodes (torch.Tensor): Nodes whose embedding was computed anew, int64
            :obj:`[n]`, sorted.
        touched_nodes (int): Their number.
        touched_edges (int): Edges of the remaining graph that something was sent
            along, each counted once.
        node_share (float): :obj:`touched_nodes` as a share of all nodes.
        edge_share (float): :obj:`touched_edges` as a share of the remaining edges.
        pushes (list): Nodes pushed, by level; those of the last level send nothing.
    """

    nodes: Tensor
    touched_nodes: int
    touched_edges: int
    node_share: float
    edge_share: float
    pushes: list[int]


class LazyPropagation:
    r"""Keeps a linear propagation up to date under edge removals by local pushes, from
    the `"Scalable and Certifiable Graph Unlearning: Overcoming the Approximation Error
    Barrier" <https://arxiv.org/abs/2408.09212>`_ paper

    .. math::
        \mathbf{Z} = \sum_{l=0}^{L} w_l \mathbf{S}^l \mathbf{X}, \qquad
        \mathbf{S} = \mathbf{D}^{-1/2} \mathbf{A} \mathbf{D}^{-1/2}.

    Of every level, it stores what a node has sent to each of its neighbours,
    :math:`\mathbf{p}_l` (the paper's reserve over the degree), and what it has not sent
    yet, the residue

    .. math::
        \mathbf{r}_0 = \mathbf{D}^{1/2} \mathbf{X} - \mathbf{D} \mathbf{p}_0, \qquad
        \mathbf{r}_l = \mathbf{A} \mathbf{p}_{l-1} - \mathbf{D} \mathbf{p}_l.

    Without an edge, only the residues of its two ends are others. They are pushed level
    by level to the neighbours while they exceed :obj:`r_max`; smaller ones stay where
    they are. All nodes of a level are pushed at once, along their own edges only.
    Arithmetic is float64.

    Ours: a node is pushed in all channels once a single one exceeds the threshold; the
    start is the exact propagation; :math:`w_0 \mathbf{X}` is added as it is, so that
    nodes without edges and residues of level 0 leave it exact. Without self loops, a
    node that loses its last edge sends nothing any more, and what it had sent is
    cleared.

    Args:
        edge_index (torch.Tensor): Undirected edges, each once, int64 :obj:`[2, E]`.
        x (torch.Tensor): Node features :math:`(N, F)`, floating point.
        weights (sequence): The weights :math:`w_0, \ldots, w_L`, see
            :meth:`layer_mean_weights` and :meth:`personalized_pagerank_weights`.
        self_loops (bool, optional): Whether every node is a neighbour of itself.
            (default: :obj:`False`)
        r_max (float, optional): Residues up to this absolute value are not pushed; 0
            for exact embeddings. (default: :obj:`0.0`)
        num_users (int, optional): Makes all edges (user, item) pairs, where item
            :math:`i` is node :obj:`num_users + i`; 0 if edges hold nodes.
            (default: :obj:`0`)

    Raises:
        TypeError: If :obj:`edge_index` is not int64 or :obj:`x` not floating point.
        ValueError: If a shape is wrong, an argument or an id is out of range, or an
            edge occurs twice or joins a node to itself.

    Example:
        >>> edge_index = torch.tensor([[0, 0, 1], [0, 1, 1]])
        >>> x = torch.tensor([[1.], [0.], [0.], [0.]])
        >>> prop = LazyPropagation(edge_index, x, [0.5, 0.5], num_users=2)
        >>> update = prop.remove_edges(torch.tensor([[0], [1]]))
        >>> update.nodes.tolist()
        [0, 2, 3]
        >>> prop.embedding.view(-1)
        tensor([0.5000, 0.0000, 0.5000, 0.0000])
    """

    def __init__(
        self,
        edge_index: Tensor,
        x: Tensor,
        weights: Sequence[float],
        self_loops: bool = False,
        r_max: float = 0.0,
        num_users: int = 0,
    ) -> None:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            got = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"'x' must be a floating point tensor (got {got})")
        if x.dim() != 2 or x.size(1) == 0:
            raise ValueError(
                f"'x' must have shape [N, F] with F >= 1 (got {list(x.shape)})"
            )
        if len(weights) == 0 or not all(math.isfinite(w) for w in weights):
            raise ValueError(
                f"'weights' must hold finite numbers w_0, ..., w_L (got "
                f"{list(weights)}). For LightGCN's, pass 'layer_mean_weights(2)'."
            )
        self.num_nodes, self.num_levels = x.size(0), len(weights)
        self.num_users = check_int(num_users, 'num_users', 0)
        if self.num_users > self.num_nodes:
            raise ValueError(
                f"'num_users' must be at most the number of rows of 'x', "
                f'{self.num_nodes} (got {num_users}). Users come first in it, then '
                f'items.'
            )
        self.weights = [float(w) for w in weights]
        self.self_loops = check_bool(self_loops, 'self_loops')
        self.r_max = check_float(r_max, 'r_max', 0.0)
        self._x = x.detach().clone()
        self._weight = x.new_tensor(self.weights, dtype=torch.float64).view(-1, 1, 1)
        self._store(self._to_nodes(edge_index, 'edge_index').to(x.device))

    @torch.no_grad()
    def _store(self, pairs: Tensor) -> None:
        # One row of neighbours per node. Removals close the gaps within a row, so that
        # a row is as long as its count says, and no trace of an edge stays behind.
        num_nodes, x = self.num_nodes, self._x.double()
        size = (num_nodes, num_nodes)
        both = torch.cat([pairs, pairs.flip(0)], dim=1)
        adj = SparseOperator(both, x.new_ones(both.size(1)), size, is_symmetric=True)
        self._start = adj.rowptr[:-1].long()
        self._count = adj.rowptr.long().diff()
        self._col = adj.col.long()

        self._sent = x.new_zeros(self.num_levels, *x.shape)
        self._residue = torch.zeros_like(self._sent)
        degree = self._degree().unsqueeze(1)
        inv_degree = torch.where(degree > 0, 1 / degree, 0.0)
        for level in range(self.num_levels):
            if level == 0:
                received = degree.sqrt() * x
            else:
                sent = self._sent[level - 1]
                received = spmm(adj, sent) + (sent if self.self_loops else 0)
            self._sent[level] = inv_degree * received
        self._embedding = torch.empty_like(self._x)
        self._refresh(torch.arange(num_nodes, device=x.device))

    @property
    def embedding(self) -> Tensor:
        r"""The embedding :math:`(N, F)` in the type of :obj:`x`; removals change this
        tensor in place.
        """
        return self._embedding

    @property
    def edge_index(self) -> Tensor:
        r"""The edges that are left, in the form they were given in, int64
        :obj:`[2, *]`.
        """
        nodes = torch.arange(self.num_nodes, device=self._col.device)
        place, entry = self._rows(nodes)
        pairs = torch.stack([place, self._col[entry]])
        pairs = pairs[:, pairs[0] < pairs[1]]  # Users come before items.
        return pairs - self._shift(pairs.device)

    @property
    def num_edges(self) -> int:
        r"""Number of undirected edges that are left."""
        return int(self._count.sum()) // 2

    def state(self) -> dict[str, Tensor]:
        r"""Returns all that removals have changed, beside :obj:`edge_index`, by name;
        not copied.
        """
        return {
            'sent': self._sent,
            'residue': self._residue,
            'embedding': self._embedding,
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        r"""Copies what :meth:`state` of a propagation over the same edges has returned,
        after which both give the same results bit for bit.
        """
        for name, tensor in self.state().items():
            tensor.copy_(state[name])

    @torch.no_grad()
    def residue(self) -> Tensor:
        r"""Returns a bound on the error of every channel, summed over the nodes,
        float64 :obj:`[F]`

        .. math::
            \sum_v |z_{vf} - \hat{z}_{vf}| \leq
            \sum_{j < L} \Big( \sum_{l \geq \max(j, 1)} |w_l| \Big)
            \sum_v |r_{j,vf}|.

        The paper writes :math:`\mathbf{1}^{\top} \mathbf{R}`. We add up absolute
        values, as residues of either sign cancel in a plain sum, but their errors do
        not. It holds because :math:`\mathbf{A} \mathbf{D}^{-1}`, along which residues
        would travel, keeps column sums.
        """
        if self.r_max == 0:  # Everything has been pushed.
            return self._residue.new_zeros(self._x.size(1))
        weight = self._weight.abs()
        weight[0] = 0
        weight = weight.flip(0).cumsum(0).flip(0).view(-1, 1)
        return (weight * self._residue.abs().sum(dim=1)).sum(dim=0)

    @torch.no_grad()
    def remove_edges(self, edge_index: Tensor) -> PropagationUpdate:
        r"""Removes edges and updates the embedding.

        Args:
            edge_index (torch.Tensor): Edges in the form of the constructor, int64
                :obj:`[2, n]`.

        Raises:
            ValueError: If an edge is not in the graph, or occurs twice.
        """
        pairs = self._to_nodes(edge_index, 'edge_index').to(self._col.device)
        # The rows of one end suffice to look all edges up.
        nodes = pairs[0].unique()
        place, entry = self._rows(nodes)
        known = nodes[place] * self.num_nodes + self._col[entry]
        missing = ~torch.isin(pairs[0] * self.num_nodes + pairs[1], known)
        if missing.any():
            first = (pairs - self._shift(pairs.device))[:, missing][:, 0].tolist()
            raise ValueError(
                f"'edge_index' must hold edges of the graph, but {int(missing.sum())} "
                f'are not in it (got {tuple(first)}, for instance). An edge can be '
                f'removed only once.'
            )
        return self._remove(pairs)

    @torch.no_grad()
    def remove_nodes(self, nodes: Tensor) -> PropagationUpdate:
        r"""Removes all edges of :obj:`nodes` and updates the embedding; the nodes
        themselves stay.

        Args:
            nodes (torch.Tensor): Nodes (item :math:`i` is node
                :obj:`num_users + i`), int64 :obj:`[n]`.

        Raises:
            TypeError: If :obj:`nodes` is not int64.
            ValueError: If :obj:`nodes` has the wrong shape or is out of range.
        """
        if not isinstance(nodes, Tensor) or nodes.dtype != torch.int64:
            got = nodes.dtype if isinstance(nodes, Tensor) else type(nodes).__name__
            raise TypeError(f"'nodes' must be an int64 tensor (got {got})")
        if nodes.dim() != 1:
            raise ValueError(f"'nodes' must have shape [n] (got {list(nodes.shape)})")
        self._check_range(nodes, 0, self.num_nodes, 'nodes')
        nodes = nodes.to(self._col.device).unique()
        place, entry = self._rows(nodes)
        ends = torch.stack([nodes[place], self._col[entry]])
        return self._remove(torch.stack(ends.aminmax(dim=0)).unique(dim=1))

    @torch.no_grad()
    def flush(self) -> PropagationUpdate:
        r"""Pushes all residues, however small, after which the embedding is exact."""
        left = (self._residue != 0).any(dim=2).any(dim=0)
        return self._push(left.nonzero().view(-1), left.new_zeros(0).long(), 0.0)

    def _remove(self, pairs: Tensor) -> PropagationUpdate:
        row, col = torch.cat([pairs, pairs.flip(0)], dim=1)
        ends, inverse, lost = row.unique(return_inverse=True, return_counts=True)
        # A former neighbour's share leaves every level; the node's own share of it is
        # no longer sent along the lost edges.
        for level in range(1, self.num_levels):
            shares = _sum_by(inverse, col, self._sent[level - 1])[1]
            kept = lost.unsqueeze(1) * self._sent[level, ends]
            self._residue[level].index_add_(0, ends, kept - shares)
        self._close_gaps(ends, row * self.num_nodes + col, lost)

        degree = self._degree(ends).unsqueeze(1)
        x = self._x[ends].double()
        self._residue[0, ends] = degree.sqrt() * x - degree * self._sent[0, ends]
        alone = ends[degree.view(-1) == 0]
        self._sent[:, alone] = 0
        self._residue[:, alone] = 0
        return self._push(ends, ends, self.r_max)

    def _close_gaps(self, ends: Tensor, codes: Tensor, lost: Tensor) -> None:
        r"""Removes the entries with the given codes from the rows of :obj:`ends`."""
        place, entry = self._rows(ends)
        col = self._col[entry]
        keep = ~torch.isin(ends[place] * self.num_nodes + col, codes)
        self._col[entry] = -1
        self._count[ends] -= lost
        self._col[self._rows(ends)[1]] = col[keep]

    def _push(self, nodes: Tensor, ends: Tensor, r_max: float) -> PropagationUpdate:
        r"""Pushes the residues of :obj:`nodes` and of whatever they reach; the
        embeddings of :obj:`ends` are due in any case.
        """
        candidates, pushed = nodes, []
        for level in range(self.num_levels):
            is_last = level + 1 == self.num_levels
            residue = self._residue[level]
            change = residue[candidates]
            # What has arrived at the last level would be sent nowhere.
            due = change.abs().amax(dim=1) > (0.0 if is_last else r_max)
            front, change = candidates[due], change[due]
            change /= self._degree(front).unsqueeze(1)
            self._sent[level].index_add_(0, front, change)
            residue.index_fill_(0, front, 0)
            pushed.append(front)
            if is_last:
                break
            place, entry = self._rows(front)
            targets, arrived = _sum_by(self._col[entry], place, change)
            self._residue[level + 1].index_add_(0, targets, arrived)
            if self.self_loops:
                self._residue[level + 1].index_add_(0, front, change)
                targets = torch.cat([targets, front])
            candidates = torch.cat([nodes, targets]).unique()

        changed = torch.cat([ends, *pushed]).unique()
        self._refresh(changed)
        senders = torch.cat([ends[:0], *pushed[:-1]]).unique()
        target = self._col[self._rows(senders)[1]]
        twice = int(torch.isin(target, senders).sum())
        edges, num_edges = target.numel() - twice // 2, self.num_edges
        return PropagationUpdate(
            nodes=changed,
            touched_nodes=changed.numel(),
            touched_edges=edges,
            node_share=changed.numel() / self.num_nodes if self.num_nodes else 0.0,
            edge_share=edges / num_edges if num_edges else 0.0,
            pushes=[front.numel() for front in pushed],
        )

    def _refresh(self, nodes: Tensor) -> None:
        out = (self._weight[1:] * self._sent[1:, nodes]).sum(dim=0)
        out *= self._degree(nodes).sqrt().unsqueeze(1)
        out += self.weights[0] * self._x[nodes]
        self._embedding[nodes] = out.to(self._x.dtype)

    def _degree(self, nodes: Tensor | None = None) -> Tensor:
        count = self._count if nodes is None else self._count[nodes]
        return (count + self.self_loops).double()

    def _rows(self, nodes: Tensor) -> tuple[Tensor, Tensor]:
        r"""Returns the entries of the rows of :obj:`nodes` as the position in
        :obj:`nodes` and the position in :obj:`_col`.
        """
        count = self._count[nodes]
        place = torch.arange(nodes.numel(), device=nodes.device)
        place = place.repeat_interleave(count)
        offset = self._start[nodes] - count.cumsum(0) + count
        return place, offset[place] + torch.arange(place.numel(), device=nodes.device)

    def _shift(self, device: torch.device) -> Tensor:
        return torch.tensor([[0], [self.num_users]], device=device)

    def _to_nodes(self, edge_index: Tensor, name: str) -> Tensor:
        r"""Returns edges as unique, valid pairs of nodes, the smaller one first."""
        if not isinstance(edge_index, Tensor) or edge_index.dtype != torch.int64:
            is_tensor = isinstance(edge_index, Tensor)
            got = edge_index.dtype if is_tensor else type(edge_index).__name__
            raise TypeError(f"'{name}' must be an int64 tensor (got {got})")
        edge_index = plain(edge_index)
        if edge_index.dim() != 2 or edge_index.size(0) != 2:
            raise ValueError(
                f"'{name}' must have shape [2, E] (got {list(edge_index.shape)})"
            )
        pairs = edge_index + self._shift(edge_index.device)
        bipartite = self.num_users > 0
        self._check_range(
            pairs[0], 0, self.num_users if bipartite else self.num_nodes, name
        )
        self._check_range(pairs[1], self.num_users, self.num_nodes, name)
        pairs = torch.stack(pairs.aminmax(dim=0))
        loop = pairs[0] == pairs[1]
        if loop.any():
            raise ValueError(
                f"'{name}' must join different nodes (got {int(pairs[0][loop][0])} "
                f"with itself). For self loops, pass 'self_loops=True'."
            )
        codes, counts = (pairs[0] * self.num_nodes + pairs[1]).unique(
            return_counts=True
        )
        if (counts > 1).any():
            source, target = divmod(int(codes[counts > 1][0]), self.num_nodes)
            raise ValueError(
                f"'{name}' must hold every edge once (got "
                f'{(source, target - self.num_users)} more than once). Remove the '
                f'repeats, and one direction of an undirected edge.'
            )
        return pairs

    def _check_range(self, ids: Tensor, low: int, high: int, name: str) -> None:
        bad = (ids < low) | (ids >= high)
        if bad.any():
            raise ValueError(
                f"'{name}' must hold ids in [0, {high - low - 1}] "
                f'(got {int(ids[bad][0]) - low})'
            )

    def __repr__(self) -> str:
        return (
            f'{self.__class__.__name__}(num_nodes={self.num_nodes}, '
            f'num_edges={self.num_edges}, weights={self.weights}, '
            f'self_loops={self.self_loops}, r_max={self.r_max})'
        )


def layer_mean_weights(num_layers: int) -> list[float]:
    r"""Returns :math:`w_0 = \ldots = w_L = 1 / (L + 1)`, LightGCN's mean over all
    layers.

    Args:
        num_layers (int): Number of propagations :math:`L`, at least 0.
    """
    num_layers = check_int(num_layers, 'num_layers', 0)
    return [1 / (num_layers + 1)] * (num_layers + 1)


def personalized_pagerank_weights(
    num_hops: int, alpha: float = 0.1, beta: float = 0.9
) -> list[float]:
    r"""Returns the weights of a propagation with restarts, as
    :class:`~torch_geometric_unlearn.nn.conv.MarkovDiffusionConv` runs it

    .. math::
        w_l = \alpha \beta^l / \gamma \quad (l < K), \qquad w_K = \beta^K / \gamma,
        \qquad \gamma = \beta^K + \alpha \sum_{l=0}^{K-1} \beta^l.

    Args:
        num_hops (int): Number of propagations :math:`K`, at least 0.
        alpha (float, optional): Weight of the input. (default: :obj:`0.1`)
        beta (float, optional): Weight of the neighbours. (default: :obj:`0.9`)

    Raises:
        ValueError: If an argument is out of range, or all weights would be zero.
    """
    num_hops = check_int(num_hops, 'num_hops', 0)
    alpha = check_float(alpha, 'alpha', 0.0)
    beta = check_float(beta, 'beta', 0.0)
    weights = [alpha * beta**level for level in range(num_hops)] + [beta**num_hops]
    total = sum(weights)
    if total == 0:
        raise ValueError(
            f"'alpha' or 'beta' must be positive (got {alpha} and {beta})"
        )
    return [weight / total for weight in weights]


def _sum_by(target: Tensor, source: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    r"""Returns the distinct targets in order and the sum of :obj:`x[source]` of
    each, without the rows in between and in the same order every time.
    """
    target, order = target.sort(stable=True)
    targets, count = target.unique_consecutive(return_counts=True)
    if targets.numel() == 0:
        return targets, x.new_zeros(0, x.size(1))
    out = F.embedding_bag(source[order], x, count.cumsum(0) - count, mode='sum')
    return targets, out
