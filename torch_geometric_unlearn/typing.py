r"""Flags of the optional accelerators and shared type aliases.

This is the only place that decides which optional packages are in use; tests
switch a flag off to run the path without it.
"""

from __future__ import annotations

from importlib.util import find_spec

WITH_TORCH_SPARSE: bool = find_spec('torch_sparse') is not None
WITH_TORCH_SCATTER: bool = find_spec('torch_scatter') is not None
WITH_TRITON: bool = find_spec('triton') is not None
