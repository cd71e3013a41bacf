from __future__ import annotations

from torch_geometric_unlearn.utils.check import check_float

from .iterative import IterativeUnlearner, Step, Workspace, repair


class FineTune(IterativeUnlearner):
    r"""Goes on training by the model's own full loss on the retained interactions, the
    third control of every comparison.

    Nothing pushes the forgotten pairs out: they fade by drift, and where their items
    are drawn as negatives. With many epochs this is a warm start of
    :class:`~torch_geometric_unlearn.unlearn.Retrain`. A fresh Adam state, stopping and
    selection as in all approximate methods, and the defaults are ours.

    Args:
        num_epochs (int, optional): Largest number of epochs. (default: :obj:`10`)
        lr (float, optional): Learning rate, that of the training.
            (default: :obj:`1e-3`)
        patience (int, optional): Epochs without gain in retained validation NDCG to sit
            out once the forget target is met; with 0, the run ends with the epoch that
            meets it. (default: :obj:`5`)
        batch_size (int, optional): Pairs per batch. (default: :obj:`2048`)
        seed (int, optional): Seed of every random choice. (default: :obj:`0`)

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> result = FineTune(num_epochs=2)(model, ForgetUsers([3])(data))
        >>> len(result.history) <= 2
        True
    """

    needs_negatives = False

    def __init__(
        self,
        num_epochs: int = 10,
        lr: float = 1e-3,
        patience: int = 5,
        batch_size: int = 2048,
        seed: int = 0,
    ) -> None:
        self.lr = check_float(lr, 'lr', 0.0)
        super().__init__(num_epochs, patience, batch_size, seed)

    def _set_up(self, work: Workspace) -> tuple[Step, None]:
        optimizer = work.optimizer(self.lr)
        return lambda met: repair(work, optimizer), None
