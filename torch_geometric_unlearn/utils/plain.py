from __future__ import annotations

from torch import Tensor
from torch_geometric import EdgeIndex, Index

#: What PyG wraps around a tensor of edges or ids.
WRAPPERS = (EdgeIndex, Index)


def plain(x: Tensor) -> Tensor:
    r"""Returns the tensor inside an :class:`~torch_geometric.EdgeIndex` or
    :class:`~torch_geometric.Index`, whose operators differ from those of a tensor and
    which keep caches; anything else as it is.
    """
    return x.as_tensor() if isinstance(x, WRAPPERS) else x
