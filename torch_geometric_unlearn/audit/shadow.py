r"""The published shadow attack on recommenders, at the level of users."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Linear, ReLU, Sequential
from torch_geometric.data import HeteroData

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.data.request import Request, without_request
from torch_geometric_unlearn.nn.models.base import RecommenderLike
from torch_geometric_unlearn.nn.models.served import Served
from torch_geometric_unlearn.train.fit import fit
from torch_geometric_unlearn.transforms import DropForgotten
from torch_geometric_unlearn.utils.check import check_int
from torch_geometric_unlearn.utils.finite import check_finite
from torch_geometric_unlearn.utils.plain import plain
from torch_geometric_unlearn.utils.seed import generator, isolated_seed
from torch_geometric_unlearn.utils.topk import topk_items

from ._attack import MIN_EXAMPLES, MembershipResult, fill_result
from ._features import HISTORY_LIST_SIZE, mean_items, weighted_list
from .hold_out_users import never_trained_pairs


def shadow(
    model: Any,
    data: HeteroData,
    build_model: Callable[[HeteroData], RecommenderLike],
    fit_args: Mapping[str, Any] | None = None,
    graph: Any = None,
    num_factors: int = 100,
    num_epochs: int = 200,
    lr: float = 1e-2,
    num_bootstrap: int = 1000,
    seed: int = 0,
) -> MembershipResult:
    r"""Asks whether a model's lists give its former users away, after the `"Membership
    Inference Attacks Against Recommender Systems" <https://arxiv.org/abs/2109.08045>`_
    paper.

    With item vectors :math:`\mathbf{v}` from a matrix factorisation, a user with
    history :math:`H` and list :math:`T` of length :math:`K = 100` is described by

    .. math::
        \frac{1}{|H|} \sum_{i \in H} \mathbf{v}_i - \sum_{r=1}^{K}
        \frac{2 (K + 1 - r)}{K (K + 1)} \mathbf{v}_{T_r}.

    A member's list comes from the recommender; a non-member has no history there
    and gets the most popular items. A network of sizes 100, 32, 8 and 2 learns the
    difference on a shadow recommender and is applied to the audited one.

    Ours: the retained users are split at random into a quarter of shadow members, a
    quarter of shadow non-members, and a half for the factorisation, which is a
    truncated singular value decomposition of their binary interactions, with the
    roots of the singular values on the item side; features are standardised over the
    shadow users; the network is trained with Adam on all of them at once. Members
    under test are the deleted users, non-members the users that
    :meth:`~torch_geometric_unlearn.audit.hold_out_users` has set aside. Forgotten users
    should be taken for non-members, but any model that still gives them a list which
    differs from the most popular items looks guilty, a retrained one included: on
    generated data with MGCN, it flagged 89% of the deleted users of a retrained model,
    and 91% of those of the original. So no direction is given, and only the difference
    to retraining counts.

    Args:
        model (torch.nn.Module or Served): The audited model.
        data (HeteroData): The data with the request of users still marked.
        build_model (callable): Returns a fresh shadow recommender for some data,
            drawing its parameters from torch's global generator.
        fit_args (dict, optional): Arguments of
            :meth:`~torch_geometric_unlearn.train.fit` but the seed.
            (default: :obj:`None`)
        graph (Any, optional): What the audited model propagates over; the retained
            interactions if not given. (default: :obj:`None`)
        num_factors (int, optional): Size of the item vectors. (default: :obj:`100`)
        num_epochs (int, optional): Epochs of the network. (default: :obj:`200`)
        lr (float, optional): Learning rate of the network. (default: :obj:`1e-2`)
        num_bootstrap (int, optional): Resamples of users for the intervals.
            (default: :obj:`1000`)
        seed (int, optional): Seed of every random choice. (default: :obj:`0`)

    Returns:
        MembershipResult: :obj:`details` has :obj:`flagged`, the share of deleted users
        taken for members, :obj:`shadow_accuracy` on the shadow users themselves, and
        :obj:`num_shadow`. The metrics are NaN with a warning with fewer than 50 users
        on a side.

    Raises:
        ValueError: If an argument is out of range, or no user is deleted.

    Example:
        >>> from torch_geometric_unlearn.audit import hold_out_users, shadow
        >>> data = SyntheticMultimodal('tiny', num_users=400)[0]
        >>> marked = ForgetUsers(ratio=0.3)(hold_out_users(data, ratio=0.2))
        >>> result = shadow(
        ...     MGCN.from_data(data), marked, MGCN.from_data, {'num_epochs': 1})
        >>> result.num_members, result.num_nonmembers
        (80, 80)
    """
    check_int(num_factors, 'num_factors', 1)
    check_int(num_epochs, 'num_epochs', 1)
    check_int(num_bootstrap, 'num_bootstrap', 1)
    rng = generator(seed)
    data = schema.validate(data)
    if Request.of(data).users.numel() == 0:
        raise ValueError(
            "'data' must hold a request that deletes users (got none). Mark whole "
            "users with 'ForgetUsers'."
        )
    result = MembershipResult('shadow', 'user', classifier='network')
    retained = schema.retained_edge_index(data)
    forgotten = schema.forgotten_edge_index(data)
    unseen = never_trained_pairs(data)

    def shuffled(users: Tensor) -> Tensor:
        users = users.unique()
        return users[torch.randperm(users.numel(), generator=rng).to(users.device)]

    kept = retained[0].unique()
    kept = shuffled(kept[~torch.isin(kept, Request.of(data).users.to(kept.device))])
    members, others, rest = kept.tensor_split([kept.numel() // 4, kept.numel() // 2])
    gone, strangers = shuffled(forgotten[0]), shuffled(unseen[0])
    num = min(gone.numel(), strangers.numel())
    if num < MIN_EXAMPLES or members.numel() < MIN_EXAMPLES:
        result.reason = (
            f'The attack needs {MIN_EXAMPLES} users of each kind (got {gone.numel()} '
            f'deleted, {strangers.numel()} never trained on, {members.numel()} for the '
            f"shadow model), so its metrics are NaN. Set users aside before training "
            f"with 'hold_out_users'."
        )
        warnings.warn(result.reason, stacklevel=2)
        return result
    gone, strangers = gone[:num], strangers[:num]

    sizes = schema.num_users(data), schema.num_items(data)
    background = retained[:, torch.isin(retained[0], rest)]
    vectors = factorise(background, sizes, num_factors, seed)
    shadow_data = _only(data, members)
    with isolated_seed(seed):
        recommender = build_model(shadow_data)
    fit(recommender, shadow_data, seed=seed, **(fit_args or {}))
    lent = Served.of(recommender, shadow_data, name='shadow model')
    x_train = torch.cat(
        [
            _describe(retained, members, vectors, _lists(lent, members)),
            _describe(retained, others, vectors, _popular(lent, others)),
        ]
    )
    served = Served.of(model, data, graph)
    x_test = torch.cat(
        [
            _describe(forgotten, gone, vectors, _lists(served, gone)),
            _describe(unseen, strangers, vectors, _popular(served, strangers)),
        ]
    )
    y_train = torch.arange(x_train.size(0)) < members.numel()
    label = torch.arange(x_test.size(0)) < num
    network = _Network(num_factors, num_epochs, lr, seed).fit(x_train, y_train)
    score = check_finite(network(x_test), 'score', "Lower 'lr'.")
    group = torch.cat([gone, strangers]).cpu()
    fill_result(result, score, score > 0, label, group, num_bootstrap, seed)
    guess = network(x_train) > 0
    result.details = {
        'flagged': float((score[label] > 0).double().mean()),
        'shadow_accuracy': float((guess == y_train).double().mean()),
        'num_shadow': y_train.numel(),
    }
    return result


def factorise(
    pairs: Tensor, sizes: tuple[int, int], num_factors: int, seed: int
) -> Tensor:
    r"""Returns item vectors :math:`\mathbf{V} \mathbf{S}^{1/2}` of the truncated
    singular value decomposition of a binary matrix, float32
    :math:`(N_{item}, F)` on the CPU; columns beyond its rank are zero.
    """
    pairs = pairs.cpu()
    users, row = pairs[0].unique(return_inverse=True)
    matrix = torch.sparse_coo_tensor(
        torch.stack([row, pairs[1]]),
        torch.ones(pairs.size(1)),
        (users.numel(), sizes[1]),
        check_invariants=True,
    )
    rank = min(num_factors, users.numel(), sizes[1])
    width = min(rank + 20, users.numel(), sizes[1])  # Oversampled, for accuracy.
    with isolated_seed(seed):
        _, value, right = torch.svd_lowrank(matrix.coalesce(), width, niter=4)
    out = torch.zeros(sizes[1], num_factors)
    out[:, :rank] = (right * value.sqrt())[:, :rank]
    return out


class _Network:
    def __init__(self, num_factors: int, num_epochs: int, lr: float, seed: int) -> None:
        self.num_epochs = num_epochs
        self.lr = lr
        with isolated_seed(seed):
            self.module = Sequential(
                *(Linear(num_factors, 32), ReLU(), Linear(32, 8), ReLU(), Linear(8, 2))
            )

    def fit(self, x: Tensor, label: Tensor) -> _Network:
        self.mean, self.spread = x.mean(dim=0), x.std(dim=0).clamp(min=1e-6)
        optimizer = torch.optim.Adam(self.module.parameters(), lr=self.lr)
        x, target = (x - self.mean) / self.spread, label.long()
        with torch.enable_grad():
            for _ in range(self.num_epochs):
                optimizer.zero_grad()
                loss = torch.nn.functional.cross_entropy(self.module(x), target)
                loss.backward()
                optimizer.step()
        return self

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        r"""Returns log-odds of membership, float64."""
        logits = self.module((x - self.mean) / self.spread).double()
        return logits[:, 1] - logits[:, 0]


def _only(data: HeteroData, users: Tensor) -> HeteroData:
    r"""Returns the data of some users alone, unmarked."""
    out = without_request(data)
    store = out[schema.EDGE_TYPE]
    keep = torch.isin(store.edge_index[0], users) & ~schema.forget_mask(data)
    store.forget_mask = ~keep
    for key in schema.HELD_OUT:
        if key in data:
            out[key] = data[key][:, torch.isin(data[key][0], users)]
    return DropForgotten(keep=('*',))(out)


def _lists(served: Served, users: Tensor) -> Tensor:
    user_emb, item_emb = served.embeddings
    k = min(HISTORY_LIST_SIZE, item_emb.size(0))
    known = plain(served.graph.edge_index).to(user_emb.device)
    return topk_items(user_emb, item_emb, users.to(user_emb.device), k, known)[0].cpu()


def _popular(served: Served, users: Tensor) -> Tensor:
    num_items = served.embeddings[1].size(0)
    count = plain(served.graph.edge_index)[1].cpu().bincount(minlength=num_items)
    best = count.argsort(descending=True, stable=True)[:HISTORY_LIST_SIZE]
    return best.expand(users.numel(), -1)


def _describe(pairs: Tensor, users: Tensor, vectors: Tensor, lists: Tensor) -> Tensor:
    pairs, users = pairs.cpu(), users.cpu()
    size = int(pairs[0].max()) + 1
    history = mean_items(pairs, users, vectors, size)
    return history - weighted_list(lists, vectors)
