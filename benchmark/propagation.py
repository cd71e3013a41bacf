r"""How fast is one propagation, forward and backward, and against which peers?

    python benchmark/propagation.py                  # Baby's graph, d = 64.
    python benchmark/propagation.py --factor 10      # Ten times the size.

Peers run in turns in one process: torch COO `torch.sparse.mm` (as the MMRec toolbox
propagates), PyG's `LGConv` on a plain `edge_index`, PyG's `EdgeIndex.matmul` (sorted,
undirected, cached), and every kernel of `ops.spmm`.
"""

import argparse

import torch
from common import (
    copy_bandwidth,
    finish,
    load_baby,
    time_side_by_side,
    training_graph,
)
from torch_geometric import EdgeIndex
from torch_geometric.nn import LGConv

from torch_geometric_unlearn.ops import backend, backends, spmm, use_backend
from torch_geometric_unlearn.ops._reference import dense_spmm
from torch_geometric_unlearn.ops.sparse_operator import bipartite_operators

parser = argparse.ArgumentParser(allow_abbrev=False)
parser.add_argument('--factor', type=int, default=1, help='size against Baby')
parser.add_argument('--channels', type=int, default=64)
parser.add_argument('--repeats', type=int, default=15)
parser.add_argument('--device', default='cpu')
parser.add_argument('--json', metavar='PATH')
args = parser.parse_args()

data, name = load_baby()
edge_index, num_users, num_items = training_graph(data, args.factor)
operator = bipartite_operators(edge_index, num_users, num_items)[0].to(args.device)
num_nodes = operator.size[0]
torch.manual_seed(0)
x = torch.randn(num_nodes, args.channels, device=args.device, requires_grad=True)
grad = torch.randn(num_nodes, args.channels, device=args.device)

plain, weight = operator.edge_index, operator.edge_weight
coo = torch.sparse_coo_tensor(plain.flip(0), weight, operator.size).coalesce()
conv = LGConv(normalize=False)
cached = EdgeIndex(
    plain,
    sparse_size=(num_nodes, num_nodes),
    sort_order='col',
    is_undirected=True,
).fill_cache_()


def both_ways(forward):
    def run():
        x.grad = None
        forward(x).backward(grad)

    return run


def with_kernel(kernel):
    def run(x):
        with use_backend(kernel):
            return spmm(operator, x)

    def both():
        x.grad = None
        with use_backend(kernel):
            spmm(operator, x).backward(grad)

    return run, both


functions = {
    'torch COO': both_ways(lambda x: torch.sparse.mm(coo, x)),
    'PyG LGConv': both_ways(lambda x: conv(x, plain, weight)),
    'PyG EdgeIndex': both_ways(
        lambda x: cached.matmul(x, input_value=weight, transpose=True)
    ),
    'ops.spmm': both_ways(lambda x: spmm(operator, x)),
}
for kernel in backends():
    functions[f'  kernel {kernel}'] = with_kernel(kernel)[1]

errors = {}
if args.factor == 1:
    exact = dense_spmm(operator, x.detach().cpu() if args.device == 'cpu' else x)
    for label, forward in {
        'ops.spmm': lambda x: spmm(operator, x),
        'torch COO': lambda x: torch.sparse.mm(coo, x),
        'PyG LGConv': lambda x: conv(x, plain, weight),
        'PyG EdgeIndex': lambda x: cached.matmul(
            x, input_value=weight, transpose=True
        ),
        **{f'  kernel {k}': with_kernel(k)[0] for k in backends()},
    }.items():
        errors[label] = float((forward(x).detach() - exact).abs().max())
    del exact

result = time_side_by_side(functions, args.device, args.repeats)
bandwidth = copy_bandwidth(args.device)
# Read every entry, one source row per entry at worst once from memory, write the rows.
moved = 2 * (8 * operator.num_entries + 2 * 4 * num_nodes * args.channels)
ours = result['ops.spmm']['median']
rows = [
    {
        'method': label,
        'ms': value['median'] * 1e3,
        'spread_ms': value['spread'] * 1e3,
        'ratio to ours': value['median'] / ours,
        'max_error': f'{errors[label]:.1e}' if label in errors else None,
        'share_of_copy_bandwidth': moved / value['median'] / bandwidth,
    }
    for label, value in result.items()
]
finish(
    f'{name} x {args.factor}: {num_nodes:,} nodes, {operator.num_entries:,} entries, '
    f'd = {args.channels}, {args.device}, chosen kernel: {backend(args.device)}',
    rows,
    list(rows[0]),
    vars(args),
    args.json,
)
