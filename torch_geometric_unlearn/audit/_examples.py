r"""Who is a member: the examples of a membership audit, whatever the model."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.data.request import Request
from torch_geometric_unlearn.loader import TripletLoader
from torch_geometric_unlearn.utils.seed import generator
from torch_geometric_unlearn.utils.topk import PairIndex

from ._attack import MIN_EXAMPLES, Settings
from ._matching import match, occurrence
from .hold_out_users import never_trained_pairs

#: Items that a retained user shares with a deleted one to count as a neighbour.
MIN_SHARED = 3


@dataclass
class Examples:
    r"""What an attacker is trained or tested on, members first.

    Attributes:
        pairs (torch.Tensor): Pairs to query, int64 :obj:`[2, m]`.
        ids (torch.Tensor): Users whose histories are the examples, int64 :obj:`[n]`,
            or empty if every pair is an example of its own.
        group (torch.Tensor): Examples that stay together, int64 :obj:`[n]`.
        label (torch.Tensor): Membership, bool :obj:`[n]`.
    """

    pairs: Tensor
    ids: Tensor
    group: Tensor
    label: Tensor

    @classmethod
    def of_pairs(cls, members: Tensor, others: Tensor, row: int) -> Examples:
        r"""Every pair is an example, grouped by user (row 0) or item (row 1)."""
        pairs = torch.cat([members, others], dim=1)
        label = torch.arange(pairs.size(1)) < members.size(1)
        return cls(pairs, pairs.new_empty(0), pairs[row], label)

    @classmethod
    def of_users(
        cls, pairs: Tensor, members: Tensor, others: Tensor, limit: int
    ) -> Examples:
        r"""Every user with its queried pairs is an example and a group; the first
        users of both sides, equally many and at most :obj:`limit`.
        """
        num = min(members.numel(), others.numel(), limit)
        ids = torch.cat([members[:num], others[:num]])
        label = torch.arange(ids.numel()) < num
        return cls(pairs[:, torch.isin(pairs[0], ids)], ids, ids, label)

    @property
    def counts(self) -> tuple[int, int]:
        r"""Number of members and of non-members."""
        return int(self.label.sum()), int((~self.label).sum())


class ExampleSampler:
    r"""Draws the examples of an audit, the same ones for every model and mode.

    Args:
        data (HeteroData): The data with the request still marked.
        settings (Settings): What to draw. The attribute :obj:`negatives` says what
            :obj:`'auto'` has come to.

    Raises:
        ValueError: If users are to be examples of a request that deletes none.
    """

    def __init__(self, data: HeteroData, settings: Settings) -> None:
        level, negatives, seed = settings.level, settings.negatives, settings.seed
        if level == 'user' and Request.of(data).users.numel() == 0:
            raise ValueError(
                "'level' must be 'pair' or 'neighbours' for a request that deletes no "
                "user (got 'user'). Mark whole users with 'ForgetUsers'."
            )
        self.level, self.negatives, self.seed = level, negatives, seed
        self.max_examples = settings.max_examples
        self.sizes = schema.num_users(data), schema.num_items(data)
        self.row = 1 if Request.of(data).level == 'item' else 0
        data = copy.copy(data).to('cpu')
        self.trained = data[schema.EDGE_TYPE].edge_index
        self.retained = schema.retained_edge_index(data)
        self.forgotten = schema.forgotten_edge_index(data)
        self.held_out = {s: schema.held_out(data, s) for s in schema.SPLITS}
        self.never_trained = never_trained_pairs(data)
        self.rng = generator(seed)
        if level == 'user':
            self.test, self.outside = self._test_users()
        elif level == 'neighbours':
            self.test = self._neighbours()
        else:
            kinds = ('control', 'heldout') if negatives == 'auto' else (negatives,)
            for kind in kinds:
                self.negatives, self.rng = kind, generator(seed)
                self.test = self._test_pairs()
                if min(self.test.counts) >= MIN_EXAMPLES:
                    break

    @cached_property
    def train(self) -> Examples:
        r"""Examples outside the request, for the attacker of the transfer mode."""
        self.rng = generator(self.seed)
        if self.level == 'user':
            members = self.retained[0].unique()
            gone = torch.isin(members, self.forgotten[0])
            pairs = torch.cat([self.retained, self.never_trained], dim=1)
            members = self._shuffled(members[~gone])
            return Examples.of_users(pairs, members, self.outside, self.max_examples)
        asked, val = self.forgotten[self.row], self.held_out['val']
        members = self.retained[:, ~torch.isin(self.retained[self.row], asked)]
        if self.negatives == 'random':
            members = members[:, self._shuffled(torch.arange(members.size(1)))]
            members = members[:, : self.max_examples]
            others = self._random_pairs(members)
        else:
            others = val[:, ~torch.isin(val[self.row], asked)]
        members, others = self._matched(members, others, self.row, 'val')
        return Examples.of_pairs(members, others, self.row)

    @cached_property
    def null(self) -> Examples:
        r"""Returns held-out pairs under labels that mean nothing."""
        pairs = torch.cat([self.held_out['val'], self.held_out['test']], dim=1)
        self.rng = generator(self.seed)
        order = self._shuffled(torch.arange(pairs.size(1)))
        pairs = pairs[:, order[pairs[0, order].argsort(stable=True)]]
        even = occurrence(pairs[0]) % 2 == 0
        # The first of an odd number has no partner; which one it is, is random.
        members, others = self._matched(pairs[:, even], pairs[:, ~even], 0)
        return Examples.of_pairs(members, others, 0)

    def _test_pairs(self) -> Examples:
        split = 'control' if self.negatives == 'control' else 'test'
        if self.negatives == 'random':
            others = self._random_pairs(self.forgotten)
        else:
            others = self.held_out[split]
        members, others = self._matched(self.forgotten, others, self.row, split)
        return Examples.of_pairs(members, others, self.row)

    def _test_users(self) -> tuple[Examples, Tensor]:
        r"""Returns deleted users against users that no model has seen, and those of the
        latter that are left to train the attacker of the transfer mode on.
        """
        unseen = self._shuffled(self.never_trained[0].unique())
        outside, unseen = unseen.tensor_split(2)
        members = self._shuffled(self.forgotten[0].unique())
        pairs = torch.cat([self.forgotten, self.never_trained], dim=1)
        test = Examples.of_users(pairs, members, unseen, self.max_examples)
        return test, outside

    def _neighbours(self) -> Examples:
        num_users = self.sizes[0]
        users, place = self.forgotten[0].unique(return_inverse=True)
        fans = PairIndex(self.retained.flip(0), self.sizes[1])
        row, fan = fans.lookup(self.forgotten[1])
        codes, shared = (place[row] * num_users + fan).unique(return_counts=True)
        near = torch.zeros(num_users, dtype=torch.bool)
        near[codes[shared >= MIN_SHARED] % num_users] = True
        kept = self.retained[0].unique()
        kept = kept[~torch.isin(kept, users)]

        length = self.retained[0].bincount(minlength=num_users)
        popularity = self.retained[1].bincount(minlength=self.sizes[1]).double()
        mean = torch.zeros(num_users, dtype=torch.float64)
        mean.index_add_(0, self.retained[0], popularity[self.retained[1]].log())
        mean = (mean / length.clamp(min=1))[kept]
        quintile = mean.argsort().argsort() * 5 // max(1, kept.numel())
        stratum = torch.stack([length[kept] * 5 + quintile, kept])
        members, others = self._matched(
            stratum[:, near[kept]], stratum[:, ~near[kept]], 0
        )
        num = members.size(1)
        return Examples.of_users(self.retained, members[1], others[1], num)

    def _matched(
        self, members: Tensor, others: Tensor, row: int, split: str = ''
    ) -> tuple[Tensor, Tensor]:
        r"""Returns equally many pairs of both kinds per group, within the cap."""
        key = -torch.rand(members.size(1), generator=self.rng).log()
        if split and self.negatives != 'random':
            # An exponential race: drawn in proportion to the weights. It makes the
            # users of the members of an item a sample like those of the test pairs.
            held = self.held_out[split][0].bincount(minlength=self.sizes[0])
            train = self.trained[0].bincount(minlength=self.sizes[0])
            weight = held.double() / train.clamp(min=1)
            key = key / weight[members[0]]
        return match(members, others, key, row, self.max_examples, self.rng)

    def _random_pairs(self, pairs: Tensor) -> Tensor:
        r"""Returns as many pairs of the same users (items) that nobody has made, none
        for those that have everything.
        """
        known = torch.cat([self.trained, *self.held_out.values()], dim=1)
        group, size = pairs[self.row], self.sizes[1 - self.row]
        if self.row == 1:
            known = known.flip(0)
        group = group[known[0].bincount()[group] < size]
        seed = int(torch.randint(2**31, (1,), generator=self.rng))
        loader = TripletLoader(
            known, size, negative_items=torch.arange(size), seed=seed
        )
        drawn = torch.stack([group, loader.sample_negatives(group)])
        return drawn.flip(0) if self.row == 1 else drawn

    def _shuffled(self, ids: Tensor) -> Tensor:
        return ids[torch.randperm(ids.numel(), generator=self.rng)]
