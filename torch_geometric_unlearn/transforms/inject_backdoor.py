from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import HeteroData
from torch_geometric.data.datapipes import functional_transform
from torch_geometric.data.storage import EdgeStorage
from torch_geometric.transforms import BaseTransform

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.utils.check import check_choice, check_int, check_ratio
from torch_geometric_unlearn.utils.rows import moderate_rows, row_norms
from torch_geometric_unlearn.utils.seed import check_seed, generator
from torch_geometric_unlearn.utils.topk import PairIndex

from ._edge_attrs import edge_attrs

NUM_NEIGHBORS = 10  # Content neighbours of the target, itself included.
NUM_TRIES = 100


@functional_transform('inject_backdoor')
class InjectBackdoor(BaseTransform):
    r"""Plants interactions that teach a model to show a target item to whoever has
    interacted with the trigger items (functional name: :obj:`inject_backdoor`).

    What only the planted interactions teach must be gone once they are unlearned, which
    :func:`~torch_geometric_unlearn.audit.backdoor` measures. The plant is ours:

    - The *target* is an item from the less popular half of those with training
      interactions.
    - The *trigger* are :obj:`num_triggers` items from the 40th to the 60th percentile
      of popularity, without common users, and none of them among the ten nearest
      neighbours of the target by the features of any modality.
    - Every poisoned user interacts with the trigger, the target, and
      :obj:`num_fillers` items drawn by popularity. With :obj:`triggers_per_user`, each
      holds only that many of the trigger items, which are handed out in turns, so that
      profiles stay short and unlike each other [ours]. What a graph model passes from
      a trigger item to the target shrinks with the length of the profiles in between.

    Whether a model learns it is another matter, and has to be checked first. By
    default, MGCN on :obj:`SyntheticMultimodal('small')` showed the target to about one
    triggered user in a hundred; with a ratio of 0.1, five trigger items and fifteen
    fillers, to half of them. On Amazon Baby (reconstructed features), with a ratio of
    0.01, five trigger items, two of them per user, and two fillers, LightGCN showed it
    to 76 % of the triggered users, 20 at a time (one seed; ``benchmark/backdoor.py``).

    In the regime :obj:`'user'`, poisoned users are new rows after the existing ones; in
    :obj:`'interaction'`, they are existing users to whom target and trigger are new.
    Item ids never shift, nor do those of existing users. Edge attributes of
    planted interactions and attributes of new users are copied from random existing
    ones. Raw ids of new users are :obj:`'backdoor_<id>'`.

    Sets on the graph level :obj:`backdoor_target` (int), :obj:`backdoor_trigger`
    :obj:`[b]`, :obj:`backdoor_users` :obj:`[n]`, and :obj:`backdoor_pairs`
    :obj:`[2, n]`, the planted interactions with the target. The request is then
    :obj:`ForgetUsers(data.backdoor_users)`,
    :obj:`ForgetInteractions(data.backdoor_pairs)`, or
    :obj:`ForgetItems([data.backdoor_target])`.

    Args:
        regime (str, optional): :obj:`'user'` or :obj:`'interaction'`.
            (default: :obj:`'user'`)
        ratio (float, optional): Poisoned users over users, in :math:`(0, 1)`; at least
            one. (default: :obj:`0.01`)
        num_triggers (int, optional): Number :math:`b` of trigger items.
            (default: :obj:`3`)
        num_fillers (int, optional): Further items of a poisoned user.
            (default: :obj:`5`)
        content (str, optional): A modality whose features of target and trigger are
            moved along one random direction, by half the mean norm. Deleting
            interactions can't remove that from the features, only from what was
            learned. (default: :obj:`None`)
        seed (int, optional): Seed of every draw. Audit several: one target is an
            anecdote. (default: :obj:`0`)
        triggers_per_user (int, optional): Trigger items of a poisoned user, at most
            :obj:`num_triggers`; all of them if not given. (default: :obj:`None`)

    Raises:
        ValueError: If an argument is out of range, the data holds a request or a
            backdoor already, or has too few users or items for the plant.

    Example:
        >>> data = InjectBackdoor()(SyntheticMultimodal('small')[0])
        >>> data['user'].num_nodes, data.backdoor_trigger.numel()
        (2020, 3)
        >>> data = ForgetUsers(data.backdoor_users)(data)
    """

    def __init__(
        self,
        regime: str = 'user',
        ratio: float = 0.01,
        num_triggers: int = 3,
        num_fillers: int = 5,
        content: str | None = None,
        seed: int = 0,
        *,
        triggers_per_user: int | None = None,
    ) -> None:
        self.regime = check_choice(regime, 'regime', ('user', 'interaction'))
        self.ratio = check_ratio(ratio)
        self.num_triggers = check_int(num_triggers, 'num_triggers', 1)
        self.num_fillers = check_int(num_fillers, 'num_fillers', 0)
        self.content = content
        self.seed = check_seed(seed)
        self.triggers_per_user = self.num_triggers
        if triggers_per_user is not None:
            check_int(triggers_per_user, 'triggers_per_user', 1)
            if triggers_per_user > self.num_triggers:
                raise ValueError(
                    f"'triggers_per_user' must be at most 'num_triggers' "
                    f'({self.num_triggers}) (got {triggers_per_user}). Lower it, or '
                    f"raise 'num_triggers'."
                )
            self.triggers_per_user = triggers_per_user

    def forward(self, data: HeteroData) -> HeteroData:
        data = schema.validate(data)
        self._check(data)
        gen = generator(self.seed)
        edge_index = data[schema.EDGE_TYPE].edge_index
        train = edge_index.cpu()
        target, trigger = self._draw_items(data, train, gen)
        planted = torch.cat([trigger, trigger.new_tensor([target])])

        num_users, num_items = schema.num_users(data), schema.num_items(data)
        num = max(1, round(self.ratio * num_users))
        if self.regime == 'user':
            users = torch.arange(num_users, num_users + num)
            known = train[:, :0]
        else:
            held_out = [schema.held_out(data, split).cpu() for split in ('val', 'test')]
            known = torch.cat([train, *held_out], dim=1)
            users = _draw_users(train, known, planted, num, gen)
        weight = train[1].bincount(minlength=num_items).float()
        weight[planted] = 0
        fillers = self._draw_fillers(users, known, weight, gen)
        held = self._hand_out(trigger, num)
        items = torch.cat([held, planted[-1:].expand(num, 1), fillers], dim=1)
        pairs = torch.stack([users.repeat_interleave(items.size(1)), items.flatten()])

        if self.regime == 'user':
            _append_users(data, num, gen)
        append_interactions(data, pairs, gen)
        if self.content is not None:
            self._move_features(data, planted, gen)
        device = edge_index.device
        data.backdoor_target = target
        data.backdoor_trigger = trigger.to(device)
        data.backdoor_users = users.to(device)
        data.backdoor_pairs = torch.stack(
            [users, torch.full_like(users, target)]
        ).to(device)
        return data

    def _check(self, data: HeteroData) -> None:
        if 'forget_mask' in data[schema.EDGE_TYPE]:
            raise ValueError(
                "'data' holds a pending request ('forget_mask'). Plant first, then "
                'mark what to forget.'
            )
        if 'backdoor_target' in data:
            raise ValueError(
                "'data' holds a backdoor already, and a second one would blur its "
                'effect. Plant it in clean data.'
            )
        if self.content is None:
            return
        check_choice(self.content, 'content', tuple(schema.modalities(data)))
        edge_type = schema.similar_edge_type(self.content)
        if edge_type in data.edge_types:
            raise ValueError(
                f"'data' stores the item graph {edge_type}, which would not follow the "
                f"moved features. Plant first, then apply 'ItemKNNGraph'."
            )

    def _draw_items(
        self, data: HeteroData, train: Tensor, gen: torch.Generator
    ) -> tuple[int, Tensor]:
        num_items = schema.num_items(data)
        count = train[1].bincount(minlength=num_items)
        order = count.argsort(stable=True)
        order = order[count[order] > 0]
        size = order.numel()
        lower = order[: max(1, size // 2)]
        target = int(lower[torch.randint(lower.numel(), (1,), generator=gen)])

        near = torch.zeros(num_items, dtype=torch.bool)
        near[target] = True
        for x in schema.features(data).values():
            near[_neighbors(x, target).cpu()] = True
        middle = order[int(0.4 * size) : int(0.6 * size)]
        trigger = self._draw_trigger(middle[~near[middle]], train, num_items, gen)
        return target, trigger

    def _draw_trigger(
        self, pool: Tensor, train: Tensor, num_items: int, gen: torch.Generator
    ) -> Tensor:
        by_user = PairIndex(train, int(train[0].max()) + 1)
        by_item = PairIndex(train.flip(0), num_items)
        for _ in range(NUM_TRIES):  # A greedy draw may lead nowhere.
            left = pool[torch.randperm(pool.numel(), generator=gen)]
            chosen: list[int] = []
            while left.numel() > 0 and len(chosen) < self.num_triggers:
                item = left[:1]
                chosen.append(int(item))
                users = by_item.lookup(item)[1]
                left = left[~torch.isin(left, by_user.lookup(users)[1])]
            if len(chosen) == self.num_triggers:
                return torch.tensor(chosen).sort()[0]
        raise ValueError(
            f"'data' must hold {self.num_triggers} items of middle popularity without "
            f'common users for the trigger (got {pool.numel()} candidates and no such '
            f"set). Lower 'num_triggers', try another 'seed', or use larger data."
        )

    def _hand_out(self, trigger: Tensor, num: int) -> Tensor:
        r"""Returns the trigger items of every poisoned user, in turns."""
        size = self.triggers_per_user
        if num * size < self.num_triggers:
            raise ValueError(
                f"'ratio' must yield enough poisoned users for every trigger item (got "
                f'{num} with {size} of {self.num_triggers} items each). Raise it, or '
                f"'triggers_per_user'."
            )
        return trigger[torch.arange(num * size) % self.num_triggers].view(num, size)

    def _draw_fillers(
        self, users: Tensor, known: Tensor, weight: Tensor, gen: torch.Generator
    ) -> Tensor:
        weights = weight.repeat(users.numel(), 1)
        if known.size(1) > 0:
            weights[PairIndex(known, int(users.max()) + 1).lookup(users)] = 0
        if self.num_fillers == 0:
            return users.new_empty(users.numel(), 0)
        if int((weights > 0).sum(dim=1).min()) < self.num_fillers:
            raise ValueError(
                f"'num_fillers' must leave every poisoned user enough new items (got "
                f'{self.num_fillers}). Lower it.'
            )
        return torch.multinomial(weights, self.num_fillers, generator=gen)

    def _move_features(
        self, data: HeteroData, items: Tensor, gen: torch.Generator
    ) -> None:
        key = f'x_{self.content}'
        x = data[schema.ITEM][key].clone()
        direction = torch.randn(x.size(1), generator=gen)
        step = 0.5 * row_norms(x).mean() * (direction / direction.norm()).to(x)
        x[items.to(x.device)] += step
        data[schema.ITEM][key] = x

    def __repr__(self) -> str:
        return (
            f"{self.__class__.__name__}('{self.regime}', ratio={self.ratio}, "
            f'num_triggers={self.num_triggers}, seed={self.seed})'
        )


def append_interactions(
    data: HeteroData, pairs: Tensor, gen: torch.Generator
) -> HeteroData:
    r"""Appends new pairs to the training interactions and their reverse, in place but
    without changing a tensor of :obj:`data`.

    Edge attributes are copied from random existing interactions; none of the new ones
    is marked as forgotten.

    Args:
        data (HeteroData): Data that may be changed, such as a shallow copy.
        pairs (torch.Tensor): Pairs that are no training interactions, int64
            :obj:`[2, n]`.
        gen (torch.Generator): Draws the interactions to copy from.
    """
    store = data[schema.EDGE_TYPE]
    num_edges = store.edge_index.size(1)
    source = torch.randint(num_edges, (pairs.size(1),), generator=gen)
    # Before the forward edges change: attributes of both directions must agree.
    shared = {key: _take(store[key], source) for key in edge_attrs(store)}
    if 'forget_mask' in store:
        shared['forget_mask'] = torch.zeros_like(shared['forget_mask'])
    if schema.REV_EDGE_TYPE in data.edge_types:
        reverse = data[schema.REV_EDGE_TYPE]
        new = {key: _take(reverse[key], source) for key in edge_attrs(reverse)}
        new |= {key: value for key, value in shared.items() if key in new}
        _extend(reverse, pairs.flip(0), new)
    _extend(store, pairs, shared)
    return data


def _extend(store: EdgeStorage, pairs: Tensor, attrs: dict[str, Any]) -> None:
    edge_index = store.edge_index
    for key, value in attrs.items():
        store[key] = _join(store[key], value)
    store.edge_index = torch.cat([edge_index, pairs.to(edge_index.device)], dim=1)


def _append_users(data: HeteroData, num: int, gen: torch.Generator) -> None:
    store = data[schema.USER]
    num_users = schema.num_users(data)
    source = torch.randint(num_users, (num,), generator=gen)
    for key, value in list(store.items()):
        if key == 'raw_id':
            names = [f'backdoor_{num_users + i}' for i in range(num)]
            store[key] = [*value, *names]
        elif _has_rows(value, num_users):
            store[key] = _join(value, _take(value, source))
    store.num_nodes = num_users + num


def _draw_users(
    train: Tensor, known: Tensor, planted: Tensor, num: int, gen: torch.Generator
) -> Tensor:
    busy = known[0, torch.isin(known[1], planted)]
    pool = train[0].unique()
    pool = pool[~torch.isin(pool, busy)]
    if pool.numel() < num:
        raise ValueError(
            f"'data' must hold {num} users to whom target and trigger are new (got "
            f"{pool.numel()}). Lower 'ratio' or 'num_triggers'."
        )
    return pool[torch.randperm(pool.numel(), generator=gen)[:num]].sort()[0]


def _neighbors(x: Tensor, item: int) -> Tensor:
    r"""Returns the items with the highest cosine to :obj:`item`, itself included."""
    x = moderate_rows(x)
    norm = x.norm(dim=1).clamp(min=torch.finfo(x.dtype).tiny)
    cosine = (x @ x[item]) / norm
    return cosine.topk(min(NUM_NEIGHBORS, x.size(0)))[1]


def _has_rows(value: Any, size: int) -> bool:
    if isinstance(value, (Tensor, np.ndarray)):
        return value.ndim > 0 and value.shape[0] == size
    return type(value) in (list, tuple) and len(value) == size


def _take(value: Any, index: Tensor) -> Any:
    if isinstance(value, Tensor):
        return value[index.to(value.device)]
    if isinstance(value, np.ndarray):
        return value[index.numpy()]
    return type(value)(value[i] for i in index.tolist())


def _join(old: Any, new: Any) -> Any:
    if isinstance(old, Tensor):
        return torch.cat([old, new])
    return np.concatenate([old, new]) if isinstance(old, np.ndarray) else old + new
