r"""Deletion requests from day to day: what waits, what is served, what was done."""

from .evidence import verify
from .workspace import Busy, Workspace

__all__ = [
    'Busy',
    'Workspace',
    'verify',
]
