r"""Message passing layers."""

from .layer_mean_conv import LayerMeanConv
from .light_conv import LightConv

__all__ = ['LayerMeanConv', 'LightConv']
