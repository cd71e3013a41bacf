r"""Pure losses."""

from .loss import bpr_loss, info_nce_loss, reverse_bpr_loss

__all__ = ['bpr_loss', 'info_nce_loss', 'reverse_bpr_loss']
