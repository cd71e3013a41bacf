r"""Your own table in, recommendations with your own ids out, one user forgotten.

    python examples/custom_data.py

Needs pandas (`pip install "torch_geometric_unlearn[frame]"`); runs in seconds.
"""

import numpy as np
import pandas as pd
import torch

from torch_geometric_unlearn.data import from_frame, raw_to_internal
from torch_geometric_unlearn.nn import MGCN
from torch_geometric_unlearn.train import fit
from torch_geometric_unlearn.transforms import ForgetUsers, SplitInteractions
from torch_geometric_unlearn.unlearn import PartialRetrain

# 1. A shop's purchases: customers named by mail address, products by a code. Half of
# the customers like garden products, the other half like books.
rng = np.random.default_rng(0)
products = [f'garden-{i}' for i in range(20)] + [f'book-{i}' for i in range(20)]
purchases = [
    {'customer': f'customer{c}@shop.org', 'product': products[(c % 2) * 20 + i]}
    for c in range(60)
    for i in rng.choice(20, size=8, replace=False)
]
frame = pd.DataFrame(purchases)
texts = pd.DataFrame(rng.normal(size=(40, 16)), index=products)
texts.iloc[:20, 0] += 3  # What the product texts say about garden and books.

# 2. The frame becomes a `HeteroData`; the ids are kept.
data = from_frame(
    frame, user='customer', item='product', item_features={'text': texts}
)
data = SplitInteractions(seed=0)(data)
torch.manual_seed(0)
model = MGCN.from_data(data, hidden_channels=16)
fit(model, data, num_epochs=60, batch_size=128, lr=1e-2)


def top(model, data, customer, k=5):
    users = raw_to_internal(data, 'user', [customer])
    items, _ = model.recommend(model.build_graph(data), users, k)
    return [data['item'].raw_id[i] for i in items[0].tolist()]


# 3. One customer withdraws consent, and the model forgets.
customer = 'customer7@shop.org'
bought = frame[frame.customer == customer]['product'].tolist()
print(f'{customer} bought: {", ".join(bought)}')
print(f'recommended before: {", ".join(top(model, data, customer))}')

result = PartialRetrain()(model, ForgetUsers(raw_users=[customer])(data))
left = int((result.data['user', 'interacts', 'item'].edge_index[0] == 7).sum())
print(f'forgotten in {result.seconds:.1f} s; purchases left in the data: {left}')
other = 'customer9@shop.org'
print(f'{other} still gets: {", ".join(top(result.model, result.data, other))}')
