r"""Models and data of a workspace as files that are named by their content."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.nn.models.base import RecommenderLike
from torch_geometric_unlearn.train.checkpoint import (
    check_header,
    check_model,
    model_record,
)
from torch_geometric_unlearn.utils.files import make_folder, remove_stale
from torch_geometric_unlearn.utils.seed import isolated_seed
from torch_geometric_unlearn.utils.tensor_file import (
    from_plain,
    load_tensors,
    save_tensors,
    to_plain,
)

#: Returns a fresh model for some data.
BuildModel = Callable[[HeteroData], RecommenderLike]


class Store:
    r"""The folders :obj:`models` and :obj:`data`, whose files are never changed.

    Args:
        root (Path): The workspace.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def model_path(self, version: str) -> Path:
        r"""Returns the file of a model."""
        return self.root / 'models' / f'{version}.safetensors'

    def data_path(self, version: str) -> Path:
        r"""Returns the file of data."""
        return self.root / 'data' / f'{version}.safetensors'

    def put_model(self, model: RecommenderLike) -> str:
        r"""Writes a model and returns its name."""
        return self._put('models', model.state_dict(), model_record(model))

    def put_data(self, data: HeteroData) -> str:
        r"""Writes data and returns its name.

        Raises:
            TypeError: If it holds what can't be stored; names it.
        """
        tensors: dict[str, Tensor] = {}
        content = to_plain(data.to_dict(), tensors, 'data')
        text = bytearray(json.dumps(content).encode())
        tensors['content'] = torch.frombuffer(text, dtype=torch.uint8)
        return self._put('data', tensors, {})

    def get_model(
        self, version: str, data: HeteroData, build_model: BuildModel
    ) -> RecommenderLike:
        r"""Reads a model.

        Raises:
            ValueError: If the file is not what it was.
        """
        path = self.model_path(version)
        tensors, header = self._get(path, version)
        with isolated_seed(0):  # What is drawn is overwritten.
            model = build_model(data)
        check_header(header, path)
        check_model(header, tensors, model, path)
        model.load_state_dict(tensors)
        return model.eval()

    def get_data(self, version: str) -> HeteroData:
        r"""Reads data.

        Raises:
            ValueError: If the file is not what it was.
        """
        tensors, _ = self._get(self.data_path(version), version)
        content = json.loads(tensors.pop('content').numpy().tobytes())
        return schema.validate(HeteroData.from_dict(from_plain(content, tensors)))

    def remove_all_but(self, models: set[str], data: set[str]) -> list[str]:
        r"""Removes all files that are not named, and returns which these were."""
        gone = []
        for folder, names in (('models', models), ('data', data)):
            path = self.root / folder
            if not path.is_dir():
                continue
            remove_stale(str(path))
            for file in sorted(path.iterdir()):
                if file.suffix == '.safetensors' and file.stem not in names:
                    with suppress(FileNotFoundError):
                        file.unlink()
                    gone.append(f'{folder}/{file.name}')
        return gone

    def _put(
        self, folder: str, tensors: dict[str, Tensor], meta: dict[str, Any]
    ) -> str:
        path = self.root / folder
        make_folder(str(path))
        draft = path / 'draft.safetensors'
        save_tensors(draft, tensors, meta)
        name = sha256(draft.read_bytes()).hexdigest()
        draft.replace(path / f'{name}.safetensors')
        return name

    @staticmethod
    def _get(path: Path, version: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        if not path.is_file():
            raise ValueError(f"'{path}' is missing. Run 'tgu doctor'.")
        if sha256(path.read_bytes()).hexdigest() != version:
            raise ValueError(
                f"'{path}' is not what it was when it was written. Do not serve it; "
                f"run 'tgu doctor'."
            )
        return load_tensors(path)
