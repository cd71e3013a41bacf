from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Embedding
from torch_geometric.data import HeteroData
from torch_geometric.nn import MessagePassing

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.nn.functional import bpr_loss
from torch_geometric_unlearn.transforms.drop_forgotten import drop_forgotten
from torch_geometric_unlearn.utils.check import (
    check_bool,
    check_choice,
    check_float,
    check_int,
)
from torch_geometric_unlearn.utils.seed import one_at_a_time

from ._checks import check_sizes
from ._light_convs import light_convs_on_ops
from .base import Recommender, Table, Triplets
from .interaction_graph import InteractionGraph


class RecommenderAdapter(Recommender):
    r"""Makes a recommender of any module that yields user and item embeddings,
    :class:`torch_geometric.nn.LightGCN` among them, without touching its code.

    The module stays as it is in :obj:`module`, but for layers of PyG that are built
    with :obj:`cached=True`: they would keep the first graph that they see, and are set
    to :obj:`cached=False`. Unmodified :class:`torch_geometric.nn.LGConv` layers, those
    of LightGCN among them, run on :meth:`~torch_geometric_unlearn.ops.spmm` wherever
    they get :obj:`graph.adj` of the default graph: the same up to rounding, several
    times as fast. The callables below must work on the arguments that they are
    given rather than on variables around them, because an unlearner works on a copy of
    the model.

    A module must keep nothing else of the interactions either, such as a normalised
    matrix from its constructor or the result of an earlier call, or deleted ones would
    live on in it. If it must, give :obj:`rebuild`. Before every request, unlearners
    look for what is kept, as :meth:`~torch_geometric_unlearn.testing.check_model` does,
    and refuse the model with the place where it is.

    Args:
        module (torch.nn.Module): The module.
        num_users (int): Number of users.
        num_items (int): Number of items.
        embed (callable, optional): :obj:`embed(module, graph)` returns user and item
            embeddings, or one matrix with users first. If :obj:`None`, this is
            :obj:`module.get_embedding(graph.adj)` where there is such a method,
            :obj:`module()` if the module takes no argument, and
            :obj:`module(graph.adj)` otherwise. (default: :obj:`None`)
        build_graph (callable, optional): :obj:`build_graph(data)` returns what the
            module propagates over, from data in which forgotten interactions are
            already deleted; an object with the (user, item) pairs as
            :obj:`edge_index` and a method :obj:`to(device)`. If :obj:`None`, an
            :class:`InteractionGraph`. (default: :obj:`None`)
        loss (callable, optional): :obj:`loss(model, graph, batch)` returns the training
            loss, :obj:`model` being the adapter; if it is a sum over the batch, set
            :obj:`model.reduction` to :obj:`'sum'`. If :obj:`None`, BPR and, times
            :obj:`weight_decay`, half the squared norm of the batch's representations
            over its size. (default: :obj:`None`)
        branches (dict, optional): Names of submodules or parameters of :obj:`module` by
            branch; what combines the others is :obj:`'fusion'`. Whatever is not named
            belongs to :obj:`'id'` [ours]. (default: :obj:`None`)
        tables (sequence, optional): The parameters with a row per user, item or node,
            as :class:`Table`; empty if there is none. If :obj:`None`, every trained
            :class:`torch.nn.Embedding` with as many rows as there are users, items, or
            both together, with Xavier's uniform distribution as the initial one [ours].
            Name a trained copy of raw features, which can't be told from an ID table.
            (default: :obj:`None`)
        weight_decay (float, optional): Weight of the norm in the default loss.
            (default: :obj:`0.0`)
        rebuild (callable, optional): :obj:`rebuild(module, graph)` makes all that the
            module keeps of the interactions anew from those of the graph. It is called
            before the module is used with another graph than the last time, or one
            whose :obj:`edge_index` was written to. Threads then use the model one at a
            time. (default: :obj:`None`)

    Shapes:
        - **output:** user embeddings :math:`(N_{user}, H)`, item embeddings
          :math:`(N_{item}, H)`

    Raises:
        TypeError: If :obj:`module` is no module, or a callable can't be called.
        ValueError: If :obj:`module` has no trained parameter, a name in
            :obj:`branches` is unknown or given twice, or :obj:`tables` don't fit or
            must be given.

    Example:
        >>> from torch_geometric.nn import LightGCN
        >>> sizes = data['user'].num_nodes, data['item'].num_nodes
        >>> lightgcn = RecommenderAdapter(LightGCN(sum(sizes), 16, 2), *sizes)
        >>> result = fit(lightgcn, data, num_epochs=2)
        >>> result = TRU()(lightgcn, ForgetUsers([3])(data))
    """

    def __init__(
        self,
        module: torch.nn.Module,
        num_users: int,
        num_items: int,
        embed: Callable[[Any, Any], Tensor | tuple[Tensor, Tensor]] | None = None,
        build_graph: Callable[[HeteroData], Any] | None = None,
        loss: Callable[[Any, Any, Triplets], Tensor] | None = None,
        branches: Mapping[str, Sequence[str]] | None = None,
        tables: Sequence[Table] | None = None,
        weight_decay: float = 0.0,
        rebuild: Callable[[Any, Any], Any] | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(module, torch.nn.Module):
            raise TypeError(
                f"'module' must be a 'torch.nn.Module' (got '{_kind(module)}'). Pass "
                f'the built model, not its class.'
            )
        if not any(p.requires_grad for p in module.parameters()):
            raise ValueError(
                f"'module' must have a parameter that requires gradients (got "
                f"'{_kind(module)}' without any). There is nothing to train or unlearn."
            )
        given = {
            'embed': embed,
            'build_graph': build_graph,
            'loss': loss,
            'rebuild': rebuild,
        }
        for name, function in given.items():
            if function is not None and not callable(function):
                raise TypeError(f"'{name}' must be callable (got '{_kind(function)}')")
        self.module = module
        self.num_users = check_int(num_users, 'num_users', 1)
        self.num_items = check_int(num_items, 'num_items', 1)
        self.weight_decay = check_float(weight_decay, 'weight_decay', 0.0)
        self._embed = _default_embed(module) if embed is None else embed
        self._build_graph = build_graph
        self._loss = loss
        self._rebuild = rebuild
        self._seen: tuple[Any, Any, int] | None = None
        _switch_caches_off(module)
        # By name, so that they still hold for a copy of the model.
        self._branches = self._branch_names(branches or {})
        self._tables = self._named_tables(tables)

    def build_graph(self, data: HeteroData) -> Any:
        r"""Returns what the module propagates over, from the interactions not marked as
        forgotten.

        Raises:
            TypeError: If the given callable's result is no graph.
            ValueError: If model and data differ in size, or the graph holds other
                interactions than the data.
        """
        data = schema.validate(data)
        check_sizes(data, self.num_users, self.num_items, {})
        _switch_caches_off(self.module)
        edge_index = schema.retained_edge_index(data)
        if self._build_graph is None:
            # A copy: nobody knows what the module does with it.
            pairs = edge_index.clone()
            graph: Any = InteractionGraph(pairs, self.num_users, self.num_items)
        else:
            graph = self._build_graph(drop_forgotten(data, strict=False))
            self._check_graph(graph, edge_index)
        return graph.to(next(self.module.parameters()).device)

    def refresh(self, data: HeteroData) -> None:
        r"""Has the module keep nothing but the interactions that are not marked as
        forgotten, if :obj:`rebuild` was given.
        """
        if self._rebuild is not None:
            with one_at_a_time():
                self._follow(self.build_graph(data))

    def _follow(self, graph: Any) -> None:
        assert self._rebuild is not None
        if not self._is_seen(graph):
            self._seen = None
            # What is made here has to serve training as well.
            with torch.inference_mode(False), torch.no_grad():
                self._rebuild(self.module, graph)
            try:  # Without keeping the graph.
                edge_index = graph.edge_index
                refs = weakref.ref(graph), weakref.ref(edge_index)
                self._seen = *refs, edge_index._version
            except (RuntimeError, TypeError):
                pass  # It can't be told from others, and counts as new every time.

    def _is_seen(self, graph: Any) -> bool:
        if self._seen is None:
            return False
        own, edge_index, version = self._seen
        return (
            own() is graph
            and edge_index() is graph.edge_index
            and version == graph.edge_index._version
        )

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {'_seen': None}  # A copy makes its own anew.

    def forward(self, graph: Any) -> tuple[Tensor, Tensor]:
        if self._rebuild is None:
            return self._split(self._embed_on_ops(graph))
        with one_at_a_time():
            self._follow(graph)
            return self._split(self._embed_on_ops(graph))

    def _embed_on_ops(self, graph: Any) -> Any:
        with light_convs_on_ops(self.module, graph):
            return self._embed(self.module, graph)

    def _split(self, out: Any) -> tuple[Tensor, Tensor]:
        sizes = [self.num_users, self.num_items]
        if isinstance(out, Tensor) and out.dim() == 2 and out.size(0) == sum(sizes):
            user_emb, item_emb = out.split(sizes)
            return user_emb, item_emb
        if isinstance(out, (tuple, list)) and len(out) == 2:
            user_emb, item_emb = out
            if all(isinstance(x, Tensor) and x.dim() == 2 for x in out) and (
                [user_emb.size(0), item_emb.size(0)] == sizes
                and user_emb.size(1) == item_emb.size(1)
            ):
                return user_emb, item_emb
        raise ValueError(
            f"'embed' must return user and item embeddings of shape [{sizes[0]}, H] "
            f'and [{sizes[1]}, H], or one matrix [{sum(sizes)}, H] (got '
            f"{_shapes(out)}). Pass 'embed=lambda module, graph: ...' that does."
        )

    def loss(self, graph: Any, batch: Triplets) -> Tensor:
        r"""Returns the given loss, or BPR with the regulariser."""
        if self._loss is not None:
            if self._rebuild is None:
                return self._own_loss(graph, batch)
            with one_at_a_time():
                self._follow(graph)
                return self._own_loss(graph, batch)
        user_emb, item_emb = self(graph)
        user = user_emb.index_select(0, batch.user)
        pos = item_emb.index_select(0, batch.pos_item)
        neg = item_emb.index_select(0, batch.neg_item)
        out = bpr_loss((user * pos).sum(dim=-1), (user * neg).sum(dim=-1))
        if self.weight_decay > 0:
            norm = sum(x.pow(2).sum() for x in (user, pos, neg))
            out = out + self.weight_decay * 0.5 * norm / batch.user.numel()
        return out

    def _own_loss(self, graph: Any, batch: Triplets) -> Tensor:
        assert self._loss is not None
        with light_convs_on_ops(self.module, graph):
            return self._loss(self, graph, batch)

    def branches(self) -> dict[str, list[Tensor]]:
        r"""Returns the parameters by branch, :obj:`'id'` for all that is not named."""
        parameters = dict(self.module.named_parameters())
        return {
            branch: [parameters[name] for name in names]
            for branch, names in self._branches.items()
        }

    def tables(self) -> list[Table]:
        r"""Returns the tables that were given or found."""
        parameters = dict(self.module.named_parameters())
        return [
            table._replace(parameter=parameters[name])
            for name, table in self._tables.items()
        ]

    def _check_graph(self, graph: Any, edge_index: Tensor) -> None:
        missing = [key for key in ('edge_index', 'to') if not hasattr(graph, key)]
        if missing:
            raise TypeError(
                f"'build_graph' must return an object with 'edge_index' and 'to' (got "
                f"'{_kind(graph)}' without {missing}). Use a "
                f"'torch_geometric.data.Data', or a small class of your own."
            )
        got = graph.edge_index
        same = isinstance(got, Tensor) and got.shape == edge_index.shape
        if same:
            expected = schema.pair_codes(edge_index, self.num_items).sort()[0]
            codes = schema.pair_codes(got, self.num_items).sort()[0]
            same = torch.equal(codes.to(expected.device), expected)
        if not same:
            raise ValueError(
                f"'edge_index' of the result of 'build_graph' must hold exactly the "
                f'{edge_index.size(1)} (user, item) pairs of the data, each once (got '
                f'{_shapes(got)}). Keep what the module propagates over under another '
                f'name.'
            )

    def _branch_names(
        self, branches: Mapping[str, Sequence[str]]
    ) -> dict[str, list[str]]:
        owner: dict[str, str] = {}
        names = [name for name, _ in self.module.named_parameters()]
        for branch, prefixes in branches.items():
            if isinstance(prefixes, str):
                raise TypeError(
                    f"'branches' must map '{branch}' to a list of names (got "
                    f"'{prefixes}'). Write ['{prefixes}']."
                )
            for prefix in prefixes:
                found = [n for n in names if f'{n}.'.startswith(f'{prefix}.')]
                if not found:
                    raise ValueError(
                        f"'branches' must name submodules or parameters of the module "
                        f"(got '{prefix}' in '{branch}'). There are {names}."
                    )
                twice = [name for name in found if name in owner]
                if twice:
                    raise ValueError(
                        f"'branches' must name every parameter at most once (got "
                        f"'{twice[0]}' in '{owner[twice[0]]}' and '{branch}'). Name "
                        f'smaller parts.'
                    )
                owner |= dict.fromkeys(found, branch)
        out: dict[str, list[str]] = {branch: [] for branch in ['id', *branches]}
        for name in names:
            out[owner.get(name, 'id')].append(name)
        return {branch: members for branch, members in out.items() if members}

    def _named_tables(self, tables: Sequence[Table] | None) -> dict[str, Table]:
        tables = self._find_tables() if tables is None else tables
        num_rows = {
            schema.USER: self.num_users,
            schema.ITEM: self.num_items,
            'node': self.num_users + self.num_items,
        }
        names = {id(p): name for name, p in self.module.named_parameters()}
        out = {}
        for table in tables:
            check_choice(table.rows, 'rows', tuple(num_rows))
            check_bool(table.is_raw, 'is_raw')
            name = names.get(id(table.parameter))
            if name is None:
                raise ValueError(
                    f"'tables' must hold parameters of the module (got one of shape "
                    f'{list(table.parameter.shape)} that is not). Pass e.g. '
                    f"'Table(module.embedding.weight, 'user')'."
                )
            if table.parameter.size(0) != num_rows[table.rows]:
                raise ValueError(
                    f"'{name}' must have {num_rows[table.rows]} rows to be a table of "
                    f"'{table.rows}' rows (got {table.parameter.size(0)})"
                )
            # Without the parameter, which a copy of the model has its own of.
            out[name] = table._replace(parameter=torch.empty(0))
        return out

    def _find_tables(self) -> list[Table]:
        rows = {
            self.num_users: schema.USER,
            self.num_items: schema.ITEM,
            self.num_users + self.num_items: 'node',
        }
        out = []
        for name, module in self.module.named_modules():
            if not isinstance(module, Embedding) or not module.weight.requires_grad:
                continue
            num_rows = module.num_embeddings
            if num_rows == self.num_users == self.num_items:
                raise ValueError(
                    f"'tables' must be given where there are as many users as items "
                    f"(got {num_rows} of both), since '{name}' could belong to either. "
                    f"Pass e.g. 'tables=[Table(module.{name}.weight, 'user')]'."
                )
            if num_rows in rows:
                out.append(Table(module.weight, rows[num_rows]))
        return out

    def __repr__(self) -> str:
        return (
            f'{self.__class__.__name__}({_kind(self.module)}, {self.num_users}, '
            f'{self.num_items}, branches={list(self._branches)})'
        )


def _default_embed(module: torch.nn.Module) -> Callable[[Any, Any], Any]:
    if hasattr(module, 'get_embedding'):
        return _embed_method
    takes_graph = len(inspect.signature(module.forward).parameters) > 0
    return _embed_forward if takes_graph else _embed_free


# Functions of the module rather than lambdas, so that a model can be pickled.
def _embed_method(module: Any, graph: Any) -> Any:
    return module.get_embedding(graph.adj)


def _embed_forward(module: Any, graph: Any) -> Any:
    return module(graph.adj)


def _embed_free(module: Any, graph: Any) -> Any:
    return module()


def _switch_caches_off(module: torch.nn.Module) -> None:
    for layer in module.modules():
        if isinstance(layer, MessagePassing) and getattr(layer, 'cached', False):
            layer.cached = False
            cached = [name for name in vars(layer) if name.startswith('_cached')]
            for name in cached:
                setattr(layer, name, None)


def _kind(value: Any) -> str:
    return value.__name__ if isinstance(value, type) else type(value).__name__


def _shapes(value: Any) -> str:
    if isinstance(value, Tensor):
        return f'a tensor of shape {list(value.shape)}'
    if isinstance(value, (tuple, list)):
        return f'{len(value)} values: {", ".join(map(_shapes, value))}'
    return f"a '{_kind(value)}'"
