r"""Writes the tables of the README files from the result files, or checks them.

    python benchmark/tables.py            # Write what stands between the markers.
    python benchmark/tables.py --check    # Say what is not current, and exit with 1.

A table stands between `<!-- table: KIND WHAT -->` and `<!-- end -->`, where `WHAT` is
`Baby/MGCN/0.05` for cells of the grid, and the name of a file in `results` for
others. Cells that are missing are named below their table. A table is refused if one of
its cells was changed after it was written, comes from a changed working tree, has other
settings than the grid says, or if two of them are of different commits, data or
machines.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import cells
import figures
import older
import script_tables
from columns import CLOSENESS, MAIN, SHORT, Rows
from gathered import Refused, Results

ROOT = cells.FOLDER.parent
PAGES = (ROOT / 'README.md', cells.FOLDER / 'README.md')
_MARKER = re.compile(
    r'(<!-- (table|figure): ([^>]+?) -->\n)(.*?)(<!-- end -->)', re.DOTALL
)
_AUDITS = {
    'relearn': ('relearn_steps', 'relearn_reached', 'relearn_start'),
    'shadow': ('balanced_accuracy', 'auc', 'tpr_at_1_fpr'),
    'ulira': ('balanced_accuracy', 'auc', 'tpr_at_1_fpr'),
}


_OF_FILES = older.KINDS | script_tables.KINDS


def table(text, results):
    r"""Returns the text of a table.

    Args:
        text (str): What its marker says.
        results (Results): The cells.

    Raises:
        Refused: If it can't be made.
    """
    kind, _, what = text.partition(' ')
    if kind in _OF_FILES:
        return _OF_FILES[kind](*what.split())
    if kind not in _KINDS or what.count('/') != 2:
        raise Refused(
            f"'{text}' is no table. Write one of {[*_KINDS, *_OF_FILES]}, and a "
            f"place such as 'Baby/MGCN/0.05' or the name of a file."
        )
    return _KINDS[kind](results, *what.split('/'))


def _main(results, *place):
    groups = results.grid.content['groups']
    names = [*_core(results), *groups['others'], *groups['shards']]
    return _markdown(results, place, names, MAIN)


def _closeness(results, *place):
    names = [*_core(results), *results.grid.content['groups']['others']]
    return _markdown(results, place, [n for n in names if n != 'retrain'], CLOSENESS)


def _core(results):
    r"""Returns the methods that stand in every table, with the noise floor beside what
    it is the floor of.
    """
    first, second, *rest = results.grid.content['groups']['core']
    return [first, second, 'retrain_2', *rest]


def _variants(group, *beside):
    def make(results, *place):
        names = [*beside, *results.grid.content['groups'][group]]
        regimes = {
            cell.regime
            for cell in results.grid.cells.values()
            if cell.method in results.grid.content['groups'][group]
        }
        return _markdown(results, place, names, SHORT, regimes)

    return make


def _audits(results, *place):
    parts = []
    for name, keys in _AUDITS.items():
        methods = results.grid.content['groups'][name]
        if results.has(*place, methods):
            columns = {key.replace('_', ' '): (key, '.3f', True) for key in keys}
            parts.append(_markdown(results, place, methods, columns))
    if not parts:
        raise Refused(f'The grid has no audit of {"/".join(place)}')
    return '\n'.join(parts)


_KINDS = {
    'main': _main,
    'closeness': _closeness,
    'ablation': _variants('ablation', 'original', 'retrain', 'tru'),
    'sensitivity': _variants('sensitivity', 'original', 'retrain', 'partial_retrain'),
    'audits': _audits,
}


def _markdown(results, place, methods, columns, regimes=None):
    wanted, found = results.group(*place, set(methods))
    if regimes:
        wanted = [cell for cell in wanted if cell.regime in regimes]
        names = {cell.name for cell in wanted}
        found = {name: content for name, content in found.items() if name in names}
    rows = Rows(wanted, found, methods)
    lines = []
    if found:
        lines = rows.lines(columns)
        lines.append('')
        lines.append(_origin(found))
    return '\n'.join([*lines, *_missing(wanted, found, results)]) + '\n'


def _origin(found):
    content = next(iter(found.values()))
    surroundings = content['versions']
    return (
        f'{content["data"]["title"]}; commit {content["commit"][:7]}, torch '
        f'{surroundings["torch"]}, {surroundings["device"]}, '
        f'{surroundings["num_threads"]} thread(s).'
    )


def _missing(wanted, found, results):
    r"""Says which cells are not there, request by request."""
    absent = {}
    for cell in wanted:
        if cell.name not in found:
            failed = cell.error_file(results.folder).exists()
            name = f'{cell.method} (failed)' if failed else cell.method
            absent.setdefault(f'{cell.regime}/{cell.seed}', []).append(name)
    if not absent:
        return []
    number = sum(map(len, absent.values()))
    if number == len(wanted):
        return [f'None of the {number} cells is there yet.']
    by_names = {}
    for request, names in absent.items():
        by_names.setdefault(', '.join(names), []).append(request)
    parts = [f'{", ".join(where)}: {names}' for names, where in by_names.items()]
    return [f'Missing, {number} of {len(wanted)} cells: ' + '; '.join(parts) + '.']


def rendered(page, results, problems):
    r"""Returns the text of a page with all its tables and figures; what can't be made
    stays, and is noted.
    """

    def replace(match):
        begin, kind, what, old, end = match.groups()
        try:
            if kind == 'table':
                return begin + table(what, results) + end
            return begin + figures.link(what, results) + end
        except (Refused, FileNotFoundError, ValueError) as error:
            problems.append(f'{page}, {kind} {what}: {error}')
            return begin + old + end

    return _MARKER.sub(replace, Path(page).read_text())


def main(argv=None):
    r"""Runs the command, and returns its exit status."""
    parser = cells.parser(__doc__)
    parser.add_argument('--check', action='store_true', help='write nothing')
    parser.add_argument('--pages', nargs='+', default=PAGES, metavar='FILE')
    args = parser.parse_args(argv)
    results = Results(cells.Grid(args.grid), args.results)
    problems = [f"'{path}' is no cell of the grid" for path in results.stray()]
    for page in args.pages:
        text = rendered(page, results, problems)
        if text == Path(page).read_text():
            continue
        if args.check:
            problems.append(f"{page}: not current. Run 'python benchmark/tables.py'.")
        else:
            Path(page).write_text(text)
            print(f'Wrote {page}')
    problems += figures.problems(results)
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == '__main__':
    sys.exit(main())
