r"""Checks that multimodal models share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import ModuleDict
from torch_geometric.data import HeteroData

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.utils.finite import (
    HALF,
    NotFiniteError,
    all_finite,
    bad_rows,
)


def check_modalities(names: Iterable[str], argument: str, model: str) -> list[str]:
    r"""Returns the names of the modalities, given as an argument of a model, as a list.

    Raises:
        ValueError: If there is none, or one can't name a module.
    """
    names = list(names)
    if len(names) == 0:
        raise ValueError(
            f"'{argument}' must hold at least one modality (got none). {model} is a "
            f'multimodal model; without features, use a collaborative one.'
        )
    for name in names:
        if not name.isidentifier() or hasattr(ModuleDict, name):
            raise ValueError(
                f"'{name}' can't name a modality, since its modules are named by "
                f"it. Use a plain word such as 'image'."
            )
    return names


def check_sizes(
    data: HeteroData, num_users: int, num_items: int, channels: Mapping[str, int]
) -> None:
    r"""Checks that a model was built for data of this size.

    Args:
        data (HeteroData): The data.
        num_users (int): Number of users that the model has.
        num_items (int): Number of items that the model has.
        channels (Mapping): Size of the raw features by modality that the model needs.

    Raises:
        ValueError: If they differ.
    """
    got = (schema.num_users(data), schema.num_items(data))
    if got != (num_users, num_items):
        raise ValueError(
            f'The model has {num_users} users and {num_items} items, but the '
            f'data has {got[0]} and {got[1]}. Node ids must not shift; pass the '
            f'data that the model was built for.'
        )
    if set(channels) - set(schema.modalities(data)):
        raise ValueError(
            f'The model needs the modalities {list(channels)}, but the items '
            f'carry {schema.modalities(data)}'
        )
    for name, size in channels.items():
        found = data[schema.ITEM][f'x_{name}'].size(1)
        if found != size:
            raise ValueError(
                f"The model needs 'x_{name}' with {size} channels (got {found})"
            )


def read_embeddings(
    model: Any, x: Tensor, what: str, side: int, graph: Any, name: str = 'model'
) -> Tensor:
    r"""Returns what a model has computed if it is finite, half precision as float32.

    Args:
        model (torch.nn.Module): The model.
        x (torch.Tensor): A row per user or item.
        what (str): What an error calls it.
        side (int): 0 for users, 1 for items.
        graph (Any): What the model looked at.
        name (str, optional): What an error calls the model.
            (default: :obj:`'model'`)

    Raises:
        ValueError: If it is not finite; says in which rows, and whether they have an
            empty history, whose mean is NaN.
    """
    if all_finite([x]):
        return x.float() if x.dtype in HALF else x
    rows, kind = bad_rows(x), ('user', 'item')[side]
    shown = ', '.join(map(str, rows[:5].tolist()))
    shown += ', ...' if rows.numel() > 5 else ''
    got = f'NaN or infinity in {rows.numel():,} of {x.size(0):,} rows: {shown}'
    advice = 'Go back to an intact checkpoint, or look for the layer that gives it.'
    if x.dtype in HALF:
        advice = f"{x.dtype} overflows early: convert the model with '.float()'."
    is_idle = not torch.isin(rows, graph.edge_index[side].cpu()).any()
    if is_idle and x[rows.to(x.device)].isnan().any(dim=1).all():
        advice = (
            f'None of these {kind}s has an interaction in the graph, and the mean '
            f'of an empty history is NaN: give an empty history a zero vector.'
        )
    raise NotFiniteError(
        f"'{name}' ({type(model).__name__}) must give finite {what} (got {got}). "
        f'{advice}'
    )
