from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.distributed.columns import Columns
from torch_geometric_unlearn.utils.check import check_choice
from torch_geometric_unlearn.utils.ids import check_ids, check_pair_ids
from torch_geometric_unlearn.utils.topk import PairIndex, Scores

from ._scores import scores_of


class Triplets(NamedTuple):
    r"""A training batch: every positive pair with one negative item.

    Attributes:
        user (torch.Tensor): Users, int64 :obj:`[B]`.
        pos_item (torch.Tensor): Positive items, int64 :obj:`[B]`.
        neg_item (torch.Tensor): Negative items, int64 :obj:`[B]`.
    """

    user: Tensor
    pos_item: Tensor
    neg_item: Tensor

    def scores(self, user_emb: Tensor, item_emb: Tensor) -> tuple[Tensor, Tensor]:
        r"""Returns the scores of positives and negatives, both :obj:`[B]`, from all
        user and item embeddings. Its gradient is the same in every call.
        """
        # The gradient of plain indexing depends on the order of threads.
        user = user_emb.index_select(0, self.user)
        pos_item = item_emb.index_select(0, self.pos_item)
        neg_item = item_emb.index_select(0, self.neg_item)
        return (user * pos_item).sum(dim=-1), (user * neg_item).sum(dim=-1)

    def nodes(self, num_users: int) -> Tensor:
        r"""Returns users, positives and negatives as nodes of the graph over users,
        then items, int64 :obj:`[3 * B]`.
        """
        items = torch.cat([self.pos_item, self.neg_item]) + num_users
        return torch.cat([self.user, items])

    def to(self, device: torch.device | str) -> Triplets:
        r"""Returns the batch on another device."""
        return Triplets(*(x.to(device, non_blocking=True) for x in self))


class Table(NamedTuple):
    r"""A parameter whose rows belong to nodes.

    Attributes:
        parameter (torch.Tensor): The table.
        rows (str): :obj:`'user'`, :obj:`'item'`, or :obj:`'node'` for users first,
            then items.
        is_raw (bool): Whether it is a trainable copy of raw item features.
        init (callable): Fills a fresh table of the same shape in place, as the model
            itself did at first.
        modality (str): Where :obj:`is_raw` is set, the modality whose features
            ``data['item'].x_<modality>`` it is a copy of, if the model tells.
        columns (Columns, optional): Which columns of the whole table these are, if it
            is divided.
    """

    parameter: Tensor
    rows: str
    is_raw: bool = False
    init: Callable[[Tensor], Any] = torch.nn.init.xavier_uniform_
    modality: str = ''
    columns: Columns | None = None

    def features(self, data: HeteroData) -> Tensor:
        r"""Returns the features of which it is a copy; needs the :obj:`modality`."""
        x = data[schema.ITEM][f'x_{self.modality}']
        return x if self.columns is None else self.columns.take(x)

    def of(self, users: Tensor, items: Tensor) -> Tensor:
        r"""Returns what belongs to the rows, from one entry per user and per item."""
        if self.rows == 'node':
            return torch.cat([users, items])
        return users if self.rows == 'user' else items

    def locate(self, nodes: Tensor, num_users: int) -> tuple[Tensor, Tensor]:
        r"""Returns which nodes, over users first, then items, int64 :obj:`[n]`, have a
        row here, bool :obj:`[n]`, and these rows, int64.
        """
        start = num_users if self.rows == 'item' else 0
        inside = (nodes >= start) & (nodes < start + self.parameter.size(0))
        return inside, nodes[inside] - start


def named_tables(model: RecommenderLike) -> dict[str, Table]:
    r"""Returns the tables of a model by the name of their parameter."""
    names = {id(p): name for name, p in model.named_parameters()}
    return {names[id(table.parameter)]: table for table in model.tables()}


