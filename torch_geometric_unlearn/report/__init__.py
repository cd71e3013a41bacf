r"""Tables, result files, and the report of a request."""

from torch_geometric_unlearn.utils.versions import versions

from .content import request_hash
from .html import render_html
from .report import build_report, read_report, write_report
from .table import format_table, save_json

__all__ = [
    'build_report',
    'format_table',
    'read_report',
    'render_html',
    'request_hash',
    'save_json',
    'versions',
    'write_report',
]
