r"""A model's parameters as unlearning sees them: by leaf module and by branch."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from torch_geometric_unlearn.nn.models.base import RecommenderLike


@dataclass
class LeafModule:
    r"""A module that owns parameters, as layer isolation sees it.

    Attributes:
        name (str): Name within the model.
        parameters (list): Names of the parameters it owns that are trained.
        rows (torch.Tensor, optional): The only rows that may move, int64 :obj:`[n]`.
        is_raw (bool): Whether it is a trainable copy of raw features.
        size (int): Number of parameters that may move.
        sensitivity (float): Result of :meth:`isolate_modules`.
        selected (bool): Whether the reverse step may touch it.
    """

    name: str
    parameters: list[str]
    rows: Tensor | None = None
    is_raw: bool = False
    size: int = 0
    sensitivity: float = 0.0
    selected: bool = True


def leaf_modules(
    model: RecommenderLike, rows: dict[str, Tensor] | None = None
) -> list[LeafModule]:
    r"""Returns the modules that own trained parameters, in forward order.

    Args:
        model (torch.nn.Module): The model.
        rows (dict, optional): The only rows that may move, by parameter name.
            (default: :obj:`None`)
    """
    rows = rows or {}
    raw = {id(table.parameter) for table in model.tables() if table.is_raw}
    out = []
    for name, module in model.named_modules():
        own = {
            f'{name}.{key}' if name else key: p
            for key, p in module.named_parameters(recurse=False)
            if p.requires_grad
        }
        if not own:
            continue
        movable = next((rows[key] for key in own if key in rows), None)
        size = sum(p.numel() for p in own.values())
        if movable is not None:
            size = sum(movable.numel() * p[0].numel() for p in own.values())
        is_raw = any(id(p) in raw for p in own.values())
        out.append(LeafModule(name or 'model', list(own), movable, is_raw, size))
    return out


def branch_names(model: RecommenderLike) -> dict[str, str]:
    r"""Returns the branch of every parameter by name.

    Raises:
        ValueError: If the branches are no partition of the parameters.
    """
    names = {id(p): name for name, p in model.named_parameters()}
    out: dict[str, str] = {}
    for branch, members in model.branches().items():
        for parameter in members:
            name = names.get(id(parameter))
            if name is None or name in out:
                raise ValueError(
                    f"'branches()' must be a partition of the parameters, but "
                    f"'{branch}' holds "
                    + ('a foreign one' if name is None else f"'{name}' again")
                )
            out[name] = branch
    missing = sorted(set(names.values()) - set(out))
    if missing:
        raise ValueError(
            f"'branches()' must be a partition of the parameters, but misses {missing}"
        )
    return out
