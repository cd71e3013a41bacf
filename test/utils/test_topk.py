import pytest
import torch

from torch_geometric_unlearn.utils.topk import (
    PairIndex,
    pair_hits,
    pair_ranks,
    score_blocks,
    topk_items,
    topk_lowest_index,
)


def random_case(levels=None, num_users=20, num_items=30, seed=0):
    gen = torch.Generator().manual_seed(seed)
    shape_u, shape_i = (num_users, 5), (num_items, 5)
    if levels:  # Small integers, so that many scores are exactly equal.
        user_emb = torch.randint(levels, shape_u, generator=gen).float()
        item_emb = torch.randint(levels, shape_i, generator=gen).float()
    else:
        user_emb = torch.randn(shape_u, generator=gen)
        item_emb = torch.randn(shape_i, generator=gen)
    codes = torch.randperm(num_users * num_items, generator=gen)[:150]
    return user_emb, item_emb, torch.stack([codes // num_items, codes % num_items])


def ranked_items(scores, left_out=()):
    items = [i for i in range(len(scores)) if i not in left_out]
    return sorted(items, key=lambda i: (-scores[i], i))


def naive_topk(user_emb, item_emb, users, k, exclude, exclude_items):
    scores = (user_emb.double() @ item_emb.double().t()).tolist()
    excluded = set(map(tuple, exclude.t().tolist()))
    out = []
    for user in users.tolist():
        left_out = {i for u, i in excluded if u == user} | set(exclude_items)
        items = ranked_items(scores[user], left_out)[:k]
        out.append(items + [-1] * (k - len(items)))
    return out


@pytest.mark.parametrize('levels', [None, 3, 1])
@pytest.mark.parametrize('batch_size', [1, 3, 100])
@pytest.mark.parametrize('k', [1, 8, 40])
def test_topk_items(levels, batch_size, k):
    user_emb, item_emb, exclude = random_case(levels)
    users = torch.tensor([4, 19, 0, 4, 7, 11])
    args = (user_emb, item_emb, users, k, exclude, torch.tensor([0, 29]))
    items, scores = topk_items(*args, batch_size=batch_size)
    assert items.tolist() == naive_topk(*args[:5], {0, 29})
    assert items.dtype == torch.int64
    expected = (user_emb[users].unsqueeze(1) * item_emb[items]).sum(-1)
    expected[items == -1] = -torch.inf
    assert torch.allclose(scores, expected, atol=1e-5)


def test_topk_items_corner_cases():
    user_emb, item_emb, _ = random_case()
    no_users = torch.empty(0, dtype=torch.long)
    items, scores = topk_items(user_emb, item_emb, no_users, 3)
    assert items.shape == scores.shape == (0, 3)
    everything = torch.arange(30)
    items, scores = topk_items(
        user_emb, item_emb, torch.tensor([1]), 3, exclude_items=everything
    )
    assert items.tolist() == [[-1, -1, -1]]
    assert scores.tolist() == [[-torch.inf] * 3]
    for k in (0, -1):
        with pytest.raises(ValueError, match=rf"'k' must be at least 1 \(got {k}\)"):
            topk_items(user_emb, item_emb, everything[:2], k)
    with pytest.raises(TypeError, match=r"'k' must be an integer \(got 2.0\)"):
        topk_items(user_emb, item_emb, everything[:2], 2.0)


@pytest.mark.parametrize('levels', [1, 2, 5, 1000])
@pytest.mark.parametrize('k', [1, 7, 33, 50])
def test_topk_lowest_index(levels, k):
    gen = torch.Generator().manual_seed(levels)
    scores = torch.randint(levels, (40, 50), generator=gen).float()
    scores[3, 10:] = -torch.inf
    before = scores.clone()
    value, index = topk_lowest_index(scores, k)
    expected = [ranked_items(row)[:k] for row in scores.tolist()]
    assert index.tolist() == expected
    assert torch.equal(value, scores.gather(1, index))
    assert torch.equal(scores, before)


@pytest.mark.parametrize('levels', [None, 3, 1])
@pytest.mark.parametrize('batch_size', [1, 7, 1000])
def test_pair_ranks(levels, batch_size):
    user_emb, item_emb, known = random_case(levels)
    unknown = torch.tensor([[0, 0, 3, 19, 3], [29, 1, 5, 5, 5]])
    pairs = torch.cat([known[:, :60], unknown], dim=1)
    ranks, standardised = pair_ranks(user_emb, item_emb, pairs, known, batch_size)
    scores = user_emb.double() @ item_emb.double().t()
    positives = set(map(tuple, known.t().tolist()))
    for n, (user, item) in enumerate(pairs.t().tolist()):
        others = {i for u, i in positives if u == user and i != item}
        expected = ranked_items(scores[user].tolist(), others).index(item) + 1
        assert ranks[n] == expected
        row = scores[user]
        z = (row[item] - row.mean()) / row.std().clamp(min=1e-12)
        if row.std() > 0:
            assert standardised[n].item() == pytest.approx(z.item(), abs=1e-4)
        else:
            assert standardised[n] == 0


@pytest.mark.parametrize('levels', [None, 3])
@pytest.mark.parametrize('k', [1, 4, 30, 50])
def test_pair_hits_agree_with_ranks(levels, k):
    user_emb, item_emb, known = random_case(levels)
    unknown = torch.tensor([[0, 0, 3, 19, 3], [29, 1, 5, 5, 5]])
    pairs = torch.cat([known[:, :60], unknown], dim=1)
    pairs = pairs[:, torch.randperm(pairs.size(1))]
    ranks, expected = pair_ranks(user_emb, item_emb, pairs, known)
    hits, standardised = pair_hits(user_emb, item_emb, pairs, known, k, batch_size=3)
    assert torch.equal(hits, ranks <= k)
    assert torch.allclose(standardised, expected, atol=1e-4)
    nothing, _ = pair_hits(user_emb, item_emb, pairs[:, :0], known, k)
    assert nothing.shape == (0,)


def test_pair_ranks_of_nothing():
    user_emb, item_emb, known = random_case()
    ranks, standardised = pair_ranks(user_emb, item_emb, known[:, :0], known)
    assert ranks.shape == standardised.shape == (0,)
    assert ranks.dtype == torch.int64


def test_pair_index():
    pairs = torch.tensor([[3, 0, 3, 1, 3], [9, 8, 7, 6, 5]])
    row, item = PairIndex(pairs, num_users=5).lookup(torch.tensor([3, 2, 4, 0, 3]))
    assert row.tolist() == [0, 0, 0, 3, 4, 4, 4]
    assert item.tolist() == [9, 7, 5, 8, 9, 7, 5]
    row, item = PairIndex(pairs[:, :0], 5).lookup(torch.tensor([1, 2]))
    assert row.numel() == item.numel() == 0


def test_score_blocks():
    user_emb, item_emb, exclude = random_case()
    users = torch.arange(20)
    blocks = list(score_blocks(user_emb, item_emb, users, exclude, None, 8))
    assert [block.numel() for block, _ in blocks] == [8, 8, 4]
    scores = torch.cat([scores for _, scores in blocks])
    expected = user_emb @ item_emb.t()
    expected[exclude[0], exclude[1]] = -torch.inf
    assert torch.allclose(scores, expected, atol=1e-5)
