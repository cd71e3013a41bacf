r"""Seeded multimodal interactions that need neither network nor files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.data import HeteroData, InMemoryDataset

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.transforms.split_interactions import split_per_user
from torch_geometric_unlearn.utils.check import check_choice, check_int
from torch_geometric_unlearn.utils.seed import generator

# Number of users, number of items, width of the features.
SIZES = {
    'tiny': (100, 60, 16),
    'small': (2_000, 1_000, 64),
    'medium': (20_000, 7_000, 128),
    'large': (200_000, 50_000, 128),
}
MIN_NODES = 20
MIN_DEGREE = 5  # Both sides, as in 5-core data.
TASTE_CHANNELS = 16
MAX_GENRES = 32
TASTE_STRENGTH = 7.0  # Logits of a perfect match, before popularity.
BLOCK_NUMEL = 2**22  # Scores in memory at once (16 MiB).


class SyntheticMultimodal(InMemoryDataset):
    r"""Seeded user-item interactions with item features of several modalities, in
    the shape of the Amazon 5-core data sets; needs neither network nor files.

    The generator is our own. Items lie around genres in a latent taste space, and
    users mix a few of them. With unit vectors :math:`\mathbf{z}_u, \mathbf{z}_i`
    and a log-normal popularity :math:`p_i`, the :math:`d_u` items of a user are
    drawn without replacement from

    .. math::
        P(i \mid u) \propto p_i \exp(\tau \, \mathbf{z}_u^{\top} \mathbf{z}_i)

    by the Gumbel top-k trick, with :math:`d_u = 5` plus a log-normal part. Items
    that stay below five interactions draw the missing users in the same way. Each
    modality shows another part of :math:`\mathbf{z}_i`, disturbed by noise and mixed
    linearly, in three quarters of its columns; the others are noise only. So neither
    modality nor the interactions alone tell the whole taste. Interactions
    are split as by :class:`~torch_geometric_unlearn.transforms.SplitInteractions`.

    .. list-table::
        :header-rows: 1

        * - size
          - users
          - items
          - interactions (about)
          - meant for
        * - ``tiny``
          - 100
          - 60
          - 800
          - tests
        * - ``small``
          - 2,000
          - 1,000
          - 17,000
          - examples
        * - ``medium``
          - 20,000
          - 7,000
          - 165,000
          - benchmarks, like Amazon Baby
        * - ``large``
          - 200,000
          - 50,000
          - 1,620,000
          - scaling (minutes to generate)

    Args:
        size (str, optional): :obj:`'tiny'`, :obj:`'small'`, :obj:`'medium'` or
            :obj:`'large'`. (default: :obj:`'small'`)
        seed (int, optional): Seed of everything random. The same seed and arguments
            give the same data; torch's global generators stay untouched.
            (default: :obj:`0`)
        num_users (int, optional): Number of users instead of that of :obj:`size`.
            (default: :obj:`None`)
        num_items (int, optional): Number of items instead of that of :obj:`size`.
            (default: :obj:`None`)
        num_interactions (int, optional): Number of interactions in all splits to aim
            for; the result differs by a few percent, as every user and item gets at
            least five. (default: :obj:`None`, about eight per user)
        modalities (sequence or dict, optional): Names of the modalities, or the
            number of feature columns by name. (default: :obj:`('image', 'text')`)
        transform (callable, optional): Applied to the data object at every access.
            (default: :obj:`None`)

    Shapes:
        - **features:** ``data['item'].x_<modality>`` of shape
          :math:`(N_{item}, F)`, float32
        - **interactions:** :obj:`edge_index` of shape :math:`(2, E)`,
          :obj:`val_edge_label_index` and :obj:`test_edge_label_index` of shape
          :math:`(2, *)`, int64

    Raises:
        TypeError: If a number is no integer or a modality no string.
        ValueError: If an argument is out of range.

    Example:
        >>> data = SyntheticMultimodal('tiny', seed=0)[0]
        >>> data['user'].num_nodes, data['item'].num_nodes
        (100, 60)
        >>> data['item'].x_image.shape
        torch.Size([60, 16])
    """

    def __init__(
        self,
        size: str = 'small',
        seed: int = 0,
        num_users: int | None = None,
        num_items: int | None = None,
        num_interactions: int | None = None,
        modalities: Sequence[str] | Mapping[str, int] = ('image', 'text'),
        transform: Callable[[HeteroData], HeteroData] | None = None,
    ) -> None:
        check_choice(size, 'size', tuple(SIZES))
        users, items, width = SIZES[size]
        if num_users is not None:
            users = check_int(num_users, 'num_users', MIN_NODES)
        if num_items is not None:
            items = check_int(num_items, 'num_items', MIN_NODES)
        if num_interactions is None:
            num_interactions = 8 * max(users, items)
        _check_num_interactions(num_interactions, users, items)
        dims = _check_modalities(modalities, width)
        gen = generator(seed)

        super().__init__(None, transform)
        data = _generate(users, items, num_interactions, dims, seed, gen)
        self.data, self.slices = self.collate([schema.validate(data)])


def _check_num_interactions(value: int, num_users: int, num_items: int) -> None:
    minimum = MIN_DEGREE * max(num_users, num_items)
    maximum = num_users * num_items // 2
    check_int(value, 'num_interactions', 1)
    if not minimum <= value <= maximum:
        raise ValueError(
            f"'num_interactions' must be in [{minimum}, {maximum}] for {num_users} "
            f'users and {num_items} items (got {value}). Every user and item gets at '
            f'least {MIN_DEGREE}, and at most half of all pairs are drawn.'
        )


def _check_modalities(
    modalities: Sequence[str] | Mapping[str, int],
    width: int,
) -> dict[str, int]:
    if isinstance(modalities, Mapping):
        dims = dict(modalities)
    elif isinstance(modalities, str) or not isinstance(modalities, Sequence):
        raise TypeError(
            f"'modalities' must be a sequence of names or a dict from name to number "
            f"of columns (got {modalities!r}). For one modality, pass ('image',)."
        )
    else:
        dims = {}
        for name in modalities:
            if name in dims:
                raise ValueError(
                    f"'modalities' must hold unique names (got '{name}' twice)"
                )
            # Different widths, so that code that mixes modalities up fails early.
            dims[name] = width if name == 'image' else width * 3 // 4
    if not dims:
        raise ValueError("'modalities' must name at least one modality (got none)")
    for name, dim in dims.items():
        if not isinstance(name, str) or not name.isidentifier():
            raise TypeError(
                f"'modalities' must hold names such as 'image' (got {name!r}). "
                f"Features are stored as 'x_<name>'."
            )
        check_int(dim, f"modalities['{name}']", 1)
    return dims


def _generate(
    num_users: int,
    num_items: int,
    num_interactions: int,
    dims: dict[str, int],
    seed: int,
    gen: torch.Generator,
) -> HeteroData:
    user_taste, item_taste = _draw_tastes(num_users, num_items, gen)
    degree = _draw_degrees(num_users, num_items, num_interactions, gen)
    popularity = 1.2 * torch.randn(num_items, generator=gen)
    pairs = _draw_items(user_taste, item_taste, popularity, degree, gen)
    pairs = torch.cat(
        [pairs, _draw_missing_users(user_taste, item_taste, degree, pairs, gen)], dim=1
    )
    pairs = pairs[:, schema.pair_codes(pairs, num_items).argsort()]
    split = split_per_user(pairs[0], seed=seed)

    data = HeteroData()
    data['user'].num_nodes = num_users
    data['item'].num_nodes = num_items
    for name, dim in dims.items():
        data['item'][f'x_{name}'] = _draw_features(item_taste, dim, gen)
    data[schema.EDGE_TYPE].edge_index = pairs[:, split == 0]
    data.val_edge_label_index = pairs[:, split == 1]
    data.test_edge_label_index = pairs[:, split == 2]
    return data


def _draw_tastes(
    num_users: int,
    num_items: int,
    gen: torch.Generator,
) -> tuple[Tensor, Tensor]:
    r"""Returns unit vectors of users and items that lie around common genres."""
    num_genres = min(MAX_GENRES, num_items // 8)
    genres = F.normalize(torch.randn(num_genres, TASTE_CHANNELS, generator=gen))

    genre = torch.randint(num_genres, (num_items,), generator=gen)
    noise = torch.randn(num_items, TASTE_CHANNELS, generator=gen)
    item_taste = F.normalize(genres[genre] + 0.15 * noise)

    # A sharp softmax: one to three genres carry nearly all the weight of a user.
    weight = torch.randn(num_users, num_genres, generator=gen).mul_(3.0).softmax(dim=1)
    noise = torch.randn(num_users, TASTE_CHANNELS, generator=gen)
    user_taste = F.normalize(weight @ genres + 0.1 * noise)
    return user_taste, item_taste


def _draw_degrees(
    num_users: int,
    num_items: int,
    num_interactions: int,
    gen: torch.Generator,
) -> Tensor:
    r"""Returns five plus a log-normal number of interactions per user."""
    weight = torch.randn(num_users, generator=gen, dtype=torch.double).mul_(1.1).exp_()
    rest = num_interactions - MIN_DEGREE * num_users
    # Rounding the running sum keeps the total.
    total = (weight.cumsum(0) / weight.sum() * rest).round_().long()
    extra = total.diff(prepend=total.new_zeros(1))
    return (MIN_DEGREE + extra).clamp_(max=num_items * 3 // 4)


def _draw_items(
    user_taste: Tensor,
    item_taste: Tensor,
    popularity: Tensor,
    degree: Tensor,
    gen: torch.Generator,
) -> Tensor:
    r"""Returns :obj:`degree[u]` different items of every user, as pairs."""
    out = []
    blocks, buffer = _blocks(degree.numel(), popularity.numel())
    for user in blocks:
        key = _race(user_taste[user], item_taste, popularity, buffer, gen)
        need = degree[user]
        item = key.topk(int(need.max()), dim=1).indices
        row, place = _first_places(item, need)
        out.append(torch.stack([user[row], item[row, place]]))
    return torch.cat(out, dim=1)


def _draw_missing_users(
    user_taste: Tensor,
    item_taste: Tensor,
    degree: Tensor,
    pairs: Tensor,
    gen: torch.Generator,
) -> Tensor:
    r"""Returns the pairs that lift every item to the minimum degree."""
    num_users, num_items = degree.numel(), item_taste.size(0)
    missing = (MIN_DEGREE - pairs[1].bincount(minlength=num_items)).clamp_(min=0)
    rare = missing.nonzero().view(-1)
    if rare.numel() == 0:
        return pairs.new_empty((2, 0))
    position = torch.full((num_items,), -1).index_put_(
        (rare,), torch.arange(rare.numel())
    )
    known = torch.stack([position[pairs[1]], pairs[0]])
    known = known[:, known[0] >= 0]
    activity = degree.float().log()

    out = []
    blocks, buffer = _blocks(rare.numel(), num_users)
    for block in blocks:
        item = rare[block]
        key = _race(item_taste[item], user_taste, activity, buffer, gen)
        start, stop = int(block[0]), int(block[-1])
        here = known[:, (known[0] >= start) & (known[0] <= stop)]
        key[here[0] - start, here[1]] = -torch.inf
        user = key.topk(MIN_DEGREE, dim=1).indices
        row, place = _first_places(user, missing[item])
        out.append(torch.stack([user[row, place], item[row]]))
    return torch.cat(out, dim=1)


def _race(
    taste: Tensor,
    other_taste: Tensor,
    log_weight: Tensor,
    buffer: Tensor,
    gen: torch.Generator,
) -> Tensor:
    r"""Returns keys whose k largest are k draws without replacement, per row.

    The negative of an exponential race, which orders as Gumbel-perturbed logits do
    and takes one logarithm less. Works in :obj:`buffer`, since fresh memory for every
    block takes longer than the arithmetic.
    """
    weight, noise = buffer[:, : taste.size(0)]
    torch.addmm(
        log_weight, taste, other_taste.t(), alpha=TASTE_STRENGTH, out=weight
    ).exp_()
    return noise.uniform_(generator=gen).log_().div_(weight)


def _first_places(chosen: Tensor, need: Tensor) -> tuple[Tensor, Tensor]:
    r"""Returns rows and columns of the first :obj:`need[row]` entries of each row."""
    place = torch.arange(chosen.size(1))
    row, column = (place < need.view(-1, 1)).nonzero(as_tuple=True)
    return row, column


def _blocks(num_rows: int, num_columns: int) -> tuple[tuple[Tensor, ...], Tensor]:
    r"""Returns consecutive row ids by block, and memory for two blocks of scores."""
    size = min(num_rows, max(1, BLOCK_NUMEL // num_columns))
    return torch.arange(num_rows).split(size), torch.empty(2, size, num_columns)


def _draw_features(item_taste: Tensor, dim: int, gen: torch.Generator) -> Tensor:
    r"""Returns features :obj:`[I, dim]` that show a noisy part of the taste."""
    num_items, channels = item_taste.shape
    part = torch.randperm(channels, generator=gen)[: channels * 5 // 8]
    # Noise within the part: more columns would not average it out.
    noise = torch.randn(num_items, part.numel(), generator=gen)
    seen = item_taste[:, part] * channels**0.5 + 0.5 * noise
    num_signal = max(1, dim * 3 // 4)
    mix = torch.randn(part.numel(), num_signal, generator=gen) / part.numel() ** 0.5
    x = torch.randn(num_items, dim, generator=gen).mul_(0.5)
    x[:, :num_signal] += seen @ mix
    return x[:, torch.randperm(dim, generator=gen)]
