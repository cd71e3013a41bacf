r"""The base class of datasets that are stored on disk."""

from __future__ import annotations

import json
import os
import os.path as osp
import re
import sys
from collections.abc import Sequence
from functools import cached_property
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Data, HeteroData, InMemoryDataset
from torch_geometric.data.data import BaseData

from torch_geometric_unlearn.utils.digest import content_digest
from torch_geometric_unlearn.utils.files import make_folder, remove_stale
from torch_geometric_unlearn.utils.tensor_file import (
    from_plain,
    load_tensors,
    save_tensors,
    to_plain,
)

#: Rises when the same options and files give another result, or are stored in another
#: way, so that no file of an earlier version is taken.
_VERSION = 2
_CLASSES: dict[str, type[BaseData]] = {'Data': Data, 'HeteroData': HeteroData}


class StoredDataset(InMemoryDataset):
    r"""An in-memory dataset of one :class:`~torch_geometric.data.HeteroData` whose
    processed file is either complete or absent, whenever the process is killed.

    In contrast to :class:`~torch_geometric.data.InMemoryDataset`, the raw files are
    not asked for once the processed file exists; all that a :obj:`pre_transform` and a
    :obj:`pre_filter` consist of is part of the processed file's name (see
    :meth:`processed_name`) instead of a separate file, so that each has its own
    processed file and none is taken for another; and the file holds tensors and JSON
    only, so that opening it can't run code.

    Raises:
        OSError: If :obj:`root` can't be written.
        TypeError: If the :obj:`pre_transform` holds something without content to
            compare, such as an open file, or gives something that can't be stored.
        ValueError: If the processed file is damaged.
    """

    def processed_name(self, *options: Any) -> str:
        r"""Returns a file name that is readable and unique for :obj:`options`, all
        choices that change the result, together with the :obj:`pre_transform`.
        """
        parts = [str(option) for option in options]
        readable = [re.sub(r'[^\w.-]+', '-', part)[:32].strip('-') for part in parts]
        if self.pre_transform is not None:
            readable.append(type(self.pre_transform).__name__)
        parts += [f'version {_VERSION}', self._steps_digest]
        digest = sha256('\n'.join(parts).encode()).hexdigest()[:16]
        name = '_'.join(['data', *filter(None, readable[:6]), digest])
        return f'{name}.safetensors'

    @cached_property
    def _steps_digest(self) -> str:
        # Once, as a transform may change while it is at work.
        steps = [('pre_transform', self.pre_transform), ('pre_filter', self.pre_filter)]
        return ' '.join(content_digest(step, name) for name, step in steps)

    def _download(self) -> None:
        if not self.force_reload and osp.exists(self.processed_paths[0]):
            return
        make_folder(self.raw_dir)
        remove_stale(self.raw_dir)
        super()._download()

    def _process(self) -> None:
        if not self.force_reload and osp.exists(self.processed_paths[0]):
            return
        log = self.log and 'PYTEST_CURRENT_TEST' not in os.environ
        if log:
            print('Processing...', file=sys.stderr)
        make_folder(self.processed_dir)
        remove_stale(self.processed_dir)
        self.process()
        if log:
            print('Done!', file=sys.stderr)

    @classmethod
    def save(cls, data_list: Sequence[BaseData], path: str) -> None:
        r"""Saves a list of data objects to the file path :obj:`path`, atomically.

        Raises:
            TypeError: If they hold something that can't be stored as tensors and JSON,
                or are of another class than :class:`Data` or :class:`HeteroData`.
        """
        data, slices = cls.collate(data_list)
        name = type(data).__name__
        if _CLASSES.get(name) is not type(data):
            raise TypeError(
                f"'data_list' must hold objects of the class 'Data' or 'HeteroData' "
                f"(got '{name}')"
            )
        tensors: dict[str, Tensor] = {}
        content = {
            'class': name,
            'data': to_plain(data.to_dict(), tensors, 'data'),
            'slices': to_plain(_as_dict(slices), tensors, 'slices'),
        }
        text = bytearray(json.dumps(content).encode())
        tensors['content'] = torch.frombuffer(text, dtype=torch.uint8)
        save_tensors(path, tensors, {'version': _VERSION})

    def load(self, path: str, data_cls: type[BaseData] = Data) -> None:
        r"""Loads the dataset from the file path :obj:`path`; its class is that of the
        file.

        Raises:
            ValueError: If the file is damaged or of another kind.
        """
        try:
            tensors, _ = load_tensors(path)
            content = json.loads(tensors.pop('content').numpy().tobytes())
            data = from_plain(content['data'], tensors)
            data_cls = _CLASSES[content['class']]
            self.data = data_cls.from_dict(data)
            self.slices = from_plain(content['slices'], tensors)
        except (MemoryError, PermissionError):
            raise
        except Exception as error:  # A crafted file can break anything above.
            raise ValueError(
                f"'{path}' can't be read as a processed dataset "
                f'({type(error).__name__}: {_first_line(error)}). It was cut off or '
                f'changed on disk. Pass force_reload=True to build it again.'
            ) from error


def _as_dict(slices: Any) -> Any:
    # PyG collates into default dictionaries, whose factory nobody needs any more.
    if isinstance(slices, dict):
        return {key: _as_dict(value) for key, value in slices.items()}
    return slices


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), 'no further details')
