from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import HeteroData
from torch_geometric.data.datapipes import functional_transform
from torch_geometric.transforms import BaseTransform

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.data.from_frame import raw_to_internal

from ._request import check_source, draw, mark, to_ids


@functional_transform('forget_interactions')
class ForgetInteractions(BaseTransform):
    r"""Marks single interactions as to be forgotten, the interaction-level request
    (functional name: :obj:`forget_interactions`).

    Sets :obj:`forget_mask` on the interactions, :obj:`data.forget_interactions` and
    :obj:`data.forget_level`. Nothing is deleted yet; see :class:`DropForgotten`.
    Requests combine, and a pair named twice counts once. A pair that is held out for
    validation, test or control is deleted from there; the model was not trained on it,
    so there is nothing to unlearn.

    Args:
        pairs (sequence or torch.Tensor, optional): Internal (user, item) ids, as a
            sequence of pairs or a tensor :obj:`[2, n]`.
        raw_pairs (sequence, optional): The caller's own (user, item) ids, looked up
            in the id maps that :meth:`from_frame` keeps.
        ratio (float, optional): Share of the training interactions to draw, in
            :math:`(0, 1)`, at least one.
        seed (int, optional): Seed of that draw. (default: :obj:`0`)

    Raises:
        ValueError: If not exactly one of :obj:`pairs`, :obj:`raw_pairs` and
            :obj:`ratio` is given, the request is empty, a pair is neither a training
            interaction nor held out, or the request would delete every training
            interaction.

    Example:
        >>> data = SyntheticMultimodal('tiny')[0]
        >>> pairs = data['user', 'interacts', 'item'].edge_index[:, :2]
        >>> data = ForgetInteractions(pairs)(data)
        >>> int(data['user', 'interacts', 'item'].forget_mask.sum())
        2
    """

    def __init__(
        self,
        pairs: Sequence[tuple[int, int]] | Tensor | None = None,
        *,
        raw_pairs: Sequence[tuple[Any, Any]] | None = None,
        ratio: float | None = None,
        seed: int = 0,
    ) -> None:
        check_source(self, 'pairs', pairs, raw_pairs, ratio, seed)
        self.pairs = None if pairs is None else _to_pairs(pairs)
        self.raw_pairs = None if raw_pairs is None else _check_raw_pairs(raw_pairs)
        self.ratio = None if ratio is None else float(ratio)
        self.seed = int(seed)

    def forward(self, data: HeteroData) -> HeteroData:
        data = schema.validate(data)
        edge_index = data[schema.EDGE_TYPE].edge_index
        mask = torch.zeros(
            edge_index.size(1), dtype=torch.bool, device=edge_index.device
        )
        held_out = edge_index.new_empty(2, 0)
        if self.ratio is not None:
            drawn = draw(self.ratio, mask.numel(), self.seed)
            mask[drawn.to(mask.device)] = True
        else:
            items = schema.num_items(data)
            pairs = self._internal_pairs(data).to(edge_index.device).unique(dim=1)
            codes = schema.pair_codes(pairs, items)
            mask = torch.isin(schema.pair_codes(edge_index, items), codes)
            splits = [schema.held_out(data, split) for split in schema.SPLITS]
            held_out = torch.cat(splits, dim=1)
            named = torch.isin(schema.pair_codes(held_out, items), codes)
            held_out = held_out[:, named]
            _check_known(pairs, torch.cat([edge_index[:, mask], held_out], dim=1))
        pairs = torch.cat([edge_index[:, mask], held_out], dim=1)
        return mark(data, mask, 'interaction', 'forget_interactions', pairs)

    def _internal_pairs(self, data: HeteroData) -> Tensor:
        if self.raw_pairs is not None:
            users = raw_to_internal(data, schema.USER, [u for u, _ in self.raw_pairs])
            items = raw_to_internal(data, schema.ITEM, [i for _, i in self.raw_pairs])
            return torch.stack([users, items])
        assert self.pairs is not None
        sizes = torch.tensor([[schema.num_users(data)], [schema.num_items(data)]])
        bad = ((self.pairs < 0) | (self.pairs >= sizes)).any(dim=0)
        if bad.any():
            first = tuple(self.pairs[:, bad][:, 0].tolist())
            raise ValueError(
                f"'pairs' names {int(bad.sum())} pairs with unknown ids (first: "
                f'{first}). Known are users 0 to {int(sizes[0]) - 1} and items 0 to '
                f"{int(sizes[1]) - 1}. For ids of your own, use 'raw_pairs'."
            )
        return self.pairs

    def __repr__(self) -> str:
        if self.ratio is not None:
            return f'{self.__class__.__name__}(ratio={self.ratio}, seed={self.seed})'
        num = len(self.raw_pairs) if self.raw_pairs is not None else 0
        num = num if self.pairs is None else self.pairs.size(1)
        return f'{self.__class__.__name__}(num_interactions={num})'


def _check_known(pairs: Tensor, found: Tensor) -> None:
    unknown = pairs.size(1) - found.size(1)
    if unknown == 0:
        return
    missing = set(map(tuple, pairs.t().tolist())) - set(map(tuple, found.t().tolist()))
    user, item = min(missing)
    raise ValueError(
        f'{unknown} of {pairs.size(1)} requested pairs are no interactions of the '
        f'data, neither for training nor held out (first: user {user}, item {item}). '
        f'They may have been deleted already. Take them out of the request.'
    )


def _check_raw_pairs(pairs: Sequence[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    out = []
    for place, pair in enumerate(pairs):
        if isinstance(pair, str) or not hasattr(pair, '__len__') or len(pair) != 2:
            # The entry itself may be an id, which has no place in a log.
            raise ValueError(
                f"'raw_pairs' must be a sequence of (user, item) pairs (got a "
                f"'{type(pair).__name__}' that is none at position {place})"
            )
        out.append((pair[0], pair[1]))
    return out


def _to_pairs(pairs: Sequence[tuple[int, int]] | Tensor) -> Tensor:
    out = to_ids(pairs, 'pairs').cpu()
    if not isinstance(pairs, Tensor) and out.dim() == 2:
        out = out.t()
    if out.dim() != 2 or out.size(0) != 2:
        raise ValueError(
            f"'pairs' must be a sequence of (user, item) pairs or a tensor of shape "
            f'[2, n] (got shape {list(out.shape)})'
        )
    return out.contiguous()
