from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, Generic, TypeVar

from torch import Tensor

from torch_geometric_unlearn.distributed.blocks import Blocks
from torch_geometric_unlearn.distributed.columns import ColumnParallel, whole_state
from torch_geometric_unlearn.utils.seed import isolated_seed

from .base import Recommender, Table, constructor_arguments, named_tables

WholeT = TypeVar('WholeT', bound=Recommender)
DividedT = TypeVar('DividedT', bound='ColumnParallelModel[Any]')


class ColumnParallelModel(ColumnParallel, Generic[WholeT]):
    r"""What models that are divided by columns share, as the first base class, before
    that of the whole model.
    """

    #: The class of the whole model.
    whole_class: ClassVar[type[Any]]

    def divided(self: Any) -> dict[str, Blocks]:
        parts = {name: table.columns for name, table in named_tables(self).items()}
        return {name: part for name, part in parts.items() if part is not None}

    @classmethod
    def from_whole(cls: type[DividedT], model: WholeT, group: Any = None) -> DividedT:
        r"""Returns the columns of a whole model, which is the same on every process.

        Args:
            model (torch.nn.Module): The model, which is left as it is.
            group (ProcessGroup, optional): The processes; all of them if not given.
                (default: :obj:`None`)
        """
        state = model.state_dict()
        out: Any = _build(cls, model, state, {'group': group})
        parts = out.divided()
        for name, own in out.state_dict(keep_vars=True).items():
            x = state[name]
            own.data = (parts[name].take(x) if name in parts else x).clone()
        return out.train(model.training)

    def to_whole(self) -> WholeT:
        r"""Returns the model with all columns, the same on every process; all of them
        call it together.
        """
        state = dict(whole_state(self))
        out: Any = _build(self.whole_class, self, state, {})
        for name, whole in out.state_dict(keep_vars=True).items():
            whole.data = state[name].clone()
        return out.train(self.training)  # type: ignore[attr-defined]

    def _divide(self, tables: Iterable[Table], init: Any) -> list[Table]:
        r"""Returns ID tables as the columns that they are, which :obj:`init` fills."""
        return [table._replace(init=init, columns=self.columns) for table in tables]


def _build(
    cls: Any, model: Any, state: dict[str, Tensor], arguments: dict[str, Any]
) -> Any:
    r"""Returns a model of the arguments of another one."""
    with isolated_seed(0):  # What is drawn is overwritten.
        return cls.from_saved(constructor_arguments(model) | arguments, state)
