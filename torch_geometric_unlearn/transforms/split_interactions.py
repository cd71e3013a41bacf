from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import HeteroData
from torch_geometric.data.datapipes import functional_transform
from torch_geometric.transforms import BaseTransform

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.utils.check import (
    check_choice,
    check_float,
    check_ratio,
)
from torch_geometric_unlearn.utils.seed import check_seed, generator

from ._edge_attrs import edge_attrs, select_edges


@functional_transform('split_interactions')
class SplitInteractions(BaseTransform):
    r"""Holds out validation and test interactions, and on request control pairs
    (functional name: :obj:`split_interactions`).

    Existing held-out pairs are merged first, so that applying the transform again draws
    a new split. Held-out pairs keep what the interactions know of them, such as
    :obj:`data.val_edge_time` for :obj:`time`. Three ways to split:

    - :obj:`by='random'`, the rule of the MMRec benchmarks: a user with
      :math:`c \geq 10` interactions gives
      :math:`k = \lfloor \textrm{ratio} \cdot c \rfloor` of them away,
      :math:`\lfloor k / 2 \rfloor` to validation and the rest to test. A user with
      fewer gives one to each, and a user with fewer than three keeps all for
      training [ours: the benchmarks hold 5-core data only].
    - :obj:`by='time'`, one cut for all: the newest share :obj:`ratio` is held out, the
      older half of it for validation. Held-out pairs of users without an earlier one
      are dropped, as nothing could be recommended to them.
    - :obj:`by='last'`: the newest interaction of every user for test, the one before
      for validation; a user with fewer than three keeps all for training.

    Among equal times, a seeded draw decides.

    Args:
        ratio (float, optional): Share of the interactions to hold out, in
            :math:`(0, 1)`; not for :obj:`by='last'`.
            (default: :obj:`0.2` where it acts)
        seed (int, optional): Seed of the draw. (default: :obj:`0`)
        by (str, optional): :obj:`'random'`, :obj:`'time'` or :obj:`'last'`.
            (default: :obj:`'random'`)
        control (float, optional): Share of the training pairs to set aside, at random,
            as :obj:`data.control_edge_label_index`, in :math:`[0, 1)`; every user keeps
            a training pair. They are never trained on nor stopped by, and exchangeable
            with training pairs whatever the way to split, so that audits can tell
            memory from the passing of time. (default: :obj:`0.0`)

    Raises:
        ValueError: If an argument is out of range or can't act, a request is pending,
            held-out pairs lack attributes that the training interactions carry,
            :obj:`time` is needed and missing or not finite, or there are too few pairs
            for a single control pair.

    Example:
        >>> data = SyntheticMultimodal('tiny')[0]
        >>> data = SplitInteractions(seed=1, control=0.02)(data)
        >>> data.control_edge_label_index.shape[0]
        2
    """

    def __init__(
        self,
        ratio: float | None = None,
        seed: int = 0,
        by: str = 'random',
        control: float = 0.0,
    ) -> None:
        self.by = check_choice(by, 'by', ('random', 'time', 'last'))
        if by == 'last' and ratio is not None:
            raise ValueError(
                f"'ratio' can't act with by='last' (got {ratio}), which holds out two "
                f'interactions of every user. Leave it out.'
            )
        self.ratio = check_ratio(0.2 if ratio is None else ratio)
        self.seed = check_seed(seed)
        self.control = check_float(control, 'control', 0.0)
        if control >= 1:
            raise ValueError(
                f"'control' must be in [0, 1) (got {control}). For 1%, pass 0.01."
            )

    def forward(self, data: HeteroData) -> HeteroData:
        data = schema.validate(data)
        store = data[schema.EDGE_TYPE]
        if 'forget_mask' in store:
            raise ValueError(
                "'data' holds a pending request ('forget_mask'). Split first, then "
                'mark what to forget.'
            )
        device = store.edge_index.device
        pairs, attrs = _merged(data)
        split = self._assign(pairs[0].cpu(), attrs)
        if self.control > 0:
            split = self._set_aside(pairs[0].cpu(), split)
        split = split.to(device)

        names = ('train', *schema.SPLITS)
        kinds = names if self.control > 0 else names[:-1]
        for split_id, name in enumerate(kinds):
            chosen = split == split_id
            if name == 'train':
                store.edge_index = pairs[:, chosen]
            else:
                data[f'{name}_edge_label_index'] = pairs[:, chosen]
            for key, value in attrs.items():
                part = select_edges(value, chosen)
                if name == 'train':
                    store[key] = part
                else:
                    data[f'{name}_edge_{key}'] = part
        if schema.REV_EDGE_TYPE in data.edge_types:
            _rebuild_reverse(data, list(attrs))
        return data

    def _assign(self, user: Tensor, attrs: dict[str, Any]) -> Tensor:
        r"""Returns 0 (train), 1 (validation), 2 (test) or -1 (dropped), int64
        :obj:`[E]`.
        """
        if self.by == 'random':
            return split_per_user(user, self.ratio, self.seed)
        if 'time' not in attrs or not isinstance(attrs['time'], Tensor):
            raise ValueError(
                f"by='{self.by}' needs the time of every interaction (got "
                f"{list(attrs) or 'no attribute'}). Pass 'time' to 'from_frame', or "
                f"store it as data[{schema.EDGE_TYPE}].time."
            )
        time = attrs['time'].cpu()
        bad = ~torch.isfinite(time)
        if bad.any():
            raise ValueError(
                f"'time' must be finite to split by it (got {int(bad.sum())} of "
                f'{time.numel()} that are not). Drop these interactions.'
            )
        order = torch.randperm(user.numel(), generator=generator(self.seed))
        order = order[time[order].argsort(stable=True)]
        if self.by == 'last':
            return _last_per_user(user, order)
        split = torch.zeros_like(user)
        num_held = int(self.ratio * user.numel() + 1e-9)
        num_val = num_held // 2
        start = user.numel() - num_held
        split[order[start : start + num_val]] = 1
        split[order[start + num_val :]] = 2
        trained = torch.zeros(int(user.max()) + 1, dtype=torch.bool)
        trained[user[split == 0]] = True
        split[~trained[user]] = -1
        return split

    def _set_aside(self, user: Tensor, split: Tensor) -> Tensor:
        r"""Turns training pairs into control pairs, 3."""
        train = (split == 0).nonzero().view(-1)
        num = round(self.control * train.numel())
        rng = generator(self.seed + 1)
        train = train[torch.randperm(train.numel(), generator=rng)]
        grouped = train[user[train].argsort(stable=True)]
        count = user[train].bincount()
        place = torch.arange(train.numel()) - (count.cumsum(0) - count)[user[grouped]]
        free = grouped[place > 0]  # The first of every user stays.
        free = free[torch.randperm(free.numel(), generator=rng)]
        if num < 1 or num > free.numel():
            raise ValueError(
                f"'control' would set {num} of {train.numel()} training pairs aside "
                f'(got {self.control}), but must name at least one and at most '
                f'{free.numel()}, as every user keeps one. Pass another share, or get '
                f'more data.'
            )
        split = split.clone()
        split[free[:num]] = 3
        return split

    def __repr__(self) -> str:
        args = [] if self.by == 'last' else [f'ratio={self.ratio}']
        args += [f'seed={self.seed}']
        args += [f"by='{self.by}'"] if self.by != 'random' else []
        args += [f'control={self.control}'] if self.control > 0 else []
        return f'{self.__class__.__name__}({", ".join(args)})'


