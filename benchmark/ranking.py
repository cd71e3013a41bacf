r"""How long does it take to rank all items for every user of a split?

    python benchmark/ranking.py

Ours: blocks of users at GEMM speed, masks by index, lists only, all metrics at 10 and
20. The peer masks with a loop over users, as several toolboxes do, and computes the
same two metrics at 20 from the lists.
"""

import argparse

import torch
from common import finish, load_baby, time_side_by_side

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.metrics import ranking_metrics

parser = argparse.ArgumentParser(allow_abbrev=False)
parser.add_argument('--repeats', type=int, default=5)
parser.add_argument('--device', default='cpu')
parser.add_argument('--json', metavar='PATH')
args = parser.parse_args()

data, name = load_baby()
data = data.to(args.device)
train = data[schema.EDGE_TYPE].edge_index
test = data.test_edge_label_index
torch.manual_seed(0)
user_emb = torch.randn(schema.num_users(data), 64, device=args.device)
item_emb = torch.randn(schema.num_items(data), 64, device=args.device)


def by_user(pairs):
    items = [[] for _ in range(user_emb.size(0))]
    for user, item in pairs.t().tolist():
        items[user].append(item)
    return items


train_items, test_items = by_user(train), by_user(test)
discount = 1 / torch.arange(2, 22).log2()


def with_loops():
    recall, ndcg, count = 0.0, 0.0, 0
    for start in range(0, user_emb.size(0), 2048):
        scores = user_emb[start : start + 2048] @ item_emb.t()
        for row in range(scores.size(0)):
            scores[row, train_items[start + row]] = -1e10
        lists = scores.topk(20, dim=1)[1].tolist()
        for row, ranked in enumerate(lists):
            relevant = set(test_items[start + row])
            if relevant:
                hit = torch.tensor([float(item in relevant) for item in ranked])
                recall += float(hit.sum()) / len(relevant)
                best = discount[: min(20, len(relevant))].sum()
                ndcg += float((hit * discount).sum() / best)
                count += 1
    return {'recall@20': recall / count, 'ndcg@20': ndcg / count}


def ours():
    return ranking_metrics(user_emb, item_emb, test, train, ks=(10, 20))


expected, got = with_loops(), ours()
gap = max(abs(expected[key] - got[key]) for key in expected)
result = time_side_by_side(
    {'loops over users': with_loops, 'ranking_metrics': ours},
    args.device,
    args.repeats,
    warmup=1,
)
rows = [
    {
        'method': label,
        'time_s': f'{value["median"]:.3f}',
        'spread_s': f'{value["spread"]:.3f}',
        'ratio': result['loops over users']['median'] / value['median'],
        'max_gap': f'{gap:.1e}',
    }
    for label, value in result.items()
]
finish(
    f'{name}, {args.device}: {user_emb.size(0):,} users, {item_emb.size(0):,} items',
    rows,
    list(rows[0]),
    vars(args),
    args.json,
)
