r"""Unlearning methods."""

from .base import Unlearner, UnlearnResult
from .cova import COVA
from .edge_drop import EdgeDrop
from .fine_tune import FineTune
from .gnndelete import GNNDelete
from .influence_function import InfluenceFunction
from .mmrecun import MMRecUn
from .multidelete import MultiDelete
from .neg_grad import NegGrad
from .partial_retrain import PartialRetrain
from .retrain import Retrain
from .row_reset import RowReset
from .scalegun import ScaleGUN
from .tru import TRU
from .ultrare import UltraRE

__all__ = [
    'COVA',
    'TRU',
    'EdgeDrop',
    'FineTune',
    'GNNDelete',
    'InfluenceFunction',
    'MMRecUn',
    'MultiDelete',
    'NegGrad',
    'PartialRetrain',
    'Retrain',
    'RowReset',
    'ScaleGUN',
    'UltraRE',
    'UnlearnResult',
    'Unlearner',
]
