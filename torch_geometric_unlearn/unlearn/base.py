from __future__ import annotations

import copy
import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import NoneType
from typing import Any

import torch
from torch_geometric.data import HeteroData

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.data.digest import data_digest
from torch_geometric_unlearn.data.request import Request
from torch_geometric_unlearn.distributed.columns import columns_of, shared_digest
from torch_geometric_unlearn.nn import RecommenderAdapter, ShardEnsemble
from torch_geometric_unlearn.nn.models.base import RecommenderLike, half_precision
from torch_geometric_unlearn.nn.models.kept import (
    held_interactions,
    is_foreign,
    kept_structure,
)
from torch_geometric_unlearn.transforms import DropForgotten
from torch_geometric_unlearn.utils.finite import all_finite
from torch_geometric_unlearn.utils.mode import copy_modes
from torch_geometric_unlearn.utils.resources import ResourceMeter
from torch_geometric_unlearn.utils.seed import check_seed, isolated_seed

_CONTRACT = ('build_graph', 'forward', 'loss', 'branches', 'tables')


@dataclass
class UnlearnResult:
    r"""What an unlearner returns; it feeds the next request, and
    :meth:`write_report <torch_geometric_unlearn.report.report.write_report>`.

    Attributes:
        model (torch.nn.Module): The unlearned model.
        data (HeteroData): The data with the forgotten edges really gone.
        history (list): One row per epoch of the method, JSON-serialisable.
        seconds (float): Wall time of all that the caller waits for, from the request
            to this result.
        peak_memory (int): Peak memory in bytes, see
            :class:`~torch_geometric_unlearn.utils.resources.ResourceMeter`.
        touched (dict): Share of the entries that changed, in :math:`[0, 1]`, by
            parameter.
        shift (dict): Relative change
            :math:`\|\theta - \theta_0\| / \|\theta_0\|` by parameter.
        exact (bool): Whether the method promises the model that retraining gives.
        settings (dict): Name of the method as :obj:`method`, and its arguments that are
            plain values, the seed among them.
        dropped (dict): Number of pairs that the deletion took out of the data, by
            :obj:`'train'` and split. The model was trained on the first only, so for
            held-out pairs nothing had to be unlearned; but those of :obj:`'val'` had a
            part in the choice of its epoch.
    """

    model: RecommenderLike
    data: HeteroData
    history: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    peak_memory: int = 0
    touched: dict[str, float] = field(default_factory=dict)
    shift: dict[str, float] = field(default_factory=dict)
    exact: bool = False
    settings: dict[str, Any] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)

    def __repr__(self) -> str:
        touched = sum(share > 0 for share in self.touched.values())
        return (
            f'{self.__class__.__name__}({type(self.model).__name__}, '
            f'epochs={len(self.history)}, seconds={self.seconds:.2f}, '
            f'touched={touched}/{len(self.touched)} parameters, exact={self.exact})'
        )