def constructor_arguments(module: Any) -> dict[str, Any]:
    r"""Returns the arguments of a module's constructor that it keeps as attributes of
    the same name and that are plain values: numbers, strings, and lists, tuples and
    dictionaries of them.
    """
    names = inspect.signature(type(module).__init__).parameters
    values = {name: getattr(module, name, ...) for name in names}
    return {name: value for name, value in values.items() if _is_plain(value)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(isinstance(k, str) and _is_plain(v) for k, v in value.items())
    return value is None or isinstance(value, (bool, int, float, str))


def half_precision(model: RecommenderLike) -> torch.dtype | None:
    r"""Returns the type of a parameter of a model that is trained in half precision;
    :obj:`None` if there is none.
    """
    types = (p.dtype for p in model.parameters() if p.requires_grad)
    return next((t for t in types if t in (torch.float16, torch.bfloat16)), None)


class RowBranch(NamedTuple):
    r"""A branch as a linear map of the node embeddings, all else being frozen:
    :obj:`propagate(gate * x[source])`.

    Attributes:
        propagate (callable): Linear map from :math:`(N_{source}, K)` to :math:`(N, K)`
            that treats every column alike, for any :math:`K`; over nodes, users come
            first, then items.
        gate (torch.Tensor, optional): Factors :math:`(N_{source}, H)`.
        source (slice): The nodes that are read.
    """

    propagate: Callable[[Tensor], Tensor]
    gate: Tensor | None = None
    source: slice = slice(None)

    def __call__(self, x: Tensor) -> Tensor:
        r"""Returns the branch :math:`(N, H)` of node embeddings :math:`(N, H)`."""
        if self.source != slice(None):  # Or the backward pass would copy all of it.
            x = x[self.source]
        return self.propagate(x if self.gate is None else self.gate * x)


class RecommenderLike(Protocol):
    r"""The model contract as a type: what training, unlearning and audits ask of a
    model, whether it inherits from :class:`Recommender` or not. Its second half is what
    every :class:`torch.nn.Module` has.
    """

    training: bool

    def build_graph(self, data: HeteroData) -> Any: ...
    def __call__(self, graph: Any, /) -> tuple[Tensor, Tensor]: ...
    def loss(self, graph: Any, batch: Triplets) -> Tensor: ...
    def branches(self) -> dict[str, list[Tensor]]: ...
    def tables(self) -> list[Table]: ...

    def parameters(self) -> Iterator[torch.nn.Parameter]: ...
    def named_parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]: ...
    def modules(self) -> Iterator[torch.nn.Module]: ...
    def named_modules(self) -> Iterator[tuple[str, torch.nn.Module]]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any: ...
    def zero_grad(self, set_to_none: bool = True) -> None: ...
    def to(self: ModelT, device: Any) -> ModelT: ...
    def train(self: ModelT, mode: bool = True) -> ModelT: ...
    def eval(self: ModelT) -> ModelT: ...


ModelT = TypeVar('ModelT')


@runtime_checkable
class HasBranches(Protocol):
    r"""A model that shows its branches."""

    def branch_embeddings(self, graph: Any) -> dict[str, Tensor]: ...


@runtime_checkable
class HasFusion(HasBranches, Protocol):
    r"""A model that also fuses branches that it is given: :obj:`fuse` after
    :obj:`branch_embeddings` is its forward pass.
    """

    def fuse(
        self, graph: Any, branches: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]: ...


@runtime_checkable
class HasContent(Protocol):
    r"""A model that shows its item content by modality."""

    def content_embeddings(self, graph: Any) -> dict[str, Tensor]: ...


@runtime_checkable
class HasRowBranches(RecommenderLike, Protocol):
    r"""A model whose branches are linear in its ID rows."""

    num_users: int

    def node_embedding(self) -> Tensor: ...
    def row_branches(self, graph: Any) -> dict[str, RowBranch]: ...
    def node_loss(self, branches: Mapping[str, Tensor]) -> Tensor: ...


def check_graph(graph: Any) -> None:
    r"""Raises if :obj:`graph` is the data that it is to be built from.

    Raises:
        TypeError: If it is.
    """
    if isinstance(graph, HeteroData) and not hasattr(graph, 'edge_index'):
        raise TypeError(
            f"'graph' must be what the model propagates over, with the attribute "
            f"'edge_index' (got '{type(graph).__name__}'). Build it from the data: "
            f'model.build_graph(data).'
        )


