r"""Message passing layers."""

from .layer_mean_conv import LayerMeanConv
from .light_conv import LightConv
from .markov_diffusion_conv import MarkovDiffusionConv
from .sampled_attention_conv import SampledAttentionConv

__all__ = [
    'LayerMeanConv',
    'LightConv',
    'MarkovDiffusionConv',
    'SampledAttentionConv',
]
