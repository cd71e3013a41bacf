r"""What CUDA refuses and what makes the host wait for it, operator by operator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ._claimed import is_claimed

# Results whose size, or value in Python, the host has to wait for.
_WAITS = {
    '_coalesce', '_linalg_check_errors', '_linalg_eigh', '_linalg_svd',
    '_local_scalar_dense', '_unique', '_unique2', 'allclose', 'bincount', 'equal',
    'histc', 'linalg_eig', 'linalg_lstsq', 'masked_select', 'nonzero',
    'unique_consecutive', 'unique_dim', 'unique_dim_consecutive',
}  # fmt: skip
_COPIES = {'_to_copy', 'copy', 'copy_'}
_INDEXING = {'index', 'index_put', 'index_put_'}
# Beside the operators that torch marks as pointwise.
_TAKES_SCALARS = {'fill', 'fill_', 'masked_fill', 'masked_fill_'}


class Operator:
    r"""What there is to know about an operator of torch.

    Args:
        func (callable): The overload of an operator.

    Attributes:
        name (str): Its name without namespace and overload.
        is_composite (bool): Whether torch has it made of other operators only.
        is_inplace_view (bool): Whether it changes the shape of a tensor in place.
    """

    def __init__(self, func: Any) -> None:
        schema, key = func._schema, 'CompositeImplicitAutograd'
        self.func = func
        self.name = schema.name.partition('::')[2]
        self.is_composite = torch._C._dispatch_has_kernel_for_dispatch_key(
            func.name(), key
        )
        self.is_inplace_view = torch.Tag.inplace_view in func.tags
        self._arguments = [
            (x.name, x.alias_info is not None and x.alias_info.is_write)
            for x in schema.arguments
        ]
        is_pointwise = torch.Tag.pointwise in func.tags
        self._takes_scalars = is_pointwise or self.name in _TAKES_SCALARS
        self._num_scalars = 3 if self.name == 'where' else 1  # At most so many at once.

    def values(self, args: Any, kwargs: Any) -> dict[str, Any]:
        r"""Returns the arguments of a call by name, without those left out."""
        return {**dict(zip((key for key, _ in self._arguments), args)), **kwargs}

    def check_devices(self, values: dict[str, Any]) -> None:
        r"""Raises as CUDA does if the operator mixes devices.

        Permitted are copies, host tensors as indices of a device tensor, and a host
        tensor without dimensions that a pointwise operator only reads.

        Raises:
            RuntimeError: If it mixes devices in another way.
        """
        host = [key for key, x in _tensors(values) if not is_claimed(x)]
        if not host or self.name in _COPIES:
            return
        if len(host) == sum(1 for _ in _tensors(values)):
            return
        takes_scalars = self._takes_scalars
        if self.name in _INDEXING and is_claimed(values['self']):
            host = [key for key in host if key != 'indices']
            takes_scalars = True
        if takes_scalars and len(host) <= self._num_scalars:
            written = {key for key, is_written in self._arguments if is_written}
            host = [key for key in host if key in written or values[key].dim() > 0]
        if host:
            raise RuntimeError(
                f'Expected all tensors to be on the same device, but found at least '
                f"two devices, cuda:0 and cpu! ('{host[0]}' of {self.func} is on the "
                f'CPU)'
            )

    def waits(self, values: dict[str, Any]) -> bool:
        r"""Tells whether the host waits for the device in a call with a device tensor
        among its arguments or results, as :meth:`torch.cuda.set_sync_debug_mode` has
        it: if a size or a value is needed at once, and in blocking copies.
        """
        if self.name in _WAITS:
            return True
        rule = _RULES.get(self.name)
        return rule is not None and rule(values)


def _tensors(values: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    for key, value in values.items():
        if isinstance(value, Tensor):
            yield key, value
        elif isinstance(value, (list, tuple)):
            yield from ((key, x) for x in value if isinstance(x, Tensor))


def _copy_waits(values: dict[str, Any]) -> bool:
    source = values.get('src', values['self'])
    to = values.get('device')
    arrives = is_claimed(values['self']) if to is None else to.type != 'cpu'
    return is_claimed(source) != arrives and not values.get('non_blocking')


def _indexing_waits(values: dict[str, Any]) -> bool:
    indices = [x for x in values['indices'] if x is not None]
    masks = [x for x in indices if x.dtype in (torch.bool, torch.uint8)]
    is_number = 'values' in values and not is_claimed(values['values'])
    if is_number and len(masks) == len(indices):
        return False  # It is 'masked_fill'.
    return bool(masks) or is_number or not all(map(is_claimed, indices))


def _repeat_waits(values: dict[str, Any]) -> bool:
    return values.get('output_size') is None


def _isin_waits(values: dict[str, Any]) -> bool:
    x, test = values.get('elements'), values.get('test_elements')
    if not isinstance(x, Tensor) or not isinstance(test, Tensor):
        return False
    return test.numel() >= 10 * x.numel() ** 0.145  # Else it need not sort.


_RULES: dict[str, Callable[[dict[str, Any]], bool]] = {
    **dict.fromkeys(_COPIES, _copy_waits),
    **dict.fromkeys(_INDEXING, _indexing_waits),
    'repeat_interleave': _repeat_waits,
    'isin': _isin_waits,
}


#: The facts about an operator, found once.
operator = cache(Operator)
