r"""Figures for papers and notebooks, with matplotlib (the extra :obj:`[plot]`).

All functions take data and return a :class:`matplotlib.figure.Figure`; save it with
:obj:`figure.savefig(path)`. None of them touches matplotlib's global state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Okabe and Ito's colours, which colour-blind readers can tell apart.
COLORS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#56B4E9', '#E69F00')
_MARKERS = ('o', 's', '^', 'D', 'v', 'P')
_HATCHES = ('', '///', '...', 'xxx', '\\\\\\', '++')


def plot_item_persistence(persistence: Mapping[str, Any]) -> Figure:
    r"""Draws the popularity of forgotten and other items, and the reach of both before
    and after.

    Args:
        persistence (dict): Result of
            :meth:`~torch_geometric_unlearn.metrics.diagnosis.item_persistence`.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    figure, (left, right) = _figure(2)
    is_forget = persistence['is_forget']
    names = {'forget': 'in the request', 'retain': 'all others'}
    masks = {'forget': is_forget, 'retain': ~is_forget}
    for place, (key, label) in enumerate(names.items()):
        values = persistence['popularity'][masks[key]].double().sort()[0]
        if values.numel() == 0:
            continue
        share = values.new_ones(values.numel()).cumsum(0) / values.numel()
        style = {'color': COLORS[place], 'linestyle': '-' if place == 0 else '--'}
        left.step(values.tolist(), share.tolist(), where='post', label=label, **style)
    left.set(xlabel='training interactions of an item', ylabel='share of items')
    left.set_xscale('symlog')
    left.legend(title='items')
    summary = persistence['summary']
    _bars(
        right,
        list(names.values()),
        {time: [summary[key][time] for key in names] for time in ('before', 'after')},
    )
    right.set_ylabel('share of users who see an item')
    return figure


def plot_cka(names: Sequence[str], matrix: Tensor) -> Figure:
    r"""Draws a CKA matrix with its values.

    Args:
        names (sequence): Names of the branches.
        matrix (torch.Tensor): Values in :math:`[0, 1]`, :math:`(B, B)`, e.g. from
            :meth:`~torch_geometric_unlearn.metrics.diagnosis.cross_modal_cka`.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If the sizes disagree.
    """
    if matrix.shape != (len(names), len(names)):
        raise ValueError(
            f"'matrix' must have shape {[len(names)] * 2}, one row per name "
            f'(got {list(matrix.shape)})'
        )
    figure, (axis,) = _figure(1)
    image = axis.imshow(matrix.tolist(), cmap='cividis', vmin=0, vmax=1)
    axis.set_xticks(range(len(names)), names)
    axis.set_yticks(range(len(names)), names)
    for i, row in enumerate(matrix.tolist()):
        for j, value in enumerate(row):
            color = 'black' if value > 0.55 else 'white'
            axis.text(j, i, f'{value:.2f}', ha='center', va='center', color=color)
    figure.colorbar(image, ax=axis, label='linear CKA')
    return figure


def plot_layer_shift(rows: Sequence[Mapping[str, Any]]) -> Figure:
    r"""Draws how far every module moved, beside how far retraining moves it.

    Args:
        rows (sequence): Result of
            :meth:`~torch_geometric_unlearn.metrics.diagnosis.layer_shift`.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    figure, (axis,) = _figure(1)
    names = [str(row['module']) for row in rows]
    series = {
        'unlearned': [row['shift'] for row in rows],
        'retrained': [row['retrained_shift'] for row in rows],
    }
    for place, (label, values) in enumerate(series.items()):
        axis.plot(names, values, _MARKERS[place], label=label, color=COLORS[place])
    axis.set(ylabel='relative shift from the original')
    axis.tick_params(axis='x', labelrotation=90)
    figure.legend(loc='outside upper center', ncols=2)
    return figure


def plot_ablation(
    rows: Sequence[Mapping[str, Any]],
    metrics: Sequence[str],
    name: str = 'method',
) -> Figure:
    r"""Draws one group of bars per variant.

    Args:
        rows (sequence): One dictionary per variant, as for
            :meth:`~torch_geometric_unlearn.report.format_table`.
        metrics (sequence): Keys to draw.
        name (str, optional): Key of the variant's name. (default: :obj:`'method'`)

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If a row lacks a key.
    """
    _check_keys(rows, [name, *metrics])
    figure, (axis,) = _figure(1)
    series = {metric: [row[metric] for row in rows] for metric in metrics}
    _bars(axis, [str(row[name]) for row in rows], series)
    return figure


def plot_sensitivity(
    rows: Sequence[Mapping[str, Any]],
    parameter: str,
    metrics: Sequence[str],
    log: bool = False,
) -> Figure:
    r"""Draws metrics over the values of a hyper-parameter.

    Args:
        rows (sequence): One dictionary per value.
        parameter (str): Key of the hyper-parameter.
        metrics (sequence): Keys to draw.
        log (bool, optional): Whether the axis of the hyper-parameter is logarithmic.
            (default: :obj:`False`)

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If a row lacks a key.
    """
    _check_keys(rows, [parameter, *metrics])
    figure, (axis,) = _figure(1)
    ordered = sorted(rows, key=lambda row: row[parameter])
    x = [row[parameter] for row in ordered]
    for place, metric in enumerate(metrics):
        axis.plot(
            x,
            [row[metric] for row in ordered],
            marker=_MARKERS[place % len(_MARKERS)],
            color=COLORS[place % len(COLORS)],
            label=metric,
        )
    if log:
        axis.set_xscale('log')
    axis.set_xlabel(parameter)
    axis.legend()
    return figure


def _figure(num_axes: int) -> tuple[Figure, tuple[Any, ...]]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "Figures need 'matplotlib'. Install it with "
            "'pip install \"torch_geometric_unlearn[plot]\"'."
        ) from error
    figure = Figure(figsize=(5 * num_axes, 4), layout='constrained')
    return figure, tuple(figure.subplots(1, num_axes, squeeze=False)[0])


def _bars(
    axis: Any, groups: Sequence[str], series: Mapping[str, Sequence[float]]
) -> None:
    width = 0.8 / len(series)
    for place, (label, values) in enumerate(series.items()):
        axis.bar(
            [group - 0.4 + (place + 0.5) * width for group in range(len(groups))],
            values,
            width,
            label=label,
            color=COLORS[place % len(COLORS)],
            edgecolor='white',
            hatch=_HATCHES[place % len(_HATCHES)],
        )
    axis.set_xticks(range(len(groups)), groups)
    axis.legend()


def _check_keys(rows: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> None:
    for row in rows:
        missing = [key for key in keys if key not in row]
        if missing:
            raise ValueError(f"'rows' must hold {list(keys)} (one lacks {missing})")
