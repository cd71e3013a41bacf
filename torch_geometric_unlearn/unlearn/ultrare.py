from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.data import HeteroData

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.data.digest import data_digest
from torch_geometric_unlearn.data.request import Request, without_request
from torch_geometric_unlearn.distributed import Processes
from torch_geometric_unlearn.distributed.columns import columns_of
from torch_geometric_unlearn.loader import TripletLoader
from torch_geometric_unlearn.metrics import embed
from torch_geometric_unlearn.nn.models.base import RecommenderLike
from torch_geometric_unlearn.nn.models.shard_ensemble import (
    COMBINATIONS,
    ShardEnsemble,
    group_data,
    share_item_graphs,
)
from torch_geometric_unlearn.ops import SparseOperator, spmm
from torch_geometric_unlearn.train.fit import fit
from torch_geometric_unlearn.transforms import DropForgotten
from torch_geometric_unlearn.utils.check import check_bool, check_choice, check_int
from torch_geometric_unlearn.utils.digest import tensor_digest
from torch_geometric_unlearn.utils.finite import check_finite
from torch_geometric_unlearn.utils.mode import copy_modes
from torch_geometric_unlearn.utils.resources import ResourceMeter
from torch_geometric_unlearn.utils.rows import unit_rows
from torch_geometric_unlearn.utils.seed import (
    generator,
    isolated_seed,
    one_at_a_time,
)

from ._balanced_groups import SOLVERS, balanced_groups
from .base import Unlearner, UnlearnResult

GROUPINGS = ('data', 'clean', 'random')


