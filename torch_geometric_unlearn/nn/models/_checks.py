r"""Checks that multimodal models share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch.nn import ModuleDict
from torch_geometric.data import HeteroData

from torch_geometric_unlearn.data import schema


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
