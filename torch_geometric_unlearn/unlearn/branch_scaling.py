r"""Branch-wise modality scaling: parameters by branch, and how strongly each branch is
reversed.
"""

from __future__ import annotations

from torch import Tensor

from torch_geometric_unlearn.nn.models.base import RecommenderLike


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


def branch_energy(
    grads: dict[str, Tensor], branches: dict[str, str]
) -> dict[str, float]:
    r"""Returns the mean squared gradient of every branch but the fusion.

    Args:
        grads (dict): Gradients by parameter name.
        branches (dict): Branch by parameter name.
    """
    total: dict[str, float] = {}
    size: dict[str, int] = {}
    for name, grad in grads.items():
        branch = branches[name]
        if branch != 'fusion':
            total[branch] = total.get(branch, 0.0) + float(grad.pow(2).sum())
            size[branch] = size.get(branch, 0) + grad.numel()
    return {branch: total[branch] / size[branch] for branch in total}


def branch_scales(
    forget_energy: dict[str, float],
    retain_energy: dict[str, float],
    alpha_range: tuple[float, float] = (0.25, 4.0),
) -> dict[str, float]:
    r"""The second intervention: how strongly every branch is reversed

    .. math::
        \rho(m) = \frac{E_f(m)}{E_f(m) + E_r(m)}, \qquad
        \alpha(m) = \textrm{clip} \left(
        \frac{\rho(m)}{\textrm{mean}_{m^{\prime}} \rho(m^{\prime})},
        \alpha_{min}, \alpha_{max} \right).

    The forget side is measured with the reverse loss, whose gradient is large while a
    pair is remembered and fades once it is forgotten; that of the forward loss would
    turn the rule around. A branch without forget energy gets :math:`\alpha_{min}`; if
    none has any, all do. [Formulas ours.]

    Args:
        forget_energy (dict): :math:`E_f` by branch.
        retain_energy (dict): :math:`E_r` by branch.
        alpha_range (tuple, optional): Bounds. (default: :obj:`(0.25, 4.0)`)
    """
    rho = {}
    for branch, forget in forget_energy.items():
        total = forget + retain_energy.get(branch, 0.0)
        rho[branch] = forget / total if total > 0 else 0.0
    low, high = alpha_range
    mean = sum(rho.values()) / max(1, len(rho))
    if mean == 0:
        return dict.fromkeys(rho, low)
    return {branch: min(high, max(low, r / mean)) for branch, r in rho.items()}
