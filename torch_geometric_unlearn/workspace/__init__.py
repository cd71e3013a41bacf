r"""Deletion requests from day to day: what waits, what is served, what was done."""

from .verification import verify
from .workspace import Busy, Workspace

__all__ = [
    'Busy',
    'Workspace',
    'verify',
]