class UltraRE(Unlearner):
    r"""Independent models over balanced groups of users, of which a request re-trains
    only those it touches, from the `"UltraRE: Enhancing RecEraser for Recommendation
    Unlearning via Error Decomposition"
    <https://openreview.net/forum?id=93NLxUojvc>`_ paper.

    1. Users are split into :math:`K` groups of equal size by clustering with optimal
       transport.
    2. Every group trains a complete model on its own interactions, up to its own
       validation users; nothing passes between groups. All start from the same tables.
    3. A :class:`~torch_geometric_unlearn.nn.models.ShardEnsemble` combines them.

    A request drops the interactions from their groups, re-trains those from the initial
    parameters, never from the trained ones, and fits the combination anew. Groups are
    kept, and all other shards stay as they are, bit by bit. If the deletion of a user
    or item takes a validation pair from a group, this group counts as touched too,
    since the pair took part in the choice of the epoch [ours].

    The paper has matrix factorisation and no multimodal version; how it is carried
    over is ours: a shard is a complete multimodal model over all items, so that an item
    without interactions in a group is still known there by its content. Ours are also
    integer capacities of the groups, which differ by at most one, the patience,
    the grouping by content, and :obj:`'calibrated_mean'`.

    The model given may be the ensemble of :meth:`prepare` or of an earlier request. For
    any other model, the ensemble is first prepared on the data as it was before the
    request, with that model as the source of user vectors; this is not counted in
    :obj:`seconds`, and done once for the same model, data and settings. A result
    equals training all shards of the same groups without the data under three
    conditions, to be stated with every figure:

    - The groups were fixed before the request, or built from data without it.
      :obj:`grouping='data'`, as published, takes the vectors of a model that has seen
      everything, so the groups themselves are not erased: :obj:`exact` is about
      everything downstream of the grouping.
    - The weights of the combination are fitted again on retained data.
    - Nothing is warm-started: :obj:`build_model` draws from torch's global generator
      and reads no other data than it is given.

    Preparing costs about one full training. A request costs the share of touched groups
    in that, and the longest of them if they train in parallel. Every user deleted alone
    touches one group, but :math:`m` random users touch
    :math:`K (1 - (1 - 1/K)^m)`, so that bulk requests cost a full training.
    Results hold one row per trained shard: :obj:`shard`, :obj:`num_users` and
    :obj:`num_interactions` it was trained on, :obj:`seconds`, :obj:`num_epochs`,
    :obj:`best_epoch`, and in every row :obj:`num_touched`, the number of re-trained
    shards, and :obj:`parallel_seconds`, the longest of them.

    With :obj:`grouping='random'` this is the sharding of the `"Machine Unlearning"
    <https://arxiv.org/abs/1912.03817>`_ paper (SISA), without its slices.

    Args:
        build_model (callable): Returns a fresh model for some data, drawing its
            parameters from torch's global generator. It is given the data of a group.
        num_shards (int, optional): Number of groups :math:`K`. (default: :obj:`5`)
        grouping (str, optional): :obj:`'data'` groups users by the user vectors of the
            original model, :obj:`'clean'` by the mean content features of their
            retained items, rows of every modality scaled to length one,
            :obj:`'random'` at random. (default: :obj:`'data'`)
        solver (str, optional): Transport plan of the grouping: :obj:`'exact'`, or
            :obj:`'sinkhorn'` for one with entropic regularisation, which is rounded.
            (default: :obj:`'exact'`)
        num_rounds (int, optional): Largest number of rounds of the grouping.
            (default: :obj:`10`)
        combination (str, optional): :obj:`'owner'`, :obj:`'mean_items'` (as released)
            or :obj:`'calibrated_mean'`, see
            :class:`~torch_geometric_unlearn.nn.models.ShardEnsemble`.
            (default: :obj:`'owner'`)
        num_workers (int, optional): Processes that train shards side by side, with one
            thread each; 0 trains one after the other in this process. Models and
            arguments must then be picklable, and a script needs the usual
            :obj:`if __name__ == '__main__'`; :obj:`peak_memory` leaves the processes
            out. (default: :obj:`0`)
        by_rank (bool, optional): Whether the processes that ``torchrun`` has started
            share the shards: of :math:`P`, that of rank :math:`r` trains every
            :math:`P`-th touched one from the :math:`r`-th on, and all hold the same
            ensemble in the end, bit by bit that of one process with as many threads.
            (default: :obj:`False`)
        seed (int, optional): Seed of groups, initial parameters and batches, the same
            for all shards. (default: :obj:`999`)
        **kwargs (optional): Further arguments of
            :meth:`~torch_geometric_unlearn.train.fit`; :obj:`patience` is ten times the
            number of groups if not given, since an epoch has fewer steps by as much
            (with 10, three of five MGCN shards on Amazon Baby stopped in the flat first
            epochs).

    Attributes:
        ensemble (ShardEnsemble): The prepared ensemble, :obj:`None` before.
        prepare_history (list): One row per shard of the preparation.

    Raises:
        ValueError: If an argument is out of range, or can't act beside the others.
        ImportError: On use, if :obj:`POT` is not installed and the grouping is not
            random.

    Example:
        >>> unlearner = UltraRE(MGCN.from_data, 2, grouping='random', num_epochs=1)
        >>> result = unlearner(model, ForgetUsers([3])(data))
        >>> len(result.history)
        1
    """

    exact = True
    serves_half = True
    continues = False

    def __init__(
        self,
        build_model: Callable[[HeteroData], RecommenderLike],
        num_shards: int = 5,
        grouping: str = 'data',
        solver: str = 'exact',
        num_rounds: int = 10,
        combination: str = 'owner',
        num_workers: int = 0,
        by_rank: bool = False,
        seed: int = 999,
        **kwargs: Any,
    ) -> None:
        super().__init__(seed)
        self.build_model = build_model
        self.num_shards = check_int(num_shards, 'num_shards', 2)
        self.grouping = check_choice(grouping, 'grouping', GROUPINGS)
        self.solver = check_choice(solver, 'solver', SOLVERS)
        self.num_rounds = check_int(num_rounds, 'num_rounds', 1)
        self.combination = check_choice(combination, 'combination', COMBINATIONS)
        self.num_workers = check_int(num_workers, 'num_workers', 0)
        self.by_rank = check_bool(by_rank, 'by_rank')
        if grouping == 'random':
            idle = dict.fromkeys(('solver', 'num_rounds'), "grouping='random'")
            self._refuse_idle(idle)
        for name in ('checkpoint', 'resume'):
            if kwargs.get(name):
                raise ValueError(
                    f"'{name}' must not be set (got {kwargs[name]!r}): the shards "
                    f"would share one file. Save the result with 'save_model'."
                )
        self.kwargs = {'patience': 10 * self.num_shards, **kwargs}
        self.ensemble: ShardEnsemble | None = None
        self.prepare_history: list[dict[str, Any]] = []
        self._key: tuple[Any, ...] | None = None

    @one_at_a_time()
    def prepare(
        self,
        build_model: Callable[[HeteroData], RecommenderLike] | None,
        data: HeteroData,
        model: RecommenderLike | None = None,
    ) -> None:
        r"""Groups the users and trains all shards, on the data as it was before any
        request that it holds: marked interactions count as well, but
        :obj:`grouping='clean'` does not read them.

        The result is :obj:`ensemble`, the model to pass to the first request.

        Args:
            build_model (callable, optional): Replaces that of the constructor.
            data (HeteroData): The data to train on.
            model (torch.nn.Module, optional): The trained original model, whose user
                vectors :obj:`grouping='data'` needs. (default: :obj:`None`)

        Raises:
            ValueError: If the grouping can't be done.
        """
        data = schema.validate(data)
        if build_model is not None:
            self.build_model = build_model
        if self.grouping == 'data' and model is None:
            raise ValueError(
                "'model' must be the trained original model with grouping='data' (got "
                "None). Pass it, or use grouping='clean' or 'random', which need none."
            )
        ok, reason = self._can_group(data)
        if not ok:
            raise ValueError(f'{self} cannot prepare: {reason}')
        self._prepare(data, model, self._preparation_key(data, model))

    def supports(self, model: RecommenderLike, data: HeteroData) -> tuple[bool, str]:
        ok, reason = super().supports(model, data)
        if not ok:
            return ok, reason
        if not isinstance(model, ShardEnsemble):
            return self._can_group(data)
        if model.owner.numel() != schema.num_users(data):
            return False, (
                f'the ensemble has {model.owner.numel()} users, but the data has '
                f'{schema.num_users(data)}'
            )
        return True, ''

    @one_at_a_time()  # Two threads may share the prepared ensemble.
    def __call__(
        self,
        model: RecommenderLike,
        data: HeteroData,
        drop: DropForgotten | None = None,
    ) -> UnlearnResult:
        r"""Returns the ensemble after the request.

        Args:
            model (torch.nn.Module): The prepared ensemble, or that of an earlier
                request; or the original model, for which an ensemble is prepared.
            data (HeteroData): The data with a request.
            drop (DropForgotten, optional): The deletion from the data, if something is
                to be kept or erased otherwise than by default. (default: :obj:`None`)

        Raises:
            ValueError: If the method does not support the model or the request.
        """
        data = schema.validate(data)
        is_original, asked = not isinstance(model, ShardEnsemble), model
        # What can't be served is refused below.
        if (
            is_original
            and schema.forget_mask(data).any()
            and self.supports(model, data)[0]
        ):
            key = self._preparation_key(data, model)
            if self.ensemble is None or key != self._key:
                self._prepare(data, model, key)
            assert self.ensemble is not None
            model = self.ensemble
        result = super().__call__(model, data, drop)
        copy_modes(asked, result.model)
        return result

    def _unlearn(
        self, model: RecommenderLike, data: HeteroData, retained: HeteroData
    ) -> tuple[RecommenderLike, list[dict[str, Any]]]:
        assert isinstance(model, ShardEnsemble)
        shards, history = self._train(
            _touched(model.owner, data), retained, model.owner, model.owner.device
        )
        for k, shard in shards.items():
            _check_same_kind(shard, model.shards[k])
            model.shards[k] = shard
        self._fit_weights(model, retained)
        return model, history

    def _prepare(
        self,
        data: HeteroData,
        model: RecommenderLike | None,
        key: tuple[Any, ...],
    ) -> None:
        whole = without_request(data)
        device = whole[schema.EDGE_TYPE].edge_index.device
        if model is not None:
            device = next(model.parameters()).device
        with isolated_seed(self.seed):
            owner = self._groups(data, model)
            shards, history = self._train(
                range(self.num_shards), whole, owner, device
            )
            ordered = [shards[k] for k in range(self.num_shards)]
            ensemble = ShardEnsemble(ordered, owner, self.combination)
            self._fit_weights(ensemble, whole)
        self.ensemble, self.prepare_history, self._key = ensemble, history, key

    def _can_group(self, data: HeteroData) -> tuple[bool, str]:
        num_users = schema.num_users(data)
        if num_users < self.num_shards:
            return False, (
                f"'num_shards' must not exceed the number of users, {num_users} (got "
                f'{self.num_shards})'
            )
        if self.grouping == 'clean' and not schema.modalities(data):
            return False, "grouping='clean' needs item features, but there are none"
        return True, ''

    def _preparation_key(
        self, data: HeteroData, model: RecommenderLike | None
    ) -> tuple[Any, ...]:
        r"""Returns all that a preparation depends on."""
        stores = without_request(data).stores
        values = [value for store in stores for value in store.values()]
        if self.grouping == 'clean':
            values.append(schema.forget_mask(data))
        if self.grouping == 'data' and model is not None:
            values += model.state_dict().values()
        digest = tensor_digest(value for value in values if isinstance(value, Tensor))
        settings = repr(self), repr(sorted(self.kwargs.items()))
        device = None if model is None else next(model.parameters()).device
        return self.build_model, settings, repr(model), device, digest

    def _groups(self, data: HeteroData, model: RecommenderLike | None) -> Tensor:
        if self.grouping == 'random':
            num_users = schema.num_users(data)
            owner = torch.empty(num_users, dtype=torch.int64)
            order = torch.randperm(num_users, generator=generator(self.seed))
            owner[order] = torch.arange(num_users) % self.num_shards
            return owner
        if self.grouping == 'clean':
            vectors = _content_vectors(data)
        else:
            assert model is not None
            graph = model.build_graph(without_request(data))
            vectors, _ = embed(model, graph)
        return balanced_groups(
            vectors, self.num_shards, self.solver, self.num_rounds, self.seed
        )

    def _train(
        self,
        groups: Sequence[int],
        data: HeteroData,
        owner: Tensor,
        device: torch.device,
    ) -> tuple[dict[int, RecommenderLike], list[dict[str, Any]]]:
        r"""Trains fresh shards for some groups; data and groups are all they know."""
        shards: dict[int, RecommenderLike] = {}
        jobs = []
        for k in groups:
            view = group_data(data, owner, k)
            # Without an interaction there is nothing to train, nor a graph to build.
            with isolated_seed(self.seed):
                shard = self.build_model(data if view is None else view)
            if columns_of(shard) is not None:
                raise ValueError(
                    f"'build_model' must return a whole model (got {shard}, of which "
                    f'every process holds some columns). Shards are divided among '
                    f"processes as a whole: 'by_rank=True'."
                )
            if not shards:
                data = share_item_graphs([shard], data)
                view = group_data(data, owner, k)
            shards[k] = shard.to(device)
            jobs.append(_Job(k, shards[k], view, self.seed, self.kwargs))
        history = self._run_by_rank(jobs) if self.by_rank else self._run(jobs)
        longest = max((row['seconds'] for row in history), default=0.0)
        for row in history:
            row |= {'num_touched': len(jobs), 'parallel_seconds': longest}
        return shards, history

    def _run(self, jobs: Sequence[_Job]) -> list[dict[str, Any]]:
        r"""Trains shards in place, here or in workers, and returns a row each."""
        if self.num_workers == 0:
            return [job.run() for job in jobs]
        history = []
        for job, (state, row) in zip(jobs, self._run_in_workers(jobs)):
            job.shard.load_state_dict(state)
            history.append(row)
        return history

    def _run_by_rank(self, jobs: Sequence[_Job]) -> list[dict[str, Any]]:
        r"""Trains shards in place, each on one of the processes, and returns a row
        each.
        """
        processes = Processes()
        views = (None if job.data is None else data_digest(job.data) for job in jobs)
        same = {'the method': f'{self} {self.kwargs}', 'the shards': f'{[*views]}'}
        processes.check_same(same)
        own = jobs[processes.rank :: processes.num_processes]
        rows = self._run(own)
        states = [
            {name: value.cpu() for name, value in job.shard.state_dict().items()}
            for job in own
        ]
        shared = processes.share(list(zip(states, rows)))
        history = []
        for place, job in enumerate(jobs):
            turn, rank = divmod(place, processes.num_processes)
            state, row = shared[rank][turn]
            job.shard.load_state_dict(state)
            history.append(row)
        return history

    def _run_in_workers(
        self, jobs: Sequence[_Job]
    ) -> list[tuple[dict[str, Tensor], dict[str, Any]]]:
        pool = ProcessPoolExecutor(
            min(self.num_workers, max(1, len(jobs))),
            mp_context=torch.multiprocessing.get_context('spawn'),
            initializer=torch.set_num_threads,
            initargs=(1,),
        )
        with pool:
            return list(pool.map(_run_job, [_ByValue(job) for job in jobs]))

    def _fit_weights(self, ensemble: ShardEnsemble, data: HeteroData) -> None:
        r"""Fits the weights of :obj:`'calibrated_mean'` on validation pairs against one
        random item each that the user is not known to like; uniform without such pairs.
        """
        if ensemble.combination != 'calibrated_mean':
            return
        graph = ensemble.build_graph(data)
        active = torch.tensor([float(part is not None) for part in graph.shards])
        weights = active / active.sum()
        validation = schema.held_out(data, 'val')
        known = torch.cat([schema.retained_edge_index(data), validation], dim=1)
        num_items = schema.num_items(data)
        num_known = known[0].bincount(minlength=schema.num_users(data))
        positive = validation[:, num_known[validation[0]] < num_items].cpu()
        if positive.size(1) > 0:
            every = torch.arange(num_items)
            loader = TripletLoader(
                positive, num_items, known=known, negative_items=every, seed=self.seed
            )
            item = loader.sample_negatives(positive[0])
            negative = torch.stack([positive[0], item])
            pairs = torch.cat([positive, negative], dim=1)
            label = torch.arange(pairs.size(1)) < positive.size(1)
            scores = ensemble.calibrated_scores(graph, pairs).cpu()
            check_finite(scores, 'calibrated_scores', 'Look at the shards.')
            weights = simplex_weights(scores, label) * active
            weights = weights / weights.sum()
        ensemble.weights.copy_(check_finite(weights, 'weights'))


