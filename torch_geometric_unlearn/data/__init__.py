r"""The data contract, and tables of interactions to data objects and back."""

from .from_frame import from_csv, from_frame, from_parquet, raw_to_internal, to_frame
from .schema import validate

__all__ = [
    'from_csv',
    'from_frame',
    'from_parquet',
    'raw_to_internal',
    'to_frame',
    'validate',
]
