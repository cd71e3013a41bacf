r"""Where and how far TRU reverses a request unless its caller says so [ours; chosen on
validation data of Amazon Baby].
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    r"""Arguments of :class:`~torch_geometric_unlearn.unlearn.TRU`."""

    rows: str
    reach: float
    shared_rate: float = 0.01
    num_epochs: int = 5
    num_passes: int = 3
    repair_batches: int | None = 10
    capacity: float = 0.3
    anchor: float = 0.0
    final_rate: float = 0.1


_LOWEST = {
    'user': Plan('user', 1.0),
    'item': Plan('item', 1.0),
    'interaction': Plan('user', 1 / 3),
    'mixed': Plan('both', 1 / 3),
}
_NEVER_SEEN = {
    'user': Plan('item', 0.2, 0.01, 5, 6, 5, 1.0, 1.0),
    'item': Plan('others', 3.0, 0.01, 8, 6, 5, 1.0, 0.3, 0.3),
    'other': Plan('both', 0.6, 0.01, 5, 6, 2, 1.0, 1.0),
}
_NEVER_SEEN_WITHOUT_ITEM_TABLE = {
    'user': Plan('user', 3.0, 0.01, 5, 6, 5, 1.0, 0.3),
    'item': Plan('both', 0.1, 1.0, 10, 9, 2, 1.0, 0.3),
    'other': Plan('both', 1.0, 0.1, 10, 9, 2, 1.0, 0.3, 0.3),
}


def plan_for(target: str, level: str, has_item_rows: bool) -> Plan:
    r"""Returns the plan by target, level of the request and whether the model has a
    table of items that is no content.
    """
    if target == 'lowest':
        return _LOWEST[level]
    table = _NEVER_SEEN if has_item_rows else _NEVER_SEEN_WITHOUT_ITEM_TABLE
    return table.get(level, table['other'])
