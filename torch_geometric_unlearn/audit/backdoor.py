from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.data.known_pairs import KnownPairs
from torch_geometric_unlearn.data.request import without_request
from torch_geometric_unlearn.metrics import embed
from torch_geometric_unlearn.transforms.inject_backdoor import append_interactions
from torch_geometric_unlearn.utils.check import check_float, check_int
from torch_geometric_unlearn.utils.seed import generator
from torch_geometric_unlearn.utils.topk import topk_items

#: Success rate that the poisoned original has to reach, or there is nothing to forget.
MIN_RATE = 0.3
PLANT = ('backdoor_target', 'backdoor_trigger', 'backdoor_users')


@dataclass
class BackdoorResult:
    r"""What :func:`backdoor` has found.

    Attributes:
        asr (float): Attack success rate: of the test users without the target in their
            list, the share that gets it once the trigger is there. NaN if there are
            none.
        er (float): Exposure rate: share of the test users with the target in their
            list, trigger or not.
        k (int): Length of the lists.
        num_users (int): Number of test users.
        num_without (int): Number of those without the target in their list.
        target (int): The target item.
        valid (bool, optional): Whether the poisoned original has learned the backdoor;
            :obj:`None` if that is not known.
        reason (str): Why the result is not valid, or an empty string.
        missing (list): What was not given: :obj:`['original']` or nothing.
    """

    asr: float
    er: float
    k: int
    num_users: int
    num_without: int
    target: int
    valid: bool | None = None
    reason: str = ''
    missing: list[str] = field(default_factory=list)


def backdoor(
    model: Any,
    data: HeteroData,
    k: int = 20,
    num_users: int = 2000,
    batch_size: int = 200,
    seed: int = 0,
    original: BackdoorResult | float | None = None,
    plant: HeteroData | None = None,
) -> BackdoorResult:
    r"""Measures how often a planted trigger still calls up its target item.

    With lists :math:`T_u` without and :math:`T_u^{B}` with the trigger items among the
    interactions of user :math:`u`,

    .. math::
        \textrm{ASR@}K = \frac{|\{u : t \in T_u^{B}, t \notin T_u\}|}
        {|\{u : t \notin T_u\}|}, \quad
        \textrm{ER@}K = \frac{|\{u : t \in T_u\}|}{|\{u\}|}.

    Test users are clean users who have not interacted with the target. The trigger is
    added to the graph that the model propagates over, for :obj:`batch_size` users at a
    time so that the trigger items hardly gain popularity; no parameter changes. A
    trigger item often has not many more interactions than there are poisoned users:
    with as many triggered users at a time it is a crowd that is measured. The pairs in
    that graph are masked, deleted items are not: whether a deleted target comes back is
    the question. The aim is the value of a model that was retrained without the
    poison, not 0. All of this, and the bound below, is ours.

    With large features, store the item graphs by
    :class:`~torch_geometric_unlearn.transforms.ItemKNNGraph` first, or every batch
    computes them anew.

    Args:
        model (torch.nn.Module): The model to look at.
        data (HeteroData): Its data: with the poison unmarked for the poisoned original,
            with the request marked or already deleted for the others.
        k (int, optional): Length of the lists. (default: :obj:`20`)
        num_users (int, optional): Largest number of test users, sampled.
            (default: :obj:`2000`)
        batch_size (int, optional): Triggered users per propagation.
            (default: :obj:`200`)
        seed (int, optional): Seed of the sample. (default: :obj:`0`)
        original (BackdoorResult or float, optional): Result or ASR@20 of the poisoned
            original. Below 0.3, the backdoor was never learned, and nothing can be
            said about forgetting it. (default: :obj:`None`)
        plant (HeteroData, optional): The result of
            :class:`~torch_geometric_unlearn.transforms.InjectBackdoor`, where
            :obj:`data` is not made from it, as for a clean original, or has lost the
            target with the request. (default: :obj:`None`)

    Raises:
        ValueError: If an argument is out of range, no data holds a backdoor, or there
            is no test user.

    Example:
        >>> from torch_geometric_unlearn.transforms import InjectBackdoor
        >>> poisoned = InjectBackdoor('interaction', num_triggers=1)(data)
        >>> result = backdoor(model, poisoned)
        >>> result.valid, result.missing
        (None, ['original'])
    """
    check_int(k, 'k', 1)
    check_int(num_users, 'num_users', 1)
    check_int(batch_size, 'batch_size', 1)
    data = schema.validate(data)
    plant = data if plant is None else schema.validate(plant)
    target, trigger, users = _read_plant(plant, data, num_users, seed)

    before = _has_target(model, data, users, target, k)
    after = torch.zeros_like(before)
    gen = generator(seed)
    for start in range(0, users.numel(), batch_size):
        part = users[start : start + batch_size]
        triggered = _add_trigger(data, part, trigger, gen)
        after[start : start + batch_size] = _has_target(
            model, triggered, part, target, k
        )
    num_without = int((~before).sum())
    success = int((after & ~before).sum())
    result = BackdoorResult(
        asr=success / num_without if num_without > 0 else math.nan,
        er=float(before.double().mean()),
        k=k,
        num_users=users.numel(),
        num_without=num_without,
        target=target,
    )
    result.valid, result.reason = _validity(original)
    result.missing = ['original'] if original is None else []
    return result


