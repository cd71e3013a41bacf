from __future__ import annotations

from collections.abc import Sequence

from torch_geometric.data import HeteroData
from torch_geometric.data.datapipes import functional_transform
from torch_geometric.transforms import BaseTransform

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.utils.check import check_int
from torch_geometric_unlearn.utils.knn import cosine_knn_graph


@functional_transform('item_knn_graph')
class ItemKNNGraph(BaseTransform):
    r"""Adds one directed item-item graph per modality from the cosine similarity of
    the item features (functional name: :obj:`item_knn_graph`), as in the `"Multi-View
    Graph Convolutional Network for Multimedia Recommendation"
    <https://arxiv.org/abs/2308.03588>`_ paper.

    Stores :obj:`data['item', 'similar_<modality>', 'item']` with
    :obj:`edge_index` :obj:`[2, I * k]` (neighbour, item) and the cosine similarities as
    :obj:`edge_weight` :obj:`[I * k]`. Models that build such graphs use the stored
    ones instead, so one can also store a graph from elsewhere.

    Args:
        k (int, optional): Number of neighbours, the item itself included.
            (default: :obj:`10`)
        modalities (sequence, optional): Modalities to use, all if not given.
            (default: :obj:`None`)

    Raises:
        TypeError: If :obj:`modalities` is a string.
        ValueError: If :obj:`k` is below 1, or a modality is unknown.

    Example:
        >>> data = ItemKNNGraph(k=5)(SyntheticMultimodal('tiny')[0])
        >>> int(data['item', 'similar_image', 'item'].edge_weight.numel()) // 5 == (
        ...     data['item'].num_nodes)
        True
    """

    def __init__(self, k: int = 10, modalities: Sequence[str] | None = None) -> None:
        self.k = check_int(k, 'k', 1)
        if isinstance(modalities, str):
            raise TypeError(
                f"'modalities' must be a sequence of names (got the string "
                f"'{modalities}'). For one modality, pass ['{modalities}']."
            )
        self.modalities = None if modalities is None else tuple(modalities)

    def forward(self, data: HeteroData) -> HeteroData:
        data = schema.validate(data)
        features = schema.features(data)
        for name in self.modalities if self.modalities is not None else features:
            if name not in features:
                raise ValueError(
                    f"'modalities' names '{name}', but the items carry "
                    f'{list(features)}'
                )
            edge_index, edge_weight = cosine_knn_graph(features[name], self.k)
            store = data[schema.similar_edge_type(name)]
            store.edge_index, store.edge_weight = edge_index, edge_weight
        return data

    def __repr__(self) -> str:
        return f'{self.__class__.__name__}(k={self.k})'
