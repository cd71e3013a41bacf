from __future__ import annotations

import copy
from typing import Any

import torch
from torch_geometric.data import HeteroData

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.loader import TripletLoader
from torch_geometric_unlearn.metrics import embed
from torch_geometric_unlearn.nn.models.kept import kept_structure
from torch_geometric_unlearn.transforms import DropForgotten, ForgetInteractions
from torch_geometric_unlearn.unlearn.branch_scaling import branch_names
from torch_geometric_unlearn.utils.mode import evaluating

from ._snapshot import assert_same, equal, refresh, snapshot


def check_model(model: Any, data: HeteroData) -> None:
    r"""Checks the model contract.

    The graph holds exactly the training interactions that are not marked; the model
    keeps nothing of the interactions beside it, as far as that can be found
    (:meth:`~torch_geometric_unlearn.nn.models.kept.kept_structure`), so that a deletion
    leaves no stale state, whatever graph it has seen before; embeddings have the right
    shapes, are finite and reproducible; the loss is a finite scalar with gradients;
    branches are a partition; tables have a row per node; inputs stay as they were.

    Args:
        model (torch.nn.Module): The model.
        data (HeteroData): Unmarked data that it was built for, with at least two
            training interactions.

    Raises:
        AssertionError: If a part of the contract is broken; says which.

    Example:
        >>> data = SyntheticMultimodal('tiny')[0]
        >>> check_model(MGCN.from_data(data, hidden_channels=8), data)
    """
    before, unused = snapshot(data), copy.deepcopy(model)
    refresh(model, data)
    parameters = {k: v.clone() for k, v in model.state_dict().items()}
    graph = model.build_graph(data)
    user_emb, item_emb = embed(model, graph)

    sizes = schema.num_users(data), schema.num_items(data)
    assert (user_emb.size(0), item_emb.size(0)) == sizes, (
        f'Embeddings must have {sizes} rows (got {user_emb.size(0)} and '
        f'{item_emb.size(0)})'
    )
    assert user_emb.size(1) == item_emb.size(1), (
        'User and item embeddings must have the same size'
    )
    for emb, again in zip((user_emb, item_emb), embed(model, graph)):
        assert torch.isfinite(emb).all(), 'Embeddings must be finite'
        assert torch.equal(emb, again), (
            'Two forward passes in evaluation mode must agree'
        )
    _check_deletion(model, data)
    _check_order(model, unused, data)
    _check_kept(model, data)
    _check_loss(model, graph, data)
    branch_names(model)  # Raises if the branches are no partition.
    num_nodes = {'user': sizes[0], 'item': sizes[1], 'node': sum(sizes)}
    for table in model.tables():
        assert table.parameter.size(0) == num_nodes[table.rows], (
            f"A table of '{table.rows}' rows must have {num_nodes[table.rows]} of them"
        )
    assert_same(before, snapshot(data), 'The data of a model')
    _check_kept(model, data)  # Once more, after all that may have left something.
    refresh(model, data)
    state = model.state_dict()
    for name in {**parameters, **state}:
        assert name in state, f"Neither forward pass nor loss may remove '{name}'"
        assert name in parameters, f"Neither forward pass nor loss may add '{name}'"
        assert equal(parameters[name], state[name]), (
            f"Neither forward pass nor loss may change '{name}'"
        )


def _check_kept(model: Any, data: HeteroData) -> None:
    reason = kept_structure(model, data)
    assert not reason, f'The model must keep nothing of the interactions: {reason}'


def _check_deletion(model: Any, data: HeteroData) -> None:
    marked = ForgetInteractions(data[schema.EDGE_TYPE].edge_index[:, :1])(data)
    graph = model.build_graph(marked)
    num_items = schema.num_items(data)
    expected = schema.pair_codes(schema.retained_edge_index(marked), num_items)
    got = schema.pair_codes(graph.edge_index, num_items).to(expected.device)
    assert torch.equal(expected.sort()[0], got.sort()[0]), (
        "'graph.edge_index' must hold exactly the interactions that are not marked"
    )
    dropped = model.build_graph(DropForgotten()(marked))
    for a, b in zip(embed(model, graph), embed(model, dropped)):
        assert torch.allclose(a, b, atol=1e-6), (
            'Marked and deleted interactions must give the same embeddings'
        )


def _check_order(model: Any, unused: Any, data: HeteroData) -> None:
    half = ForgetInteractions(data[schema.EDGE_TYPE].edge_index[:, ::2])(data)
    graph = model.build_graph(half)
    expected = embed(unused, unused.build_graph(half))
    for a, b in zip(embed(model, graph), expected):
        assert torch.allclose(a, b, atol=1e-6), (
            'A model that has seen more interactions must give the same embeddings as '
            'one that has not. It must keep nothing of a graph'
        )


def _check_loss(model: Any, graph: Any, data: HeteroData) -> None:
    pairs = data[schema.EDGE_TYPE].edge_index
    batch = next(iter(TripletLoader(pairs, schema.num_items(data), batch_size=16)))
    batch = batch.to(next(model.parameters()).device)
    with evaluating(model):
        loss = model.loss(graph, batch)
    assert loss.dim() == 0, f'The loss must be a scalar (got {list(loss.shape)})'
    assert torch.isfinite(loss), f'The loss must be finite (got {loss})'
    trained = [p for p in model.parameters() if p.requires_grad]
    grads = torch.autograd.grad(loss, trained, allow_unused=True)
    found = [grad for grad in grads if grad is not None]
    assert found, 'The loss must have a gradient'
    assert all(torch.isfinite(grad).all() for grad in found), (
        'The gradients of the loss must be finite'
    )