def backdoor_table(
    models: Mapping[str, Any],
    data: HeteroData,
    k: int = 20,
    num_users: int = 2000,
    batch_size: int = 200,
    seed: int = 0,
) -> dict[str, Any]:
    r"""Compares models of one plant on the same test users.

    Args:
        models (dict): The models by name; :obj:`'original'` is the poisoned one and
            looked at with the poison in its graph, :obj:`'retrained'` the reference. A
            model of other data is given as :obj:`(model, data)`, such as
            :obj:`'clean'`, the original without poison.
        data (HeteroData): The data with plant and request, still marked.
        k (int, optional): Length of the lists. (default: :obj:`20`)
        num_users (int, optional): As for :func:`backdoor`. (default: :obj:`2000`)
        batch_size (int, optional): As for :func:`backdoor`. (default: :obj:`200`)
        seed (int, optional): As for :func:`backdoor`. (default: :obj:`0`)

    Returns:
        dict: :obj:`rows` with :obj:`method`, :obj:`asr@K`, :obj:`er@K` and, with a
        retrained model, :obj:`gap@K`, the distance of the ASR from it; :obj:`target`;
        :obj:`valid` and :obj:`reason`, from the ASR@20 of the poisoned original
        whatever :obj:`k`; :obj:`missing`, which of :obj:`'original'`, :obj:`'clean'`
        and :obj:`'retrained'` was not given.

    Raises:
        ValueError: If nothing in :obj:`data` is marked, or as for :func:`backdoor`.

    Example:
        >>> from torch_geometric_unlearn.transforms import (
        ...     ForgetInteractions, InjectBackdoor)
        >>> data = InjectBackdoor('interaction', num_triggers=1)(data)
        >>> data = ForgetInteractions(data.backdoor_pairs)(data)
        >>> table = backdoor_table({'original': model, 'edge drop': model}, data)
        >>> table['valid'], table['missing']
        (False, ['clean', 'retrained'])
    """
    if not schema.forget_mask(data).any():
        raise ValueError(
            "'data' must hold a request (got none). Mark the plant, e.g. with "
            "'ForgetUsers(data.backdoor_users)'."
        )
    kwargs = {'num_users': num_users, 'batch_size': batch_size, 'seed': seed}
    served = without_request(data)
    results: dict[str, BackdoorResult] = {}
    own: dict[str, tuple[Any, HeteroData]] = {}
    for name, entry in models.items():
        is_pair = isinstance(entry, tuple)
        model, where = entry if is_pair else (entry, data)
        own[name] = (model, served if name == 'original' and not is_pair else where)
        results[name] = backdoor(*own[name], k, plant=data, **kwargs)
    rate = None
    if 'original' in results:
        rate = results['original'].asr
        if k != 20:
            rate = backdoor(*own['original'], 20, plant=data, **kwargs).asr
    valid, reason = _validity(rate)
    rows = []
    for name, result in results.items():
        row = {'method': name, f'asr@{k}': result.asr, f'er@{k}': result.er}
        if 'retrained' in results:
            row[f'gap@{k}'] = result.asr - results['retrained'].asr
        rows.append(row)
    return {
        'rows': rows,
        'target': int(data['backdoor_target']),
        'valid': valid,
        'reason': reason,
        'missing': [n for n in ('original', 'clean', 'retrained') if n not in models],
    }


