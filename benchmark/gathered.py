r"""The cells that a table or a figure is made of, if they belong together."""

from __future__ import annotations

from pathlib import Path

import cells


class Refused(Exception):
    r"""A table or a figure that can't be made of its cells."""


class Results:
    r"""The cells of a grid that are there.

    Args:
        grid (Grid): The grid.
        folder (str or Path): Where the results stand.
    """

    def __init__(self, grid, folder):
        self.grid, self.folder = grid, Path(folder)

    def has(self, dataset, backbone, ratio, methods):
        r"""Returns the cells that the grid has for some methods."""
        return [
            cell
            for cell in self.grid.cells.values()
            if (cell.dataset, cell.backbone) == (dataset, backbone)
            and f'{cell.ratio:g}' == ratio
            and cell.method in methods
        ]

    def group(self, dataset, backbone, ratio, methods):
        r"""Returns the cells that the grid has for some methods, and the contents of
        those that are there, by name.

        Raises:
            Refused: If the contents don't belong together.
        """
        wanted = self.has(dataset, backbone, ratio, methods)
        if not wanted:
            raise Refused(f'The grid has no cell of {dataset}/{backbone}/{ratio}')
        found = {}
        for cell in wanted:
            file = cell.file(self.folder)
            if not file.exists():
                continue
            try:
                content = cells.read(file)
            except ValueError as error:
                raise Refused(str(error)) from error
            if content['cell'] != cell.name or content['config'] != cell.config:
                raise Refused(f"'{cell.name}' has other settings than the grid says")
            if content['dirty'] or not content['commit']:
                raise Refused(f"'{cell.name}' comes from a changed working tree")
            found[cell.name] = content
        for what, read in _EQUAL.items():
            values = {}
            for name, content in found.items():
                values.setdefault(read(content), name)
            if len(values) > 1:
                pairs = ', '.join(f'{value} ({name})' for value, name in values.items())
                raise Refused(f'The cells are of different {what}: {pairs}')
        return wanted, found

    def stray(self):
        r"""Returns the result files that are no cell of the grid."""
        known = {cell.file(self.folder) for cell in self.grid.cells.values()}
        files = sorted(self.folder.rglob('*.json'))
        return [
            path
            for path in files
            if path not in known and not path.name.endswith('.error.json')
        ]


def _data(content):
    held_out = content['config'].get('hold_out', 0)
    return '' if held_out else content['data']['digest']


def _machine(content):
    found = content['versions']
    keys = ('device', 'num_threads', 'torch', 'torch_geometric')
    return ', '.join(found[key] for key in keys)


#: What all cells of a table share. Data with users held out are others by nature.
_EQUAL = {
    'commits': lambda content: content['commit'],
    'data': _data,
    'machines': _machine,
}
