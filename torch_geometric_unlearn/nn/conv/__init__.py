r"""Message passing layers."""

from .light_conv import LightConv

__all__ = ['LightConv']
