r"""Training and evaluation mode, module by module."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    r"""Puts a model in evaluation mode inside the block and gives every module its own
    mode back after it, so that a part that is frozen in evaluation mode stays so.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def copy_modes(source: Any, target: Any) -> None:
    r"""Gives the modules of a model the modes of the same ones of another, and those
    that only it has the mode of the whole.
    """
    target.train(source.training)
    modes = {name: module.training for name, module in source.named_modules()}
    for name, module in target.named_modules():
        module.training = modes.get(name, module.training)
