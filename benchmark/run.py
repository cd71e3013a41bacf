r"""Fills the grid: every method on every request, one JSON file a cell.

    python benchmark/run.py --models ~/models --list              # What there is.
    python benchmark/run.py --models ~/models --budget 8h --jobs 2
    python benchmark/run.py --models ~/models --only 'Baby/MGCN/*'
    python benchmark/run.py --models ~/models --only ablation     # A block.

`grid.json` says which cells there are; the most valuable come first. What is there is
left alone, so the command can be stopped at any time and repeated: a training goes on
from its last checkpoint, and whatever trained model a cell needs is kept in the folder
of the models under all that determines it. A cell that fails leaves a file
`<method>.error.json` and is not tried again by the same commit unless `--retry` is
given; the others go on. Cells of a changed working tree are marked, and no table takes
them: run from a clean checkout, and if work goes on there, from a second one
(`git worktree add ../filled COMMIT`).

Real data are read from the folder that the environment variable `TGU_REAL_DATA` names.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import time
import traceback

import cells

_SECONDS = {'s': 1, 'm': 60, 'h': 3600}


def parse(argv=None):
    r"""Returns the options."""
    parser = cells.parser(__doc__)
    add = parser.add_argument
    add('--models', required=True, metavar='FOLDER', help='of trained models')
    add(
        '--only',
        nargs='+',
        default=[],
        metavar='PATTERN',
        help="cells such as 'Baby/MGCN/user/*/999/tru', or names of blocks",
    )
    add(
        '--budget',
        type=seconds,
        metavar='TIME',
        help="start nothing that is not expected to end in it, as in '8h', '30m', '0'",
    )
    add(
        '--jobs',
        type=int,
        default=1,
        help='processes side by side; 0 for none but this one',
    )
    add('--threads', type=int, default=1, help='of torch, in each')
    add('--device', default='cpu')
    add('--retry', action='store_true', help='cells that have failed')
    add('--renew', action='store_true', help='cells of other commits or settings')
    add('--list', action='store_true', help='only say what there is and is not')
    add('--cell', metavar='NAME', help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.jobs < 0 or args.threads < 1:
        parser.error("'--jobs' must be at least 0, and '--threads' at least 1")
    try:
        args.grid = cells.Grid(args.grid)
        args.cells = args.grid.select(args.only)
    except ValueError as error:
        parser.error(str(error))
    args.checkout = cells.checkout()
    return args


def seconds(text):
    r"""Returns seconds of a text such as '8h', '1h30m' or '0'."""
    parts = re.findall(r'([\d.]+)([hms])', text)
    if text != '0' and ''.join(map(''.join, parts)) != text:
        raise argparse.ArgumentTypeError(
            f"must be a time such as '8h', '1h30m' or '0' (got '{text}')"
        )
    return sum(float(number) * _SECONDS[unit] for number, unit in parts)


def state(cell, args):
    r"""Returns 'done', 'failed', 'stale' or 'open'."""
    file, failed = cell.file(args.results), cell.error_file(args.results)
    if file.exists():
        try:
            found = cells.read(file)
        except ValueError as error:
            print(error)
            return 'stale'
        known = found['commit'], found['dirty'], found['config']
        current = known == (args.checkout[0], False, cell.config)
        return 'done' if current else 'stale'
    if failed.exists() and not args.retry:
        found = cells.read(failed)
        if (found['commit'], found['dirty']) == args.checkout:
            return 'failed'
    return 'open'


def _fails(cell, args):
    r"""Whether the models of a request are known to fail."""
    return cell.kind == 'original' and state(cell, args) == 'failed'


def run_here(cell, args):
    r"""Computes a cell in this process, and writes it or its error."""
    import torch
    from compute import compute
    from trained import TrainedModels

    torch.set_num_threads(args.threads)
    start = time.perf_counter()
    try:
        content = compute(cell, TrainedModels(args.models, args.device))
    except Exception as error:
        text = traceback.format_exc()
        record_error(cell, args, f'{type(error).__name__}: {error}', text)
        return False
    spent = time.perf_counter() - start
    cells.write(cell.file(args.results), content | {'cell_seconds': spent})
    cell.error_file(args.results).unlink(missing_ok=True)
    return True


def record_error(cell, args, reason, text=''):
    r"""Writes why a cell has failed."""
    commit, dirty = cells.checkout()
    content = {'cell': cell.name, 'config': cell.config, 'error': reason}
    content |= {'traceback': text.splitlines(), 'commit': commit, 'dirty': dirty}
    cells.write(cell.error_file(args.results), content)


def start(cell, args):
    r"""Starts a process for a cell."""
    command = [sys.executable, __file__, '--cell', cell.name]
    command += ['--models', str(args.models), '--results', str(args.results)]
    command += ['--grid', str(args.grid.path), '--device', args.device]
    command += ['--threads', str(args.threads)]
    env = os.environ | {'OMP_NUM_THREADS': str(args.threads)}
    return subprocess.Popen(command, env=env)


class Progress:
    r"""What is done, what is to come, and how long it will take: expected minutes of
    the grid, corrected by what finished cells have taken.
    """

    def __init__(self, todo, args):
        self.total, self.count = len(todo), 0
        self.began = time.perf_counter()
        self.spent = self.expected = 0.0
        self.jobs = max(1, args.jobs)

    @property
    def elapsed(self):
        return time.perf_counter() - self.began

    def estimate(self, cell):
        r"""Returns expected seconds."""
        # One finished cell says little, so the grid's own figure has some weight.
        factor = (self.spent + 300) / (self.expected + 300)
        return 60 * cell.minutes * factor

    def note(self, cell, spent, ok, left):
        r"""Prints a line on a finished cell."""
        self.count += 1
        if ok:
            self.spent += spent
            self.expected += 60 * cell.minutes
        rest = sum(map(self.estimate, left)) / self.jobs
        word = f'{spent:.0f} s' if ok else 'FAILED'
        line = f'[{self.count}/{self.total}] {cell.name}: {word}'
        print(f'{line} ({clock(self.elapsed)}, about {clock(rest)} left)', flush=True)


def clock(seconds):
    minutes = round(seconds / 60)
    return f'{minutes // 60}:{minutes % 60:02d} h'


def fill(todo, args, known=()):
    r"""Computes cells but those whose models are :obj:`known` to fail, and returns the
    names of those that failed or were left out for another one, and of those that the
    budget had no time for.
    """
    waiting, running = list(todo), {}
    progress = Progress(todo, args)
    failed, late = set(), set()

    def blocked(cell):
        r"""Whether a cell waits for models that another one makes."""
        first = f'{cell.request}/original'
        others = [other for other, _, _ in running.values()]
        if cell.name == first:
            return any(_same_models(other, cell) for other in others)
        return any(other.name == first for other in [*others, *waiting])

    def settle(cell, began, ok):
        if not ok:
            failed.add(cell.name)
        left = [*waiting, *(other for other, _, _ in running.values())]
        progress.note(cell, time.perf_counter() - began, ok, left)

    try:
        while waiting or running:
            for cell in list(waiting):
                if len(running) >= max(1, args.jobs):
                    break
                first = f'{cell.request}/original'
                if first in failed or first in known:
                    print(f'{cell.name}: its models have failed', flush=True)
                    waiting.remove(cell)
                    failed.add(cell.name)
                    continue
                if first in late:
                    waiting.remove(cell)
                    late.add(cell.name)
                    continue
                if blocked(cell):
                    continue
                if args.budget is not None:
                    room = args.budget - progress.elapsed
                    if progress.estimate(cell) > room:
                        waiting.remove(cell)
                        late.add(cell.name)
                        continue
                waiting.remove(cell)
                began = time.perf_counter()
                if args.jobs == 0:
                    settle(cell, began, run_here(cell, args))
                else:
                    running[len(todo) - len(waiting)] = cell, start(cell, args), began
            for key, (cell, process, began) in list(running.items()):
                if process.poll() is None:
                    continue
                del running[key]
                ok = process.returncode == 0
                if not ok and not cell.error_file(args.results).exists():
                    reason = f'The process ended with {process.returncode}'
                    record_error(cell, args, reason)
                settle(cell, began, ok)
            if running:
                time.sleep(0.2)
    finally:  # Stopped: trainings go on from their checkpoints next time.
        for _, process, _ in running.values():
            process.terminate()
    return failed, late


def _same_models(cell, other):
    r"""Whether two cells train the same original model."""
    keys = ('dataset', 'backbone', 'seed', 'kind')
    return all(getattr(cell, key) == getattr(other, key) for key in keys)


def main(argv=None):
    r"""Runs the command, and returns its exit status."""
    args = parse(argv)
    if args.cell:
        return 0 if run_here(args.grid.cells[args.cell], args) else 1
    states = {cell.name: state(cell, args) for cell in args.cells}
    wanted = ('open', 'stale') if args.renew else ('open',)
    todo = [cell for cell in args.cells if states[cell.name] in wanted]
    count = {word: list(states.values()).count(word) for word in STATES}
    print(', '.join(f'{count[word]} {text}' for word, text in STATES.items()))
    if args.checkout[1]:
        print('The working tree has changes: no table will take what is computed.')
    if args.list:
        for cell in args.cells:
            print(f'{states[cell.name]:7}{cell.minutes:7.1f} min  {cell.name}')
        hours = sum(cell.minutes for cell in todo) / 60
        print(f'About {hours:.1f} h are to come on one core.')
        return 0
    # A cell that failed may not be among those that are wanted now.
    broken = [cell.name for cell in args.grid.cells.values() if _fails(cell, args)]
    failed, late = fill(todo, args, broken)
    if late:
        print(f'{len(late)} cells were not started, as the budget has no time for them')
    if failed:
        print(f'{len(failed)} cells failed; see their .error.json, and --retry')
    return 1 if failed or count['failed'] else 0


STATES = {
    'done': 'done',
    'stale': 'of another commit, of other settings or of a changed tree',
    'failed': 'failed',
    'open': 'open',
}

if __name__ == '__main__':
    # What is stopped ends its processes as well.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())
