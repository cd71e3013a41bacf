from __future__ import annotations

import torch
from torch import Tensor
from torch_geometric.data import HeteroData
from torch_geometric.data.datapipes import functional_transform
from torch_geometric.transforms import BaseTransform

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.utils.check import check_int, check_ratio
from torch_geometric_unlearn.utils.seed import generator

from ._edge_attrs import edge_attrs, select_edges


@functional_transform('split_interactions')
class SplitInteractions(BaseTransform):
    r"""Holds out validation and test interactions, randomly per user, by the rule
    of the MMRec benchmarks (functional name: :obj:`split_interactions`).

    A user with :math:`c \geq 10` interactions gives
    :math:`k = \lfloor \textrm{ratio} \cdot c \rfloor` of them away,
    :math:`\lfloor k / 2 \rfloor` to validation and the rest to test. A user with
    fewer gives one to each, and a user with fewer than three keeps all for
    training [ours: the benchmarks hold 5-core data only]. Existing held-out pairs are
    merged first, so that applying the transform again draws a new split.

    Args:
        ratio (float, optional): Share of a user's interactions to hold out, in
            :math:`(0, 1)`. (default: :obj:`0.2`)
        seed (int, optional): Seed of the draw. (default: :obj:`0`)

    Raises:
        ValueError: If :obj:`ratio` or :obj:`seed` is out of range, a request is
            pending, or held-out pairs exist while the training interactions carry
            attributes such as :obj:`time`, which held-out pairs lack.

    Example:
        >>> data = SyntheticMultimodal('tiny')[0]
        >>> data = SplitInteractions(seed=1)(data)
        >>> data.val_edge_label_index.shape[0]
        2
    """

    def __init__(self, ratio: float = 0.2, seed: int = 0) -> None:
        self.ratio = check_ratio(ratio)
        self.seed = seed
        generator(seed)  # Checks the seed.

    def forward(self, data: HeteroData) -> HeteroData:
        schema.validate(data)
        store = data[schema.EDGE_TYPE]
        if 'forget_mask' in store:
            raise ValueError(
                "'data' holds a pending request ('forget_mask'). Split first, then "
                'mark what to forget.'
            )
        held_out = [data[key] for key in schema.HELD_OUT if key in data]
        num_train = store.edge_index.size(1)
        attrs = edge_attrs(store)
        if attrs and sum(pairs.size(1) for pairs in held_out) > 0:
            raise ValueError(
                f"'data' is split already, and its training interactions carry "
                f"{attrs}, which the held-out pairs lack. Split the unsplit data."
            )
        pairs = torch.cat([store.edge_index, *held_out], dim=1).cpu()
        split = split_per_user(pairs[0], self.ratio, self.seed)
        split = split.to(store.edge_index.device)
        pairs = pairs.to(store.edge_index.device)

        train = split == 0
        store.edge_index = pairs[:, train]
        for key in attrs:
            store[key] = select_edges(store[key], train[:num_train])
        data.val_edge_label_index = pairs[:, split == 1]
        data.test_edge_label_index = pairs[:, split == 2]
        if schema.REV_EDGE_TYPE in data.edge_types:
            _rebuild_reverse(data, attrs)
        return data

    def __repr__(self) -> str:
        return f'{self.__class__.__name__}(ratio={self.ratio}, seed={self.seed})'


def split_per_user(user: Tensor, ratio: float = 0.2, seed: int = 0) -> Tensor:
    r"""Assigns every interaction to a split, randomly per user.

    Args:
        user (torch.Tensor): User of every interaction, int64 :obj:`[E]`, on the CPU.
        ratio (float, optional): Share of a user's interactions to hold out.
            (default: :obj:`0.2`)
        seed (int, optional): Seed of the draw. (default: :obj:`0`)

    Returns:
        torch.Tensor: 0 (train), 1 (validation) or 2 (test), int64 :obj:`[E]`.
    """
    check_int(seed, 'seed', 0)
    order = torch.randperm(user.numel(), generator=generator(seed))
    order = order[user[order].argsort(stable=True)]
    count = user.bincount()
    start = count.cumsum(0) - count
    grouped = user[order]
    place = torch.arange(user.numel()) - start[grouped]
    total = count[grouped]

    num_held = (ratio * total.double() + 1e-9).floor().long()
    num_val = num_held // 2
    num_held = torch.where(total >= 10, num_held, torch.where(total >= 3, 2, 0))
    num_val = torch.where(total >= 10, num_val, torch.where(total >= 3, 1, 0))
    num_train = total - num_held

    split = torch.empty_like(user)
    split[order] = (place >= num_train).long() + (place >= num_train + num_val).long()
    return split


def _rebuild_reverse(data: HeteroData, attrs: list[str]) -> None:
    forward = data[schema.EDGE_TYPE]
    reverse = data[schema.REV_EDGE_TYPE]
    for key in list(reverse.keys()):
        if key != 'edge_index' and key not in attrs:
            del reverse[key]
    reverse.edge_index = forward.edge_index.flip(0)
    for key in attrs:
        reverse[key] = forward[key]
