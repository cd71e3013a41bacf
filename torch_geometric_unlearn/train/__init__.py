r"""Training and checkpoints."""

from .checkpoint import load_model, save_model
from .fit import FitResult, fit

__all__ = ['FitResult', 'fit', 'load_model', 'save_model']
