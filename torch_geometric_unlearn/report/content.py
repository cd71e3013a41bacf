r"""What a report holds: one plain dictionary per section."""

from __future__ import annotations

import hmac
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.data.popularity import popularity_matched_pairs
from torch_geometric_unlearn.data.request import Request
from torch_geometric_unlearn.evaluation import (
    ORIGINAL,
    RETRAINED,
    SECOND,
    UNLEARNED,
    Comparison,
    cost_of,
    model_of,
)
from torch_geometric_unlearn.metrics.diagnosis import layer_shift
from torch_geometric_unlearn.metrics.exposure import (
    deleted_share,
    exposure_drop,
    exposure_profile,
    item_reach,
)
from torch_geometric_unlearn.unlearn import UnlearnResult
from torch_geometric_unlearn.utils.topk import pair_hits

from .verdict import listing

#: Names of models that stand for their role; all others are controls.
ROLES = (ORIGINAL, RETRAINED, UNLEARNED)

#: Audits that a full report holds.
AUDITS = ('membership', 'completion', 'backdoor', 'closeness')

#: Fewer test pairs than this make no distribution and are replaced by random ones.
_MIN_UNSEEN = 50

_COMPLETE = {'missing': '', 'needs': []}

_MASKS = {
    'retain': 'retained training pairs, and deleted items',
    'forget': 'retained training pairs; the deleted pairs are candidates',
    'exposure': 'retained training pairs, and deleted items',
    'scores': 'nothing; scores are standardised over all items of a user',
}


def collect(
    result: UnlearnResult,
    models: Mapping[str, Any],
    data: HeteroData | None,
    audits: Mapping[str, Any],
    k: int,
    seed: int,
    key: bytes | None,
    show_ids: bool,
) -> dict[str, Any]:
    r"""Returns all sections of a report that are measured, and what failed.

    Args:
        result (UnlearnResult): What the unlearner returned.
        models (dict): Models and results by name, in the order of the table, among them
            :obj:`'unlearned'`.
        data (HeteroData, optional): The data with the request still marked.
        audits (dict): Results of audits, as for :meth:`build_report`.
        k (int): Length of the lists.
        seed (int): Seed of samples.
        key (bytes, optional): Secret of pseudonyms and of the request's hash.
        show_ids (bool): Whether to print ids instead of pseudonyms.
    """
    failures: list[dict[str, str]] = []
    comparison = None if data is None else Comparison(models, data)
    table = _table(models, comparison, k, seed, failures)
    audited = _audits(audits, models, failures)
    absent = _needs('data', 'the data with the request still marked')
    sections = {
        **dict.fromkeys(('request', 'scores', 'exposure'), absent),
        'table': table,
        'modules': _attempt('modules', partial(_modules, result, models), failures),
        'branches': _branches(result),
        'curve': _curve(result),
    }
    if comparison is not None:
        scores = partial(_scores, comparison, k, seed)
        exposure = partial(_exposure, comparison, table, k)
        sections |= {
            'request': _request(result, comparison.data, key, show_ids),
            'scores': _attempt('scores', scores, failures),
            'exposure': _attempt('exposure', exposure, failures),
        }
    return {
        **{name: _COMPLETE | section for name, section in sections.items()},
        'method': _method(result),
        'differences': _differences(comparison, table, k, failures),
        'audits': audited,
        'sizes': {} if data is None else _sizes(data),
        'masks': _MASKS,
        'failures': failures,
    }