class Unlearner(ABC):
    r"""The base class of all unlearning methods.

    :obj:`unlearner(model, data)` takes a trained model and the data with a request
    marked in it, and returns an :class:`UnlearnResult`. Neither input is modified, and
    the same seed gives the same result. A request that marks nothing is a no-op.
    Requests from several threads are served one after the other; code of your own that
    draws from torch's global generators in another thread meanwhile takes numbers from
    them (:meth:`~torch_geometric_unlearn.utils.seed.isolated_seed` waits its turn).

    A method implements :meth:`_unlearn`, and :meth:`supports` if it can't serve every
    model that meets the model contract.

    Args:
        seed (int, optional): Seed of every random choice. (default: :obj:`0`)
    """

    #: Whether the method promises the model that retraining without the data gives.
    exact: bool = False
    #: Whether the method has something to do for users and items that a request names
    #: although they have no training pair (any more). For others this is a no-op.
    serves_nodes: bool = False
    #: Whether the result goes on from the given model, rather than from fresh ones on
    #: what is left, so that the model must keep nothing of the interactions.
    continues: bool = True
    #: Whether the method takes no steps that half precision would swallow.
    serves_half: bool = False
    #: Whether the method serves models of which every process holds some columns.
    serves_columns: bool = False

    def __init__(self, seed: int = 0) -> None:
        self.seed = check_seed(seed)

    def prepare(  # noqa: B027
        self,
        build_model: Callable[[HeteroData], RecommenderLike],
        data: HeteroData,
    ) -> None:
        r"""Does the training that a method needs before any request; nothing here.

        Args:
            build_model (callable): Returns a fresh model for some data.
            data (HeteroData): The data to train on.
        """

    def supports(self, model: RecommenderLike, data: HeteroData) -> tuple[bool, str]:
        r"""Tells whether the method can serve this model and request, and if not,
        why.
        """
        missing = [name for name in _CONTRACT if not hasattr(model, name)]
        if missing:
            return False, f"'{type(model).__name__}' lacks {missing} of the contract"
        if columns_of(model) is not None and not self.serves_columns:
            return False, (
                'every process holds some columns of the model only, and this method '
                "looks at whole rows. Pass 'model.to_whole()', on one process"
            )
        coarse = half_precision(model)
        if coarse is not None and not self.serves_half:
            return False, (
                f'it is {coarse}, too coarse for the steps of this method. Convert the '
                f"model with '.float()' and back afterwards"
            )
        return True, ''

    def __call__(
        self,
        model: RecommenderLike,
        data: HeteroData,
        drop: DropForgotten | None = None,
    ) -> UnlearnResult:
        r"""Returns the model without the influence of what :obj:`data` marks.

        Args:
            model (torch.nn.Module): The trained model.
            data (HeteroData): The data with a request.
            drop (DropForgotten, optional): The deletion from the data, if something is
                to be kept or erased otherwise than by default. (default: :obj:`None`)

        Raises:
            ValueError: If the deletion would not reach all that may name the deleted
                (see :class:`~torch_geometric_unlearn.transforms.DropForgotten`), the
                method does not support the model or the request, a parameter of the
                model is not finite, or the model keeps interactions where no deletion
                reaches them (see
                :meth:`~torch_geometric_unlearn.nn.models.kept.kept_structure`).
            FloatingPointError: If a parameter of the result is not.
        """
        meter = ResourceMeter(next(model.parameters()).device)
        with torch.enable_grad(), isolated_seed(self.seed), meter:
            data = schema.validate(data)
            columns = columns_of(model)
            if columns is not None:
                same = {'the data': data_digest(data), 'the method': f'{self}'}
                columns.check_same(same | {'the shared layers': shared_digest(model)})
            if name := _not_finite(model):
                raise ValueError(
                    f"The parameter '{name}' of the model holds NaN or infinity, from "
                    f'which nothing can be unlearned. Go back to an intact checkpoint.'
                )
            ok, reason = self.supports(model, data)
            if not ok:
                raise ValueError(f'{self} cannot serve this request: {reason}')
            request = Request.of(data)
            if self.continues and request.pairs.numel() and is_foreign(model):
                _refuse(model, kept_structure(model, data))
            out = copy.deepcopy(model)
            copy_modes(model, out)  # Another thread may be looking at the model.
            retained = (drop or DropForgotten())(data)
            history: list[dict[str, Any]] = []
            if request.pairs.numel() or (self.serves_nodes and not request.is_empty):
                out, history = self._unlearn(out, data, retained)
                if name := _not_finite(out):
                    raise FloatingPointError(
                        f"{self} ended with NaN or infinity in the parameter '{name}'. "
                        f"Convert a model of half precision with '.float()', or take "
                        f'smaller steps.'
                    )
                copy_modes(model, out)
            out.zero_grad(set_to_none=True)  # Gradients tell of deleted rows as well.
            if isinstance(out, RecommenderAdapter):
                out.refresh(retained)
            if not self.continues and request.pairs.numel() and is_foreign(out):
                pairs = data[schema.EDGE_TYPE].edge_index
                for part in out.shards if isinstance(out, ShardEnsemble) else [out]:
                    _refuse(out, held_interactions(part, pairs, request.pairs, data))
            touched, shift = _compare(model, out)
        return UnlearnResult(
            model=out,
            data=retained,
            history=history,
            seconds=meter.seconds,
            peak_memory=meter.peak_memory,
            touched=touched,
            shift=shift,
            exact=self.exact,
            settings={'method': type(self).__name__} | self._settings(),
            dropped=_dropped(data, retained),
        )

    @abstractmethod
    def _unlearn(
        self, model: RecommenderLike, data: HeteroData, retained: HeteroData
    ) -> tuple[RecommenderLike, list[dict[str, Any]]]:
        r"""Returns the unlearned model and one row per epoch.

        Args:
            model (torch.nn.Module): A copy that may be changed.
            data (HeteroData): The data with a request, not to be changed.
            retained (HeteroData): The data after the deletion.
        """

    def _refuse_idle(self, idle: Mapping[str, str]) -> None:
        r"""Raises if an argument has another value than its default although it can't
        act; :obj:`idle` tells by name with what.
        """
        parameters = inspect.signature(type(self).__init__).parameters
        for name, reason in idle.items():
            if getattr(self, name) != parameters[name].default:
                raise ValueError(
                    f"'{name}' can't act with {reason} (got {getattr(self, name)!r}). "
                    f'Leave it out.'
                )

    def _settings(self) -> dict[str, Any]:
        r"""Returns the arguments of the constructor that are plain values."""
        names = inspect.signature(type(self).__init__).parameters
        return {
            name: getattr(self, name)
            for name in names
            if isinstance(getattr(self, name, ...), (bool, int, float, str, NoneType))
        }

    def __repr__(self) -> str:
        args = [f'{name}={value!r}' for name, value in self._settings().items()]
        return f'{self.__class__.__name__}({", ".join(args)})'


