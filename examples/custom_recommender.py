r"""Your own recommender, written without this package: train it, and let it forget 5 %
of the users.

    python examples/custom_recommender.py        # Generated data, no network needed.

Expect a forget Recall@20 of about 0.64 before, 0.03 after retraining and after
TRU, at a retain Recall@20 of 0.33 throughout (ranking by popularity: 0.16).

A model of PyTorch Geometric takes the same way:

    RecommenderAdapter(LightGCN(num_users + num_items, 64, 2), num_users, num_items)
"""

import argparse

import torch
from torch.nn import Embedding, Linear, ReLU, Sequential

from torch_geometric_unlearn.datasets import SyntheticMultimodal
from torch_geometric_unlearn.metrics import evaluate_request
from torch_geometric_unlearn.nn import RecommenderAdapter
from torch_geometric_unlearn.report import format_table
from torch_geometric_unlearn.train import fit
from torch_geometric_unlearn.transforms import ForgetUsers
from torch_geometric_unlearn.unlearn import TRU, PartialRetrain, Retrain

parser = argparse.ArgumentParser(allow_abbrev=False)
parser.add_argument('--size', default='small', choices=['tiny', 'small', 'medium'])
args = parser.parse_args()


class TwoTower(torch.nn.Module):
    r"""A user is a vector, an item what a small network makes of its features."""

    def __init__(self, num_users, image, text, channels=64):
        super().__init__()
        self.register_buffer('features', torch.cat([image, text], dim=1))
        self.user = Embedding(num_users, channels)
        self.item = Sequential(
            Linear(self.features.size(1), channels), ReLU(), Linear(channels, channels)
        )
        torch.nn.init.xavier_uniform_(self.user.weight)

    def forward(self):
        return self.user.weight, self.item(self.features)


def build_model(data):
    sizes = data['user'].num_nodes, data['item'].num_nodes
    tower = TwoTower(sizes[0], data['item'].x_image, data['item'].x_text)
    branches = {'id': ['user'], 'content': ['item']}
    return RecommenderAdapter(tower, *sizes, branches=branches, weight_decay=0.01)


# 1. Train it.
data = SyntheticMultimodal(args.size)[0]
torch.manual_seed(0)
model = build_model(data)
settings = {'lr': 2e-3, 'batch_size': 512, 'patience': 10}
trained = fit(model, data, **settings)

# 2. Let it forget: by training anew, by TRU, and by training some rows anew.
marked = ForgetUsers(ratio=0.05)(data)
retrain = Retrain(build_model, **settings)(model, marked)
tru = TRU(batch_size=512)(model, marked)
partial = PartialRetrain(batch_size=512, lr=2e-3)(model, marked)

# 3. Compare what they recommend.
models = {'original': model, 'retrained': retrain.model, 'TRU': tru.model}
models['PartialRetrain'] = partial.model
rows = [{'model': name, **evaluate_request(models[name], marked)} for name in models]
for row, run in zip(rows, [trained, retrain, tru, partial]):
    row['seconds'] = run.seconds
metrics = ['retain_recall@20', 'retain_ndcg@20', 'forget_recall@20', 'forget_ndcg@20']
print(format_table(rows, ['model', *metrics, 'seconds']))