class Recommender(torch.nn.Module, ABC):
    r"""The model contract: what training, unlearning and audits know of a model.

    Everything derived from the interactions lives in :obj:`graph`, never in the
    model, so that no deleted interaction survives in a stale cache. A :obj:`graph`
    has the attribute :obj:`edge_index` :obj:`[2, E]`, the interactions it was built
    from, and a method :obj:`to(device)`.

    A model with several branches may also have these methods, which some unlearners
    look into; over nodes, users come first, then items:

    - :obj:`branch_embeddings(graph)` returns the representations :math:`(N, H)` of
      all nodes by branch, after the user-item graph and before the fusion,
    - :obj:`fuse(graph, branch_embeddings)` returns user and item embeddings from them,
      so that both in a row are :meth:`forward`,
    - :obj:`content_embeddings(graph)` returns item representations
      :math:`(N_{item}, H)` by modality, before any graph of interactions,
    - :obj:`node_embedding()`, :obj:`row_branches(graph)` and
      :obj:`node_loss(branches)` tell that the branches are linear in the ID rows, as
      :class:`RowBranch` by branch, and give the training loss from the branches at the
      nodes of a batch, so that some rows can be trained at a cost that follows their
      number rather than the size of the graph.
    """

    #: Whether :meth:`loss` is the :obj:`'mean'` or the :obj:`'sum'` over a batch, which
    #: a method that adds a term of its own has to know.
    reduction: str = 'mean'

    @classmethod
    def from_saved(
        cls: type[ModelT], arguments: dict[str, Any], state: Mapping[str, Tensor]
    ) -> ModelT:
        r"""Returns a model of the same arguments and sizes as a saved one, for
        :meth:`~torch_geometric_unlearn.train.load_model`.

        Args:
            arguments (dict): The plain arguments of the constructor.
            state (dict): The saved parameters and buffers.
        """
        return cls(**arguments)

    @abstractmethod
    def build_graph(self, data: HeteroData) -> Any:
        r"""Returns every operator the model propagates over, from the training
        interactions that are not marked as forgotten.
        """

    @abstractmethod
    def forward(self, graph: Any) -> tuple[Tensor, Tensor]:
        r"""Returns user and item embeddings whose dot products are the scores."""

    @abstractmethod
    def loss(self, graph: Any, batch: Triplets) -> Tensor:
        r"""Returns the model's own full training loss on a batch."""

    @abstractmethod
    def branches(self) -> dict[str, list[Tensor]]:
        r"""Returns all parameters by branch, a partition; :obj:`'fusion'` is what
        combines the others.
        """

    @abstractmethod
    def tables(self) -> list[Table]:
        r"""Returns the parameters whose rows belong to users or items."""

    @torch.no_grad()
    def recommend(
        self,
        graph: Any,
        users: Sequence[int] | Tensor,
        k: int = 20,
        exclude: Tensor | None = None,
        batch_size: int = 2048,
        fallback: str = 'popular',
        exclude_items: Sequence[int] | Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        r"""Returns the :obj:`k` best items of every user.

        A user without interactions in :obj:`graph`, new or forgotten, has nothing that
        its row could have been learned from.

        Args:
            graph (Any): The result of :meth:`build_graph`.
            users (sequence or torch.Tensor): Users, int64 :obj:`[n]`.
            k (int, optional): Length of the list. (default: :obj:`20`)
            exclude (torch.Tensor, optional): Pairs to leave out, int64
                :obj:`[2, E]`; the interactions of :obj:`graph` if not given.
                (default: :obj:`None`)
            batch_size (int, optional): Users per block. (default: :obj:`2048`)
            fallback (str, optional): What a user without interactions gets:
                :obj:`'popular'` for the items with most interactions in :obj:`graph`,
                and NaN as scores, which tells these lists from the model's own;
                :obj:`'model'` for what its row happens to say.
                (default: :obj:`'popular'`)
            exclude_items (sequence or torch.Tensor, optional): Items that nobody gets,
                int64 :obj:`[m]`. (default: :obj:`None`)

        Returns:
            (torch.Tensor, torch.Tensor): Items int64 and scores, both
            :obj:`[n, k]`; item :obj:`-1` where no item is left.

        Raises:
            TypeError: If :obj:`graph` is data, or ids are no integers.
            ValueError: If :obj:`k` is below 1, an id is out of range, or the embeddings
                are not finite.
        """
        check_graph(graph)
        model = scores_of(self, graph)
        pairs = graph.edge_index.to(model.device)
        sizes = model.sizes
        users = check_ids(users, sizes[0], 'users').to(model.device)
        exclude = pairs if exclude is None else exclude
        exclude = check_pair_ids(exclude, *sizes, 'exclude').to(model.device)
        known = PairIndex(exclude, sizes[0])
        check_choice(fallback, 'fallback', ('popular', 'model'))
        if exclude_items is not None:
            exclude_items = check_ids(exclude_items, sizes[1], 'exclude_items')
            exclude_items = exclude_items.to(model.device)
        items, scores = model.topk(users, k, known, exclude_items, batch_size)
        lost = ~torch.isin(users, pairs[0])
        if fallback == 'popular' and lost.any():
            counts = pairs[1].bincount(minlength=sizes[1]).double()
            # Of equally popular ones the first.
            counts -= torch.arange(sizes[1], device=counts.device) / sizes[1]
            same = counts.new_ones(sizes[0], 1)
            popular = Scores(same, counts.view(-1, 1))
            items[lost], _ = popular.topk(
                users[lost], k, known, exclude_items, batch_size
            )
            scores[lost] = torch.nan
        return items, scores
