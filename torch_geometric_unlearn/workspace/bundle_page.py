r"""The evidence of a job as a page for people; all of it stands in the other files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from torch_geometric_unlearn.report.html import Cell, grid

from .gates import INCONCLUSIVE, NAMES, PASS, SIGNED
from .page import SIGNS, gates_table, render_page, utc

_WORDS = {
    PASS: (
        'within',
        'The model has passed all gates',
        'What could not be told of this job alone was decided together with others, or '
        'by a model that was trained from scratch.',
    ),
    INCONCLUSIVE: (
        'unclear',
        'The model is served on probation',
        'No gate has failed, but too few interactions were erased for all of them to '
        'be told. They are taken together with those of later requests.',
    ),
    SIGNED: (
        'unclear',
        'A person has signed for the model',
        'It did not pass all gates. Those on data and files, which nobody can '
        'overrule, are passed.',
    ),
}


def render_bundle(
    files: dict[str, Any], limits: Sequence[str], now: float, is_signed: bool
) -> str:
    r"""Returns the page.

    Args:
        files (dict): What goes into the JSON files of the bundle, by name.
        limits (sequence): What the bundle does not say.
        now (float): The time.
        is_signed (bool): Whether the manifest will be signed.
    """
    gates, lineage = files['gates.json'], files['lineage.json']
    events, job = files['events.json']['events'], lineage['job']
    requests = files['requests.json']['requests']
    signatures = files['decisions.json']['signatures']
    promoted = next(
        event['at']
        for event in events
        if event['kind'] == 'promoted' and json.loads(event['body'])['job'] == job
    )
    verdict = gates['verdict']
    kind, title, words = _WORDS[verdict]
    served = {entry['verdict'] for entry in gates['attempts'][gates['promoted']]}
    if verdict == PASS and served == {PASS}:
        words = 'Each of them was passed by the figures of this job alone.'
    return render_page(
        'bundle.html',
        title=f'Evidence of deletion job {job}',
        ledger='',
        now=utc(now),
        when=utc(promoted),
        headline=(kind, f'{SIGNS[verdict]} {title}', words),
        signatures=[entry | {'when': utc(entry['at'])} for entry in signatures],
        requests=_requests(requests),
        attempts=_attempts(gates, lineage['methods']),
        lineage=[
            (name, str(lineage[key]))
            for name, key in (
                ('Model', 'version'),
                ('Data', 'data'),
                ('Model before', 'parent'),
                ('Requests it is free of', 'watermark'),
            )
        ]
        + [('Seed', str(lineage['settings']['seed']))],
        destroyed=_destroyed(events, {entry['id'] for entry in requests}),
        limits=limits,
        is_signed=is_signed,
    )


def _requests(requests: list[dict[str, Any]]) -> Any:
    rows = [
        [
            Cell(str(entry['id']), small=entry['client_id']),
            entry['kind'],
            Cell(entry['state'], small=entry['outcome'] or ''),
            Cell(utc(entry['received_at']), 'when'),
            Cell(utc(entry['due_at']), 'when'),
            entry['num_targets'],
            entry['num_pairs'],
        ]
        for entry in requests
    ]
    head: list[Any] = [('Request', "the caller's name"), 'Kind', 'State', 'Received']
    return grid([*head, 'Due', 'Subjects', 'Interactions erased'], rows)


def _attempts(gates: dict[str, Any], methods: list[str]) -> list[tuple[str, Any]]:
    out = []
    for number, entries in gates['attempts'].items():
        method = methods[int(number)]
        served = ', which is served' if number == gates['promoted'] else ''
        entries = sorted(entries, key=lambda entry: NAMES.index(entry['name']))
        table = gates_table([entry | {'attempt': method} for entry in entries])
        out.append((f'Attempt {number}: {method}{served}', table))
    return out


def _destroyed(events: list[dict[str, Any]], requests: set[int]) -> Any:
    rows = []
    for event in events:
        body = json.loads(event['body'])
        if event['kind'] == 'completed' and requests & set(body['requests']):
            numbers = ', '.join(map(str, sorted(requests & set(body['requests']))))
            when = Cell(utc(event['at']), 'when')
            rows.append([when, f'raw ids of requests {numbers}'])
            rows += [[when, f'version {name[:12]}'] for name in body['purged']]
        elif event['kind'] == 'attempt_destroyed':
            when = Cell(utc(event['at']), 'when')
            rows.append([when, f'attempt {body["attempt"]} of job {body["job"]}'])
    return grid(['When', 'What'], rows)
