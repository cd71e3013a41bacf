r"""What a new version must pass before it is served. A verdict follows from figures
that are kept, so that anyone can recompute it.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from torch_geometric_unlearn.audit.membership import membership
from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.data.request import Request, is_erased
from torch_geometric_unlearn.evaluation import Difference
from torch_geometric_unlearn.metrics.ranking import retained_ndcg
from torch_geometric_unlearn.nn.models import Served
from torch_geometric_unlearn.utils.check import check_choice
from torch_geometric_unlearn.utils.topk import topk_items

from .content import feature_rows

PASS, FAIL, INCONCLUSIVE = 'pass', 'fail', 'inconclusive'
#: The verdict on a version that a person has signed for.
SIGNED = 'signed'
HARD = ('data', 'integrity')
NAMES = (*HARD, 'utility', 'forget', 'membership')
#: With fewer pairs than these an attack says nothing.
MIN_PAIRS = 50
#: Largest distances: of utility to the model in service and to the last full training,
#: of the share of erased pairs in the lists, and of an attacker from guessing.
LIMITS = {'service': 0.01, 'full': 0.02, 'forget': 0.05, 'membership': 0.05}


@dataclass(frozen=True)
class Gate:
    r"""The outcome of one gate.

    Attributes:
        name (str): Its name.
        figures (dict): What was measured.
        faults (list): What a hard gate found, without any id.
    """

    name: str
    figures: dict[str, float] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        r"""Whether it is passed, failed or can't be told."""
        return verdict_of(self.name, self.figures, self.faults)

    def content(self) -> str:
        r"""Returns figures and faults as JSON, NaN as nothing."""
        figures = {k: None if v != v else v for k, v in self.figures.items()}
        return json.dumps(asdict(self) | {'figures': figures}, sort_keys=True)

    @classmethod
    def of(cls, content: str) -> Gate:
        r"""Returns what :meth:`content` was made of."""
        values = json.loads(content)
        figures = {
            k: math.nan if v is None else v for k, v in values.pop('figures').items()
        }
        return cls(figures=figures, **values)


def verdict_of(
    name: str, figures: Mapping[str, float], faults: Sequence[str] = ()
) -> str:
    r"""Returns the verdict that follows from the figures of a gate. A model that was
    trained without what was erased is what the soft gates compare with, so whatever
    they measure there is no fault of it [ours].
    """
    if name in HARD:
        return FAIL if faults else PASS
    check_choice(name, 'name', NAMES)
    if figures.get('exact'):  # The yardstick itself.
        return PASS
    low, high = figures['low'], figures['high']
    if name == 'utility':
        limit, full = LIMITS['service'], figures['to_full']
        if high < -limit or full < -LIMITS['full']:
            return FAIL
        is_good = low >= -limit and not math.isnan(full)
        return PASS if is_good else INCONCLUSIVE
    if figures['num_pairs'] < MIN_PAIRS or math.isnan(low):
        return INCONCLUSIVE
    middle = 0.5 if name == 'membership' else 0.0
    limit = LIMITS[name]
    if low > middle + limit or high < middle - limit:
        return FAIL
    inside = middle - limit <= low and high <= middle + limit
    return PASS if inside else INCONCLUSIVE


def overall(gates: Sequence[Gate]) -> str:
    r"""Returns the verdict on a version: one failed gate fails it."""
    verdicts = [gate.verdict for gate in gates]
    if FAIL in verdicts:
        return FAIL
    return PASS if set(verdicts) == {PASS} else INCONCLUSIVE


def of_exact(gate: Gate) -> Gate:
    r"""Returns a gate as that of a method that is as good as retraining by promise."""
    return Gate(gate.name, gate.figures | {'exact': 1.0}, gate.faults)