def backdoor_summary(tables: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    r"""Returns mean and standard deviation over the plants that are valid.

    Args:
        tables (sequence): Results of :func:`backdoor_table`, one per target, with the
            same names and the same :obj:`k`. Five targets are a good number.

    Returns:
        dict: :obj:`rows` with :obj:`method` and, by measure, the mean and
        :obj:`<measure>_std` (NaN for a single plant); :obj:`num_plants` and
        :obj:`num_valid`. Without any valid plant there are no rows.

    Raises:
        ValueError: If the tables differ in methods or measures.
    """
    layouts = {tuple((r['method'], *r) for r in table['rows']) for table in tables}
    if len(layouts) > 1:
        raise ValueError(
            f"'tables' must hold the same methods and measures (got {len(layouts)} "
            f'different layouts). Summarise alike ones only.'
        )
    used = [table['rows'] for table in tables if table['valid']]
    rows = []
    for members in zip(*used):
        row: dict[str, Any] = {'method': members[0]['method']}
        for key in members[0]:
            if key != 'method':
                values = torch.tensor([m[key] for m in members], dtype=torch.double)
                spread = float(values.std()) if len(members) > 1 else math.nan
                row |= {key: float(values.mean()), f'{key}_std': spread}
        rows.append(row)
    return {'rows': rows, 'num_plants': len(tables), 'num_valid': len(used)}


def _validity(original: BackdoorResult | float | None) -> tuple[bool | None, str]:
    if original is None:
        return None, 'Without the poisoned original, validity is not known.'
    if isinstance(original, BackdoorResult):
        if original.k != 20:
            raise ValueError(
                f"'original' must be a result at k=20 (got k={original.k}). The bound "
                f'of {MIN_RATE} is meant for ASR@20.'
            )
        original = original.asr
    if original != original:
        return None, (
            'The success rate of the poisoned original is NaN: its lists show the '
            "target to all test users already. Lower 'k', or plant another target."
        )
    check_float(original, 'original', 0.0, 1.0)
    if original >= MIN_RATE:
        return True, ''
    return False, (
        f'The poisoned original reaches ASR@20 = {original:.3f} < {MIN_RATE}: it has '
        f"hardly learned the backdoor. Raise 'ratio', 'num_triggers' or 'num_fillers', "
        f"or lower 'triggers_per_user', and say so."
    )


def _read_plant(
    plant: HeteroData, data: HeteroData, num_users: int, seed: int
) -> tuple[int, Tensor, Tensor]:
    absent = [key for key in PLANT if key not in plant]
    if absent:
        raise ValueError(
            f"'data' must hold a backdoor (got no {absent}). Plant one with "
            f"'InjectBackdoor', or pass the data that holds it as 'plant'."
        )
    target, trigger = int(plant['backdoor_target']), plant['backdoor_trigger'].cpu()
    train = plant[schema.EDGE_TYPE].edge_index.cpu()
    known = train[0, train[1] == target]
    poisoned = plant['backdoor_users'].cpu()
    # Users of the plant, so that every model is asked about the same ones.
    users = torch.arange(schema.num_users(plant))
    users = users[~torch.isin(users, torch.cat([known, poisoned]))]
    users = users[users < schema.num_users(data)]
    if users.numel() == 0:
        raise ValueError(
            "'data' must hold clean users without the target item (got none). Plant "
            "with another 'seed', or a lower 'ratio'."
        )
    order = torch.randperm(users.numel(), generator=generator(seed))
    return target, trigger, users[order[:num_users]].sort()[0]


def _add_trigger(
    data: HeteroData, users: Tensor, trigger: Tensor, gen: torch.Generator
) -> HeteroData:
    out = copy.copy(data)
    for key in schema.HELD_OUT:  # A held-out pair may be among the new ones.
        if key in out:
            del out[key]
    pairs = torch.cartesian_prod(users, trigger).view(-1, 2).t()
    known = KnownPairs(data[schema.EDGE_TYPE].edge_index, schema.num_items(data))
    return append_interactions(out, pairs[:, ~known.contains(*pairs)], gen)


def _has_target(
    model: Any, data: HeteroData, users: Tensor, target: int, k: int
) -> Tensor:
    user_emb, item_emb = embed(model, model.build_graph(data))
    device = user_emb.device
    exclude = schema.retained_edge_index(data).to(device)
    lists, _ = topk_items(user_emb, item_emb, users.to(device), k, exclude)
    return (lists == target).any(dim=1).cpu()
