r"""Pure losses, and dropout."""

from .dropout import dropout
from .loss import bpr_loss, info_nce_loss, reverse_bpr_loss

__all__ = ['bpr_loss', 'dropout', 'info_nce_loss', 'reverse_bpr_loss']
