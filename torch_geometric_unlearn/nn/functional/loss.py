r"""Pure losses on scores and representations."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from torch_geometric_unlearn.utils.check import check_choice


def bpr_loss(pos_score: Tensor, neg_score: Tensor) -> Tensor:
    r"""The Bayesian personalised ranking loss from the `"BPR"
    <https://arxiv.org/abs/1205.2618>`_ paper, a mean over the batch

    .. math::
        \mathcal{L} = \frac{1}{B} \sum_b -\log \sigma(s^+_b - s^-_b).

    Args:
        pos_score (torch.Tensor): Scores of the positives :obj:`[B]`.
        neg_score (torch.Tensor): Scores of the negatives :obj:`[B]`.
    """
    return F.softplus(neg_score - pos_score).mean()


def reverse_bpr_loss(
    pos_score: Tensor,
    neg_score: Tensor,
    form: str = 'swap',
    weight: Tensor | None = None,
) -> Tensor:
    r"""Reverse BPR for pairs that are to be forgotten, with
    :math:`x = s^+ - s^-`.

    The idea is from the `"Multi-Modal Recommendation Unlearning for Legal, Licensing,
    and Modality Constraints" <https://arxiv.org/abs/2405.15328>`_ paper; which of the
    two forms it uses was not in what could be read.

    :obj:`'swap'` minimises :math:`\textrm{softplus}(x)`: strong on memorised pairs,
    fading once they are forgotten, bounded below. :obj:`'negate'` minimises
    :math:`-\textrm{softplus}(-x)`, the literal sign reversal: weak on memorised pairs,
    a constant push on forgotten ones, unbounded below.

    Args:
        pos_score (torch.Tensor): Scores of the forget pairs :obj:`[B]`.
        neg_score (torch.Tensor): Scores of the negatives :obj:`[B]`.
        form (str, optional): :obj:`'swap'` or :obj:`'negate'`.
            (default: :obj:`'swap'`)
        weight (torch.Tensor, optional): Weights :obj:`[B]` inside the mean.
            (default: :obj:`None`)

    Raises:
        ValueError: If :obj:`form` is unknown.
    """
    check_choice(form, 'form', ('swap', 'negate'))
    x = pos_score - neg_score
    loss = F.softplus(x) if form == 'swap' else -F.softplus(-x)
    return loss.mean() if weight is None else (weight * loss).mean()


def info_nce_loss(anchor: Tensor, candidate: Tensor, temperature: float) -> Tensor:
    r"""The InfoNCE loss with in-batch candidates and cosine similarity

    .. math::
        \mathcal{L} = \frac{1}{B} \sum_b -\log
        \frac{\exp(\cos(\mathbf{x}_b, \mathbf{y}_b) / \tau)}
        {\sum_{b^{\prime}} \exp(\cos(\mathbf{x}_b, \mathbf{y}_{b^{\prime}}) / \tau)}.

    Args:
        anchor (torch.Tensor): Representations :math:`\mathbf{x}` :obj:`[B, H]`.
        candidate (torch.Tensor): Representations :math:`\mathbf{y}` :obj:`[B, H]`.
        temperature (float): The temperature :math:`\tau`.
    """
    return info_nce_terms(anchor, candidate, temperature).mean()


def info_nce_terms(
    anchor: Tensor, candidate: Tensor, temperature: float, start: int = 0
) -> Tensor:
    r"""The terms of :meth:`info_nce_loss` for some of the anchors, :obj:`[b]`.

    Args:
        anchor (torch.Tensor): Representations of anchors in a row :obj:`[b, H]`.
        candidate (torch.Tensor): Representations of all candidates :obj:`[B, H]`.
        temperature (float): The temperature :math:`\tau`.
        start (int, optional): The candidate of the first of these anchors.
            (default: :obj:`0`)
    """
    anchor, candidate = F.normalize(anchor) / temperature, F.normalize(candidate)
    end = start + anchor.size(0)
    if temperature < 0.025:  # The sum below could underflow in float32.
        target = torch.arange(start, end, device=anchor.device)
        return F.cross_entropy(anchor @ candidate.t(), target, reduction='none')
    # No logit exceeds 1 / temperature: a safe shift for all rows, which saves the
    # passes that look for the maximum of every row. Blocks stay in the CPU's cache.
    bound = 1 / temperature
    shift = anchor.new_full((), -bound)
    num_rows = 256 if anchor.device.type == 'cpu' else max(1, anchor.size(0))
    total = torch.cat(
        [
            torch.addmm(shift, block, candidate.t()).exp().sum(dim=1)
            for block in anchor.split(num_rows)
        ]
    )
    return total.log() + bound - (anchor * candidate[start:end]).sum(dim=-1)
