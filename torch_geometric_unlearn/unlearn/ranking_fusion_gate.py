from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.data import HeteroData

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.nn.models import Triplets
from torch_geometric_unlearn.utils.topk import PairIndex


class RankingFusionGate:
    r"""The first intervention: looks at how visible a deleted pair still is.

    With :math:`\tau_u` the score of the :math:`K`-th item of user :math:`u` when the
    retained positives are masked, and :math:`T` a quarter of the standard deviation of
    the scores, the gate

    .. math::
        g_{ui} = \sigma \left( \frac{s(u, i) - \tau_u}{T} \right)

    is near 1 while the pair is inside or close to the list and near 0 once it has left.
    It weighs the reverse loss, so that forgotten pairs stop pushing, and gives the
    penalty :math:`\mathcal{L}_{gate} = \textrm{mean} \, g_{ui}
    \max(s(u, i) - \tau_u + \textrm{margin}, 0)`, whose gradient is meant for fusion
    parameters only. Gate, threshold and temperature carry no gradient. It does not ban
    an item from the lists of others. [Formulas ours.]

    Args:
        retained (HeteroData): The data after the deletion.
        k (int): Length of the list.
        margin (float): Margin of the penalty.
    """

    def __init__(self, retained: HeteroData, k: int, margin: float = 0.0) -> None:
        self.k = min(k, schema.num_items(retained))
        self.margin = margin
        self.positives = PairIndex(
            schema.retained_edge_index(retained), schema.num_users(retained)
        )

    def __call__(
        self,
        batch: Triplets,
        pos_score: Tensor,
        embeddings: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, Tensor]:
        r"""Returns the gate :obj:`[B]` and the penalty, a scalar.

        Args:
            batch (Triplets): Forget pairs with negatives.
            pos_score (torch.Tensor): Their scores :obj:`[B]`, with gradient.
            embeddings (tuple): User and item embeddings.
        """
        threshold, temperature = self.thresholds(batch.user, embeddings)
        gate = ((pos_score.detach() - threshold) / temperature).sigmoid()
        penalty = (gate * F.relu(pos_score - threshold + self.margin)).mean()
        return gate, penalty

    @torch.no_grad()
    def thresholds(
        self, user: Tensor, embeddings: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        r"""Returns :math:`\tau_u` :obj:`[B]` and :math:`T`, a scalar."""
        users, inverse = user.unique(return_inverse=True)
        scores = embeddings[0][users] @ embeddings[1].t()
        temperature = scores.std(dim=1, correction=0).mean().clamp(min=1e-12) / 4
        row, item = self.positives.lookup(users.to(self.positives.item.device))
        scores[row.to(user.device), item.to(user.device)] = -torch.inf
        threshold = scores.topk(self.k, dim=1)[0][:, -1]
        lowest = scores.masked_fill(scores == -torch.inf, torch.inf).amin(dim=1)
        threshold = torch.where(threshold == -torch.inf, lowest, threshold)
        return threshold[inverse], temperature
