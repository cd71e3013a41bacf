r"""Tables, result files, the report of a request, and figures."""

from .figures import (
    plot_ablation,
    plot_cka,
    plot_item_persistence,
    plot_layer_shift,
    plot_sensitivity,
)
from .html import render_html
from .report import build_report, request_hash, write_report
from .table import format_table, save_json, versions

__all__ = [
    'build_report',
    'format_table',
    'plot_ablation',
    'plot_cka',
    'plot_item_persistence',
    'plot_layer_shift',
    'plot_sensitivity',
    'render_html',
    'request_hash',
    'save_json',
    'versions',
    'write_report',
]
