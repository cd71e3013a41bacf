from __future__ import annotations

from typing import Any

from torch_geometric.data import HeteroData

from torch_geometric_unlearn.utils.digest import content_digest

from . import schema
from .request import is_erased


def data_digest(data: HeteroData) -> str:
    r"""Returns a hash of all content, in which erased ids are equal: what stands in
    their place is drawn anew whenever they are erased.
    """
    content: dict[Any, Any] = data.to_dict()
    for kind in (schema.USER, schema.ITEM):
        ids = content[kind].get('raw_id')
        if isinstance(ids, list) and any(map(is_erased, ids)):
            ids = [None if is_erased(raw) else raw for raw in ids]
            content[kind] = {**content[kind], 'raw_id': ids}
    return content_digest(content, 'data')
