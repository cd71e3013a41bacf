r"""The contracts as checks that anyone can run on a plug-in of their own, and a
rehearsal of CUDA without a GPU.
"""

from .check_model import check_model
from .check_unlearner import check_unlearner
from .rehearse_cuda import rehearse_cuda

__all__ = ['check_model', 'check_unlearner', 'rehearse_cuda']
