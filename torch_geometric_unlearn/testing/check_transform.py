from __future__ import annotations

from torch_geometric.data import HeteroData
from torch_geometric.transforms import BaseTransform

from torch_geometric_unlearn.data import schema

from ._snapshot import assert_same, snapshot


def check_transform(transform: BaseTransform, data: HeteroData) -> HeteroData:
    r"""Checks the contract of a transform over recommendation data.

    The input stays as it was, the result meets the data contract and is the same in
    every call, node ids do not shift, and the transform prints itself.

    Args:
        transform (BaseTransform): The transform.
        data (HeteroData): Data that it can be applied to.

    Returns:
        HeteroData: The transformed data.

    Raises:
        AssertionError: If a part of the contract is broken; says which.

    Example:
        >>> out = check_transform(ForgetUsers([3]), SyntheticMultimodal('tiny')[0])
    """
    before = snapshot(data)
    out = transform(data)
    assert_same(before, snapshot(data), "The input of a transform")
    schema.validate(out)
    for node_type in (schema.USER, schema.ITEM):
        assert out[node_type].num_nodes == data[node_type].num_nodes, (
            f"The number of '{node_type}' nodes must not change"
        )
    assert_same(snapshot(out), snapshot(transform(data)), 'The result of a second call')
    assert type(transform).__name__ in repr(transform), 'A transform must print itself'
    return out