def request_hash(data: HeteroData, key: bytes) -> str:
    r"""Returns what identifies a request for whoever has the key, the same whatever the
    order of its ids and of the edges: the HMAC-SHA256 of the level, a line feed, and
    then of the named users, the named items and all deleted or named pairs their
    number and themselves, sorted, as little-endian int64.

    Without a key, whoever tries all pairs would find the one behind a hash.

    Args:
        data (HeteroData): The data with the request still marked.
        key (bytes): A secret of at least 16 bytes, e.g. of
            :func:`secrets.token_bytes`.

    Raises:
        TypeError, ValueError: If the key is no bytes or too short.

    Example:
        >>> len(request_hash(ForgetUsers([3])(data), key=bytes(32)))
        64
    """
    if not isinstance(key, bytes):
        raise TypeError(f"'key' must be bytes (got {type(key).__name__})")
    if len(key) < 16:
        raise ValueError(
            f"'key' must have at least 16 bytes (got {len(key)}). Draw one with "
            f'secrets.token_bytes(32) and keep it secret.'
        )
    request = Request.of(data)
    digest = hmac.new(key, f'{request.level}\n'.encode(), 'sha256')
    pairs = torch.cat([request.pairs, request.named.to(request.pairs.device)], dim=1)
    for ids in (request.users.view(1, -1), request.items.view(1, -1), pairs):
        rows = ids.cpu().unique(dim=1).t()  # Sorts.
        digest.update(len(rows).to_bytes(8, 'little'))
        digest.update(rows.contiguous().numpy().astype('<i8').tobytes())
    return digest.hexdigest()


def _method(result: UnlearnResult) -> dict[str, Any]:
    settings = dict(result.settings)
    return {
        'name': settings.pop('method', ''),
        'model': type(result.model).__name__,
        'exact': result.exact,
        'num_epochs': len(result.history),
        'seconds': result.seconds,
        'peak_memory': result.peak_memory,
        'settings': settings,
    }


def _request(
    result: UnlearnResult, data: HeteroData, key: bytes | None, show_ids: bool
) -> dict[str, Any]:
    pairs = schema.forgotten_edge_index(data).cpu()
    size = schema.num_items(data)
    left = schema.pair_codes(schema.retained_edge_index(result.data).cpu(), size)
    if show_ids:
        ids = 'shown'
    else:
        ids = 'numbered' if key is None else 'hashed'
    return {
        'hash': None if key is None else request_hash(data, key),
        'level': Request.of(data).level,
        'num_interactions': pairs.size(1),
        'num_users': pairs[0].unique().numel(),
        'num_items': pairs[1].unique().numel(),
        'share': pairs.size(1) / data[schema.EDGE_TYPE].edge_index.size(1),
        'remaining': int(torch.isin(schema.pair_codes(pairs, size), left).sum()),
        'num_held_out': sum(
            number for split, number in result.dropped.items() if split != 'train'
        ),
        'ids': ids,
        'subjects': _subjects(data, key, show_ids),
    }


def _subjects(
    data: HeteroData, key: bytes | None, show_ids: bool
) -> list[dict[str, str | int]]:
    r"""Returns whom and what the request names, the pairs only where it names pairs."""
    numbers: dict[tuple[str, int], int] = {}

    def name(kind: str, index: int) -> str | int:
        if show_ids:
            raw = data[kind].get('raw_id')
            return index if raw is None else str(raw[index])
        if key is None:
            return f'#{numbers.setdefault((kind, index), len(numbers) + 1)}'
        text = f'{kind}:{index}'
        return hmac.new(key, text.encode(), 'sha256').hexdigest()[:12]

    request = Request.of(data)
    out: list[dict[str, str | int]] = []
    for kind, ids in ((schema.USER, request.users), (schema.ITEM, request.items)):
        out += [{kind: name(kind, int(i))} for i in ids.tolist()]
    rest = request.pairs[:, ~request.covers(request.pairs)]
    out += [
        {schema.USER: name(schema.USER, u), schema.ITEM: name(schema.ITEM, i)}
        for u, i in rest.t().tolist()
    ]
    return out


def _table(
    models: Mapping[str, Any],
    comparison: Comparison | None,
    k: int,
    seed: int,
    failures: list[dict[str, str]],
) -> dict[str, Any]:
    errors: list[tuple[str, str, str]] = []
    if comparison is None:
        measured = [{'method': n, **cost_of(value)} for n, value in models.items()]
    else:
        measured = comparison.measure(k=k, seed=seed, errors=errors)
    failures += [
        {'where': f'{measure} of {name}', 'reason': reason}
        for name, measure, reason in errors
    ]
    rows: list[dict[str, Any]] = []
    for values in measured:
        name = str(values.pop('method'))
        own = {measure: reason for who, measure, reason in errors if who == name}
        role = name if name in (*ROLES, SECOND) else 'control'
        rows.append({'name': name, 'role': role, 'values': values, 'errors': own})
    columns = list(dict.fromkeys(key for row in rows for key in row['values']))
    lacking = ['data'] if comparison is None else []
    lacking += [name for name in (ORIGINAL, RETRAINED) if name not in models]
    lacking += [] if any(row['role'] == 'control' for row in rows) else ['controls']
    missing = f'To complete it, pass {_quoted(lacking)}.' if lacking else ''
    return {'missing': missing, 'needs': lacking, 'columns': columns, 'rows': rows}


