r"""Training and evaluation mode, module by module."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# By the id of a module that is in evaluation mode for some blocks: the number of these,
# and its own mode. Threads that look at one model at the same time share an entry.
_held: dict[int, tuple[int, bool]] = {}
_lock = threading.Lock()  # For the switches alone, never for a block.


def _renew() -> None:
    global _lock
    _lock = threading.Lock()


if hasattr(os, 'register_at_fork'):  # Whichever thread held it is not in the child.
    os.register_at_fork(after_in_child=_renew)


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    r"""Puts a model in evaluation mode inside the block and gives every module its own
    mode back after it, so that a part that is frozen in evaluation mode stays so.

    Several threads may look at one model at the same time: it stays in evaluation mode
    until the last of them has left. But none may train it meanwhile.
    """
    modules = list(model.modules())
    with _lock:
        for module in modules:
            count, mode = _held.get(id(module), (0, module.training))
            _held[id(module)] = count + 1, mode
        model.eval()
    try:
        yield
    finally:
        with _lock:
            for module in modules:
                count, mode = _held.pop(id(module))
                if count > 1:
                    _held[id(module)] = count - 1, mode
                else:
                    module.training = mode


def copy_modes(source: Any, target: Any) -> None:
    r"""Gives the modules of a model the modes of the same ones of another, and those
    that only it has the mode of the whole. For modules in :meth:`evaluating`, these are
    the modes that they have outside of it.
    """
    with _lock:
        modes = {
            name: _held.get(id(module), (0, module.training))[1]
            for name, module in source.named_modules()
        }
    target.train(modes[''])
    for name, module in target.named_modules():
        module.training = modes.get(name, modes[''])
