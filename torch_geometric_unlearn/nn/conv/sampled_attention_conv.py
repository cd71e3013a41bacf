from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import Linear
from torch_geometric.nn.conv import MessagePassing
from torch_geometric.utils import softmax

from torch_geometric_unlearn.ops.neighbor_sum import (
    Neighbors,
    neighbor_dot,
    neighbor_sum,
)
from torch_geometric_unlearn.utils.check import check_float, check_int


class SampledAttentionConv(MessagePassing):
    r"""The sampling-based global transformer from the `"Modality-Independent Graph
    Neural Networks with Global Transformers for Multimodal Recommendation"
    <https://arxiv.org/abs/2412.13994>`_ paper.

    Every node attends to itself and to :math:`C` sampled nodes, with one head, without
    value projection, and with a fixed residual mix:

    .. math::
        \mathbf{x}^{\prime}_v = (1 - \lambda) \mathbf{x}_v + \lambda
        \sum_{w \in \{v, s_1, \ldots, s_C\}} a_{vw} \mathbf{x}_w, \qquad
        a_{v \cdot} = \textrm{softmax} \left( \frac{(\mathbf{W}_Q \mathbf{x}_v +
        \mathbf{b}_Q)^{\top} (\mathbf{W}_K \mathbf{x}_w + \mathbf{b}_K)}
        {\sqrt{D}} \right).

    In the paper all :math:`C + 1` tokens attend to each other. Only the first row is a
    node's output, so that :meth:`forward` computes no other; :meth:`token_scores` has
    the rows of the samples, which the unsmooth regularisation needs.

    Args:
        in_channels (int): Size of every node's features :math:`H`.
        attention_channels (int, optional): Size :math:`D` of queries and keys.
            (default: :obj:`4`)
        mix (float, optional): Share :math:`\lambda` of the attention in the output.
            (default: :obj:`0.1`)

    Shapes:
        - **input:** node features :math:`(N, H)`, sampled nodes :math:`(N, C)`
        - **output:** node features :math:`(N, H)`

    Example:
        >>> conv = SampledAttentionConv(in_channels=8)
        >>> conv(torch.randn(5, 8), torch.randint(5, (5, 2))).size()
        torch.Size([5, 8])
    """

    def __init__(
        self, in_channels: int, attention_channels: int = 4, mix: float = 0.1
    ) -> None:
        super().__init__(aggr='add')
        self.fuse = True  # PyG's switch; unset, the layer passes messages.
        in_channels = check_int(in_channels, 'in_channels', 1)
        attention_channels = check_int(attention_channels, 'attention_channels', 1)
        self.mix = check_float(mix, 'mix', 0.0, 1.0)
        self.query = Linear(in_channels, attention_channels)
        self.key = Linear(in_channels, attention_channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        r"""Draws weights from Xavier's uniform distribution and clears biases."""
        super().reset_parameters()
        for module in (self.query, self.key):
            torch.nn.init.xavier_uniform_(module.weight)
            torch.nn.init.zeros_(module.bias)

    def forward(self, x: Tensor, samples: Tensor) -> Tensor:
        query, key = self._query_key(x)
        neighbors = Neighbors(samples, x.size(0))
        if not self.fuse or self.explain:
            num_nodes, size = samples.shape
            node = torch.arange(num_nodes, device=x.device)
            source = torch.cat([node.unsqueeze(1), samples], dim=1).flatten()
            edge_index = torch.stack([source, node.repeat_interleave(size + 1)])
            out = self.propagate(edge_index, x=x, query=query, key=key)
            return (1 - self.mix) * x + self.mix * out
        own = (query * key).sum(dim=-1, keepdim=True)
        score = torch.cat([own, neighbor_dot(key, neighbors, query)], dim=1)
        return self._attend(x, x, neighbors, score)

    def _attend(
        self, x: Tensor, source: Tensor, neighbors: Neighbors, score: Tensor
    ) -> Tensor:
        alpha = score.softmax(dim=1)
        out = neighbor_sum(source, neighbors, self.mix * alpha[:, 1:])
        return (1 - self.mix + self.mix * alpha[:, :1]) * x + out

    def message(
        self, x_j: Tensor, query_i: Tensor, key_j: Tensor, index: Tensor, size_i: int
    ) -> Tensor:
        alpha = softmax((query_i * key_j).sum(dim=-1), index, num_nodes=size_i)
        return alpha.unsqueeze(-1) * x_j

    def token_scores(
        self, x: Tensor, samples: Tensor, nodes: Tensor, query_emb: Tensor
    ) -> Tensor:
        r"""Returns the products of a vector per node with all output rows of that
        node's tokens.

        Args:
            x (torch.Tensor): Node features :math:`(N, H)`.
            samples (torch.Tensor): Sampled nodes, int64 :math:`(N, C)`.
            nodes (torch.Tensor): Nodes to look at, int64 :math:`(B)`.
            query_emb (torch.Tensor): Vectors :math:`(B, H)`.

        Returns:
            torch.Tensor: Scores :math:`(B, C + 1)`, the node itself first.
        """
        tokens = torch.cat([nodes.unsqueeze(1), samples[nodes]], dim=1)
        query, key = (
            y.index_select(0, tokens.flatten()).view(*tokens.shape, y.size(1))
            for y in self._query_key(x)
        )
        alpha = (query @ key.transpose(1, 2)).softmax(dim=-1)
        score = neighbor_dot(x, Neighbors(tokens, x.size(0)), query_emb)
        mixed = (alpha @ score.unsqueeze(-1)).squeeze(-1)
        return (1 - self.mix) * score + self.mix * mixed

    def _query_key(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.query(x) / self.query.out_features**0.5, self.key(x)
