r"""The completion attack: who knows a part of a deleted history asks for the rest."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.data import HeteroData

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.nn.models.served import Served
from torch_geometric_unlearn.utils.check import check_int
from torch_geometric_unlearn.utils.seed import generator
from torch_geometric_unlearn.utils.topk import PairIndex

from ._attack import percentiles
from ._matching import occurrence

#: Shorter histories can't be split into a half that is known and one to guess.
MIN_HISTORY = 4
#: With fewer guesses, a figure would be noise.
MIN_TARGETS = 50
NUM_STRATA = 10
_BLOCK_SIZE = 512


@dataclass
class CompletionResult:
    r"""What a completion attack has found.

    Attributes:
        auc (float): Share of equally popular items outside of the history that score
            below a deleted item, the mean over deleted items; 0.5 for an attacker who
            guesses, NaN with fewer than 50 guesses.
        interval (list): 95% bootstrap interval :obj:`[low, high]` over users; NaN for a
            single one.
        standard_error (float): Of :obj:`auc`, from the same resamples.
        num_users (int): Users whose histories were split.
        num_targets (int): Deleted pairs that were guessed, over all splits.
        reason (str): Why :obj:`auc` is NaN, or an empty string.
    """

    auc: float = math.nan
    interval: list[float] = field(default_factory=lambda: [math.nan, math.nan])
    standard_error: float = math.nan
    num_users: int = 0
    num_targets: int = 0
    reason: str = ''

    def to_dict(self) -> dict[str, Any]:
        r"""Returns everything as JSON-serialisable values."""
        return asdict(self)

    def __repr__(self) -> str:
        low, high = self.interval
        return (
            f'{self.__class__.__name__}(auc={self.auc:.4f} [{low:.4f}, {high:.4f}], '
            f'users={self.num_users}, targets={self.num_targets})'
        )


def completion(
    model: Any,
    data: HeteroData,
    graph: Any = None,
    num_splits: int = 3,
    num_bootstrap: int = 1000,
    seed: int = 0,
) -> CompletionResult:
    r"""Attacks a model: can someone who knows half of what a user had bought ask it for
    the deleted rest [ours]?

    The training history of every user with a deleted pair, and with at least four
    pairs, is split into halves at random. The attacker's query is the mean of the
    centred and normalised item vectors of one half. For every *deleted* item of the
    other half, the attack counts which share of the items outside of the history, and
    in the same decile of popularity, scores below it. In a user-level request all of a
    history is deleted; in others the known half may hold retained pairs, as it would.

    Only item vectors are used, so that nothing done to the row of a deleted user helps.
    Items that go together by content or by what others bought are found as well:
    compare with a retrained model, or with the same attack on
    :meth:`users that were never trained on <completion_yardstick>`.

    Args:
        model (torch.nn.Module or Served): The audited model.
        data (HeteroData): The data with the request *still marked*.
        graph (Any, optional): What the model propagates over; the retained
            interactions if not given. Pass the graph of the unmarked data only for the
            original model as it was in service. (default: :obj:`None`)
        num_splits (int, optional): Random splits to average over.
            (default: :obj:`3`)
        num_bootstrap (int, optional): Resamples of users for the interval.
            (default: :obj:`1000`)
        seed (int, optional): Seed of splits and resamples. (default: :obj:`0`)

    Returns:
        CompletionResult: The AUC with its interval; NaN with a warning with fewer than
        50 guesses.

    Raises:
        ValueError: If an argument is out of range, or nothing is marked.

    Example:
        >>> from torch_geometric_unlearn.audit import completion
        >>> data = SyntheticMultimodal('tiny', num_users=400)[0]
        >>> model = MGCN.from_data(data, hidden_channels=16)
        >>> result = completion(model, ForgetUsers(ratio=0.3)(data))
        >>> 0.0 <= result.auc <= 1.0
        True
    """
    data = schema.validate(data)
    if not schema.forget_mask(data).any():
        raise ValueError(
            "'data' must hold a request (got no marked interaction). Mark what was "
            "deleted, e.g. with 'ForgetUsers'."
        )
    train = data[schema.EDGE_TYPE].edge_index
    _, item_emb = Served.of(model, data, graph).embeddings
    return _attack(
        item_emb,
        train,
        schema.forget_mask(data),
        train[1],
        num_splits,
        num_bootstrap,
        seed,
    )


def completion_yardstick(
    model: Any,
    data: HeteroData,
    pairs: Tensor,
    num_splits: int = 3,
    num_bootstrap: int = 1000,
    seed: int = 0,
) -> CompletionResult:
    r"""Runs the attack of :meth:`completion` on histories that the model was never
    trained on, which is what it finds without any memory.

    Args:
        model (torch.nn.Module or Served): The model.
        data (HeteroData): The data that it was trained on.
        pairs (torch.Tensor): Never-trained histories, int64 :obj:`[2, n]`, e.g. what
            :meth:`~torch_geometric_unlearn.audit.hold_out_users` has set aside as
            :obj:`data.never_trained_edge_label_index`.
        num_splits (int, optional): As for :meth:`completion`. (default: :obj:`3`)
        num_bootstrap (int, optional): As for :meth:`completion`. (default: :obj:`1000`)
        seed (int, optional): As for :meth:`completion`. (default: :obj:`0`)

    Returns:
        CompletionResult: The AUC with its interval.

    Raises:
        ValueError: If an argument is out of range.
    """
    data = schema.validate(data)
    schema.check_pairs(
        pairs, schema.num_users(data), schema.num_items(data), 'pairs'
    )
    _, item_emb = Served.of(model, data).embeddings
    return _attack(
        item_emb,
        pairs,
        torch.ones(pairs.size(1), dtype=torch.bool),
        data[schema.EDGE_TYPE].edge_index[1],
        num_splits,
        num_bootstrap,
        seed,
    )


def compare_completion(
    models: Mapping[str, Any], data: HeteroData, **kwargs: Any
) -> dict[str, CompletionResult]:
    r"""Runs :meth:`completion` on several models with the same splits.

    :obj:`'original'` is scored on all interactions, as it was in service, and every
    other model on the retained ones.

    Args:
        models (dict): Models by name.
        data (HeteroData): The data with the request still marked.
        **kwargs (optional): Further arguments of :meth:`completion`.

    Returns:
        dict: Results by name.
    """
    out = {}
    for name, model in models.items():
        served = Served.before if name == 'original' else Served.of
        out[name] = completion(served(model, data, name=name), data, **kwargs)
    return out


@torch.no_grad()
def _attack(
    item_emb: Tensor,
    pairs: Tensor,
    deleted: Tensor,
    train_items: Tensor,
    num_splits: int,
    num_bootstrap: int,
    seed: int,
) -> CompletionResult:
    check_int(num_splits, 'num_splits', 1)
    check_int(num_bootstrap, 'num_bootstrap', 1)
    rng = generator(seed)
    pairs, deleted = pairs.cpu(), deleted.cpu()
    num_users = int(pairs[0].max()) + 1 if pairs.numel() > 0 else 0
    history = pairs[0].bincount(minlength=num_users)
    wanted = pairs[0, deleted].bincount(minlength=num_users) > 0
    keep = (wanted & (history >= MIN_HISTORY))[pairs[0]]
    pairs, deleted = pairs[:, keep], deleted[keep]
    order = pairs[0].argsort(stable=True)
    pairs, deleted = pairs[:, order], deleted[order]
    users, place, count = pairs[0].unique(return_inverse=True, return_counts=True)
    unit = F.normalize(item_emb - item_emb.mean(dim=0), dim=1).cpu()
    popularity = train_items.cpu().bincount(minlength=unit.size(0))
    rank = popularity.argsort(stable=True).argsort()
    stratum = rank * NUM_STRATA // unit.size(0)
    total = torch.zeros(users.numel(), dtype=torch.float64)
    number = torch.zeros(users.numel(), dtype=torch.float64)
    within = occurrence(place)
    for _ in range(num_splits):
        shuffled = torch.rand(place.numel(), generator=rng).argsort()
        shuffled = shuffled[place[shuffled].argsort(stable=True)]
        known = torch.empty_like(deleted)
        known[shuffled] = within < (count // 2)[place]
        query = unit.new_zeros(users.numel(), unit.size(1))
        query.index_add_(0, place[known], unit[pairs[1, known]])
        target = ~known & deleted
        share = _shares(query, unit, pairs[1], place, target, stratum)
        valid = ~share.isnan()
        total.index_add_(0, place[target][valid], share[valid])
        number.index_add_(0, place[target][valid], torch.ones_like(share[valid]))

    result = CompletionResult(
        num_users=users.numel(), num_targets=int(number.sum())
    )
    if result.num_targets < MIN_TARGETS:
        result.reason = (
            f'The completion attack needs {MIN_TARGETS} deleted pairs to guess, of '
            f'users with at least {MIN_HISTORY} training pairs (got '
            f'{result.num_targets}), so its AUC is NaN. Pool several requests.'
        )
        warnings.warn(result.reason, stacklevel=3)
        return result
    size = users.numel() * num_bootstrap
    drawn = torch.multinomial(torch.ones(users.numel()), size, True, generator=rng)
    drawn = drawn.view(num_bootstrap, -1)
    means = total[drawn].sum(dim=1) / number[drawn].sum(dim=1)
    result.auc = float(total.sum() / number.sum())
    if users.numel() < 2:  # All resamples of one user are the same.
        return result
    result.interval = percentiles(means)
    result.standard_error = float(means[~means.isnan()].std())
    return result


def _shares(
    query: Tensor,
    unit: Tensor,
    items: Tensor,
    place: Tensor,
    target: Tensor,
    stratum: Tensor,
) -> Tensor:
    r"""Returns for every target the share of items of its stratum, outside of the
    history, that score below it; ties count half, NaN if there is no such item.
    """
    num_users = query.size(0)
    history = PairIndex(torch.stack([place, items]), num_users)
    goals = PairIndex(torch.stack([place[target], items[target]]), num_users)
    members = [(stratum == s).nonzero().view(-1) for s in range(NUM_STRATA)]
    out = []
    for block in torch.arange(num_users).split(_BLOCK_SIZE):
        score = query[block] @ unit.t()
        row, item = goals.lookup(block)
        own = score[row, item]
        score[history.lookup(block)] = torch.nan  # Neither below nor equal.
        share = torch.full((item.numel(),), torch.nan, dtype=torch.float64)
        for s, inside in enumerate(members):
            chosen = (stratum[item] == s).nonzero().view(-1)
            others = score[:, inside]
            size = (~others.isnan()).sum(dim=1)[row[chosen]]
            others, mine = others[row[chosen]], own[chosen].unsqueeze(1)
            below = (others < mine).sum(dim=1) + 0.5 * (others == mine).sum(dim=1)
            share[chosen] = below.double() / size  # NaN without any.
        out.append(share)
    return torch.cat(out)
