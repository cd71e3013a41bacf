r"""Mark what to forget, delete it, split interactions, link similar items."""

from .drop_forgotten import DropForgotten
from .forget_interactions import ForgetInteractions
from .forget_items import ForgetItems
from .forget_users import ForgetUsers
from .item_knn_graph import ItemKNNGraph
from .split_interactions import SplitInteractions, split_per_user

__all__ = [
    'DropForgotten',
    'ForgetInteractions',
    'ForgetItems',
    'ForgetUsers',
    'ItemKNNGraph',
    'SplitInteractions',
    'split_per_user',
]
