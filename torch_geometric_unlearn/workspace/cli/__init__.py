r"""The command :obj:`tgu`: a workspace from a shell, a cron table or a scheduler.

Exit codes: 0 done, 1 an error (on stderr), 2 wrong usage, 3 a person has to decide, 4 a
request is overdue, 75 another worker is at work.
"""

from .run import main

__all__ = ['main']
