from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from torch_geometric_unlearn.distributed.blocks import Blocks
from torch_geometric_unlearn.distributed.columns import Columns, UnevenColumns
from torch_geometric_unlearn.distributed.linear import RowLinear
from torch_geometric_unlearn.distributed.rows import Rows
from torch_geometric_unlearn.nn.conv import SampledAttentionConv
from torch_geometric_unlearn.nn.functional import dropout
from torch_geometric_unlearn.ops.neighbor_sum import Neighbors, neighbor_dot
from torch_geometric_unlearn.utils.seed import isolated_seed

from ._column_parallel import ColumnParallelModel
from .base import Table, Triplets
from .mig_gt import MIGGT, FeatureEncoder, MIGGTGraph, _prelu


class ColumnParallelMIGGT(ColumnParallelModel[MIGGT], MIGGT):
    r"""A :class:`MIGGT` of which every process holds some columns of all that is as
    wide as an embedding or a hidden layer [ours], as :class:`ColumnParallelLightGCN`
    does for :class:`LightGCN`.

    Every process holds the whole graph with the features, its columns of the ID table
    and, of the encoders, its part of the hidden layer and of the output: batch norm
    treats columns alone, so it needs no other process, and the partial products of the
    second layer are added up to the columns of each. The transformer mixes columns: it
    is small, on every process, and each applies it to nodes of its own, of which it
    receives all columns, as it does of all items, from which it samples.

    Dropout masks and samples are drawn as a whole by every process, so that they don't
    depend on the number of processes. Losses are those of one process up to rounding.
    But the biases before batch norm have no gradient besides rounding, which Adam turns
    into steps of full size, and these move running means: in float32, trained
    embeddings depend on the order of sums, and with it on the number of processes, by
    far more than rounding; in float64 they don't, nor with these biases frozen.
    What works, and what is asked of the processes, is as for
    :class:`ColumnParallelLightGCN`.

    Args:
        num_users (int): Number of users.
        num_items (int): Number of items.
        in_channels (dict): Size of the raw item features by modality.
        hidden_channels (int, optional): Size of every whole embedding.
            (default: :obj:`64`)
        encoder_channels (int, optional): Whole hidden size of the feature encoders.
            (default: :obj:`512`)
        num_hops (int or dict, optional): As for :class:`MIGGT`, as are all that follow
            but the last. (default: :obj:`{'id': 4, 'text': 2, 'image': 1}`)
        num_samples (int, optional): (default: :obj:`10`)
        projection_channels (dict, optional): (default: :obj:`{'image': 384}`)
        alpha (float, optional): (default: :obj:`0.1`)
        beta (float, optional): (default: :obj:`0.9`)
        attention_channels (int, optional): (default: :obj:`4`)
        mix (float, optional): (default: :obj:`0.1`)
        use_transformer (bool, optional): (default: :obj:`True`)
        weight_decay (float, optional): (default: :obj:`1e-5`)
        feature_dropout (float, optional): (default: :obj:`0.3`)
        hidden_dropout (float, optional): (default: :obj:`0.3`)
        user_dropout (float, optional): (default: :obj:`0.3`)
        item_dropout (float, optional): (default: :obj:`0.3`)
        edge_dropout (float, optional): (default: :obj:`0.2`)
        out_dropout (float, optional): (default: :obj:`0.2`)
        sample_seed (int, optional): (default: :obj:`0`)
        group (ProcessGroup, optional): The processes; all of them if not given.
            (default: :obj:`None`)

    Shapes:
        - **output:** user embeddings :math:`(N_{user}, H)`, item embeddings
          :math:`(N_{item}, H)`

    Raises:
        ValueError: If an argument is out of range, :obj:`hidden_channels` can't be
            divided among the processes, or :obj:`encoder_channels` are too few for
            every process to get one.

    Example:
        >>> with process_group():
        ...     model = ColumnParallelMIGGT.from_data(data, hidden_channels=16)
        ...     result = fit(model, data, num_epochs=2)
    """

    whole_class = MIGGT

    def __init__(
        self,
        num_users: int,
        num_items: int,
        in_channels: Mapping[str, int],
        hidden_channels: int = 64,
        encoder_channels: int = 512,
        num_hops: int | Mapping[str, int] | None = None,
        num_samples: int = 10,
        projection_channels: Mapping[str, int] | None = None,
        alpha: float = 0.1,
        beta: float = 0.9,
        attention_channels: int = 4,
        mix: float = 0.1,
        use_transformer: bool = True,
        weight_decay: float = 1e-5,
        feature_dropout: float = 0.3,
        hidden_dropout: float = 0.3,
        user_dropout: float = 0.3,
        item_dropout: float = 0.3,
        edge_dropout: float = 0.2,
        out_dropout: float = 0.2,
        sample_seed: int = 0,
        group: Any = None,
    ) -> None:
        columns = Columns(hidden_channels, group)
        hidden = UnevenColumns(encoder_channels, group)
        with isolated_seed(0):  # What it draws is drawn below.
            super().__init__(
                num_users,
                num_items,
                in_channels,
                columns.width,
                hidden.width,
                num_hops,
                num_samples,
                projection_channels,
                alpha,
                beta,
                attention_channels,
                mix,
                use_transformer,
                weight_decay,
                feature_dropout,
                hidden_dropout,
                user_dropout,
                item_dropout,
                edge_dropout,
                out_dropout,
                sample_seed,
            )
        self.hidden_channels = columns.num_columns
        self.encoder_channels = hidden.num_columns
        self.columns = columns
        with isolated_seed(columns.seed()):
            for name, size in (self.in_channels | self.projection_channels).items():
                if name in self.projection_channels:
                    self.get_buffer(f'projection_{name}').normal_()
                encoder = _Encoder(size, hidden, columns, self.hidden_dropout)
                self.encoder[name] = encoder
            self.transformer = _RowAttention(columns, attention_channels, mix)
            for table in self.tables():
                table.init(table.parameter)

    def branch_embeddings(self, graph: MIGGTGraph) -> dict[str, Tensor]:
        branches = self._propagate(graph)
        return {name: self.columns.gather(x) for name, x in branches.items()}

    def content_embeddings(self, graph: MIGGTGraph) -> dict[str, Tensor]:
        return {name: self.columns.gather(x) for name, x in self._encode(graph).items()}

    def fuse(
        self, graph: MIGGTGraph, branch_embeddings: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        x = torch.stack(tuple(branch_embeddings.values())).sum(dim=0)
        x = dropout(x, self.out_dropout, self.training)
        (x,) = self.columns.replicate(x)  # Each goes on with rows of its own.
        rows = self._rows(x.size(0))
        own = x[rows.start : rows.start + rows.size]
        return self._whole(graph, rows, own, x[self.num_users :])

    def forward(self, graph: MIGGTGraph) -> tuple[Tensor, Tensor]:
        x = self._sum(self._propagate(graph))
        rows = self._rows(x.size(0))
        items = self.columns.collect(x[self.num_users :])
        return self._whole(graph, rows, rows.from_columns(x), items)

    def loss(self, graph: MIGGTGraph, batch: Triplets) -> Tensor:
        r"""Returns the sum over the batch of BPR and TUR, plus the L2 regulariser on
        the final representations of all nodes.
        """
        x, samples = self._sum(self._propagate(graph)), self._samples(graph)
        nodes = batch.nodes(self.num_users)
        triplets = self._rows(batch.user.numel())
        own = slice(triplets.start, triplets.start + triplets.size)
        out = x.index_select(0, nodes).unflatten(0, (3, -1)).transpose(0, 1)
        out = triplets.from_columns(out)  # A triplet stays together.
        norm = x
        if self.use_transformer:
            rows = self._rows(x.size(0))
            every = torch.arange(rows.start, rows.start + rows.size, device=x.device)
            places = nodes.unflatten(0, (3, -1)).t()[own].flatten()
            items, index = samples - self.num_users, torch.cat([every, places])
            source = self.columns.collect(x[self.num_users :])
            target = torch.cat([rows.from_columns(x), out.flatten(0, 1)])
            target = self.transformer.attend(target, source, items[index])
            norm, mixed = target.split([rows.size, places.numel()])
            out = mixed.view_as(out)
        user_emb, pos_emb, neg_emb = out.unbind(dim=1)
        score = (user_emb * (neg_emb - pos_emb)).sum(dim=-1)
        loss = F.softplus(score).sum() + 0.5 * self.weight_decay * norm.pow(2).sum()
        if self.use_transformer:
            args = items[self.num_users :], batch.pos_item[own], user_emb
            score = self.transformer.token_scores(source, *args)
            loss = loss + (score.logsumexp(dim=1) - score[:, 0]).sum()
        return self.columns.sum(loss)

    def tables(self) -> list[Table]:
        r"""Returns the columns of the user ID table that this process holds."""
        std = self.hidden_channels**-0.5
        return self._divide(super().tables(), partial(self.columns.normal_, std=std))

    def divided(self) -> dict[str, Blocks]:
        encoders: Any = self.encoder
        parts = {
            f'encoder.{name}.{key}': block
            for name in self.modalities
            for key, block in encoders[name].divided().items()
        }
        return super().divided() | parts

    def _drop(self, x: Tensor, p: float) -> Tensor:
        return _dropout(x, p, self.training, self.columns)

    def _whole(
        self, graph: MIGGTGraph, rows: Rows, own: Tensor, items: Tensor
    ) -> tuple[Tensor, Tensor]:
        samples = self._samples(graph) - self.num_users
        if self.use_transformer:
            samples = samples[rows.start : rows.start + rows.size]
            own = self.transformer.attend(own, items, samples)
        out = rows.gather(own)
        user_emb, item_emb = out.split([self.num_users, self.num_items])
        return user_emb, item_emb

    def _rows(self, num_rows: int) -> Rows:
        return Rows(num_rows, self.columns.group)


class _Encoder(FeatureEncoder):
    r"""A part of the hidden layer and of the output."""

    def __init__(
        self, in_channels: int, hidden: Columns, columns: Columns, dropout: float
    ) -> None:
        super().__init__(in_channels, hidden.total, columns.total, dropout)
        self.hidden, self.columns = hidden, columns
        state = self.state_dict(keep_vars=True)
        for name, block in self.divided().items():
            state[name].data = block.take(state[name].detach()).clone()

    def divided(self) -> dict[str, Blocks]:
        r"""Returns of which block a parameter or buffer consists, by name."""
        out: dict[str, Blocks] = {'linear2.weight': self.hidden}
        for part, columns, linear in (
            (1, self.hidden, ('weight', 'bias')),
            (2, self.columns, ('bias',)),
        ):
            names = [f'linear{part}.{name}' for name in linear]
            norm = ('weight', 'bias', 'running_mean', 'running_var')
            names += [f'bn{part}.{name}' for name in norm]
            out |= dict.fromkeys(names, Blocks(columns.total, 0, columns.group))
        return out

    def forward(self, x: Tensor) -> Tensor:
        slopes = self.columns.replicate(self.prelu1.weight, self.prelu2.weight)
        x = _prelu(self.bn1(self.linear1(x)), slopes[0])
        x = _dropout(x, self.dropout, self.training, self.hidden)
        x = self.columns.reduce(F.linear(x, self.linear2.weight)) + self.linear2.bias
        return _prelu(self.bn2(x), slopes[1])


class _RowAttention(SampledAttentionConv):
    r"""The transformer, on every process, for rows of its own."""

    def __init__(self, columns: Columns, attention_channels: int, mix: float) -> None:
        super().__init__(columns.total, attention_channels, mix)
        self.query = RowLinear(columns.total, attention_channels, columns)
        self.key = RowLinear(columns.total, attention_channels, columns)
        self.reset_parameters()

    def attend(self, x: Tensor, items: Tensor, samples: Tensor) -> Tensor:
        r"""Returns the output :math:`(n, H)` of some nodes that have sampled items,
        int64 :math:`(n, C)`.
        """
        query, key = self._query_key(x)
        neighbors = Neighbors(samples, items.size(0))
        own = (query * key).sum(dim=-1, keepdim=True)
        score = torch.cat([own, neighbor_dot(self.key(items), neighbors, query)], dim=1)
        return self._attend(x, items, neighbors, score)


def _dropout(x: Tensor, p: float, training: bool, columns: Columns) -> Tensor:
    r"""Drops entries of columns by a mask that every process draws as a whole."""
    if not training or columns.num_processes == 1:
        return dropout(x, p, training)
    mask = dropout(x.new_ones(x.size(0), columns.total), p)
    return x * columns.take(mask)
