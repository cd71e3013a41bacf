from __future__ import annotations

from typing import Any

import torch.distributed as dist

from torch_geometric_unlearn.utils.versions import package_versions


class Processes:
    r"""Processes that work together, and what they agree on.

    Args:
        group (ProcessGroup, optional): The processes; all of them if not given, and
            this one alone without any. (default: :obj:`None`)

    Raises:
        ValueError: If this process is none of :obj:`group`.

    Example:
        >>> Processes().num_processes
        1
    """

    def __init__(self, group: Any = None) -> None:
        self.group = group
        self.rank, self.num_processes = 0, 1
        if dist.is_available() and dist.is_initialized():
            self.rank = dist.get_rank(group)
            self.num_processes = dist.get_world_size(group)
        elif group is not None:
            raise ValueError(
                "'group' is given, but there are no processes that could form one. "
                "Enter 'process_group()' first."
            )
        if self.rank < 0:
            raise ValueError("This process must be one of 'group' (got another one)")

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return self  # Copies of a model talk through the same group.

    def any(self, flag: bool) -> bool:
        r"""Tells whether :obj:`flag` is set on any process."""
        return any(self.share(flag))

    def share(self, value: Any) -> list[Any]:
        r"""Returns the picklable values of all processes, in order."""
        if self.num_processes == 1:
            return [value]
        out = [None] * self.num_processes
        dist.all_gather_object(out, value, group=self.group)
        return out

    def check_same(self, what: dict[str, str]) -> None:
        r"""Raises on every process unless all of them give equal texts, such as digests
        of what they work on, by name, and run the same versions of the packages.

        Raises:
            ValueError: If they differ; says in what.
        """
        what = what | {'the versions': f'{package_versions()}'}
        found = self.share(what)
        differing = [
            name for name in what if len({other.get(name) for other in found}) > 1
        ]
        if differing or any(other.keys() != what.keys() for other in found):
            raise ValueError(
                f'The {self.num_processes} processes differ in '
                f'{differing or sorted(set().union(*found))}, so that their parts '
                f'would not belong together. Start all of them with the same '
                f"arguments on the same data, and mark a request with "
                f"'distributed.mark'."
            )
