from __future__ import annotations

import copy

import torch
from torch_geometric.data import HeteroData

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.metrics import embed
from torch_geometric_unlearn.nn.models.base import RecommenderLike
from torch_geometric_unlearn.transforms import ForgetInteractions
from torch_geometric_unlearn.unlearn import Unlearner, UnlearnResult

from ._snapshot import assert_same, equal, refresh, snapshot


def check_unlearner(
    unlearner: Unlearner, model: RecommenderLike, data: HeteroData
) -> UnlearnResult:
    r"""Checks the unlearner contract.

    Model and data stay as they were; the marked interactions are gone in both
    directions; the result is finite and the same in every call, whatever torch's global
    generator is at, which it leaves alone; a request that marks nothing changes
    nothing; the result serves a second request.

    Args:
        unlearner (Unlearner): The method.
        model (torch.nn.Module): A trained model.
        data (HeteroData): Its data with a request marked.

    Returns:
        UnlearnResult: The result of the first request.

    Raises:
        AssertionError: If a part of the contract is broken; says which.

    Example:
        >>> data = ForgetUsers([3])(SyntheticMultimodal('tiny')[0])
        >>> model = MGCN.from_data(data, hidden_channels=8)
        >>> result = check_unlearner(EdgeDrop(), model, data)
    """
    data_before = snapshot(data)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    rng = torch.get_rng_state()
    result = unlearner(model, data)

    assert torch.equal(rng, torch.get_rng_state()), (
        "An unlearner must leave torch's global generator alone"
    )
    assert_same(data_before, snapshot(data), 'The data of a request')
    _check_same_state(state, model, 'The model of a request must stay as it was')
    _check_gone(data, result.data)
    assert result.seconds >= 0
    assert result.exact == unlearner.exact
    for emb in embed(result.model, _graph(result)):
        assert torch.isfinite(emb).all(), 'The unlearned model must be finite'

    torch.rand(7)  # A repeat must not depend on the global generator.
    again = unlearner(model, data)
    first = {k: v.clone() for k, v in result.model.state_dict().items()}
    _check_same_state(first, again.model, 'The same seed must give the same result')
    _check_noop(unlearner, model, result.data)
    _check_second_request(unlearner, result)
    return result


def _graph(result: UnlearnResult) -> object:
    return result.model.build_graph(result.data)


def _check_same_state(
    state: dict[str, torch.Tensor], model: RecommenderLike, message: str
) -> None:
    for name, value in model.state_dict().items():
        assert equal(state[name], value), f"{message}, but '{name}' differs"


def _check_gone(data: HeteroData, after: HeteroData) -> None:
    schema.validate(after)
    num_items = schema.num_items(data)
    forgotten = schema.pair_codes(schema.forgotten_edge_index(data), num_items)
    pairs = {'forward': after[schema.EDGE_TYPE].edge_index}
    if schema.REV_EDGE_TYPE in after.edge_types:
        pairs['reverse'] = after[schema.REV_EDGE_TYPE].edge_index.flip(0)
    for direction, edge_index in pairs.items():
        codes = schema.pair_codes(edge_index, num_items)
        assert not torch.isin(codes, forgotten).any(), (
            f'Forgotten interactions must be gone in {direction} direction'
        )
    expected = schema.retained_edge_index(data).size(1)
    assert pairs['forward'].size(1) == expected, (
        f'Exactly the marked interactions must be gone: {expected} must stay '
        f'(got {pairs["forward"].size(1)})'
    )
    assert 'forget_mask' not in after[schema.EDGE_TYPE], 'The request must be closed'


def _check_noop(
    unlearner: Unlearner, model: RecommenderLike, data: HeteroData
) -> None:
    model = copy.deepcopy(model)
    refresh(model, data)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    result = unlearner(model, data)
    _check_same_state(state, result.model, 'A request that marks nothing is a no-op')
    assert_same(snapshot(data), snapshot(result.data), 'Data without a request')


def _check_second_request(unlearner: Unlearner, result: UnlearnResult) -> None:
    pair = result.data[schema.EDGE_TYPE].edge_index[:, :1]
    marked = ForgetInteractions(pair)(result.data)
    second = unlearner(result.model, marked)
    _check_gone(marked, second.data)