def _refuse(model: RecommenderLike, reason: str) -> None:
    if reason:
        raise ValueError(
            f"'{type(model).__name__}' must keep nothing of the interactions, or "
            f'deleted ones would live on in it: {reason}.'
        )


def _not_finite(model: RecommenderLike) -> str:
    r"""Returns the first parameter that holds NaN or infinity on any process, or an
    empty string.
    """
    parameters = model.named_parameters()
    name = next((name for name, p in parameters if not all_finite([p])), '')
    columns = columns_of(model)
    return name if columns is None else next(filter(None, columns.share(name)), '')


def _dropped(before: HeteroData, after: HeteroData) -> dict[str, int]:
    def sizes(data: HeteroData) -> dict[str, int]:
        pairs = {split: schema.held_out(data, split) for split in schema.SPLITS}
        pairs = {'train': data[schema.EDGE_TYPE].edge_index} | pairs
        return {name: edge_index.size(1) for name, edge_index in pairs.items()}

    left = sizes(after)
    return {name: size - left[name] for name, size in sizes(before).items()}


@torch.no_grad()
def _compare(
    before: RecommenderLike, after: RecommenderLike
) -> tuple[dict[str, float], dict[str, float]]:
    old, touched, shift = dict(before.named_parameters()), {}, {}
    columns = columns_of(after)
    for name, new in after.named_parameters():
        if name in old and old[name].shape == new.shape:
            wide = torch.promote_types(new.dtype, torch.float32)
            change = new.to(wide) - old[name].to(wide)
            touched[name] = int(change.count_nonzero()) / max(1, change.numel())
            norm, moved = float(old[name].to(wide).norm()), float(change.norm())
            if columns is not None:  # Of whole tables; what all hold stays the same.
                own = (touched[name], change.numel(), norm, moved)
                shares, sizes, norms, moves = zip(*columns.share(own))
                touched[name] = sum(map(math.prod, zip(shares, sizes))) / sum(sizes)
                norm, moved = math.hypot(*norms), math.hypot(*moves)
            shift[name] = moved / norm if norm > 0 else 0.0
        else:
            touched[name] = shift[name] = float('nan')
    return touched, shift
