r"""Reader of interaction and feature files in the format of the MMRec benchmarks."""

from __future__ import annotations

import os.path as osp
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from torch_geometric_unlearn.data import schema

_COLUMNS = ('userID', 'itemID', 'x_label')
_OPTIONAL = {'rating': 'rating', 'timestamp': 'time'}
_MAX_ID = 2**31 - 1


@dataclass
class Interactions:
    r"""Interactions of all splits, one entry each, in the order of the file.

    Args:
        user (numpy.ndarray): User ids, int64 :obj:`[N]`.
        item (numpy.ndarray): Item ids, int64 :obj:`[N]`.
        label (numpy.ndarray): 0 (train), 1 (validation) or 2 (test), int64 :obj:`[N]`.
        num_users (int): Number of users.
        num_items (int): Number of items.
        extras (dict): Further values per interaction, :obj:`[N]` each, by name.
    """

    user: np.ndarray
    item: np.ndarray
    label: np.ndarray
    num_users: int
    num_items: int
    extras: dict[str, np.ndarray]

    def to_data(self) -> HeteroData:
        r"""Returns the interactions as data; the extras of training pairs only."""
        train = self.label == 0
        data = HeteroData()
        data[schema.USER].num_nodes = self.num_users
        data[schema.ITEM].num_nodes = self.num_items
        store = data[schema.EDGE_TYPE]
        store.edge_index = self._pairs(train)
        for name, value in self.extras.items():
            dtype = torch.int64 if name == 'time' else torch.float32
            store[name] = torch.from_numpy(value[train]).to(dtype)
        data.val_edge_label_index = self._pairs(self.label == 1)
        data.test_edge_label_index = self._pairs(self.label == 2)
        return data

    def _pairs(self, mask: np.ndarray) -> Tensor:
        return torch.from_numpy(np.stack([self.user[mask], self.item[mask]]))


def read_mmrec(raw_dir: str, name: str, modalities: tuple[str, ...]) -> HeteroData:
    r"""Reads :obj:`<name>.inter` and :obj:`<modality>_feat.npy` from a folder.

    The rules are those of :func:`read_inter` and :func:`read_features`.
    """
    interactions = read_inter(osp.join(raw_dir, f'{name}.inter'))
    data = interactions.to_data()
    for modality in modalities:
        path = osp.join(raw_dir, f'{modality}_feat.npy')
        x = read_features(path, interactions.num_items, f'{name}.inter')
        data[schema.ITEM][f'x_{modality}'] = x
    return data


def check_modalities(
    modalities: Sequence[str], choices: tuple[str, ...]
) -> tuple[str, ...]:
    r"""Returns :obj:`modalities` in the order of :obj:`choices`.

    Raises:
        TypeError: If :obj:`modalities` is a single string.
        ValueError: If one is unknown or occurs twice.
    """
    if isinstance(modalities, str):
        raise TypeError(
            f"'modalities' must be a tuple of names (got the string '{modalities}'). "
            f"For one modality, pass ('{modalities}',)."
        )
    given = list(modalities)
    if len(set(given)) != len(given) or not set(given) <= set(choices):
        raise ValueError(
            f"'modalities' must hold names out of {choices}, each at most once (got "
            f'{tuple(given)})'
        )
    return tuple(name for name in choices if name in given)


def check_files(raw_dir: str, names: list[str], hint: str) -> None:
    r"""Raises unless all files are in :obj:`raw_dir`.

    Raises:
        FileNotFoundError: If files are missing; names them, the folder and
            :obj:`hint`, the way out.
    """
    missing = [name for name in names if not osp.exists(osp.join(raw_dir, name))]
    if missing:
        files = ', '.join(f"'{name}'" for name in missing)
        it, verb = ('it', 'is') if len(missing) == 1 else ('them', 'are')
        way_out = f'Put {it} there'
        if any(name.endswith('_feat.npy') for name in missing):
            way_out += ", or leave features out with 'modalities', e.g. modalities=()"
        raise FileNotFoundError(
            f"{files} must be in the folder '{raw_dir}', but {verb} not there. "
            f'{way_out}. {hint}'
        )


