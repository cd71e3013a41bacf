r"""The arguments of all commands."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from ..kinds import KINDS, LEVELS
from . import decisions, records, requests, service, tables
from .answer import Answer
from .source import FOLDER


def make_parser() -> argparse.ArgumentParser:
    r"""Returns the parser of all commands."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument('--json', action='store_true', help='print JSON')
    placed = argparse.ArgumentParser(add_help=False, parents=[common])
    placed.add_argument(
        '--workspace', metavar='FOLDER', help=f'its folder (default: {FOLDER} or .)'
    )
    signed = argparse.ArgumentParser(add_help=False, parents=[placed])
    signed.add_argument('--who', required=True, help='who decides')
    signed.add_argument('--why', '--reason', required=True, help='the reason')
    named = argparse.ArgumentParser(add_help=False)
    for level, words in zip(LEVELS, ('users', 'items', 'user TAB item')):
        named.add_argument(
            f'--{level}', metavar='FILE', help=f"{words}, one in a line; '-' is stdin"
        )
    named.add_argument('ids', nargs='*', help=argparse.SUPPRESS)

    parser = argparse.ArgumentParser(
        prog='tgu', description='Deletion requests from receipt to evidence.'
    )
    commands = parser.add_subparsers(required=True, metavar='COMMAND')

    def add(
        name: str,
        run: Callable[[argparse.Namespace], Answer],
        words: str,
        *parents: argparse.ArgumentParser,
    ) -> argparse.ArgumentParser:
        out = commands.add_parser(
            name, help=words, description=words, parents=parents, allow_abbrev=False
        )
        out.set_defaults(run=run)
        return out

    init = add('init', service.init, 'make a workspace', common)
    init.add_argument('folder', help='a new folder')
    init.add_argument('--data', required=True, help='as shop.py:load_data')
    init.add_argument('--model', required=True, help='as shop.py:build_model')
    init.add_argument('--trained', help="file of 'save_model'; trains one if not given")
    init.add_argument('--settings', help='JSON file with settings')
    init.add_argument('--key', help='file of the key (default: beside the folder)')

    submit = add('submit', requests.submit, 'accept a request', placed, named)
    submit.add_argument('--kind', required=True, choices=KINDS)
    submit.add_argument('--client-id', required=True, help='your name for it; no id')
    submit.add_argument('--verified-by', required=True, help='who has checked it')
    submit.add_argument('--received', help='date of receipt (default: now)')
    submit.add_argument('--due-days', type=float, help='days from then to the deadline')
    submit.add_argument(
        '--drop-features',
        action='store_true',
        help="erase the features of the items of a 'takedown' as well",
    )

    add('status', records.status, 'say where requests stand', placed)
    add('plan', service.plan, "say what 'work' would do", placed)
    work = add('work', service.work, 'do what is due', placed)
    work.add_argument('--now', action='store_true', help='serve all that waits')
    review = add('review', decisions.review, 'list what to decide, or decide', placed)
    review.add_argument(
        'id', nargs='?', help='a request, or a job for all of its requests'
    )
    review.add_argument('--who', help='who decides')
    review.add_argument('--why', '--reason', help='the reason')
    choice = review.add_mutually_exclusive_group()
    choice.add_argument('--approve', action='store_true', help='put it into the queue')
    choice.add_argument(
        '--again', action='store_true', help='the same after a job that has failed'
    )
    choice.add_argument('--reject', action='store_true', help='end it')
    choice.add_argument(
        '--sign', type=int, metavar='ATTEMPT', help='serve an attempt of the job'
    )
    review.add_argument(
        '--although',
        action='append',
        default=[],
        metavar='GATE',
        help='with --sign: a gate that it did not pass; name all of them',
    )
    hold = add('hold', decisions.hold, 'keep a request from being served', signed)
    release = add('release', decisions.release, 'let one that is held go on', signed)
    cancel = add('cancel', decisions.cancel, 'cancel a request', signed)
    show = add('show', records.show, 'say what is known of a request', placed)
    for command in (hold, release, cancel, show):
        command.add_argument('id', type=int, help='number of the request')
    add('lift', decisions.lift, 'let a subject come back in new data', signed, named)
    filtered = add(
        'filter', tables.filter_table, 'take out of a table what is suppressed', placed
    )
    filtered.add_argument(
        'table', nargs='?', default='-', help="CSV or Parquet (default: '-', stdin)"
    )
    filtered.add_argument('--to', default='-', help="a file (default: '-', stdout)")
    filtered.add_argument('--format', choices=tables.FORMATS, help='of stdin')
    filtered.add_argument(
        '--user', default='user', metavar='COLUMN', help='of user ids (default: user)'
    )
    filtered.add_argument(
        '--item', default='item', metavar='COLUMN', help='of item ids (default: item)'
    )
    filtered.add_argument(
        '--separator', default=',', help="of a CSV file, or 'tab' (default: ',')"
    )
    add('rollback', service.rollback, 'take the model out of service', signed)
    add('clock', decisions.clock, 'go by a clock that was set back', signed)
    refresh = add('refresh', service.refresh, 'train a model on new data', signed)
    refresh.add_argument('--data', help="another function than that of 'init'")
    evidence = add('evidence', records.evidence, 'write the evidence of a job', placed)
    evidence.add_argument('job')
    check = add('verify', records.verify, 'check evidence, without a workspace', common)
    check.add_argument('folder')
    check.add_argument('--public-key', metavar='FILE', help='whose it must be')
    keygen = add('keygen', records.keygen, 'make a key to sign evidence with', common)
    keygen.add_argument('file', help='of the private key, outside of the workspace')
    add('doctor', records.doctor, 'finish what a crash has left, check all', placed)
    add('stats', records.stats, 'sum up what was done', placed)
    add('site', records.site, 'write the page and the figures anew', placed)
    return parser
