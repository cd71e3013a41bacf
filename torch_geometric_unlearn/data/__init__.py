r"""The data contract, and tables and other graphs to data objects and back."""

from .from_frame import from_csv, from_frame, from_parquet, raw_to_internal, to_frame
from .from_hetero import from_hetero
from .schema import validate

__all__ = [
    'from_csv',
    'from_frame',
    'from_hetero',
    'from_parquet',
    'raw_to_internal',
    'to_frame',
    'validate',
]