def read_inter(path: str) -> Interactions:
    r"""Reads the interactions of a tab-separated :obj:`.inter` file.

    Its header names the columns, in any order: :obj:`userID`, :obj:`itemID` (0-based)
    and :obj:`x_label` (0 train, 1 validation, 2 test). :obj:`rating` and
    :obj:`timestamp` are read if they exist, others are skipped. The numbers of users
    and items are the largest ids plus one over the whole file. Held-out interactions
    of users without a training interaction are then dropped.

    Args:
        path (str): The file.

    Returns:
        Interactions: The interactions; :obj:`extras` holds :obj:`rating` and
        :obj:`time` if the file does.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the file is damaged or breaks the format; names the line.
    """
    columns, rows = _read_table(path)
    ids = {name: _whole(path, rows, columns, name) for name in _COLUMNS}
    user, item, label = ids['userID'], ids['itemID'], ids['x_label']
    for name in ('userID', 'itemID'):
        _refuse(
            path,
            (ids[name] < 0) | (ids[name] > _MAX_ID),
            f"'{name}' must be a 0-based, dense id",
            ids[name],
            "To map any ids to such ones, load the table with 'from_frame'.",
        )
    _refuse(
        path,
        (label < 0) | (label > 2),
        "'x_label' must be 0 (train), 1 (validation) or 2 (test)",
        label,
        'Correct the line or remove it.',
    )
    num_users, num_items = int(user.max()) + 1, int(item.max()) + 1
    first = np.unique(user * num_items + item, return_index=True)[1]
    repeated = np.ones(len(user), dtype=bool)
    repeated[first] = False
    _refuse(
        path,
        repeated,
        'a pair of user and item must occur once in the whole file',
        np.stack([user, item], axis=1),
        'Remove the repeated lines.',
    )
    if not (label == 0).any():
        raise ValueError(
            f"'{path}' must hold training interactions, lines with 'x_label' 0 (got "
            f'none among {len(label)} lines). Check the column that holds the split.'
        )
    extras = {}
    for column, name in _OPTIONAL.items():
        if column in columns:
            whole = name == 'time'
            read = _whole if whole else _finite
            extras[name] = read(path, rows, columns, column)

    trained = np.zeros(num_users, dtype=bool)
    trained[user[label == 0]] = True
    keep = trained[user]
    return Interactions(
        user=user[keep],
        item=item[keep],
        label=label[keep],
        num_users=num_users,
        num_items=num_items,
        extras={name: value[keep] for name, value in extras.items()},
    )


def read_features(path: str, num_items: int, inter_name: str) -> Tensor:
    r"""Reads item features :obj:`[num_items, F]` from a :obj:`.npy` file.

    Args:
        path (str): The file; float16, float32 or float64.
        num_items (int): Number of items.
        inter_name (str): Name of the file that :obj:`num_items` comes from.

    Returns:
        torch.Tensor: The features, float32.

    Raises:
        ValueError: If the file is damaged, or its values have the wrong type or
            shape, or are not finite.
    """
    try:
        array = np.load(path, mmap_mode='r', allow_pickle=False)
    except FileNotFoundError:
        raise
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(
            f"'{path}' must be a complete .npy file of numbers (got: {error}). Copy "
            f"or download it again, or store it anew with 'numpy.save'."
        ) from error
    if not isinstance(array, np.ndarray) or array.dtype.kind != 'f':
        got = array.dtype if isinstance(array, np.ndarray) else 'an archive'
        raise ValueError(
            f"'{path}' must hold float16, float32 or float64 values (got {got}). "
            f'Convert them before storing.'
        )
    if array.ndim != 2 or array.shape[0] != num_items or array.shape[1] == 0:
        raise ValueError(
            f"'{path}' must have one row per item, the largest 'itemID' of "
            f"'{inter_name}' plus one: expected shape [{num_items}, F] with F >= 1 "
            f'(got {list(array.shape)}). Both files must come from the same version '
            f'of the dataset.'
        )
    with np.errstate(over='ignore'):  # Becomes infinite, which is refused below.
        x = torch.from_numpy(array.astype(np.float32))
    schema.check_features(x, num_items, path)
    return x