def _merged(data: HeteroData) -> tuple[Tensor, dict[str, Any]]:
    r"""Returns all pairs and their attributes, training first, without the held-out
    ones that :obj:`data` held.
    """
    store = data[schema.EDGE_TYPE]
    pairs = [store.edge_index]
    names = edge_attrs(store)
    attrs = {name: [store[name]] for name in names}
    for split in schema.SPLITS:
        key = f'{split}_edge_label_index'
        if key not in data:
            continue
        known = schema.held_out_attrs(data, split)
        lacking = [name for name in names if name not in known]
        if lacking and data[key].size(1) > 0:
            raise ValueError(
                f"'data' is split already, and its training interactions carry "
                f"{lacking}, which the held-out pairs lack. Split the unsplit data."
            )
        pairs.append(data[key])
        for name in names:
            if name in known:
                attrs[name].append(data[f'{split}_edge_{name}'])
        for name in known:
            del data[f'{split}_edge_{name}']
        del data[key]
    return torch.cat(pairs, dim=1), {k: _joined(v) for k, v in attrs.items()}


def _joined(parts: list[Any]) -> Any:
    if isinstance(parts[0], Tensor):
        return torch.cat(parts)
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts)
    return type(parts[0])(value for part in parts for value in part)


def _last_per_user(user: Tensor, order: Tensor) -> Tensor:
    r"""Assigns the last interaction of every user in :obj:`order` to test and the one
    before to validation.
    """
    order = order[user[order].argsort(stable=True)]
    count = user.bincount()
    end = count.cumsum(0)
    grouped = user[order]
    left = end[grouped] - torch.arange(user.numel())  # 1 for the last one.
    enough = count[grouped] >= 3
    split = torch.empty_like(user)
    split[order] = torch.where(enough & (left == 1), 2, 0) + (
        enough & (left == 2)
    ).long()
    return split


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
