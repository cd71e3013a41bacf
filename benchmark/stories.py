r"""Four cases from the field on generated data: who asks for what, and when."""

from dataclasses import dataclass, field
from itertools import pairwise

import torch
from sklearn.cluster import KMeans

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.transforms import (
    ForgetInteractions,
    ForgetUsers,
    InjectBackdoor,
)
from torch_geometric_unlearn.utils.seed import generator

QUARTERS = 4
#: Pairs with a cluster from which on a user asks for them to be forgotten.
MIN_TOUCHED = 2


@dataclass
class Story:
    r"""Requests on the way to a deadline.

    Attributes:
        kind (str): Kind of every request.
        data (HeteroData): What the model in service was trained on.
        waves (list): Four lists of requests, each the arguments of `submit` that name
            what is to be erased.
        days (int): Days over which the requests of a wave come in.
        at_once (bool): Whether all waves come in on the first day, so that a person
            has to look; who then approves one wave after the other.
    """

    kind: str
    data: object = field(repr=False)
    waves: list
    days: int = 7
    at_once: bool = False


def marked(data, requests):
    r"""The data with requests marked, in the way that a workspace does."""
    users = [user for request in requests for user in request.get('users', ())]
    pairs = [pair for request in requests for pair in request.get('pairs', ())]
    out = ForgetUsers(users)(data) if users else data
    return ForgetInteractions(pairs)(out) if pairs else out


def waves(requests):
    r"""Requests in four parts of about the same length."""
    size = len(requests)
    if size < QUARTERS:
        raise ValueError(f'Four waves need four requests (got {size})')
    ends = [size * quarter // QUARTERS for quarter in range(QUARTERS + 1)]
    return [requests[a:b] for a, b in pairwise(ends)]


def leaving_users(data, num, seed):
    r"""One request per user, of users drawn at random."""
    users = data[schema.EDGE_TYPE].edge_index[0].unique()
    order = torch.randperm(users.numel(), generator=generator(seed))[:num]
    return [{'users': [user]} for user in users[order].tolist()]


def withdrawn_consent(data, num, seed):
    r"""Users leave one after the other."""
    return Story('consent', data, waves(leaving_users(data, num, seed)))


def sensitive_category(data, num, seed):
    r"""Users want all that they have to do with a cluster of items forgotten, which is
    the one that most users have at least two training pairs with; the clusters are
    those of the item features.
    """
    num_items = schema.num_items(data)
    x = torch.cat(list(schema.features(data).values()), dim=1)
    x = (x - x.mean(dim=0)) / x.std(dim=0)
    means = KMeans(max(2, num_items // 30), n_init=3, random_state=seed)
    cluster = torch.from_numpy(means.fit_predict(x.numpy())).long()

    user, item = data[schema.EDGE_TYPE].edge_index
    count = torch.zeros(schema.num_users(data), int(cluster.max()) + 1)
    count.index_put_((user, cluster[item]), torch.ones(user.numel()), accumulate=True)
    asks = count >= MIN_TOUCHED
    chosen = int(asks.sum(dim=0).argmax())
    users = asks[:, chosen].nonzero().view(-1)
    order = torch.randperm(users.numel(), generator=generator(seed))[:num]
    held_out = [schema.held_out(data, split) for split in schema.SPLITS]
    pairs = torch.cat([data[schema.EDGE_TYPE].edge_index, *held_out], dim=1)
    pairs = pairs[:, cluster[pairs[1]] == chosen]
    requests = [
        {'pairs': list(map(tuple, pairs[:, pairs[0] == user].t().tolist()))}
        for user in users[order].tolist()
    ]
    return Story('erasure', data, waves(requests))


def spam_wave(data, num, seed):
    r"""Fake users promote an item, and are found in four groups, one a week."""
    ratio = num / schema.num_users(data)
    poisoned = InjectBackdoor(ratio=ratio, num_fillers=10, seed=seed)(data)
    parts = waves(poisoned.backdoor_users.tolist())
    return Story('cleanup', poisoned, [[{'users': part}] for part in parts])


def surge(data, num, seed):
    r"""As many users as else in four weeks leave on one day."""
    parts = waves(leaving_users(data, num, seed + 1))
    return Story('erasure', data, parts, days=1, at_once=True)


STORIES = {
    'withdrawn consent': withdrawn_consent,
    'sensitive category': sensitive_category,
    'spam wave': spam_wave,
    'surge': surge,
}
