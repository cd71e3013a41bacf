r"""Unlearning methods."""

from .base import Unlearner, UnlearnResult
from .edge_drop import EdgeDrop
from .mmrecun import MMRecUn
from .retrain import Retrain
from .row_reset import RowReset
from .tru import TRU

__all__ = [
    'TRU',
    'EdgeDrop',
    'MMRecUn',
    'Retrain',
    'RowReset',
    'UnlearnResult',
    'Unlearner',
]
