r"""Tables and result files."""

from .table import format_table, save_json, versions

__all__ = ['format_table', 'save_json', 'versions']