def _differences(
    comparison: Comparison | None,
    table: Mapping[str, Any],
    k: int,
    failures: list[dict[str, str]],
) -> dict[str, Any]:
    r"""Returns by model how far it is from the retrained one, see
    :meth:`~torch_geometric_unlearn.evaluation.Comparison.difference`.
    """
    whole = [row['name'] for row in table['rows'] if not row['errors']]
    if comparison is None or RETRAINED not in whole:
        return {}
    out = {}
    for name in whole:
        measure = partial(comparison.difference, name, k)
        found = _attempt(f'difference of {name}', measure, failures)
        if 'error' not in found:
            out[name] = {key: asdict(value) for key, value in found.items()}
    return out


def _modules(result: UnlearnResult, models: Mapping[str, Any]) -> dict[str, Any]:
    logged = [row for row in result.history if 'mask' in row]
    sensitivity = _mean(logged, 'sensitivity')
    mask = _mean(logged, 'mask')
    rows: dict[str, dict[str, Any]] = {
        name: {'module': name} for name in mask | sensitivity
    }
    lacking, needs = [], []
    if ORIGINAL in models:
        retrained = model_of(models.get(RETRAINED))
        for row in layer_shift(model_of(models[ORIGINAL]), result.model, retrained):
            rows.setdefault(row['module'], {}).update(row)
        if retrained is None:
            needs.append(RETRAINED)
            lacking.append("how far retraining moves them (pass 'retrained')")
    else:
        needs.append(ORIGINAL)
        lacking.append("how far the modules moved (pass 'original')")
    if not logged:
        why = 'the method logs none'
        lacking.append(f'sensitivity and mask ({_unreversed(result) or why})')
    for name, row in rows.items():
        row['sensitivity'], row['mask'] = sensitivity.get(name), mask.get(name)
    missing = f'Not available: {"; ".join(lacking)}.' if lacking else ''
    return {'missing': missing, 'needs': needs, 'rows': list(rows.values())}


def _mean(rows: list[dict[str, Any]], key: str) -> dict[str, float]:
    values = [row[key] for row in rows if key in row]
    names = dict.fromkeys(name for value in values for name in value)
    return {
        name: sum(float(value.get(name, 0.0)) for value in values) / len(values)
        for name in names
    }


def _unreversed(result: UnlearnResult) -> str:
    if any(row.get('reversed', True) for row in result.history) or not result.history:
        return ''
    return 'nothing was reversed, as the target was met after the deletion already'


def _branches(result: UnlearnResult) -> dict[str, Any]:
    rows = [row for row in result.history if row.get('alpha')]
    if not rows:
        why = 'the method scales none'
        missing = f'There are no branch scales: {_unreversed(result) or why}.'
        return {'missing': missing, 'epochs': [], 'scales': {}}
    names = dict.fromkeys(name for row in rows for name in row['alpha'])
    return {
        'epochs': [row['epoch'] for row in rows],
        'scales': {n: [row['alpha'].get(n) for row in rows] for n in names},
    }


def _curve(result: UnlearnResult) -> dict[str, Any]:
    points, length = [], None
    for row in result.history:
        key = next((k for k in row if k.startswith('retain_val_ndcg@')), '')
        if key and 'forget_hit_rate' in row:
            length = int(key.rpartition('@')[2])
            points.append(
                {
                    'epoch': row['epoch'],
                    'forget': row['forget_hit_rate'],
                    'reference': row.get('reference_hit_rate'),
                    'retain': row[key],
                    'selected': bool(row.get('selected', False)),
                }
            )
    missing = ''
    if not points:
        missing = (
            'The method logs no hit rate of forgotten pairs and no retained NDCG per '
            'epoch, or ran no epoch.'
        )
    elif all(p['retain'] != p['retain'] for p in points):
        missing = 'The data holds no validation pairs, so there is no retain side.'
    return {'missing': missing, 'k': length, 'points': points}


