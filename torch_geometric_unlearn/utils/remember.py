from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

#: What is known of tensors that are still alive, with the version it was found at.
_facts: Any = WeakTensorKeyDictionary()


def remembered(x: Tensor) -> dict[Any, Any]:
    r"""Returns a dictionary for what has been found out about a tensor, the same one as
    long as the tensor lives and is not written to, and then an empty one.

    Writes that torch does not count (through :obj:`x.data` or a shared NumPy array)
    are not seen. A tensor made in inference mode counts none and is never remembered.

    Args:
        x (torch.Tensor): The tensor.
    """
    if x.is_inference():
        return {}
    version, facts = _facts.get(x, (-1, {}))
    if version != x._version:
        facts = {}
        _facts[x] = (x._version, facts)
    return facts
