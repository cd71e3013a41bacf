from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.data.known_pairs import KnownPairs, draw_free
from torch_geometric_unlearn.data.popularity import PopularityMatcher
from torch_geometric_unlearn.data.request import Request, without_request
from torch_geometric_unlearn.loader import TripletLoader
from torch_geometric_unlearn.nn.models.base import (
    HasContent,
    HasFusion,
    RecommenderLike,
)
from torch_geometric_unlearn.utils.check import (
    check_bool,
    check_choice,
    check_float,
    check_int,
)
from torch_geometric_unlearn.utils.seed import generator

from .iterative import IterativeUnlearner, Step, Workspace, repair

_PARTNERS = ('popularity', 'uniform', 'batch')


class MultiDelete(IterativeUnlearner):
    r"""Modality decoupling with multimodal and unimodal retention, from the
    `"MultiDelete for Multimodal Machine Unlearning"
    <https://arxiv.org/abs/2311.12047>`_ paper.

    Stays close to the original model instead of reversing its loss. With :math:`f`
    frozen and :math:`f^{\prime}` trained from it, it minimises
    :math:`a \mathcal{L}_{md} + b \mathcal{L}_{mkr} + c \mathcal{L}_{ukr}`:

    1. *Modality decoupling*: the joint representation of a deleted pair under
       :math:`f^{\prime}` approaches that of a pair which was never associated, under
       :math:`f`.
    2. *Multimodal knowledge retention*: retained pairs keep their joint representation.
    3. *Unimodal knowledge retention*: the single sides keep theirs.

    The paper is about associated data of several modalities and fixes these three
    objectives, mean squared errors, and weights of 1. The carry-over to recommenders is
    ours: the associated pair is *(user, item)*, since image and text of one item stay
    truly associated after a deletion; the joint representation is the element-wise
    product of both vectors, of the fused ones and in every branch (if the model has
    :obj:`branch_embeddings` and :obj:`fuse`), whose sum is the score; the single sides
    are the items' content representations (if it has :obj:`content_embeddings`) and
    the vectors of users without a deletion, never those of deleted users; partners,
    normalisation, rate, stopping and selection. Models act in evaluation mode
    throughout. A random target has a noise floor, and the place of a deleted pair in
    the list is not controlled.

    Args:
        decoupling (float, optional): Weight :math:`a`. (default: :obj:`1.0`)
        multimodal (float, optional): Weight :math:`b`. (default: :obj:`1.0`)
        unimodal (float, optional): Weight :math:`c`. (default: :obj:`1.0`)
        partner (str, optional): What a deleted pair is to look like: the user with
            another item that it never touched, from the same decile of
            :obj:`'popularity'`, :obj:`'uniform'`, or of another pair in the
            :obj:`'batch'`. In item-level requests, half of each batch takes another
            user instead, if a hundred draws find one without the item. Drawn anew in
            every step. (default: :obj:`'popularity'`)
        target_graph (str, optional): What the frozen model propagates over,
            :obj:`'retained'` interactions or the :obj:`'full'` graph, whose targets
            still carry messages over deleted edges. (default: :obj:`'retained'`)
        normalise (bool, optional): Whether every squared distance is divided by the
            mean squared norm of its targets, so that weights mean the same for every
            model. (default: :obj:`True`)
        score_only (bool, optional): Whether to compare scores only, the weakest
            reading. (default: :obj:`False`)
        lr (float, optional): Learning rate. Of 1e-4, 1e-3 and 1e-2, the selection rule
            chose the default for 5 % of Amazon Baby's users (MGCN, ten passes); at a
            tenth of the training's rate, as for a fine-tuned network, pairs did not
            move. (default: :obj:`1e-2`)
        num_epochs (int, optional): Largest number of passes over the forgotten
            interactions. (default: :obj:`30`)
        patience (int, optional): Epochs without gain in retained validation NDCG to sit
            out once the forget target is met; with 0, the run ends with the epoch that
            meets it. (default: :obj:`1`)
        repair_batches (int, optional): Batches of ordinary training after every pass, a
            full pass if :obj:`None`; anything but 0 is another method.
            (default: :obj:`0`)
        lr_repair (float, optional): Learning rate of these. (default: :obj:`1e-3`)
        batch_size (int, optional): Pairs per batch of each side.
            (default: :obj:`1024`)
        seed (int, optional): Seed of every random choice. (default: :obj:`0`)

    Raises:
        ValueError: If an argument is out of range, or can't act beside the others.

    Example:
        >>> result = MultiDelete(num_epochs=2)(model, ForgetUsers([3])(data))
        >>> result.history[0]['multimodal_loss'] >= 0
        True
    """

    def __init__(
        self,
        decoupling: float = 1.0,
        multimodal: float = 1.0,
        unimodal: float = 1.0,
        partner: str = 'popularity',
        target_graph: str = 'retained',
        normalise: bool = True,
        score_only: bool = False,
        lr: float = 1e-2,
        num_epochs: int = 30,
        patience: int = 1,
        repair_batches: int | None = 0,
        lr_repair: float = 1e-3,
        batch_size: int = 1024,
        seed: int = 0,
    ) -> None:
        super().__init__(num_epochs, patience, batch_size, seed)
        self.decoupling = check_float(decoupling, 'decoupling', 0.0)
        self.multimodal = check_float(multimodal, 'multimodal', 0.0)
        self.unimodal = check_float(unimodal, 'unimodal', 0.0)
        self.partner = check_choice(partner, 'partner', _PARTNERS)
        self.target_graph = check_choice(
            target_graph, 'target_graph', ('retained', 'full')
        )
        self.normalise = check_bool(normalise, 'normalise')
        self.score_only = check_bool(score_only, 'score_only')
        self.lr = check_float(lr, 'lr', 0.0)
        self.lr_repair = check_float(lr_repair, 'lr_repair', 0.0)
        if repair_batches is not None:
            repair_batches = check_int(repair_batches, 'repair_batches', 0)
        self.repair_batches = repair_batches
        if repair_batches == 0:
            self._refuse_idle({'lr_repair': 'repair_batches=0'})

    def _set_up(self, work: Workspace) -> tuple[Step, None]:
        return _Run(self, work).step, None

    def _pair_loss(
        self, views: _Views, target: _Views, pairs: Tensor, target_pairs: Tensor
    ) -> Tensor:
        r"""Compares joint representations, fused and by branch."""
        loss = views.user.new_zeros(())
        for (user, item), (user_o, item_o) in zip(views.sides, target.sides):
            joint = user.index_select(0, pairs[0]) * item.index_select(0, pairs[1])
            joint_o = user_o[target_pairs[0]] * item_o[target_pairs[1]]
            if self.score_only:
                joint, joint_o = (x.sum(-1, keepdim=True) for x in (joint, joint_o))
            loss = loss + self._distance(joint, joint_o)
        return loss

    def _side_loss(
        self, views: _Views, target: _Views, items: Tensor, users: Tensor
    ) -> Tensor:
        r"""Compares content representations of items, and vectors of users."""
        loss = views.user.new_zeros(())
        for name, x in views.content.items():
            loss = loss + self._distance(
                x.index_select(0, items), target.content[name][items]
            )
        if users.numel() > 0:
            kept = views.user.index_select(0, users)
            loss = loss + self._distance(kept, target.user[users])
        return loss

    def _distance(self, x: Tensor, target: Tensor) -> Tensor:
        distance = (x - target).pow(2).mean()
        if not self.normalise:
            return distance
        return distance / target.pow(2).mean().clamp(min=1e-12)

    def _retained_pairs(self, work: Workspace) -> Iterator[Tensor]:
        r"""Draws retained pairs without end; in interaction-level requests half of
        them from users that also own forgotten pairs, where the damage happens.
        """
        pairs = schema.retained_edge_index(work.retained).cpu()
        request = Request.of(work.data)
        affected = request.pairs[0].cpu()
        near = pairs[:, torch.isin(pairs[0], affected)]
        halved = request.level == 'interaction' and near.size(1) > 0
        size = max(1, self.batch_size // 2) if halved else self.batch_size
        num_items = schema.num_items(work.retained)
        loader = TripletLoader(pairs, num_items, size, seed=self.seed + 2)
        rng = generator(self.seed + 3)
        while True:
            for batch in loader:
                out = torch.stack([batch.user, batch.pos_item])
                if halved:  # With repeats: there may be few.
                    more = torch.randint(near.size(1), (out.size(1),), generator=rng)
                    out = torch.cat([out, near[:, more]], dim=1)
                yield out


class Partners:
    r"""Draws pairs that were never associated, to stand in for deleted ones.

    Args:
        data (HeteroData): The data with the request still marked.
        kind (str): :obj:`'popularity'`, :obj:`'uniform'` or :obj:`'batch'`.
        seed (int): Seed of the draws.
    """

    def __init__(self, data: HeteroData, kind: str, seed: int) -> None:
        known = data[schema.EDGE_TYPE].edge_index.cpu()
        self.kind = kind
        self.num_users, self.num_items = schema.num_users(data), schema.num_items(data)
        self.both_sides = Request.of(data).level == 'item'
        self.matcher = PopularityMatcher(known, known[1], self.num_items, seed)
        self.generator = generator(seed)
        self.known = KnownPairs(known, self.num_items)

    def __call__(self, pairs: Tensor, uniform: Tensor) -> Tensor:
        r"""Returns a pair that is no interaction for every given one, int64
        :obj:`[2, n]`.

        Args:
            pairs (torch.Tensor): The deleted pairs, int64 :obj:`[2, n]`.
            uniform (torch.Tensor): Items that their users never touched, int64
                :obj:`[n]`.
        """
        user, item = pairs
        if self.kind == 'popularity':
            other, found = self.matcher(pairs)
            other = torch.where(found, other, uniform)
        elif self.kind == 'batch':
            other = item[torch.randperm(item.numel(), generator=self.generator)]
            other = torch.where(self.known.contains(user, other), uniform, other)
        else:
            other = uniform
        out = torch.stack([user, other])
        if self.both_sides:
            half = item.numel() // 2
            other_user, found = self._other_users(item[:half])
            out[0, :half] = torch.where(found, other_user, user[:half])
            out[1, :half] = torch.where(found, item[:half], other[:half])
        return out

    def _other_users(self, item: Tensor) -> tuple[Tensor, Tensor]:
        r"""Returns a user per item that has not bought it, and whether a hundred draws
        found one.
        """

        def draw(places: Tensor) -> Tensor:
            size = places.shape
            return torch.randint(self.num_users, size, generator=self.generator)

        def is_taken(places: Tensor, user: Tensor) -> Tensor:
            return self.known.contains(user, item[places])

        user, failed = draw_free(item.numel(), draw, is_taken)
        found = torch.ones_like(item, dtype=torch.bool)
        found[failed] = False
        return user, found


@dataclass
class _Views:
    user: Tensor
    item: Tensor
    branches: list[tuple[Tensor, Tensor]]
    content: dict[str, Tensor]

    @property
    def sides(self) -> list[tuple[Tensor, Tensor]]:
        return [(self.user, self.item), *self.branches]


class _Run:
    r"""One run on one request: the targets, and what the steps go on from."""

    def __init__(self, method: MultiDelete, work: Workspace) -> None:
        self.method = method
        self.work = work
        graph = work.graph
        if method.target_graph == 'full':
            graph = work.model.build_graph(without_request(work.data))
        work.model.eval()
        with torch.no_grad():
            self.target = _views(work.model, graph)
        self.optimizer = work.optimizer(method.lr)
        self.repair_optimizer = work.optimizer(method.lr_repair)
        self.retained = method._retained_pairs(work)
        self.partners = Partners(work.data, method.partner, method.seed)
        self.is_kept = _kept_users(work)

    def step(self, met: bool) -> dict[str, Any]:
        r"""Runs one epoch; as forgetting and retaining are one loss, also when the
        target is met.
        """
        return self.decouple() | repair(
            self.work, self.repair_optimizer, self.method.repair_batches
        )

    def decouple(self) -> dict[str, float]:
        r"""Takes a step per batch of forgotten pairs and returns the mean losses."""
        method, work, target = self.method, self.work, self.target
        total = torch.zeros(3, device=work.device)
        work.model.eval()
        for batch in work.forget_loader:
            pairs = torch.stack([batch.user, batch.pos_item])
            random = self.partners(pairs, batch.neg_item).to(work.device)
            pairs = pairs.to(work.device)
            retained = next(self.retained)[:, : method.batch_size].to(work.device)
            views = _views(work.model, work.graph)
            decoupling = method._pair_loss(views, target, pairs, random)
            multimodal = method._pair_loss(views, target, retained, retained)
            users = retained[0][self.is_kept[retained[0]]]
            unimodal = method._side_loss(views, target, pairs[1], users)
            loss = (
                method.decoupling * decoupling
                + method.multimodal * multimodal
                + method.unimodal * unimodal
            )
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            total += torch.stack([decoupling, multimodal, unimodal]).detach()
        names = ('decoupling_loss', 'multimodal_loss', 'unimodal_loss')
        return dict(zip(names, (total / len(work.forget_loader)).tolist()))


def _views(model: RecommenderLike, graph: Any) -> _Views:
    if not isinstance(model, HasFusion):
        user, item = model(graph)
        return _Views(user, item, [], {})
    branches = model.branch_embeddings(graph)
    user, item = model.fuse(graph, branches)
    sizes = [user.size(0), item.size(0)]
    pairs = []
    for x in branches.values():
        user_part, item_part = x.split(sizes)
        pairs.append((user_part, item_part))
    content = {}
    if isinstance(model, HasContent):
        content = model.content_embeddings(graph)
    return _Views(user, item, pairs, content)


def _kept_users(work: Workspace) -> Tensor:
    is_kept = torch.ones(schema.num_users(work.data), dtype=torch.bool)
    is_kept[schema.forgotten_edge_index(work.data)[0].cpu()] = False
    return is_kept.to(work.device)
