r"""The base class of datasets that are stored on disk."""

from __future__ import annotations

import os
import os.path as osp
import re
import sys
from collections.abc import Sequence
from hashlib import sha256
from typing import Any

import torch
from torch_geometric.data import Data, HeteroData, InMemoryDataset
from torch_geometric.data.data import BaseData

from torch_geometric_unlearn.utils.files import atomic_save, make_folder, remove_stale


class StoredDataset(InMemoryDataset):
    r"""An in-memory dataset of one :class:`~torch_geometric.data.HeteroData` whose
    processed file is either complete or absent, whenever the process is killed.

    In contrast to :class:`~torch_geometric.data.InMemoryDataset`, the raw files are
    not asked for once the processed file exists, and a :obj:`pre_transform` is part
    of the processed file's name (see :meth:`processed_name`) instead of a separate
    file, so that each has its own processed file and none is taken for another.

    Raises:
        OSError: If :obj:`root` can't be written.
        ValueError: If the processed file is damaged.
    """

    def processed_name(self, *options: Any) -> str:
        r"""Returns a file name that is readable and unique for :obj:`options`, all
        choices that change the result, together with the :obj:`pre_transform`.
        """
        if self.pre_transform is not None:
            # Without memory addresses, which change from run to run.
            options += (re.sub(r' at 0x[0-9a-f]+', '', repr(self.pre_transform)),)
        parts = [str(option) for option in options]
        readable = [re.sub(r'[^\w.-]+', '-', part)[:32].strip('-') for part in parts]
        digest = sha256('\n'.join(parts).encode()).hexdigest()[:8]
        return '_'.join(['data', *filter(None, readable[:6]), digest]) + '.pt'

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
        r"""Saves a list of data objects to the file path :obj:`path`, atomically."""
        data, slices = cls.collate(data_list)
        content = (data.to_dict(), slices, data.__class__)
        atomic_save(lambda file: torch.save(content, file), path, _num_bytes(data))

    def load(self, path: str, data_cls: type[BaseData] = Data) -> None:
        r"""Loads the dataset from the file path :obj:`path`.

        Raises:
            ValueError: If the file is damaged.
        """
        try:
            super().load(path, data_cls)
        except (MemoryError, PermissionError):
            raise
        except Exception as error:  # `torch.load` raises nearly everything.
            raise ValueError(
                f"'{path}' can't be read as a processed dataset "
                f'({type(error).__name__}: {_first_line(error)}). It was cut off or '
                f'changed on disk. Pass force_reload=True to build it again.'
            ) from error


def _num_bytes(data: BaseData) -> int:
    stores = data.stores if isinstance(data, HeteroData) else [data]
    tensors = [v for store in stores for v in store.to_dict().values()]
    return sum(v.nbytes for v in tensors if isinstance(v, torch.Tensor))


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), 'no further details')
