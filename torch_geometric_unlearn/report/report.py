r"""What is known of a request, as JSON and as a page."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from datetime import datetime, timezone
from hashlib import sha256
from pathlib import Path
from typing import Any

from torch_geometric.data import HeteroData

from torch_geometric_unlearn.evaluation import (
    ORIGINAL,
    RETRAINED,
    SECOND,
    UNLEARNED,
)
from torch_geometric_unlearn.nn.models.base import RecommenderLike
from torch_geometric_unlearn.unlearn import UnlearnResult
from torch_geometric_unlearn.utils.check import check_bool, check_int
from torch_geometric_unlearn.utils.files import atomic_save_all, make_folder
from torch_geometric_unlearn.utils.seed import check_seed
from torch_geometric_unlearn.utils.versions import versions

from .content import ROLES, collect, plain
from .html import render_html
from .table import json_bytes
from .verdict import check_tolerance, judge

#: Version of the layout of the JSON file.
SCHEMA_VERSION = 3


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
    key: bytes | None = None,
    show_ids: bool = False,
    title: str = 'Unlearning report',
    second: UnlearnResult | RecommenderLike | None = None,
) -> dict[str, Any]:
    r"""Collects the evidence on one request.

    Every input but :obj:`result` is optional: a section that lacks some names them in
    :obj:`needs`, and says in :obj:`missing`, for people only, what to pass. A metric
    that raises is reported as failed with its reason, and counted in :obj:`failures`.
    The whole dictionary is valid JSON, with :obj:`None` for a value that is not
    available (NaN). What it holds and how it judges is our choice.

    ====================  ==========================================================
    key                   what
    ====================  ==========================================================
    ``schema_version``    3; rises when a key changes its meaning or goes
    ``title``, ``k``      heading; length of all lists
    ``created``           UTC time, ISO 8601
    ``request``           ``hash``, ``level``, ``num_interactions``, ``num_users``,
                          ``num_items``, ``share`` of the training data,
                          ``remaining`` forgotten interactions in ``result.data``,
                          ``num_held_out`` pairs that were deleted besides, ``ids``
                          (``'numbered'``, ``'hashed'`` or ``'shown'``), and
                          ``subjects``, a list of ``{'user': id}``,
                          ``{'item': id}`` or both
    ``method``            ``name``, ``model``, ``exact``, ``num_epochs``,
                          ``seconds``, ``peak_memory`` (bytes), ``settings``
    ``verdict``           ``status`` (``'within'``, ``'outside'``, ``'unclear'`` if
                          the request is too small to tell, or ``'unknown'`` if
                          something to compare with is missing), ``sentences``,
                          ``tolerance``, and ``measures``: rows of ``name``,
                          ``kind``, ``unlearned``, ``retrained``, ``tolerance``,
                          ``interval`` of the difference (95%, as share of the
                          retrained value for ``'retain'``), ``noise``
                          (difference of two retrained models), ``within`` (whether
                          all of the interval is, ``None`` if it can't be judged),
                          ``reason`` why not, and by model ``values`` and
                          ``within_by_model``
    ``differences``       to the retrained model, by model and measure: ``value``,
                          ``low``, ``high``, ``num_examples``, ``num_groups``
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

    Users and items are numbered. With a :obj:`key` they have pseudonyms, which only its
    owner can recompute: the first twelve hex digits of the HMAC-SHA256 of kind, colon
    and id. ``hash`` is the result of :func:`request_hash`, without a key :obj:`None`.

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
        key (bytes, optional): A secret of at least 16 bytes, for pseudonyms that are
            the same in all reports, and the hash of the request.
            (default: :obj:`None`)
        show_ids (bool, optional): Whether to print ids instead, the caller's own where
            :obj:`data` keeps them. (default: :obj:`False`)
        title (str, optional): Heading. (default: :obj:`'Unlearning report'`)
        second (UnlearnResult or torch.nn.Module, optional): Another model like
            :obj:`retrained`, from another seed. Where these two differ by more than the
            tolerance, nobody is asked to come closer. Audits know it as
            :obj:`'retrained again'`. (default: :obj:`None`)

    Raises:
        ValueError: If :obj:`tolerance` or the name of a control is unknown, a second
            retrained model comes without a first one, or the models are of different
            classes or sizes.

    Example:
        >>> marked = ForgetUsers([3])(data)
        >>> content = build_report(EdgeDrop()(model, marked), model, marked)
        >>> content['request']['remaining'], content['verdict']['status']
        (0, 'unknown')
    """
    limits = check_tolerance(tolerance)
    k, seed = check_int(k, 'k', 1), check_seed(seed)
    show_ids = check_bool(show_ids, 'show_ids')
    for name in controls or {}:
        if name in (*ROLES, SECOND):
            raise ValueError(
                f"'controls' must not be named 'original', 'retrained', 'retrained "
                f"again' or 'unlearned' (got '{name}')"
            )
    if second is not None and retrained is None:
        raise ValueError(
            "'second' needs a 'retrained' model to differ from (got None). Pass it as "
            "'retrained'."
        )
    given = {ORIGINAL: original, RETRAINED: retrained, SECOND: second}
    given |= controls or {}
    models = {name: value for name, value in given.items() if value is not None}
    models[UNLEARNED] = result
    content = {
        'schema_version': SCHEMA_VERSION,
        'title': title,
        'created': datetime.now(timezone.utc).isoformat(timespec='seconds'),
        'k': k,
        **collect(result, models, data, audits or {}, k, seed, key, show_ids),
        'settings': dict(settings or {}),
        'versions': versions(),
    }
    content['verdict'] = judge(content, limits)
    return plain(content)


def write_report(
    result: UnlearnResult | Mapping[str, Any],
    path: str | os.PathLike[str],
    **kwargs: Any,
) -> dict[str, Any]:
    r"""Writes what is known of a request as JSON and as one page of HTML, which loads
    nothing else.

    Both are complete before one of them gets its name, and an old page goes before a
    new JSON file comes: whenever the process is killed, there are both files of one
    request, or the JSON file alone, of this request or the last one. The page then
    follows from it, see :meth:`read_report`. The page names the SHA-256 of its JSON
    file.

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
    _check_version(content.get('schema_version'), 'result')
    json_path, html_path = _paths(path)
    text, page = json_bytes(content), render_html(content).encode()
    make_folder(os.path.dirname(json_path) or '.')
    atomic_save_all(
        [
            (lambda file: file.write(text), json_path),
            (lambda file: file.write(page), html_path),
        ],
        len(text) + len(page),
    )
    return content


def read_report(path: str | os.PathLike[str]) -> dict[str, Any]:
    r"""Returns the content of a report after checking that its page belongs to it.

    Args:
        path (str or Path): Where :meth:`write_report` wrote it, with or without
            ``.html`` or ``.json``.

    Raises:
        FileNotFoundError: If there is no JSON file.
        ValueError: If that is no report of this version, or the page is missing, or was
            made from another JSON file; tells how to make it anew.

    Example:
        >>> content = write_report(EdgeDrop()(model, ForgetUsers([3])(data)), 'report')
        >>> read_report('report') == content
        True
    """
    json_path, html_path = _paths(path)
    if not os.path.isfile(json_path):
        raise FileNotFoundError(f"There is no report '{json_path}'")
    text = Path(json_path).read_bytes()
    try:
        content = json.loads(text)
        version = content['schema_version']
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise ValueError(
            f"'{json_path}' is not the JSON file of a report ({error}). Write it again."
        ) from error
    _check_version(version, json_path)
    page = Path(html_path).read_bytes() if os.path.isfile(html_path) else b''
    found = re.search(rb'<meta name="json-sha256" content="([0-9a-f]{64})">', page)
    if found is None or found[1].decode() != sha256(text).hexdigest():
        state = 'was made from another file' if page else 'is missing'
        raise ValueError(
            f"The page '{html_path}' {state}. Make it from the JSON file with "
            f"write_report(json.load(open('{json_path}')), '{html_path}')."
        )
    return content


def _check_version(version: Any, name: str) -> None:
    if version != SCHEMA_VERSION:
        raise ValueError(
            f"'{name}' must have schema_version {SCHEMA_VERSION} (got {version!r}). "
            f"Build it with 'build_report'."
        )


def _paths(path: str | os.PathLike[str]) -> tuple[str, str]:
    base = os.fspath(path)
    root, suffix = os.path.splitext(base)
    base = root if suffix in ('.html', '.json') else base
    return f'{base}.json', f'{base}.html'
