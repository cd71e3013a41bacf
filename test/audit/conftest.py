r"""What the tests of the membership attack share."""

import pytest
import torch

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.datasets import SyntheticMultimodal
from torch_geometric_unlearn.nn import EmbeddingTable
from torch_geometric_unlearn.transforms import ForgetUsers


@pytest.fixture(scope='session')
def full():
    return SyntheticMultimodal('tiny', num_users=300, num_items=80)[0]


@pytest.fixture
def marked(full):
    return ForgetUsers(ratio=0.4, seed=1)(full)


@pytest.fixture(scope='session')
def memory():
    r"""Builds a model that scores its training pairs as told, others at random."""

    def build(data, retained=1.0, forgotten=1.0, noise=0.2):
        rng = torch.Generator().manual_seed(0)
        sizes = schema.num_users(data), schema.num_items(data)
        scores = noise * torch.randn(*sizes, generator=rng)
        train = data[schema.EDGE_TYPE].edge_index
        scores[train[0], train[1]] += retained
        gone = schema.forgotten_edge_index(data)
        scores[gone[0], gone[1]] += forgotten - retained
        return EmbeddingTable(scores, torch.eye(sizes[1]))

    return build
