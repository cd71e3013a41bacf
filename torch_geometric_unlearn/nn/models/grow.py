from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import Embedding, Module, Parameter
from torch_geometric.data import HeteroData

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.utils.mode import evaluating
from torch_geometric_unlearn.utils.seed import isolated_seed

from .base import Table, named_tables

ModuleT = TypeVar('ModuleT', bound=Module)


def grow(
    model: ModuleT,
    data: HeteroData,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    seed: int = 0,
) -> ModuleT:
    r"""Returns a copy of a trained model with rows for the new users and items of
    :obj:`data`.

    Old nodes keep their ids and their rows, bit by bit. New rows are drawn as the model
    drew its own (see :class:`Table`), or are the features where a table is a copy of
    these. Then :meth:`fit <torch_geometric_unlearn.train.fit.fit>` goes on from there.

    Args:
        model (torch.nn.Module): A model with the attributes :obj:`num_users` and
            :obj:`num_items`, as all of the package and the adapter have; left as it is.
        data (HeteroData): Data with at least its users and items, under the same ids,
            such as from :meth:`from_frame(..., like=old_data)
            <torch_geometric_unlearn.data.from_frame.from_frame>`.
        optimizer (torch.optim.Optimizer, optional): The optimiser of the model, which
            is moved to the copy in place: old rows keep their state, that of new ones
            is zero. (default: :obj:`None`)
        seed (int, optional): Seed of the new rows. (default: :obj:`0`)

    Raises:
        ValueError: If the data has fewer users or items than the model, a table of
            features does not tell its modality, the model keeps something else of
            every node, which can't grow, or the optimiser is not the model's.

    Example:
        >>> old = SyntheticMultimodal('tiny')[0]
        >>> model = LightGCN.from_data(old)
        >>> new = SyntheticMultimodal('tiny', num_users=130)[0]
        >>> grow(model, new).num_users
        130
    """
    data = schema.validate(data)
    for name in ('num_users', 'num_items'):
        if not isinstance(getattr(model, name, None), int):
            raise ValueError(
                f"A model must have the attribute '{name}' to grow, but "
                f"'{type(model).__name__}' has none. Set it."
            )
    named = dict(model.named_parameters())
    if optimizer is not None:
        _check_optimizer(optimizer, named)
    out: Any = copy.deepcopy(model)
    old = out.num_users, out.num_items
    new = schema.num_users(data), schema.num_items(data)
    if new[0] < old[0] or new[1] < old[1]:
        raise ValueError(
            f'The data must have at least the {old[0]} users and {old[1]} items of the '
            f'model (got {new[0]} and {new[1]}). A deleted node stays as one without '
            f"edges; to keep ids, build the data with 'from_frame(..., like=...)'."
        )
    tables = named_tables(out)
    with isolated_seed(seed), torch.no_grad():
        for name, table in tables.items():
            rows = _grown(name, table, old, new, data)
            _replace(out, table.parameter, rows)
    sizes = {
        'num_users': (old[0], new[0]),
        'num_items': (old[1], new[1]),
        'num_nodes': (sum(old), sum(new)),
    }
    for module in out.modules():
        for key, (before, after) in sizes.items():
            if getattr(module, key, None) == before:
                setattr(module, key, after)
    _check(out, data, new)
    if optimizer is not None:
        places = {name: table.rows for name, table in tables.items()}
        _move(optimizer, named, dict(out.named_parameters()), places, old, new)
    return out


def _with_old_rows(
    x: Tensor, fresh: Tensor, rows: str, old: tuple[int, int], new: tuple[int, int]
) -> Tensor:
    r"""Writes the rows of old nodes into a larger table, in place, and returns it."""
    if rows == 'node':
        fresh[: old[0]] = x[: old[0]]
        fresh[new[0] : new[0] + old[1]] = x[old[0] :]
    else:
        fresh[: x.size(0)] = x
    return fresh


def _grown(
    name: str,
    table: Table,
    old: tuple[int, int],
    new: tuple[int, int],
    data: HeteroData,
) -> Tensor:
    x = table.parameter
    num_rows = {schema.USER: new[0], schema.ITEM: new[1], 'node': sum(new)}[table.rows]
    fresh = x.new_empty(num_rows, *x.shape[1:])
    if not table.is_raw:
        table.init(fresh)
    elif not table.modality:
        raise ValueError(
            f"The table '{name}' is a copy of features, but does not tell of which, so "
            f"new rows can't be filled. Give its 'Table' the 'modality'."
        )
    else:
        fresh.copy_(table.features(data))
    return _with_old_rows(x, fresh, table.rows, old, new)


def _replace(model: Module, parameter: Tensor, rows: Tensor) -> None:
    r"""Puts a larger parameter into all places of a smaller one."""
    larger = Parameter(rows, requires_grad=parameter.requires_grad)
    for module in model.modules():
        for key, value in list(module._parameters.items()):
            if value is parameter:
                setattr(module, key, larger)
                if isinstance(module, Embedding):
                    module.num_embeddings = rows.size(0)


def _check(model: Any, data: HeteroData, sizes: tuple[int, int]) -> None:
    try:
        with torch.no_grad(), evaluating(model):
            got = tuple(x.size(0) for x in model(model.build_graph(data)))
    except (RuntimeError, ValueError, IndexError) as error:
        raise ValueError(
            f"'{type(model).__name__}' can't grow, since it keeps more of every node "
            f'than its tables tell ({error}). Train a model of the new size.'
        ) from error
    if got != sizes:
        raise ValueError(
            f"'{type(model).__name__}' can't grow: its embeddings should have {sizes} "
            f'rows after it (got {got}). Name every table in its tables().'
        )


def _check_optimizer(
    optimizer: torch.optim.Optimizer, named: dict[str, Parameter]
) -> None:
    known = {id(parameter) for parameter in named.values()}
    params = [p for group in optimizer.param_groups for p in group['params']]
    foreign = sum(id(p) not in known for p in params)
    if foreign:
        raise ValueError(
            f"'optimizer' must step the parameters of the model, but {foreign} of "
            f'{len(params)} are of another one. Pass the optimizer that trained it.'
        )


def _move(
    optimizer: torch.optim.Optimizer,
    named: dict[str, Parameter],
    grown: dict[str, Parameter],
    places: dict[str, str],
    old: tuple[int, int],
    new: tuple[int, int],
) -> None:
    r"""Makes an optimiser step the grown parameters with the state of the old ones."""
    names = {id(parameter): name for name, parameter in named.items()}
    for group in optimizer.param_groups:
        for k, parameter in enumerate(group['params']):
            name = names[id(parameter)]
            group['params'][k] = larger = grown[name]
            state = optimizer.state.pop(parameter, None)
            if state is None:
                continue
            for key, x in state.items():
                is_table = torch.is_tensor(x) and x.shape == parameter.shape
                if is_table and larger.shape != parameter.shape:
                    fresh = x.new_zeros(larger.shape)
                    state[key] = _with_old_rows(x, fresh, places[name], old, new)
            optimizer.state[larger] = state