def check_data(
    marked: HeteroData,
    after: HeteroData,
    files: Mapping[str, bytes],
    ids: Collection[Any],
) -> Gate:
    r"""Looks for what was erased in the data and in the files of a version.

    Args:
        marked (HeteroData): The data with the request.
        after (HeteroData): The data after it, as it was stored.
        files (dict): Content of the files by name.
        ids (collection): Raw ids of erased users and items.
    """
    request, num_items = Request.of(marked), schema.num_items(marked)
    gone = schema.pair_codes(torch.cat([request.pairs, request.named], 1), num_items)
    places = {'training pairs': after[schema.EDGE_TYPE].edge_index}
    if schema.REV_EDGE_TYPE in after.edge_types:
        places['reverse pairs'] = after[schema.REV_EDGE_TYPE].edge_index.flip(0)
    for split in schema.SPLITS:
        places[f'{split} pairs'] = schema.held_out(after, split)
    faults = [
        f'erased pairs among the {name}'
        for name, pairs in places.items()
        if torch.isin(schema.pair_codes(pairs, num_items), gone).any()
        or request.covers(pairs).any()
    ]
    others: set[Any] = set()
    for kind, nodes in ((schema.USER, request.users), (schema.ITEM, request.items)):
        tokens = after[kind].raw_id
        if not all(is_erased(tokens[index]) for index in nodes.tolist()):
            faults.append(f'erased ids in the id map of {kind}s')
        others.update(tokens)
    # An item may have the id of an erased user.
    words = [json.dumps(raw).encode() for raw in ids if isinstance(raw, str)]
    kept = {json.dumps(raw).encode() for raw in others if isinstance(raw, str)}
    for name, content in files.items():
        # As JSON has it, in quotes, so that no part of another id is meant.
        if any(word in content for word in words if word not in kept):
            faults.append(f'erased ids in the {name}')
    return Gate('data', faults=faults)


def features_left(
    before: tuple[Any, HeteroData],
    after: tuple[Any, HeteroData],
    items: list[int],
    files: Mapping[str, bytes],
) -> list[str]:
    r"""Returns where the features of dropped items are left, for the data gate.

    Args:
        before (tuple): The model that a version came from, and its data.
        after (tuple): The version and its data, as they were stored.
        items (list): The items.
        files (dict): Content of the files by name.
    """
    (old, data), (new, rest) = before, after
    faults, words, num_users = [], set(), schema.num_users(data)
    kept = torch.ones(schema.num_items(data), dtype=torch.bool)
    kept[items] = False
    for name, x in schema.features(data).items():
        if (rest[schema.ITEM][f'x_{name}'][items] != 0).any():
            faults.append(f"features of dropped items in 'x_{name}' of the data")
        # Others may look the same, such as those without a picture.
        others = {row.tobytes() for row in x[kept].numpy()}
        words |= {row.tobytes() for row in x[items].numpy() if row.any()} - others
    for edge_type in rest.edge_types:
        if edge_type[0] == edge_type[2] == schema.ITEM:
            ends = rest[edge_type].edge_index
            if torch.isin(ends, torch.tensor(items)).any():
                faults.append(f"dropped items in the graph '{'__'.join(edge_type)}'")
    tables = (feature_rows(model, items, num_users) for model in (old, new))
    for (was, rows), (now, _) in zip(*tables):
        then, here = was.detach()[rows], now.detach()[rows]
        # A few steps away from what they were they still tell it.
        if ((here - then).norm(dim=1) < 0.5 * then.norm(dim=1)).any():
            faults.append('features of dropped items in a table of the model')
        words |= {row.tobytes() for row in then.cpu().numpy() if row.any()}
    for name, content in files.items():
        if any(word in content for word in words):
            faults.append(f'features of dropped items in the {name}')
    return faults


def check_integrity(
    served: Served, reloaded: Served, watermarks: tuple[int, int]
) -> Gate:
    r"""Compares a version with what its file gives.

    Args:
        served (Served): The model that was measured.
        reloaded (Served): The model from the file.
        watermarks (tuple): Of the version in service and of this one.
    """
    faults = []
    if not served.is_finite:
        faults.append('the model is not finite')
    elif not all(map(torch.equal, served.embeddings, reloaded.embeddings)):
        faults.append('the file gives another model than the one measured')
    if watermarks[1] < watermarks[0]:
        faults.append('the watermark would fall')
    return Gate('integrity', faults=faults)


