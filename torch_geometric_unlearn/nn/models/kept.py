r"""What a model keeps of the interactions, where a deletion does not reach it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import HeteroData
from torch_geometric.nn import MessagePassing
from torch_geometric.utils import is_sparse, to_edge_index

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.data.request import without_request
from torch_geometric_unlearn.transforms.drop_forgotten import drop_forgotten
from torch_geometric_unlearn.utils.reach import reachable
from torch_geometric_unlearn.utils.seed import generator, isolated_seed

from .adapter import RecommenderAdapter
from .base import RecommenderLike

_KNOWN = ('torch.', 'torch_geometric_unlearn.', 'torch_geometric.nn.aggr.')
_ENOUGH = 8  # Pairs that tell interactions from chance.
_CURE = (
    "Derive it from the 'graph' in every call, or let "
    "'RecommenderAdapter(rebuild=...)' bring it up to date"
)


def is_foreign(model: RecommenderLike) -> bool:
    r"""Tells whether some part of a model is of a class that is neither torch's nor of
    this package, whose models keep nothing, nor an aggregation of PyG, which is a part
    of every :class:`~torch_geometric.nn.MessagePassing`.
    """
    return isinstance(model, RecommenderAdapter) or not all(
        type(module).__module__.startswith(_KNOWN) for module in model.modules()
    )


def held_interactions(model: Any, pairs: Tensor, gone: Tensor, data: HeteroData) -> str:
    r"""Tells where a model holds interactions, and is empty if it holds none.

    Looks at all that is reachable from the model
    (:meth:`~torch_geometric_unlearn.utils.reach.reachable`) for lists of pairs in any
    of the usual forms (edge indices of either direction, with items counted from zero
    or behind the users; sparse and dense matrices; histories as padded matrices,
    nested lists, sets or dictionaries), their single columns, and what is a function
    of the degrees alone.

    Args:
        model (torch.nn.Module): The model.
        pairs (torch.Tensor): All training interactions, int64 :obj:`[2, E]`.
        gone (torch.Tensor): Those that the model must not hold, int64 :obj:`[2, n]`.
        data (HeteroData): The data.
    """
    sizes = schema.num_users(data), schema.num_items(data)
    look = _Look(pairs.cpu(), gone.cpu(), *sizes)
    for path, value in reachable(model):
        try:
            found = look.at(value)
        except (OverflowError, RuntimeError, TypeError, ValueError):
            continue  # What has no form of numbers is no list of pairs.
        if found:
            return f"'{path}' holds {found}"
    return ''


class _Look:
    def __init__(self, pairs: Tensor, gone: Tensor, num_users: int, num_items: int):
        self.num_users, self.num_items = num_users, num_items
        self.codes = schema.pair_codes(pairs, num_items).sort()[0]
        self.gone = schema.pair_codes(gone, num_items).sort()[0]
        density = self.codes.numel() / (num_users * num_items)
        self.share = (1 + density) / 2  # Half-way between chance and certainty.
        users = pairs[0].bincount(minlength=num_users)
        items = pairs[1].bincount(minlength=num_items)
        both = torch.cat([users, items])
        self.degrees = [(x, x.unique().numel()) for x in (users, items, both)]
        beside = [
            torch.cat([users, torch.zeros_like(items)]),
            torch.cat([torch.zeros_like(users), items]),
        ]
        # Of columns, also with self loops.
        self.counts = [_pad(users, both), _pad(items, both), both, both + 1, *beside]

    def at(self, value: Any) -> str:
        if isinstance(value, torch.nn.Parameter) and value.requires_grad:
            return ''  # Trained, not kept.
        for pair in self._pairs(value):
            if self._is_known(pair.cpu()):
                return 'interactions that are to be forgotten'
        vector = _vector(value)
        if vector is not None and self._counts_interactions(vector.cpu()):
            return 'a function of the numbers of interactions'
        return ''

    def _is_known(self, pair: Tensor) -> bool:
        enough = min(_ENOUGH, self.codes.numel())
        if pair.size(1) < enough:
            return False
        for first, second in (pair, pair.flip(0)):
            for shift in (0, self.num_users):
                item = second - shift
                valid = (first >= 0) & (first < self.num_users)
                valid &= (item >= 0) & (item < self.num_items)
                codes = (first[valid] * self.num_items + item[valid]).unique()
                if codes.numel() < enough:
                    continue
                share = float(_isin(codes, self.codes).double().mean())
                if share >= self.share and _isin(codes, self.gone).any():
                    return True
        return False

    def _counts_interactions(self, vector: Tensor) -> bool:
        for expected in self.counts:  # A column of as many entries.
            if vector.is_floating_point() or vector.numel() != int(expected.sum()):
                continue
            if vector.min() >= 0 and vector.max() < expected.numel():
                count = vector.long().bincount(minlength=expected.numel())
                if torch.equal(count, expected):
                    return True
        for values in (vector, vector.diff()):  # Also where rows start.
            for degree, known in self.degrees:
                repeated = degree.numel() - known >= _ENOUGH
                if values.numel() != degree.numel() or not repeated:
                    continue
                both = torch.stack([degree.double(), values.double()]).unique(dim=1)
                if both.size(1) == known and values.unique().numel() > 2:
                    return True
        return False

    def _pairs(self, value: Any) -> Iterator[Tensor]:
        package = type(value).__module__.partition('.')[0]
        if isinstance(value, (Tensor, np.ndarray)) or is_sparse(value):
            yield from self._matrix(value)
        elif package == 'scipy' and hasattr(value, 'tocoo'):
            matrix = value.tocoo()
            yield torch.stack([_tensor(matrix.row), _tensor(matrix.col)])
        elif package == 'pandas' and hasattr(value, 'select_dtypes'):
            yield from _columns(_tensor(value.select_dtypes('number').to_numpy()))
        elif isinstance(value, (list, tuple, dict, set, frozenset)):
            yield from self._nested(value)
        vector = _vector(value)
        if vector is not None and not vector.is_floating_point():
            for size in (self.num_items, self.num_users + self.num_items):
                yield torch.stack([vector // size, vector % size])

    def _matrix(self, value: Any) -> Iterator[Tensor]:
        if not isinstance(value, np.ndarray) and is_sparse(value):
            yield to_edge_index(value)[0]
            return
        matrix = _tensor(value)
        matrix = matrix.squeeze() if matrix.dim() > 2 else matrix
        if matrix.dim() != 2 or matrix.is_complex():
            return
        num_nodes = self.num_users + self.num_items
        size = tuple(matrix.shape)
        if size in (
            (self.num_users, self.num_items),
            (self.num_items, self.num_users),
            (num_nodes, num_nodes),
        ):
            yield matrix.nonzero().t()
        yield from _columns(matrix)
        yield from _columns(matrix.t())
        has_rows = size[0] in (self.num_users, self.num_items, num_nodes)
        if has_rows and not matrix.is_floating_point():
            row = torch.arange(size[0], device=matrix.device)
            row = row.repeat_interleave(size[1])
            yield torch.stack([row, matrix.long().flatten()])

    def _nested(self, value: Any) -> Iterator[Tensor]:
        if isinstance(value, (dict, set, frozenset)):
            keys = list(value)
            if keys and all(isinstance(key, tuple) for key in keys):
                yield from _columns(torch.tensor(keys))
                return
        if isinstance(value, (set, frozenset)):
            return
        entries = list(value.items() if isinstance(value, dict) else enumerate(value))
        rows = []
        for _, item in entries:
            row = _vector(item)
            if row is None:
                return
            rows.append(row.cpu())
        if not rows:
            return
        sizes = torch.tensor([row.numel() for row in rows])
        if (sizes == sizes[0]).all():
            matrix = torch.stack([row.double() for row in rows])
            yield from _columns(matrix)
            yield from _columns(matrix.t())
        if not any(row.is_floating_point() for row in rows):
            keys = [key for key, _ in entries]
            if not all(isinstance(key, int) or str(key).isdigit() for key in keys):
                keys = list(range(len(keys)))
            key = torch.tensor([int(key) for key in keys])
            yield torch.stack([key.repeat_interleave(sizes), torch.cat(rows).long()])


def _columns(matrix: Tensor) -> Iterator[Tensor]:
    r"""Yields every two columns of a table of few columns that hold whole numbers."""
    if not 2 <= matrix.size(1) <= 6 or matrix.size(0) < 2:
        return
    whole = [x.long() for x in matrix.t() if torch.equal(x, x.round())]
    for first, second in combinations(whole, 2):
        yield torch.stack([first, second])


def _tensor(value: Any) -> Tensor:
    if isinstance(value, np.ndarray) and not value.flags.writeable:
        value = value.copy()  # Torch warns of others.
    return torch.as_tensor(value).detach()


def _vector(value: Any) -> Tensor | None:
    if isinstance(value, (set, frozenset, dict)):
        value = list(value)
    if isinstance(value, (Tensor, np.ndarray)):
        if not isinstance(value, np.ndarray) and is_sparse(value):
            return None
        flat = _tensor(value).squeeze()
        return flat.view(-1) if flat.dim() < 2 and not flat.is_complex() else None
    is_list = isinstance(value, (list, tuple))
    if is_list and all(isinstance(x, (int, float, np.number)) for x in value):
        return torch.tensor(value) if value else torch.empty(0, dtype=torch.int64)
    return None


def _pad(x: Tensor, other: Tensor) -> Tensor:
    return torch.cat([x, x.new_zeros(other.numel() - x.numel())])


def _isin(x: Tensor, ordered: Tensor) -> Tensor:
    if ordered.numel() == 0:
        return torch.zeros_like(x, dtype=torch.bool)
    place = torch.searchsorted(ordered, x).clamp(max=ordered.numel() - 1)
    return ordered[place] == x


@torch.no_grad()
def kept_structure(model: RecommenderLike, data: HeteroData) -> str:
    r"""Tells what a model keeps of the interactions beside its graph and how it shows,
    and is empty if nothing is found.

    On a copy, whose graphs hold the interactions of one user and then of another one:

    - Afterwards, the copy must not hold other interactions
      (:meth:`held_interactions`), nor a trained parameter of the original.
    - Its embeddings over the second graph must be those of a copy that has not seen the
      first one.
    - The embedding of a user without interactions must not follow the rows of items.
      Only something that treats all nodes alike, as a normalisation over them does, may
      bring them in; so it counts if these users are not interchangeable with their rows
      (of parameters, buffers and tensors of submodules) either. Embeddings of items
      must not change if these users exchange their rows.
    - Embeddings must follow the tables, or, without one, the parameters.

    Not found is what a model computed from interactions into another form, such as
    features propagated in advance, popularity in groups, or the co-occurrence of items;
    and what lies in global variables, unless it joins users and items that both have
    rows in a tensor of the model.

    Costs a copy of the model at a time and six forward passes almost without edges:
    about 50 ms for LightGCN with 30,000 nodes, 32 channels and 100,000 interactions.

    Args:
        model (torch.nn.Module): The model; stays as it is.
        data (HeteroData): The data; what is marked in it counts as not marked.
    """
    cached = [] if isinstance(model, RecommenderAdapter) else _cached_layers(model)
    if cached:
        return (
            f"'{cached[0]}' is a layer with 'cached=True', which keeps the first graph "
            f"that it sees. Build it with 'cached=False'"
        )
    whole = without_request(data)
    pairs = whole[schema.EDGE_TYPE].edge_index
    active = pairs[0].bincount(minlength=schema.num_users(data))
    users = active.topk(min(2, active.numel()))[1]
    if users.numel() < 2 or active[users[1]] == 0:
        return ''
    with isolated_seed(0):
        try:
            probe = copy.deepcopy(model).eval()
        except RuntimeError as error:
            held = held_interactions(model, pairs, pairs, data)
            return f'{held or "it can not be copied"} ({error}). {_CURE}'
        earlier, later = (_only(whole, user) for user in users)
        second = probe.build_graph(later)
        try:
            expected = _run(probe, second)
            probe = copy.deepcopy(model).eval()  # Which has not seen it.
            second, first = probe.build_graph(later), probe.build_graph(earlier)
            _run(probe, first)
            user_emb, item_emb = _run(probe, second)
        except (IndexError, RuntimeError) as error:
            return f'it fails over a graph with fewer interactions ({error}). {_CURE}'
        shared = _shared_parameter(model, probe)
        if shared:
            return (
                f"a copy of it still has a parameter of the original in '{shared}', "
                f'which unlearning would not change. Let callables work on the module '
                f'that they are given'
            )
        gone = pairs[:, pairs[0] != users[1]]
        held = held_interactions(probe, pairs, gone, data)
        if held:
            return f'{held}. {_CURE}'
        if not all(map(_same, (user_emb, item_emb), expected)):
            return f'its embeddings follow a graph that it has seen before. {_CURE}'
        own = pairs[1, pairs[0] == users[1]]
        rows = _Rows(probe, data, int(users[1]), own)
        return rows.check(second, user_emb, item_emb)


def _run(model: Any, graph: Any) -> tuple[Tensor, Tensor]:
    with isolated_seed(0):  # Should it draw, then the same numbers.
        user_emb, item_emb = model(graph)
    return user_emb.clone(), item_emb.clone()


def _only(data: HeteroData, user: Tensor) -> HeteroData:
    out = copy.copy(data)
    store = out[schema.EDGE_TYPE]
    store.forget_mask = store.edge_index[0] != user
    return drop_forgotten(out, strict=False)


def _cached_layers(model: RecommenderLike) -> list[str]:
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, MessagePassing) and getattr(module, 'cached', False)
    ]


def _shared_parameter(model: RecommenderLike, probe: Any) -> str:
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    return next((path for path, x in reachable(probe) if id(x) in trained), '')


class _Rows:
    r"""The tensors of a model with a row per user, item or node, but for one user and
    the items that it has.
    """

    def __init__(self, model: Any, data: HeteroData, user: int, items: Tensor) -> None:
        self.model, self.rng = model, generator(0)
        num_users, num_items = schema.num_users(data), schema.num_items(data)
        kinds = {num_users + num_items: 'node'}
        if num_users != num_items:  # Else, only tables tell which they belong to.
            kinds |= {num_users: 'user', num_items: 'item'}
        tables = {id(table.parameter): table.rows for table in model.tables()}
        moving = [table.parameter for table in model.tables()]
        self.tables = [table for table in moving if table[:1].numel() > 1]
        alone = torch.arange(num_users)
        self.users = alone[alone != user]
        self.items = torch.arange(num_items)[~_mask(items, num_items)]
        self.parts: dict[str, list[tuple[Tensor, Tensor]]] = {'user': [], 'item': []}
        for tensor in _own_tensors(model):
            kind = tables.get(id(tensor), '')
            # A matrix between nodes belongs to no row.
            if not kind and not any(size in kinds for size in tensor.shape[1:]):
                kind = kinds.get(tensor.size(0), '')
            if kind in ('user', 'node'):
                self.parts['user'].append((tensor, self.users))
            if kind in ('item', 'node'):
                shift = num_users if kind == 'node' else 0
                self.parts['item'].append((tensor, self.items + shift))

    def _leave_out_shared(self, graph: Any, before: tuple[Tensor, Tensor]) -> None:
        r"""Leaves out the weights that have as many rows by chance: some rows of theirs
        change everyone's embeddings.
        """
        own = {id(table.parameter) for table in self.model.tables()}
        for kind, parts in self.parts.items():
            for tensor, rows in list(parts):
                if id(tensor) in own or not isinstance(tensor, torch.nn.Parameter):
                    continue
                kept = tensor.detach()
                self._move(tensor, rows[: max(1, rows.numel() // 8)])
                after = _run(self.model, graph)
                tensor.data = kept
                x, y = (emb[kind == 'item'] for emb in (before, after))
                changed = torch.isclose(x, y, rtol=1e-4).logical_not().any(dim=1)
                if changed.double().mean() > 0.5:
                    left = [part for part in self.parts[kind] if part[0] is not tensor]
                    self.parts[kind] = left

    def check(self, graph: Any, user_emb: Tensor, item_emb: Tensor) -> str:
        self._leave_out_shared(graph, (user_emb, item_emb))
        users = self.users.to(user_emb.device)
        before = user_emb[users], item_emb
        for tensor, rows in self.parts['item']:
            self._move(tensor, rows)
        after = self._run(graph, users)
        for tensor, rows in self.parts['user']:
            rows = rows.to(tensor.device)
            changed = tensor.detach().clone()
            changed[rows] = changed[rows.flip(0)]
            tensor.data = changed
        flipped = self._run(graph, users)
        follows_items = not _same(before[0], after[0])
        if (follows_items and not _same(flipped[0].flip(0), after[0])) or (
            not _same(flipped[1], after[1])
        ):
            return (
                f'it propagates between users and items that the graph does not join, '
                f'and so over interactions that it keeps. {_CURE}'
            )
        before = flipped
        for tensor in self.tables or list(self.model.parameters()):
            self._move(tensor, torch.arange(tensor.size(0)) if tensor.dim() else None)
        after = self._run(graph, users)
        if all(_same(x, y) for x, y in zip(before, after)):
            return (
                f'its embeddings do not follow its parameters, and so are results that '
                f'it keeps. {_CURE}'
            )
        return ''

    def _run(self, graph: Any, users: Tensor) -> tuple[Tensor, Tensor]:
        user_emb, item_emb = _run(self.model, graph)
        return user_emb[users], item_emb

    def _move(self, tensor: Tensor, rows: Tensor | None) -> None:
        changed = tensor.detach().clone()
        size = 1 + float(changed.abs().mean())
        if rows is None:
            changed += size
        else:
            noise = size * torch.randn(changed.shape[1:], generator=self.rng)
            changed[rows.to(tensor.device)] += noise.to(changed)
        tensor.data = changed


def _own_tensors(model: Any) -> list[Tensor]:
    out: dict[int, Tensor] = {}
    for module in model.modules():
        state = module._parameters | module._buffers
        for tensor in [*vars(module).values(), *state.values()]:
            if not isinstance(tensor, Tensor) or is_sparse(tensor):
                continue
            if tensor.dim() > 0 and tensor.is_floating_point():
                out[id(tensor)] = tensor
    return list(out.values())


def _mask(items: Tensor, size: int) -> Tensor:
    out = torch.zeros(size, dtype=torch.bool)
    out[items.cpu()] = True
    return out


def _same(x: Tensor, y: Tensor) -> bool:
    if torch.equal(x, y):
        return True
    scale = float(torch.cat([x, y]).nan_to_num().abs().max()) if x.numel() else 0.0
    return torch.allclose(x, y, rtol=1e-4, atol=1e-4 * scale, equal_nan=True)
