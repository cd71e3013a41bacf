r"""One recommender on two processes: trained, a user forgotten, and kept in a folder.

    torchrun --nproc-per-node 2 examples/distributed.py
    python examples/distributed.py                       # The same on one process.
    python examples/distributed.py --model MGCN          # One with item features.

Every process holds the whole graph and its share of the columns of every embedding. The
numbers are those of one process up to rounding. Runs in under a minute on a CPU.
"""

import argparse
import tempfile
from pathlib import Path

import torch

from torch_geometric_unlearn.datasets import SyntheticMultimodal
from torch_geometric_unlearn.distributed import mark, process_group
from torch_geometric_unlearn.metrics import evaluate_request
from torch_geometric_unlearn.nn import (
    ColumnParallelLightGCN,
    ColumnParallelMGCN,
    ColumnParallelMIGGT,
)
from torch_geometric_unlearn.train import fit, load_model, save_model
from torch_geometric_unlearn.transforms import ForgetUsers
from torch_geometric_unlearn.unlearn import PartialRetrain

MODELS = {
    'LightGCN': ColumnParallelLightGCN,
    'MGCN': ColumnParallelMGCN,
    'MIGGT': ColumnParallelMIGGT,
}
parser = argparse.ArgumentParser(allow_abbrev=False)
parser.add_argument('--model', choices=MODELS, default='LightGCN')
parser.add_argument('--size', default='small', help='of the generated data')
parser.add_argument('--epochs', type=int, default=20)
parser.add_argument('--out', help='folder to keep the model in; a temporary one if not')
args = parser.parse_args()


def main():
    torch.set_num_threads(1)
    data = SyntheticMultimodal(args.size)[0]
    torch.manual_seed(0)
    model = MODELS[args.model].from_data(data)
    columns = model.columns
    is_first = columns.rank == 0

    # 1. Every process trains its columns; a step adds up the scores of its batch.
    result = fit(model, data, num_epochs=args.epochs, batch_size=512)
    seconds = sum(row['seconds'] for row in result.history)
    if is_first:
        each = f'{columns.width} of {columns.num_columns} columns each'
        print(f'{columns.num_processes} process(es), {each}')
        print(f'trained {len(result.history)} epochs in {seconds:.1f} s')

    # 2. The first process takes the request; all of them apply it and compare.
    request = ForgetUsers([3, 14, 15]) if is_first else None
    marked = mark(data, request, columns)
    unlearned = PartialRetrain(batch_size=512)(model, marked)

    # 3. Metrics look at whole embeddings, and are the same on every process.
    before = evaluate_request(model, marked)
    after = evaluate_request(unlearned.model, marked)
    if is_first:
        print(f'forgot 3 users in {unlearned.seconds:.1f} s')
        for name in ('retain_ndcg@20', 'forget_recall@20'):
            print(f'{name}: {before[name]:.4f} before, {after[name]:.4f} after')

    # 4. A state is a folder that any number of processes can load.
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(args.out or columns.share(temporary)[0]) / 'model'
        save_model(unlearned.model, folder, data=unlearned.data)
        load_model(unlearned.model, folder, data=unlearned.data)
        columns.share(None)  # Nobody removes what another one reads.
    whole = unlearned.model.to_whole()  # All processes take part.
    if is_first:
        print(f'whole again: {whole}')


with process_group():
    main()