@torch.enable_grad()
def simplex_weights(scores: Tensor, label: Tensor, penalty: float = 1e-4) -> Tensor:
    r"""Fits a logistic regression with coefficients :math:`w \geq 0` and an intercept,
    and returns :math:`w / \sum_k w_k` [ours].

    Args:
        scores (torch.Tensor): One column per shard, floating point :obj:`[B, K]`.
        label (torch.Tensor): Whether the user likes the item, bool :obj:`[B]`.
        penalty (float, optional): Weight of :math:`\|w\|^2 / 2` beside the mean loss,
            which keeps separable scores finite. (default: :obj:`1e-4`)

    Returns:
        torch.Tensor: Weights on the simplex, float32 :obj:`[K]`.
    """
    x, y = scores.detach().double(), label.double()
    # Starting from equal positive weights, the logarithm keeps them positive.
    log_weight = x.new_zeros(x.size(1), requires_grad=True)
    intercept = x.new_zeros((), requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [log_weight, intercept],
        max_iter=200,
        tolerance_grad=1e-9,
        tolerance_change=1e-12,
        line_search_fn='strong_wolfe',
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        weight = log_weight.exp()
        loss = F.binary_cross_entropy_with_logits(x @ weight + intercept, y)
        loss = loss + 0.5 * penalty * weight.pow(2).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return log_weight.detach().softmax(dim=0).float()


@dataclass
class _Job:
    group: int
    shard: RecommenderLike
    data: HeteroData | None
    seed: int
    kwargs: dict[str, Any]

    def run(self) -> dict[str, Any]:
        r"""Trains the shard in place and returns its row."""
        row: dict[str, Any] = {'shard': self.group, 'num_users': 0}
        row |= {'num_interactions': 0, 'seconds': 0.0}
        row |= {'num_epochs': 0, 'best_epoch': -1}
        if self.data is None:
            return row
        user = schema.retained_edge_index(self.data)[0]
        num_items = schema.num_items(self.data)
        has_all = bool((user.bincount()[user] >= num_items).all())
        if has_all and self.kwargs.get('negatives') != 'uniform':
            return row  # Nobody has a negative to train with.
        with ResourceMeter(next(self.shard.parameters()).device) as meter:
            result = fit(self.shard, self.data, seed=self.seed, **self.kwargs)
        row |= {'num_users': user.unique().numel(), 'num_interactions': user.numel()}
        row |= {'seconds': meter.seconds, 'num_epochs': len(result.history)}
        return row | {'best_epoch': result.best_epoch}


class _ByValue:
    r"""Passes an object to another process as bytes, when its turn comes: torch would
    pass handles of shared memory, which is often small in containers.
    """

    def __init__(self, value: Any) -> None:
        self.value = value

    def __reduce__(self) -> tuple[Any, ...]:
        return pickle.loads, (pickle.dumps(self.value),)


def _run_job(job: Any) -> Any:
    row = job.run()
    return _ByValue(({k: v.cpu() for k, v in job.shard.state_dict().items()}, row))


def _touched(owner: Tensor, data: HeteroData) -> list[int]:
    r"""Returns the groups from which the request takes a training or validation pair,
    in order.
    """
    request, validation = Request.of(data), schema.held_out(data, 'val')
    lost = validation[:, request.covers(validation)]
    users = torch.cat([request.pairs[0], lost[0]])
    return owner[users.to(owner.device)].unique().tolist()


def _content_vectors(data: HeteroData) -> Tensor:
    r"""Returns the mean content features of every user's retained items; zeros for a
    user without any.
    """
    x = torch.cat([unit_rows(x) for x in schema.features(data).values()], dim=1)
    user, item = schema.retained_edge_index(data)
    num_users = schema.num_users(data)
    share = 1 / user.bincount(minlength=num_users).to(x.dtype)
    mean = SparseOperator(
        torch.stack([item, user]), share[user], (x.size(0), num_users)
    )
    return spmm(mean, x)


def _check_same_kind(fresh: RecommenderLike, old: RecommenderLike) -> None:
    shapes = [
        {name: value.shape for name, value in model.state_dict().items()}
        for model in (fresh, old)
    ]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"'build_model' must return the model that the ensemble was prepared with, "
            f'{old} (got {fresh}). Pass the same function as then.'
        )
