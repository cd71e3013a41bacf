r"""One model on several processes: every one holds the whole graph and some columns of
every embedding table.
"""

from .columns import Columns
from .launch import process_group
from .mark import mark
from .processes import Processes

__all__ = ['Columns', 'Processes', 'mark', 'process_group']