def _read_table(path: str) -> tuple[list[str], np.ndarray]:
    r"""Returns the columns' names and the columns of interest as float64."""
    with open(path, 'rb') as file:
        content = file.read()
    try:
        # Texts may hold what 'splitlines' takes for a line break, such as U+2028.
        text = content.decode('utf-8-sig').replace('\r\n', '\n')
        lines = text.replace('\r', ' ').split('\n')
    except UnicodeDecodeError as error:
        number = content[: error.start].count(b'\n') + 1
        raise ValueError(
            f"'{path}', line {number}: must be plain text in UTF-8 (got the byte "
            f'{content[error.start]:#04x}). The file is damaged or of another kind.'
        ) from error
    while lines and not lines[-1].strip():
        lines.pop()
    header = lines[0].split('\t') if lines else []
    missing = [name for name in _COLUMNS if header.count(name) != 1]
    if missing or any(header.count(name) > 1 for name in _OPTIONAL):
        optional = ' and '.join(_OPTIONAL)
        raise ValueError(
            f"'{path}', line 1: the header must name {', '.join(_COLUMNS)} once each, "
            f'and {optional} at most once, separated by tabs (got '
            f'{lines[0][:80] if lines else ""!r}). Rename the columns, or load the '
            f"table with 'from_frame'."
        )
    if len(lines) == 1:
        raise ValueError(
            f"'{path}' must hold interactions below its header (got none). The file "
            f'is empty or cut off: copy or download it again.'
        )
    columns = [name for name in (*_COLUMNS, *_OPTIONAL) if header.count(name) == 1]
    places = [header.index(name) for name in columns]
    num_tabs = sum(line.count('\t') for line in lines)
    try:
        if num_tabs != len(lines) * (len(header) - 1) or '' in lines:
            raise ValueError('lines of different lengths')
        rows = np.loadtxt(
            lines[1:],
            dtype=np.float64,
            comments=None,
            delimiter='\t',
            usecols=places,
            ndmin=2,
        )
    except ValueError as error:
        raise _first_bad_line(path, lines, columns, places) from error
    return columns, rows


def _first_bad_line(
    path: str, lines: list[str], columns: list[str], places: list[int]
) -> ValueError:
    num_fields = lines[0].count('\t') + 1
    for number, line in enumerate(lines[1:], start=2):
        fields = line.split('\t')
        if len(fields) != num_fields:
            return ValueError(
                f"'{path}', line {number}: must have {num_fields} values separated "
                f'by tabs, as the header (got {line[:80]!r}). If it is the last '
                f'line, the file was cut off: copy or download it again.'
            )
        for name, place in zip(columns, places):
            try:
                float(fields[place].replace('_', ' '))
            except ValueError:
                return ValueError(
                    f"'{path}', line {number}: '{name}' must be a number (got "
                    f'{fields[place][:80]!r}). Correct the line or remove it.'
                )
    return ValueError(f"'{path}' must be a table of numbers separated by tabs")


def _finite(path: str, rows: np.ndarray, columns: list[str], name: str) -> np.ndarray:
    value = rows[:, columns.index(name)]
    expected = f"'{name}' must be a finite number"
    with np.errstate(over='ignore'):  # Refused as infinite.
        bad = ~np.isfinite(value.astype(np.float32))
    _refuse(path, bad, expected, value, 'Correct the line.')
    return value


def _whole(path: str, rows: np.ndarray, columns: list[str], name: str) -> np.ndarray:
    value = rows[:, columns.index(name)]
    whole = np.isfinite(value) & (np.floor(value) == value) & (np.abs(value) < 2**53)
    expected = f"'{name}' must be a whole number"
    _refuse(path, ~whole, expected, value, 'Correct the line.')
    return value.astype(np.int64)


def _refuse(
    path: str, bad: np.ndarray, expected: str, value: np.ndarray, way_out: str
) -> None:
    if bad.any():
        row = int(bad.argmax())
        raise ValueError(
            f"'{path}', line {row + 2}: {expected} (got {value[row].tolist()}). "
            f'{way_out}'
        )
