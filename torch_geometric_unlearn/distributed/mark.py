from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from torch_geometric.data import HeteroData

from torch_geometric_unlearn.data.digest import data_digest

from .processes import Processes


def mark(
    data: HeteroData,
    request: Callable[[HeteroData], HeteroData] | None,
    processes: Processes | None = None,
) -> HeteroData:
    r"""Marks the request of the first process on every process.

    The first one tries it on its own data; what it accepts, every process applies, and
    all of them make sure that they hold the same data afterwards.

    Args:
        data (HeteroData): The data, the same on every process.
        request (callable, optional): On the first process, the request, such as
            :class:`~torch_geometric_unlearn.transforms.ForgetUsers`, which is sent as a
            pickle; on others, :obj:`None`.
        processes (Processes, optional): The processes, such as those that share the
            columns of a model; all of them if not given. (default: :obj:`None`)

    Returns:
        HeteroData: The data with the request.

    Raises:
        TypeError: If the first process has no request, or another one has one.
        ValueError: If the request is refused, or the data differ; on every process.

    Example:
        >>> marked = mark(data, ForgetUsers([3]) if Processes().rank == 0 else None)
    """
    processes = processes or Processes()
    is_first = processes.rank == 0
    wrong = (request is None) if is_first else (request is not None)
    if processes.any(wrong):
        raise TypeError(
            "'request' must be given on the first process and nowhere else, where it "
            'comes from there'
        )
    reason, marked = '', None
    if is_first:
        assert request is not None
        try:
            marked = request(data)
        except (TypeError, ValueError) as error:
            reason = f'{error}'
    if processes.num_processes > 1:
        content: list[Any] = [reason, None if reason else request]
        group = processes.group
        source = 0 if group is None else dist.get_global_rank(group, 0)
        dist.broadcast_object_list(content, source, group=group)
        reason, request = content
    if reason:
        raise ValueError(f'The first process refused the request: {reason}')
    if marked is None:
        assert request is not None
        marked = request(data)
    processes.check_same({'the marked data': data_digest(marked)})
    return marked
