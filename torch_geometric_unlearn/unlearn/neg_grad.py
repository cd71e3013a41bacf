from __future__ import annotations

from torch_geometric_unlearn.utils.check import check_float

from .iterative import IterativeUnlearner, Step, Workspace, joint_pass


class NegGrad(IterativeUnlearner):
    r"""Gradient ascent on the forgotten interactions, with or without descent on the
    retained ones, known for classifiers as NegGrad+ from the `"Towards Unbounded
    Machine Unlearning" <https://arxiv.org/abs/2302.09880>`_ paper.

    Minimises

    .. math::
        \beta \, \mathcal{L}_{model}(\mathcal{D}_r)
        - (1 - \beta) \, \mathcal{L}_{BPR}(\mathcal{D}_f),

    by steps on a batch of either side, propagating over the retained interactions only.
    With :math:`\beta = 0` this is plain gradient ascent, one pass over the forgotten
    interactions per epoch. The second term has no lower bound, so the gradient is
    clipped, and the run ends with the epoch that meets the forget target. On memorised
    pairs its gradient is small, so the forget target may stay out of reach.

    Up to names, clipping and stopping this is
    :obj:`MMRecUn(form='negate', schedule='joint', alpha=beta)`: report one of them, not
    both. Ours, since the method comes from another field: BPR, Adam, the weight (values
    near 1 are usual), clipping, stopping and selection, and every default.

    Args:
        beta (float, optional): Weight :math:`\beta \in [0, 1]` of the retained side.
            (default: :obj:`0.95`)
        lr (float, optional): Learning rate, that of the training.
            (default: :obj:`1e-3`)
        max_norm (float, optional): Largest norm of the gradient, no limit if
            :obj:`None`. (default: :obj:`1.0`)
        num_epochs (int, optional): Largest number of epochs, passes over the longer
            side. (default: :obj:`10`)
        batch_size (int, optional): Pairs per batch on both sides.
            (default: :obj:`2048`)
        seed (int, optional): Seed of every random choice. (default: :obj:`0`)

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> result = NegGrad(num_epochs=2)(model, ForgetUsers([3])(data))
        >>> len(result.history) <= 2
        True
    """

    def __init__(
        self,
        beta: float = 0.95,
        lr: float = 1e-3,
        max_norm: float | None = 1.0,
        num_epochs: int = 10,
        batch_size: int = 2048,
        seed: int = 0,
    ) -> None:
        self.lr = check_float(lr, 'lr', 0.0)
        super().__init__(num_epochs, 0, batch_size, seed)
        self.beta = check_float(beta, 'beta', 0.0, 1.0)
        if max_norm is not None:
            max_norm = check_float(max_norm, 'max_norm', 1e-12)
        self.max_norm = max_norm

    def _set_up(self, work: Workspace) -> tuple[Step, None]:
        num_batches = len(work.forget_loader)
        if self.beta > 0:
            num_batches = max(num_batches, len(work.retain_loader))
        optimizer = work.optimizer(self.lr)
        joint = work, optimizer, 'negate', self.beta, num_batches, self.max_norm
        return lambda met: joint_pass(*joint), None
