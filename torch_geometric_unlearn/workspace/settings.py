from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from torch_geometric_unlearn import unlearn
from torch_geometric_unlearn.report import save_json
from torch_geometric_unlearn.utils.check import check_float, check_int

#: The functions that give data and model, by their places, for the command.
SOURCE = 'source.json'
#: The least value of every number; integers are whole numbers.
_LEAST = {
    'k': 1,
    'seed': 0,
    'min_users': 1,
    'min_pairs': 1,
    'max_wait_days': 0.0,
    'probation_days': 0.0,
    'surge_share': 0.0,
    'surge_rate': 1.0,
    'surge_history_days': 1.0,
    'surge_requests': 1,
    'surge_item_share': 0.0,
    'surge_item_pairs': 1,
    'max_updates': 0,
    'max_erased': 0.0,
    'max_days': 0.0,
    'max_loss': 0.0,
}
#: Those that are shares.
_SHARES = ('surge_share', 'surge_item_share', 'max_erased', 'max_loss')
#: What a person may be allowed to do.
ROLES = ('review', 'sign', 'rollback')


@dataclass(frozen=True)
class Settings:
    r"""How a workspace works; the file :obj:`workspace.json`.

    Attributes:
        key (str): The file with the key, outside of the folder.
        method (str): The unlearning method, by the name of its class.
        method_args (dict): Its arguments.
        fit_args (dict): Arguments of :meth:`fit
            <torch_geometric_unlearn.train.fit.fit>` for a full training.
        k (int): Length of the lists in which gates look.
        seed (int): Seed of everything.
        min_users (int): Users or items that make a batch.
        min_pairs (int): Interactions that make a batch.
        max_wait_days (float): Days after which the oldest request is served.
        probation_days (float): Days from promotion to the destruction of what is old.
        surge_share (float): Share of the training pairs in requests of one day above
            which a person has to look.
        surge_rate (float): Requests of one day, as a multiple of what is usual, above
            which a person has to look.
        surge_history_days (float): Days that must have passed before that day for what
            is usual to be known.
        surge_requests (int): Requests of one day that there must be at least for that.
        surge_item_share (float): Share of an item's pairs in requests of one day that
            don't name it, from which a person has to look.
        surge_item_pairs (int): Pairs that it must lose at least for that.
        max_updates (int): Updates after which the model is retrained.
        max_erased (float): Share of erased pairs since the last full training after
            which it is.
        max_days (float): Days since then after which it is.
        max_loss (float): Share of the retained NDCG@K at the last full training that
            the model in service may lack before it is.
        roles (dict): Who may decide, lists of names by role: :obj:`'review'` (hold,
            release, reject, cancel, lift and the clock), :obj:`'sign'` (serve what
            failed a soft gate) and :obj:`'rollback'` (that and refresh). Without any
            entry everyone may do all; else nobody has a role that is left out.
        signing_key (str): The file with the private key that signs evidence, outside
            of the folder, which a relative path starts from; evidence is not signed
            if empty.
    """

    key: str
    method: str = 'PartialRetrain'
    method_args: dict[str, Any] = field(default_factory=dict)
    fit_args: dict[str, Any] = field(default_factory=dict)
    k: int = 20
    seed: int = 0
    min_users: int = 10
    min_pairs: int = 300
    max_wait_days: float = 7.0
    probation_days: float = 7.0
    surge_share: float = 0.02
    surge_rate: float = 5.0
    surge_history_days: float = 14.0
    surge_requests: int = 20
    surge_item_share: float = 0.5
    surge_item_pairs: int = 10
    max_updates: int = 50
    max_erased: float = 0.05
    max_days: float = 90.0
    max_loss: float = 0.02
    roles: dict[str, list[str]] = field(default_factory=dict)
    signing_key: str = ''

    def __post_init__(self) -> None:
        r"""Checks all of them.

        Raises:
            TypeError: If one is of another type.
            ValueError: If one is out of its range, or there is no such method.
        """
        method = getattr(unlearn, str(self.method), None)
        if not isinstance(method, type) or not issubclass(method, unlearn.Unlearner):
            raise ValueError(
                f"'method' must be the name of an unlearning method, as 'TRU' (got "
                f'{self.method!r})'
            )
        for name in ('method_args', 'fit_args'):
            if not isinstance(getattr(self, name), dict):
                raise TypeError(f"'{name}' must be a dict of arguments")
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if isinstance(least, int):
                check_int(value, name, least)
            else:
                check_float(value, name, least, 1.0 if name in _SHARES else math.inf)
        self._check_roles()
        if not isinstance(self.signing_key, str):
            raise TypeError(
                f"'signing_key' must be the path of a file (got {self.signing_key!r})"
            )

    def _check_roles(self) -> None:
        if not isinstance(self.roles, dict):
            raise TypeError("'roles' must be a dict of lists of names by role")
        if unknown := sorted(map(str, set(self.roles) - set(ROLES))):
            raise ValueError(f"'roles' must be some of {list(ROLES)} (got {unknown})")
        for role, names in self.roles.items():
            if not isinstance(names, list) or not all(
                isinstance(name, str) and name.strip() for name in names
            ):
                raise TypeError(f"The role '{role}' must be a list of names")

    def check_role(self, role: str, who: str) -> bool:
        r"""Returns whether a person has a role because it was given to them, and not
        because no roles are set.

        Raises:
            PermissionError: If others have it.
        """
        names = self.roles.get(role, [])
        if self.roles and who not in names:
            have = f'{names} have' if names else 'nobody has'
            raise PermissionError(
                f"'who' must have the role '{role}', which {have} (got '{who}'). The "
                f"roles stand in 'workspace.json'."
            )
        return bool(self.roles)

    def save(self, path: Path) -> None:
        r"""Writes the file."""
        save_json(path, asdict(self))

    @classmethod
    def load(cls, path: Path) -> Settings:
        r"""Reads the file.

        Raises:
            ValueError: If it names a setting that there is not.
        """
        values = json.loads(path.read_text())
        names = {entry.name for entry in fields(cls)}
        if unknown := sorted(set(values) - names):
            raise ValueError(f"'{path}' names unknown settings {unknown}")
        return cls(**values)
