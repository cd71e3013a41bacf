r"""What the marking transforms share: reading ids and combining requests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import HeteroData
from torch_geometric.transforms import BaseTransform

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.data._frame import to_list
from torch_geometric_unlearn.data.from_frame import raw_to_internal
from torch_geometric_unlearn.utils.check import check_ratio
from torch_geometric_unlearn.utils.ids import to_ids as ids_of
from torch_geometric_unlearn.utils.seed import check_seed, generator


def check_source(
    owner: BaseTransform,
    name: str,
    ids: Sequence[Any] | Tensor | None,
    raw_ids: Sequence[Any] | None,
    ratio: float | None,
    seed: int,
) -> None:
    r"""Raises unless exactly one of the ways to name a request is used, and well."""
    sources = {name: ids, f'raw_{name}': raw_ids, 'ratio': ratio}
    given = [key for key, value in sources.items() if value is not None]
    if len(given) != 1:
        raise ValueError(
            f"'{owner.__class__.__name__}' needs exactly one of {list(sources)} (got "
            f"{given or 'none'})"
        )
    _check_not_empty(ids, name)
    _check_not_empty(raw_ids, f'raw_{name}')
    if ratio is not None:
        check_ratio(ratio)
    check_seed(seed)


def draw(ratio: float, size: int, seed: int) -> Tensor:
    r"""Returns the places of a share of :obj:`size` candidates, at least one, int64."""
    num = max(1, round(ratio * size))
    return torch.randperm(size, generator=generator(seed))[:num]


def _check_not_empty(ids: Sequence[Any] | Tensor | None, name: str) -> None:
    r"""Raises if :obj:`ids` is given but names nothing, or is no sequence."""
    if ids is None:
        return
    if not hasattr(ids, '__len__') or (isinstance(ids, Tensor) and ids.dim() == 0):
        raise TypeError(
            f"'{name}' must be a list or tensor (got {ids!r}). For a single one, pass "
            f'a list of length one.'
        )
    if len(ids) == 0 or (isinstance(ids, Tensor) and ids.numel() == 0):
        raise ValueError(
            f"'{name}' must name at least one id (got an empty request). To change "
            f'nothing, leave the transform out.'
        )


def to_ids(ids: Sequence[Any] | Tensor, name: str) -> Tensor:
    r"""Returns integer ids as an int64 tensor, refusing anything else."""
    way_out = f"For ids of your own, use the argument 'raw_{name}'."
    return ids_of(ids, name, way_out)


class ForgetNodes(BaseTransform):
    r"""Marks every training interaction of some nodes of one type."""

    node_type: str

    def __init__(
        self,
        ids: Sequence[int] | Tensor | None,
        raw_ids: Sequence[Any] | None,
        ratio: float | None,
        seed: int,
    ) -> None:
        name = f'{self.node_type}s'
        check_source(self, name, ids, raw_ids, ratio, seed)
        self.ids = None if ids is None else to_ids(ids, name).view(-1).cpu()
        self.raw_ids = None if raw_ids is None else to_list(raw_ids, f'raw_{name}')
        self.seed = int(seed)
        self.ratio = None if ratio is None else float(ratio)

    def forward(self, data: HeteroData) -> HeteroData:
        data = schema.validate(data)
        edge_index = data[schema.EDGE_TYPE].edge_index
        endpoint = edge_index[0 if self.node_type == schema.USER else 1]
        ids = self._internal_ids(data, endpoint).to(endpoint.device)
        key = f'forget_{self.node_type}s'
        return mark(data, torch.isin(endpoint, ids), self.node_type, key, ids)

    def _internal_ids(self, data: HeteroData, endpoint: Tensor) -> Tensor:
        if self.ratio is not None:
            pool = endpoint.unique().cpu()
            return pool[draw(self.ratio, pool.numel(), self.seed)].sort()[0]
        if self.raw_ids is not None:
            return raw_to_internal(data, self.node_type, self.raw_ids).unique()
        assert self.ids is not None
        size = int(data[self.node_type].num_nodes)
        bad = (self.ids < 0) | (self.ids >= size)
        if bad.any():
            raise ValueError(
                f"'{self.node_type}s' names {int(bad.sum())} unknown ids (first: "
                f'{int(self.ids[bad][0])}). Known are 0 to {size - 1}. For ids of your '
                f"own, use the argument 'raw_{self.node_type}s'."
            )
        return self.ids.unique()

    def __repr__(self) -> str:
        if self.ratio is not None:
            return f'{self.__class__.__name__}(ratio={self.ratio}, seed={self.seed})'
        ids = self.raw_ids if self.ids is None else self.ids
        assert ids is not None
        num = len(ids)
        return f'{self.__class__.__name__}(num_{self.node_type}s={num})'


def mark(
    data: HeteroData, mask: Tensor, level: str, key: str, ids: Tensor
) -> HeteroData:
    r"""Adds a request to the one that :obj:`data` may already hold.

    Args:
        data (HeteroData): The data, shallow-copied by the transform.
        mask (torch.Tensor): The marked training edges, bool :obj:`[E]`.
        level (str): :obj:`user`, :obj:`item` or :obj:`interaction`.
        key (str): Graph-level key under which the ids are kept.
        ids (torch.Tensor): The requested ids :obj:`[n]` or pairs :obj:`[2, n]`.
    """
    store = data[schema.EDGE_TYPE]
    mask = schema.forget_mask(data) | mask
    if mask.all():
        raise ValueError(
            f'The request deletes all {mask.numel()} training interactions: nothing '
            f'would be left to recommend from. Withdraw the model instead of '
            f'unlearning, or name fewer {level}s.'
        )
    store.forget_mask = mask
    if key in data:
        ids = torch.cat([data[key], ids], dim=-1).unique(dim=-1)
    data[key] = ids
    same = 'forget_level' not in data or data.forget_level == level
    data.forget_level = level if same else 'mixed'
    return data
