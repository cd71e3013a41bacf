r"""Checks the evidence of a job: needs its folder, and nothing of the workspace."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

from torch_geometric_unlearn.report import read_report

from . import signing
from .attempts import signatures_in
from .evidence import FILES, MANIFEST, SIGNATURE, json_bytes
from .gates import FAIL, HARD, INCONCLUSIVE, NAMES, PASS, SIGNED, Gate, overall
from .ledger import check_chain


def verify(
    folder: str | Path, public_key: str | Path | None = None
) -> dict[str, Any]:
    r"""Checks the evidence of a job with nothing but its folder: every byte against the
    manifest, the chain of events, the report, that the verdicts follow from the figures
    and from what persons have signed for, and with a key who has made it.

    Args:
        folder (str or Path): The folder.
        public_key (str or Path, optional): The file of the public key that it must be
            signed with. Without one a signature must be there if the manifest says so,
            but nobody knows whose it is. (default: :obj:`None`)

    Returns:
        dict: :obj:`job`, :obj:`verdict`, :obj:`gates`, the verdicts of the attempt that
        was served by name, :obj:`signed_for`, who has served it although which gates
        were not passed and why, and :obj:`signature`: :obj:`'valid'`,
        :obj:`'not checked'` or :obj:`'none'`.

    Raises:
        ImportError: If there is a key, but cryptography is missing.
        ValueError: If something does not fit; says what.
    """
    try:
        return _verify(Path(folder), public_key)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            f"'{folder}' does not hold the evidence of a job: its content has another "
            f'form ({error!r})'
        ) from error


def _verify(folder: Path, public_key: str | Path | None) -> dict[str, Any]:
    if not (folder / MANIFEST).is_file():
        raise ValueError(
            f"'{folder}' holds no '{MANIFEST}', so its evidence can't be read. It is "
            f"written when the requests of the job are completed, and before that by "
            f"'tgu evidence JOB'."
        )
    manifest = _read(folder, MANIFEST)
    is_whole = set(manifest) - {'signed_by'} == {'job', 'files'}
    if not is_whole or not set(manifest['files']) >= FILES:
        raise ValueError(f"'{MANIFEST}' does not name the evidence of a job")
    there = {path.name for path in folder.iterdir()} - {MANIFEST}
    expected = {*manifest['files'], *([SIGNATURE] if 'signed_by' in manifest else [])}
    if there != expected:
        raise ValueError(
            f"'{folder}' must hold the files of its manifest and no others (differing: "
            f'{sorted(there ^ expected)})'
        )
    signature = _check_signature(folder, manifest, public_key)
    for name, digest in manifest['files'].items():
        if sha256((folder / name).read_bytes()).hexdigest() != digest:
            raise ValueError(f"'{name}' was changed after the evidence was written")
    read_report(folder / 'report')
    segment, lineage = _read(folder, 'events.json'), _read(folder, 'lineage.json')
    check_chain(segment['events'], segment['before'])
    if lineage['job'] != manifest['job']:
        raise ValueError("'manifest.json' and 'lineage.json' are of different jobs")
    written = _read(folder, 'gates.json')
    served = written['attempts'].get(written['promoted'], [])
    found = {entry['name'] for entry in served}
    if found != set(NAMES):
        raise ValueError(
            f'The attempt that is served must have gone through all gates (differing: '
            f'{sorted(found ^ set(NAMES))})'
        )
    for attempt, entries in written['attempts'].items():
        for entry in entries:
            if _gate(entry).verdict != entry['verdict']:
                raise ValueError(
                    f"The verdict on '{entry['name']}' in attempt {attempt} does not "
                    f'follow from its figures'
                )
    gates = [_gate(entry) for entry in served]
    verdict = _follow(gates, segment['events'], manifest['job'], written['promoted'])
    if written['verdict'] != verdict or verdict == FAIL:
        raise ValueError(
            f"The verdict '{written['verdict']}' does not follow from the gates, and "
            f"what came after them, which say '{verdict}'"
        )
    signatures = signatures_in(segment['events'], manifest['job'])
    if _read(folder, 'decisions.json')['signatures'] != signatures:
        raise ValueError(
            "'decisions.json' must name who has signed as the chain of events does"
        )
    names = ('who', 'why', 'although', 'has_role')
    return {
        'job': manifest['job'],
        'verdict': written['verdict'],
        'gates': {gate.name: gate.verdict for gate in gates},
        'signed_for': [{name: entry[name] for name in names} for entry in signatures],
        'signature': signature,
    }


def _check_signature(
    folder: Path, manifest: dict[str, Any], public_key: str | Path | None
) -> str:
    if 'signed_by' not in manifest:
        if public_key is not None:
            raise ValueError(f"'{folder}' is not signed, but must be")
        return 'none'
    entry, content = _read(folder, SIGNATURE), json_bytes(manifest)
    signing.check_digest(entry, content, SIGNATURE)
    if public_key is None:
        return 'not checked'
    signing.check(entry, content, manifest['signed_by'], public_key)
    return 'valid'


def _gate(entry: dict[str, Any]) -> Gate:
    return Gate.of(json.dumps({k: v for k, v in entry.items() if k != 'verdict'}))


def _follow(
    gates: list[Gate], events: list[dict[str, Any]], job: str, promoted: str
) -> str:
    r"""Returns the verdict on a job that follows from its gates and from what came
    after them: a signature of a person, a decision together with later requests, a
    rollback that has opened it again.
    """
    verdict = overall(gates)
    unpassed = {gate.name for gate in gates if gate.verdict != PASS}
    is_final = any(gate.name in HARD and gate.verdict == FAIL for gate in gates)
    bodies = [json.loads(event['body']) for event in events]
    starts = [
        place
        for place, (event, body) in enumerate(zip(events, bodies))
        if event['kind'] == 'started' and body['job'] == job
    ]
    # The gates are those of the last run.
    for event, body in list(zip(events, bodies))[max(starts, default=0) :]:
        if event['kind'] == SIGNED and body['job'] == job:
            named = str(body['attempt']), set(body['although'])
            if is_final or named != (promoted, unpassed):
                raise ValueError(
                    f"'{body['who']}' has signed for another attempt, for other gates, "
                    f'for a hard one, or after a rollback'
                )
            verdict = SIGNED
        elif job in body.get('jobs', []):
            if event['kind'] == 'decided' and verdict == INCONCLUSIVE:
                verdict = PASS
            elif event['kind'] == 'rolled_back':
                verdict, is_final = INCONCLUSIVE, True
    return verdict


def _read(folder: Path, name: str) -> Any:
    try:
        text = (folder / name).read_bytes()
        content = json.loads(text)
    except (OSError, ValueError) as error:
        raise ValueError(f"'{folder / name}' can't be read ({error})") from error
    if json_bytes(content) != text:
        raise ValueError(f"'{name}' was changed after the evidence was written")
    return content
