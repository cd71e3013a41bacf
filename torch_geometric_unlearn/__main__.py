r"""The command :obj:`tgu`, as :obj:`python -m torch_geometric_unlearn`."""

from .workspace.cli import main

if __name__ == '__main__':
    raise SystemExit(main())
