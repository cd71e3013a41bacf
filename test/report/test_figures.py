import sys

import pytest
import torch
from torch_geometric.testing import withPackage

from torch_geometric_unlearn.metrics.diagnosis import (
    cross_modal_cka,
    item_persistence,
    layer_shift,
)
from torch_geometric_unlearn.report.figures import (
    plot_ablation,
    plot_cka,
    plot_item_persistence,
    plot_layer_shift,
    plot_sensitivity,
)
from torch_geometric_unlearn.transforms import ForgetUsers
from torch_geometric_unlearn.unlearn import EdgeDrop


@withPackage('matplotlib')
def test_diagnoses_can_be_drawn(data, trained, tmp_path):
    marked = ForgetUsers([3, 5])(data)
    out = item_persistence(trained, trained, marked)
    figure = plot_item_persistence(out)
    left, right = figure.axes
    steps = list(left.lines[0].get_xdata())
    wanted = out['popularity'][out['is_forget']].sort()[0]
    assert steps == wanted.tolist()
    heights = {round(bar.get_height(), 12) for bar in right.patches}
    assert round(out['summary']['retain']['before'], 12) in heights
    figure.savefig(tmp_path / 'persistence.png')
    names, matrix = cross_modal_cka(trained, trained.build_graph(data))
    axis = plot_cka(names, matrix).axes[0]
    assert axis.texts[1].get_text() == f'{float(matrix[0, 1]):.2f}'
    rows = layer_shift(trained, EdgeDrop()(trained, marked).model)
    axis = plot_layer_shift(rows).axes[0]
    assert len(axis.lines[0].get_ydata()) == len(rows)


@withPackage('matplotlib')
def test_ablation_and_sensitivity():
    rows = [
        {'method': 'full', 'forget': 0.1, 'lr': 2.0},
        {'method': 'no gate', 'forget': 0.3, 'lr': 1.0},
    ]
    axis = plot_ablation(rows, ['forget']).axes[0]
    assert [bar.get_height() for bar in axis.patches] == [0.1, 0.3]
    axis = plot_sensitivity(rows, 'lr', ['forget'], log=True).axes[0]
    assert list(axis.lines[0].get_xdata()) == [1.0, 2.0]
    assert list(axis.lines[0].get_ydata()) == [0.3, 0.1]
    assert axis.get_xscale() == 'log'


def test_figures_say_what_is_wrong(monkeypatch):
    with pytest.raises(ValueError, match=r"'rows' must hold .* \(one lacks \['b'\]\)"):
        plot_ablation([{'method': 'x', 'a': 1.0}], ['a', 'b'])
    with pytest.raises(ValueError, match=r"'matrix' must have shape \[1, 1\]"):
        plot_cka(['a'], torch.eye(2))
    monkeypatch.setitem(sys.modules, 'matplotlib.figure', None)
    with pytest.raises(ImportError, match=r'torch_geometric_unlearn\[plot\]'):
        plot_cka(['a'], torch.eye(1))
