r"""The contracts as checks that anyone can run on a plug-in of their own."""

from .check_model import check_model
from .check_unlearner import check_unlearner

__all__ = ['check_model', 'check_unlearner']
