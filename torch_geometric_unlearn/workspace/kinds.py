r"""The kinds of request, and what each asks for."""

from __future__ import annotations

from dataclasses import dataclass

from torch_geometric_unlearn.utils.check import check_choice

#: What a target is: a user, an item, or a (user, item) pair.
LEVELS = ('user', 'item', 'pair')
#: States that a request can be in, those at its end last.
ENDS = ('completed', 'rejected', 'cancelled')
STATES = ('queued', 'review', 'held', 'working', 'probation', *ENDS)


@dataclass(frozen=True)
class Kind:
    r"""What a kind of request asks for [ours].

    Attributes:
        name (str): Its name.
        days (int): Days from receipt to the default deadline.
        levels (tuple): What it may name.
        retrains (bool): Whether the model is trained from scratch, not unlearned.
        may_drop (bool): Whether it may ask to erase the features of its items as well.
    """

    name: str
    days: int
    levels: tuple[str, ...]
    retrains: bool = False
    may_drop: bool = False


KINDS = {
    kind.name: kind
    for kind in (
        Kind('erasure', 30, ('user', 'item', 'pair')),
        Kind('consent', 30, ('user', 'pair')),
        Kind('takedown', 7, ('item',), may_drop=True),
        Kind('correction', 90, ('pair',)),
        Kind('cleanup', 3, ('user', 'item', 'pair'), retrains=True),
    )
}


def kind_of(name: str) -> Kind:
    r"""Returns a kind by its name, raises a :class:`ValueError` for another."""
    return KINDS[check_choice(name, 'kind', tuple(KINDS))]