def _scores(comparison: Comparison, k: int, seed: int) -> dict[str, Any]:
    data = comparison.data
    forgotten = schema.forgotten_edge_index(data)
    if forgotten.size(1) == 0:
        return {'missing': 'The request marks no interaction.'}
    test, row = schema.held_out(data, 'test'), int(Request.of(data).level == 'item')
    unseen = test[:, torch.isin(test[row], forgotten[row])]
    source = f'test interactions of the same {"items" if row else "users"}'
    if unseen.size(1) < _MIN_UNSEEN:
        train = data[schema.EDGE_TYPE].edge_index
        known = torch.cat([train, schema.held_out(data, 'val'), test], dim=1)
        size = schema.num_items(data)
        unseen = popularity_matched_pairs(forgotten, known, train[1], size, seed)
        source = 'random interactions of the same users with equally popular items'
    if unseen.size(1) == 0:
        return {'missing': 'There is no never-seen interaction to compare with.'}
    pairs = torch.cat([forgotten, unseen], dim=1)
    sizes = [forgotten.size(1), unseen.size(1)]
    scores: dict[str, tuple[Tensor, ...]] = {}
    for name in ROLES:
        if name in comparison.models:
            embeddings = comparison.serve(name).embeddings
            here = pairs.to(embeddings[0].device)
            _, values = pair_hits(*embeddings, here, here[:, :0], k)
            scores[name] = values.double().cpu().split(sizes)
    everything = torch.cat([x for both in scores.values() for x in both])
    edges = _edges(everything)
    absent = [name for name in ROLES if name not in scores]
    return {
        'missing': f'To compare, pass {_quoted(absent)}.' if absent else '',
        'needs': absent,
        'edges': edges.tolist(),
        'models': {
            name: {
                'forgotten': _shares(first, edges),
                'unseen': _shares(second, edges),
                'gap': float(first.mean() - second.mean()),
            }
            for name, (first, second) in scores.items()
        },
        'num_forgotten': sizes[0],
        'num_unseen': sizes[1],
        'source': source,
    }


def _edges(values: Tensor, num_bins: int = 24) -> Tensor:
    low, high = float(values.min()), float(values.max())
    high = high if high > low else low + 1.0
    return torch.linspace(low, high, num_bins + 1, dtype=torch.double)


def _shares(values: Tensor, edges: Tensor) -> list[float]:
    place = torch.bucketize(values.contiguous(), edges[1:-1], right=True)
    count = place.bincount(minlength=edges.numel() - 1)
    return (count / max(1, values.numel())).tolist()


def _exposure(
    comparison: Comparison, table: Mapping[str, Any], k: int
) -> dict[str, Any]:
    data = comparison.data
    key = f'exposure@{k}'
    rows = {row['name']: row['values'] for row in table['rows']}
    out: dict[str, Any] = {
        'values': {n: v[key] for n, v in rows.items() if key in v},
        'drop': None,
        'retrained_drop': None,
        'groups': [],
        'correlation': None,
    }
    if 'original' not in out['values'] or 'unlearned' not in out['values']:
        return out | _needs('original', 'the model before the request')
    out['drop'] = exposure_drop(rows['original'], rows['unlearned'])

    def reach(name: str) -> Tensor:
        return item_reach(comparison.serve(name), data, k).cpu()

    before, share = reach('original'), deleted_share(data).cpu()
    out |= exposure_profile(before, reach('unlearned'), share, num_groups=5)
    if 'retrained' in out['values']:
        out['retrained_drop'] = exposure_drop(rows['original'], rows['retrained'])
        other = exposure_profile(before, reach('retrained'), share, num_groups=5)
        for group, reference in zip(out['groups'], other['groups']):
            group['retrained'] = reference['after']
    else:
        out |= _needs('retrained', 'the model trained without the data')
    return out


