r"""Collects what is known of a request, and writes it as JSON and as a page."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.data.request import Request
from torch_geometric_unlearn.evaluation import (
    ORIGINAL,
    RETRAINED,
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
from torch_geometric_unlearn.nn.models.base import RecommenderLike
from torch_geometric_unlearn.unlearn.selection import popularity_matched_pairs
from torch_geometric_unlearn.utils.check import check_int
from torch_geometric_unlearn.utils.files import atomic_save, make_folder
from torch_geometric_unlearn.utils.topk import pair_hits

from .html import render_html
from .table import save_json, versions
from .verdict import check_tolerance, judge

if TYPE_CHECKING:
    from torch_geometric_unlearn.unlearn import UnlearnResult

#: Version of the layout of the JSON file.
SCHEMA_VERSION = 1

#: Audits that a full report holds.
AUDITS = ('membership', 'completion', 'backdoor', 'closeness')


def build_report(
    result: UnlearnResult,
    original: RecommenderLike | None = None,
    data: HeteroData | None = None,
    retrained: UnlearnResult | RecommenderLike | None = None,
    controls: Mapping[str, UnlearnResult | RecommenderLike] | None = None,
    audits: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    tolerance: Mapping[str, float] | None = None,
    k: int = 20,
    seed: int = 0,
    show_ids: bool = False,
    title: str = 'Unlearning report',
) -> dict[str, Any]:
    r"""Collects the evidence on one request.

    Every input but :obj:`result` is optional: a section that lacks one says in
    :obj:`missing` what to pass. A metric that raises is reported as failed with its
    reason, and counted in :obj:`failures`. The whole dictionary is valid JSON, with
    :obj:`None` for a value that is not available (NaN). What it holds and how it
    judges is our choice.

    ====================  ==========================================================
    key                   what
    ====================  ==========================================================
    ``schema_version``    1; rises when a key changes its meaning or goes
    ``title``, ``k``      heading; length of all lists
    ``created``           UTC time, ISO 8601
    ``request``           ``hash``, ``level``, ``num_interactions``, ``num_users``,
                          ``num_items``, ``share`` of the training data,
                          ``remaining`` forgotten interactions in ``result.data``,
                          ``ids`` (``'hashed'`` or ``'shown'``), and ``subjects``, a
                          list of ``{'user': id}``, ``{'item': id}`` or both
    ``method``            ``name``, ``model``, ``exact``, ``num_epochs``,
                          ``seconds``, ``peak_memory`` (bytes), ``settings``
    ``verdict``           ``status`` (``'within'``, ``'outside'`` or ``'unknown'``),
                          ``sentences``, ``tolerance``, and ``measures``: rows of
                          ``name``, ``kind``, ``unlearned``, ``retrained``,
                          ``tolerance``, ``within`` (``None`` if it can't be judged),
                          and by model ``values`` and ``within_by_model``
    ``table``             ``columns`` and ``rows``: ``name``, ``role``, ``values`` by
                          column, ``errors`` by metric
    ``modules``           ``rows``: ``module``, ``sensitivity`` and ``mask`` (mean
                          over epochs), ``shift``, ``retrained_shift``, ``cosine``
    ``branches``          ``epochs``, and ``scales`` by branch
    ``curve``             ``k`` of the method; ``points``: ``epoch``, ``forget``,
                          ``reference``, ``retain``, ``selected``
    ``scores``            ``edges`` of the bins; ``models``: by name ``forgotten``
                          and ``unseen`` (share per bin) and ``gap`` of the means;
                          ``num_forgotten``, ``num_unseen``, ``source``
    ``exposure``          ``values`` by model, ``drop`` and ``retrained_drop``,
                          ``groups`` of items, ``correlation``
    ``audits``            by audit: ``missing``, and ``models``: results by model,
                          or ``{'error': reason}``; raw scores become
                          ``histogram``
    ``settings``          what the caller passed
    ``sizes``, ``masks``  size of every set; what was masked for which measure
    ``versions``          of the software, and the machine
    ``failures``          list of ``where`` and ``reason``
    ====================  ==========================================================

    The request's hash is the SHA-256 of the level, a line feed, and the sorted
    (user, item) pairs as little-endian int64. Ids are shown as the first twelve hex
    digits of the SHA-256 of hash, kind and id: pseudonyms, which whoever knows the ids
    can recompute.

    Args:
        result (UnlearnResult): What the unlearner returned.
        original (torch.nn.Module, optional): The model before the request; it is
            scored over all interactions, every other model without the deleted ones.
            (default: :obj:`None`)
        data (HeteroData, optional): The data with the request still marked.
            (default: :obj:`None`)
        retrained (UnlearnResult or torch.nn.Module, optional): The reference.
            (default: :obj:`None`)
        controls (dict, optional): Further results or models by name, e.g.
            :class:`~torch_geometric_unlearn.unlearn.EdgeDrop`'s.
            (default: :obj:`None`)
        audits (dict, optional): By name of the audit (:obj:`'membership'`,
            :obj:`'backdoor'`, :obj:`'closeness'`, or another, such as
            :obj:`'membership transfer'`) and name of the model (:obj:`'original'`,
            :obj:`'retrained'`, :obj:`'unlearned'` or a control): a dictionary, an
            object with :obj:`to_dict()`, or a function that returns one, whose error
            is reported. One result alone is that of the unlearned model.
            (default: :obj:`None`)
        settings (dict, optional): Anything else to keep, e.g. how the original was
            trained. (default: :obj:`None`)
        tolerance (dict, optional): Largest distance from retraining: :obj:`'forget'`
            in the share of deleted pairs in the list, :obj:`'retain'` as relative loss
            of retained NDCG, :obj:`'membership'` in balanced accuracy,
            :obj:`'completion'` in AUC. (default: :obj:`{'forget': 0.02,
            'retain': 0.05, 'membership': 0.05, 'completion': 0.05}`)
        k (int, optional): Length of the lists. (default: :obj:`20`)
        seed (int, optional): Seed of samples. (default: :obj:`0`)
        show_ids (bool, optional): Whether to print ids instead of pseudonyms, the
            caller's own where :obj:`data` keeps them. (default: :obj:`False`)
        title (str, optional): Heading. (default: :obj:`'Unlearning report'`)

    Raises:
        ValueError: If :obj:`tolerance` or the name of a control is unknown.

    Example:
        >>> marked = ForgetUsers([3])(data)
        >>> content = build_report(EdgeDrop()(model, marked), model, marked)
        >>> content['request']['remaining'], content['verdict']['status']
        (0, 'unknown')
    """
    limits = check_tolerance(tolerance)
    check_int(k, 'k', 1)
    failures: list[dict[str, str]] = []
    entries = _entries(result, original, retrained, controls or {})
    comparison = None
    if data is not None:
        models = {name: entry.value for name, entry in entries.items()}
        comparison = Comparison(models, data)
    request = _request(result, data, show_ids)
    table = _table(entries, comparison, k, seed, failures)
    audit = _audits(audits or {}, entries, failures)
    content = {
        'schema_version': SCHEMA_VERSION,
        'title': title,
        'created': datetime.now(timezone.utc).isoformat(timespec='seconds'),
        'k': k,
        'request': request,
        'method': {
            'name': result.settings.get('method', ''),
            'model': type(result.model).__name__,
            'exact': result.exact,
            'num_epochs': len(result.history),
            'seconds': result.seconds,
            'peak_memory': result.peak_memory,
            'settings': {
                name: value
                for name, value in result.settings.items()
                if name != 'method'
            },
        },
        'table': table,
        'modules': _section('modules', failures, _modules, result, entries),
        'branches': _branches(result),
        'curve': _curve(result),
        'scores': _section('scores', failures, _scores, comparison, k, seed),
        'exposure': _section('exposure', failures, _exposure, comparison, table, k),
        'audits': audit,
        'settings': dict(settings or {}),
        'sizes': {} if data is None else _sizes(data),
        'masks': _MASKS,
        'versions': versions(),
        'failures': failures,
    }
    content['verdict'] = judge(content, limits)
    return _plain(content)


def write_report(
    result: UnlearnResult | Mapping[str, Any],
    path: str | os.PathLike[str],
    **kwargs: Any,
) -> dict[str, Any]:
    r"""Writes what is known of a request as JSON and as one page of HTML, which loads
    nothing else.

    Args:
        result (UnlearnResult or dict): What the unlearner returned, or the result of
            :meth:`build_report`, perhaps read back from a JSON file.
        path (str or Path): Where to write, with or without ``.html`` or
            ``.json``; both files share the rest of the name.
        **kwargs (optional): What there is to compare with, as for
            :meth:`build_report`. A section that lacks its input says so.

    Returns:
        dict: The content of the JSON file. A run whose :obj:`failures` is not empty
        should not count as a success.

    Raises:
        OSError: If a file can't be written.
        ValueError: If the content is of another version, or comes with arguments for
            another one.

    Example:
        >>> marked = ForgetUsers([3])(data)
        >>> result = EdgeDrop()(model, marked)
        >>> content = write_report(result, 'report', original=model, data=marked)
        >>> content['method']['name'], content['failures']
        ('EdgeDrop', [])
    """
    if isinstance(result, Mapping):
        if kwargs:
            raise ValueError(
                f'A report that is built already takes no more arguments (got '
                f"{sorted(kwargs)}). Pass them to 'build_report'."
            )
        content = dict(result)
    else:
        content = build_report(result, **kwargs)
    if content.get('schema_version') != SCHEMA_VERSION:
        raise ValueError(
            f"'result' must have schema_version {SCHEMA_VERSION} (got "
            f"{content.get('schema_version')!r}). Build it with 'build_report'."
        )
    base = Path(path)
    if base.suffix in ('.html', '.json'):
        base = base.with_suffix('')
    html_path = base.with_name(base.name + '.html')
    page = render_html(content)
    save_json(base.with_name(base.name + '.json'), content)
    make_folder(os.path.dirname(os.fspath(html_path)) or '.')
    atomic_save(lambda file: file.write(page.encode()), html_path)
    return content


def request_hash(data: HeteroData) -> str:
    r"""Returns the SHA-256 of a request, the same whatever the order of the edges.

    Args:
        data (HeteroData): The data with the request still marked.

    Example:
        >>> len(request_hash(ForgetUsers([3])(data)))
        64
    """
    pairs = schema.forgotten_edge_index(data).cpu().unique(dim=1)  # Sorts.
    text = f'{Request.of(data).level}\n'.encode()
    return hashlib.sha256(text + pairs.t().numpy().astype('<i8').tobytes()).hexdigest()


#: Fewer test pairs than this make no distribution and are replaced by random ones.
_MIN_UNSEEN = 50


class _Entry(NamedTuple):
    r"""A model of the table: a result of an unlearner, or a model."""

    role: str
    value: Any

    @property
    def model(self) -> RecommenderLike:
        return model_of(self.value)


_MASKS = {
    'retain': 'retained training pairs, and deleted items',
    'forget': 'retained training pairs; the deleted pairs are candidates',
    'exposure': 'retained training pairs, and deleted items',
    'scores': 'nothing; scores are standardised over all items of a user',
}


def _entries(
    result: UnlearnResult,
    original: RecommenderLike | None,
    retrained: UnlearnResult | RecommenderLike | None,
    controls: Mapping[str, UnlearnResult | RecommenderLike],
) -> dict[str, _Entry]:
    reserved = [ORIGINAL, RETRAINED, 'unlearned']
    for name in controls:
        if name in reserved:
            raise ValueError(
                f"'controls' must not be named 'original', 'retrained' or 'unlearned' "
                f"(got '{name}')"
            )
    out = {
        ORIGINAL: _Entry(ORIGINAL, original),
        RETRAINED: _Entry(RETRAINED, retrained),
        **{name: _Entry('control', value) for name, value in controls.items()},
        'unlearned': _Entry('unlearned', result),
    }
    return {name: entry for name, entry in out.items() if entry.value is not None}


def _request(
    result: UnlearnResult, data: HeteroData | None, show_ids: bool
) -> dict[str, Any]:
    if data is None:
        return {'missing': _needs('data', 'the data with the request still marked')}
    pairs = schema.forgotten_edge_index(data).cpu()
    size = schema.num_items(data)
    left = schema.pair_codes(schema.retained_edge_index(result.data).cpu(), size)
    digest = request_hash(data)
    return {
        'missing': '',
        'hash': digest,
        'level': Request.of(data).level,
        'num_interactions': pairs.size(1),
        'num_users': pairs[0].unique().numel(),
        'num_items': pairs[1].unique().numel(),
        'share': pairs.size(1) / data[schema.EDGE_TYPE].edge_index.size(1),
        'remaining': int(torch.isin(schema.pair_codes(pairs, size), left).sum()),
        'ids': 'shown' if show_ids else 'hashed',
        'subjects': _subjects(data, digest, show_ids),
    }


def _subjects(
    data: HeteroData, digest: str, show_ids: bool
) -> list[dict[str, str | int]]:
    r"""Returns whom and what the request names, the pairs only where it names pairs."""

    def name(kind: str, index: int) -> str | int:
        if show_ids:
            raw = data[kind].get('raw_id')
            return index if raw is None else str(raw[index])
        text = f'{digest}:{kind}:{index}'
        return hashlib.sha256(text.encode()).hexdigest()[:12]

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
    entries: Mapping[str, _Entry],
    comparison: Comparison | None,
    k: int,
    seed: int,
    failures: list[dict[str, str]],
) -> dict[str, Any]:
    measured = [{'method': name, **cost_of(e.value)} for name, e in entries.items()]
    errors: list[tuple[str, str, str]] = []
    if comparison is not None:
        measured = comparison.measure(k=k, seed=seed, errors=errors)
    failures += [
        {'where': f'{measure} of {name}', 'reason': reason}
        for name, measure, reason in errors
    ]
    rows: list[dict[str, Any]] = []
    for values in measured:
        name = str(values.pop('method'))
        own = {measure: reason for who, measure, reason in errors if who == name}
        role = entries[name].role
        rows.append({'name': name, 'role': role, 'values': values, 'errors': own})
    columns = list(dict.fromkeys(key for row in rows for key in row['values']))
    needed = {'data': comparison is not None}
    needed |= {name: name in entries for name in ('original', 'retrained')}
    needed['controls'] = any(e.role == 'control' for e in entries.values())
    lacking = [name for name, given in needed.items() if not given]
    missing = f'To complete it, pass {_list(lacking)}.' if lacking else ''
    return {'missing': missing, 'columns': columns, 'rows': rows}


def _modules(result: UnlearnResult, entries: Mapping[str, _Entry]) -> dict[str, Any]:
    logged = [row for row in result.history if 'mask' in row]
    sensitivity = _mean(logged, 'sensitivity')
    mask = _mean(logged, 'mask')
    rows: dict[str, dict[str, Any]] = {
        name: {'module': name} for name in mask | sensitivity
    }
    lacking = []
    if 'original' in entries:
        retrained = entries.get('retrained')
        moved = layer_shift(
            entries['original'].model,
            result.model,
            None if retrained is None else retrained.model,
        )
        for row in moved:
            rows.setdefault(row['module'], {}).update(row)
        if retrained is None:
            lacking.append("how far retraining moves them (pass 'retrained')")
    else:
        lacking.append("how far the modules moved (pass 'original')")
    if not logged:
        why = 'the method logs none'
        lacking.append(f'sensitivity and mask ({_unreversed(result) or why})')
    for name, row in rows.items():
        row['sensitivity'], row['mask'] = sensitivity.get(name), mask.get(name)
    missing = f'Not available: {"; ".join(lacking)}.' if lacking else ''
    return {'missing': missing, 'rows': list(rows.values())}


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
        'missing': '',
        'epochs': [row['epoch'] for row in rows],
        'scales': {n: [row['alpha'].get(n) for row in rows] for n in names},
    }


def _curve(result: UnlearnResult) -> dict[str, Any]:
    points, length = [], None
    for row in result.history:
        key = next((k for k in row if k.startswith('retain_val_ndcg@')), '')
        if key and 'forget_level' in row:
            length = int(key.rpartition('@')[2])
            points.append(
                {
                    'epoch': row['epoch'],
                    'forget': row['forget_level'],
                    'reference': row.get('reference_level'),
                    'retain': row[key],
                    'selected': bool(row.get('selected', False)),
                }
            )
    missing = ''
    if not points:
        missing = (
            'The method logs no forget level and retained validation NDCG per epoch, '
            'or ran no epoch.'
        )
    elif all(p['retain'] != p['retain'] for p in points):
        missing = 'The data holds no validation pairs, so there is no retain side.'
    return {'missing': missing, 'k': length, 'points': points}


def _scores(comparison: Comparison | None, k: int, seed: int) -> dict[str, Any]:
    if comparison is None:
        return {'missing': _needs('data', 'the data with the request still marked')}
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
    for name in ('original', 'retrained', 'unlearned'):
        if name in comparison.models:
            embeddings = comparison.serve(name).embeddings
            here = pairs.to(embeddings[0].device)
            _, values = pair_hits(*embeddings, here, here[:, :0], k)
            scores[name] = values.double().cpu().split(sizes)
    everything = torch.cat([x for both in scores.values() for x in both])
    edges = _edges(everything)
    absent = [n for n in ('original', 'retrained') if n not in scores]
    return {
        'missing': f'To compare, pass {_list(absent)}.' if absent else '',
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
    comparison: Comparison | None, table: Mapping[str, Any], k: int
) -> dict[str, Any]:
    if comparison is None:
        return {'missing': _needs('data', 'the data with the request still marked')}
    data = comparison.data
    key = f'exposure@{k}'
    rows = {row['name']: row['values'] for row in table['rows']}
    out: dict[str, Any] = {
        'missing': '',
        'values': {n: v[key] for n, v in rows.items() if key in v},
        'drop': None,
        'retrained_drop': None,
        'groups': [],
        'correlation': None,
    }
    if 'original' not in out['values'] or 'unlearned' not in out['values']:
        out['missing'] = _needs('original', 'the model before the request')
        return out
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
        out['missing'] = _needs('retrained', 'the model trained without the data')
    return out


def _audits(
    audits: Mapping[str, Any],
    entries: Mapping[str, _Entry],
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
        if not isinstance(given, Mapping) or not set(given) <= set(entries):
            given = {'unlearned': given}
        models = {
            model: _attempt(f'{name} of {model}', partial(_audit, value), failures)
            for model, value in given.items()
        }
        wanted = ['unlearned', 'retrained']
        if name.startswith('closeness'):  # Holds the comparison with retraining itself.
            wanted = ['unlearned']
        lacking = [n for n in wanted if n not in models]
        missing = f'There is no result for {_list(lacking)}.' if lacking else ''
        out[name] = {'missing': missing, 'models': models}
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
    return out


def _sizes(data: HeteroData) -> dict[str, int]:
    return {
        'users': schema.num_users(data),
        'items': schema.num_items(data),
        'training interactions': data[schema.EDGE_TYPE].edge_index.size(1),
        'forgotten interactions': schema.forgotten_edge_index(data).size(1),
        'validation interactions': schema.held_out(data, 'val').size(1),
        'test interactions': schema.held_out(data, 'test').size(1),
    }


def _section(
    name: str,
    failures: list[dict[str, str]],
    collect: Callable[..., dict[str, Any]],
    *args: Any,
) -> dict[str, Any]:
    out = _attempt(name, lambda: collect(*args), failures)
    return {'missing': ''} | out


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


def _needs(name: str, what: str) -> str:
    return f"To see this, pass '{name}': {what}."


def _list(names: list[str]) -> str:
    quoted = [f"'{name}'" for name in names]
    return ' and '.join([', '.join(quoted[:-1]), quoted[-1]] if quoted[1:] else quoted)


def _plain(value: Any) -> Any:
    r"""Returns values that JSON knows; NaN and infinity become nothing."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, Tensor):
        return _plain(value.tolist())
    if isinstance(value, (bool, str, int)) or value is None:
        return value
    if hasattr(value, 'item') and not isinstance(value, float):
        return _plain(value.item())
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return str(value)
