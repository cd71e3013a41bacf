from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch_geometric.data import HeteroData

from torch_geometric_unlearn.nn.models.base import RecommenderLike
from torch_geometric_unlearn.train.fit import fit

from .base import Unlearner


class Retrain(Unlearner):
    r"""Trains a fresh model on the retained data: exact, slow, and the reference of
    every other method.

    Args:
        build_model (callable): Returns a fresh model for some data, drawing its
            parameters from torch's global generator.
        seed (int, optional): Seed of the initial parameters and of the batches. With
            the seeds of the original training, both share their starting point.
            (default: :obj:`999`)
        **kwargs (optional): Further arguments of
            :meth:`~torch_geometric_unlearn.train.fit`.

    Example:
        >>> retrain = Retrain(MGCN.from_data, num_epochs=2)
        >>> result = retrain(model, ForgetUsers([3])(data))
        >>> result.exact
        True
    """

    exact = True
    serves_half = True
    serves_columns = True
    continues = False
    serves_nodes = True

    def __init__(
        self,
        build_model: Callable[[HeteroData], RecommenderLike],
        seed: int = 999,
        **kwargs: Any,
    ) -> None:
        super().__init__(seed)
        self.build_model = build_model
        self.kwargs = kwargs

    def _unlearn(
        self, model: RecommenderLike, data: HeteroData, retained: HeteroData
    ) -> tuple[RecommenderLike, list[dict[str, Any]]]:
        device = next(model.parameters()).device
        fresh = self.build_model(retained).to(device)
        result = fit(fresh, retained, seed=self.seed, **self.kwargs)
        return fresh, [dict(row) for row in result.history]
