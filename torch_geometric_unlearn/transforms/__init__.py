r"""Mark what to forget, delete it, split interactions, link items, plant backdoors."""

from .drop_forgotten import DropForgotten
from .forget_interactions import ForgetInteractions
from .forget_items import ForgetItems
from .forget_users import ForgetUsers
from .inject_backdoor import InjectBackdoor
from .item_knn_graph import ItemKNNGraph
from .split_interactions import SplitInteractions

__all__ = [
    'DropForgotten',
    'ForgetInteractions',
    'ForgetItems',
    'ForgetUsers',
    'InjectBackdoor',
    'ItemKNNGraph',
    'SplitInteractions',
]