def utility(
    served: Served,
    before: Served,
    marked: HeteroData,
    full: tuple[Tensor, Tensor] | None,
    k: int,
) -> Gate:
    r"""Compares the NDCG@K of the users with retained test pairs.

    Args:
        served (Served): The new version.
        before (Served): The version in service, without the erased pairs.
        marked (HeteroData): The data with the request.
        full (tuple, optional): Users int64 :obj:`[n]`, and their NDCG@K float64
            :obj:`[n]`, at the last full training.
        k (int): Length of the lists.
    """
    users, ours = retained_ndcg(served, marked, k)
    _, theirs = retained_ndcg(before, marked, k)
    figures = dict.fromkeys(('change', 'low', 'high', 'to_full'), math.nan)
    if users.numel() and theirs.mean() > 0:
        change = Difference.of((ours - theirs) / theirs.mean(), users)
        figures |= {'change': change.value, 'low': change.low, 'high': change.high}
    if full is not None:
        figures['to_full'] = to_full(users, ours, full)
    return Gate('utility', figures | {'num_users': float(users.numel())})


def to_full(users: Tensor, ndcg: Tensor, full: tuple[Tensor, Tensor]) -> float:
    r"""Returns the relative change of the mean NDCG@K of some users int64 :obj:`[n]`
    since a full training, over those that both know; NaN without any.
    """
    known = torch.isin(users, full[0])
    same = full[1][torch.isin(full[0], users)]
    if not known.any() or same.mean() <= 0:
        return math.nan
    return float(ndcg[known].mean() / same.mean()) - 1


def forget(served: Served, marked: HeteroData, k: int) -> Gate:
    r"""Compares the share of erased pairs in the lists with that of pairs of the same
    users that were never trained on.
    """
    erased = schema.forgotten_edge_index(marked)
    split = 'control' if schema.held_out(marked, 'control').size(1) else 'test'
    others = schema.held_out(marked, split)
    users = erased[0].unique()
    users = users[torch.isin(users, others[0])]
    figures = dict.fromkeys(('change', 'low', 'high'), math.nan)
    sides = [pairs[:, torch.isin(pairs[0], users)] for pairs in (erased, others)]
    if users.numel():
        exclude = schema.retained_edge_index(marked)
        lists, _ = topk_items(*served.embeddings, users, k, exclude)
        shares = []
        for pairs in sides:
            place = torch.searchsorted(users, pairs[0])
            hit = (lists[place] == pairs[1].unsqueeze(1)).any(dim=1).double()
            total = torch.zeros(users.numel(), dtype=torch.double)
            count = place.bincount(minlength=users.numel())
            shares.append(total.index_add_(0, place, hit) / count)
        change = Difference.of(shares[0] - shares[1], users)
        figures = {'change': change.value, 'low': change.low, 'high': change.high}
    num_pairs = min(pairs.size(1) for pairs in sides)
    return Gate('forget', figures | {'num_pairs': float(num_pairs)})


def attack(served: Served, marked: HeteroData, seed: int) -> Gate:
    r"""Attacks a version: can its erased pairs be told from pairs never trained on?"""
    figures: dict[str, float] = {'value': math.nan, 'low': math.nan, 'high': math.nan}
    num_pairs = 0
    if schema.forgotten_edge_index(marked).size(1) >= MIN_PAIRS:
        with warnings.catch_warnings():  # The figures say that there are too few.
            warnings.filterwarnings('ignore', 'The attack needs')
            result = membership(served, marked, seed=seed).to_dict()
        num_pairs = min(result['num_members'], result['num_nonmembers'])
        low, high = result['intervals']['balanced_accuracy']
        value = result['balanced_accuracy']
        figures = {
            key: math.nan if x is None else float(x)
            for key, x in (('value', value), ('low', low), ('high', high))
        }
    return Gate('membership', figures | {'num_pairs': float(num_pairs)})
