from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class _Moments:
    mean: Tensor
    square: Tensor
    step: int = 0


class MaskedAdam:
    r"""Adam that moves chosen parameters, or chosen rows of them, each with a step
    size of its own, and leaves everything else bit-identical.

    The update of a parameter that moves is that of the `"Adam"
    <https://arxiv.org/abs/1412.6980>`_ paper without weight decay. Adam divides out
    any constant factor on a gradient, so a scale must act on the step: it is part of
    :obj:`lr`. A parameter that sits a step out keeps its moments and its own step count
    and goes on from them when it comes back.

    Args:
        betas (tuple, optional): Decay of both moments.
            (default: :obj:`(0.9, 0.999)`)
        eps (float, optional): Added to the denominator. (default: :obj:`1e-8`)
    """

    def __init__(
        self, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
    ) -> None:
        self.betas = betas
        self.eps = eps
        self._state: dict[str, _Moments] = {}

    @torch.no_grad()
    def step(
        self,
        name: str,
        parameter: Tensor,
        grad: Tensor,
        lr: float,
        rows: Tensor | None = None,
    ) -> None:
        r"""Moves one parameter in place.

        Args:
            name (str): Key of its moments.
            parameter (torch.Tensor): The parameter.
            grad (torch.Tensor): Its gradient, same shape.
            lr (float): Step size.
            rows (torch.Tensor, optional): The only rows to move, unique int64
                :obj:`[n]`, the same ones in every call. (default: :obj:`None`)
        """
        grad = grad if rows is None else grad[rows]
        if name not in self._state:
            self._state[name] = _Moments(torch.zeros_like(grad), torch.zeros_like(grad))
        state = self._state[name]
        state.step += 1
        state.mean.lerp_(grad, 1 - self.betas[0])
        state.square.mul_(self.betas[1]).addcmul_(grad, grad, value=1 - self.betas[1])
        mean = state.mean / (1 - self.betas[0] ** state.step)
        square = state.square / (1 - self.betas[1] ** state.step)
        change = mean / (square.sqrt() + self.eps)
        if rows is None:
            parameter.sub_(change, alpha=lr)
        else:
            parameter.index_add_(0, rows, change, alpha=-lr)