def _audits(
    audits: Mapping[str, Any],
    models: Mapping[str, Any],
    failures: list[dict[str, str]],
) -> dict[str, Any]:
    out: dict[str, Any] = {}
    absent = [name for name in AUDITS if not any(a.startswith(name) for a in audits)]
    for name in [*audits, *absent]:
        if name not in audits:
            how = f"Not run: pass audits={{'{name}': {{'unlearned': ...}}}}."
            out[name] = {'missing': how, 'models': {}}
            continue
        given = audits[name]
        if not isinstance(given, Mapping) or not set(given) <= set(models):
            given = {'unlearned': given}
        results = {
            model: _attempt(f'{name} of {model}', partial(_audit, value), failures)
            for model, value in given.items()
        }
        wanted = ['unlearned', 'retrained']
        if name.startswith('closeness'):  # Holds the comparison with retraining itself.
            wanted = ['unlearned']
        lacking = [n for n in wanted if n not in results]
        missing = f'There is no result for {_quoted(lacking)}.' if lacking else ''
        out[name] = {'missing': missing, 'models': results}
    return out


def _audit(value: Any) -> dict[str, Any]:
    r"""Returns the result of an audit as a dictionary, its raw scores as histograms."""
    if callable(value):
        value = value()
    if isinstance(value, Exception):
        raise value
    if hasattr(value, 'to_dict'):
        value = value.to_dict()
    if not isinstance(value, Mapping):
        raise TypeError(
            f"an audit must be a dictionary, or have 'to_dict()' "
            f'(got {type(value).__name__})'
        )
    out = dict(value)
    scores = out.pop('scores', None)
    if isinstance(scores, Mapping) and {'members', 'nonmembers'} <= set(scores):
        sides = {
            name: torch.as_tensor(scores[name]).double().view(-1).cpu()
            for name in ('members', 'nonmembers')
        }
        both = torch.cat(list(sides.values()))
        if both.numel() > 0 and bool(both.isfinite().all()):
            edges = _edges(both)
            shares = {name: _shares(x, edges) for name, x in sides.items()}
            out['histogram'] = {'edges': edges.tolist()} | shares
    return plain(out, 'audit')


def _sizes(data: HeteroData) -> dict[str, int]:
    return {
        'users': schema.num_users(data),
        'items': schema.num_items(data),
        'training interactions': data[schema.EDGE_TYPE].edge_index.size(1),
        'forgotten interactions': schema.forgotten_edge_index(data).size(1),
        'validation interactions': schema.held_out(data, 'val').size(1),
        'test interactions': schema.held_out(data, 'test').size(1),
    }


def _attempt(
    where: str, measure: Callable[[], dict[str, Any]], failures: list[dict[str, str]]
) -> dict[str, Any]:
    r"""Returns a result, or the reason why there is none, which is also counted."""
    try:
        return measure()
    except Exception as error:
        reason = f'{type(error).__name__}: {error}'
        failures.append({'where': where, 'reason': reason})
        return {'error': reason}


def _needs(name: str, what: str) -> dict[str, Any]:
    return {'missing': f"To see this, pass '{name}': {what}.", 'needs': [name]}


def _quoted(names: list[str]) -> str:
    return listing([f"'{name}'" for name in names])


def plain(value: Any, where: str = '') -> Any:
    r"""Returns values that JSON knows; NaN and infinity become nothing, but infinity
    raises if it is said :obj:`where` they stand.
    """
    if isinstance(value, Mapping):
        return {
            str(key): plain(entry, where and f'{where}.{key}')
            for key, entry in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [plain(v, where and f'{where}[{n}]') for n, v in enumerate(value)]
    if hasattr(value, 'tolist'):  # Of torch or numpy.
        return plain(value.tolist(), where)
    if isinstance(value, float):
        if where and math.isinf(value):
            raise ValueError(f"'{where}' must be finite, or NaN for none (got {value})")
        return value if math.isfinite(value) else None
    return value if isinstance(value, (str, int)) or value is None else str(value)
