r"""The contracts as checks that anyone can run on a plug-in of their own."""

from .check_model import check_model
from .check_unlearner import check_unlearner
from .rehearse_cuda import Rehearsal, Wait, rehearse_cuda

__all__ = ['Rehearsal', 'Wait', 'check_model', 'check_unlearner', 'rehearse_cuda']
