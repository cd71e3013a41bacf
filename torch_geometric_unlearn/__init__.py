r"""Machine unlearning for multimodal graph recommenders in PyTorch Geometric."""

__version__ = '0.1.0'

from . import (
    audit,
    data,
    datasets,
    distributed,
    evaluation,
    loader,
    metrics,
    nn,
    ops,
    report,
    testing,
    train,
    transforms,
    unlearn,
    utils,
    workspace,
)

__all__ = [
    '__version__',
    'audit',
    'data',
    'datasets',
    'distributed',
    'evaluation',
    'loader',
    'metrics',
    'nn',
    'ops',
    'report',
    'testing',
    'train',
    'transforms',
    'unlearn',
    'utils',
    'workspace',
]
