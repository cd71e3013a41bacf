r"""What the benchmarks of the deletion service share: a clock that days are counted on,
and a record of what jobs did and of every version that was put into service.
"""

import math

from torch_geometric_unlearn.metrics.ranking import retained_ndcg
from torch_geometric_unlearn.nn import Served
from torch_geometric_unlearn.transforms import ForgetUsers
from torch_geometric_unlearn.workspace.gates import Gate, attack

DAY = 86_400.0


class Days:
    r"""A clock that stands still until days are let pass."""

    def __init__(self):
        self.now = 1e9

    def __call__(self):
        return self.now

    def let_pass(self, days=1):
        self.now += days * DAY


class Jobs:
    r"""Counts what the jobs of a workspace did: by which method the version came that
    was promoted, attempts that failed a gate, and which one, and full trainings that
    settled gates which could not be told before a deadline.
    """

    def __init__(self, ws):
        self.ws, self.version = ws, ws.status()['version']
        self.num, self.by_method, self.failed, self.decided = 0, {}, 0, 0
        self.failed_gates = {}

    def take(self, jobs):
        r"""Takes note of what the last call of `work` did, and returns the version if
        there is a new one.
        """
        for job in jobs:
            if not job.requests:  # A training that settles what others could not tell.
                continue
            self.num += 1
            self.failed += len(job.gates) - (job.version is not None)
            for verdicts in job.gates.values():
                for gate in (name for name, v in verdicts.items() if v == 'fail'):
                    self.failed_gates[gate] = self.failed_gates.get(gate, 0) + 1
            if job.version is not None:
                method = list(job.gates)[-1].split()[-1]
                self.by_method[method] = self.by_method.get(method, 0) + 1
        service = self.ws.versions.service
        if service['id'] == self.version:
            return None
        self.version = service['id']
        self.decided += service['job'] is None
        return service


class Drift:
    r"""Looks at every version that is put into service while users leave.

    Args:
        ws (Workspace): The workspace.
        data (HeteroData): Its data at the beginning.
        reference (Served): A model retrained without anyone who leaves.
        marked (HeteroData): The data with all of them marked.
        seed (int): Seed of the attacks.
    """

    def __init__(self, ws, data, reference, marked, seed):
        self.ws, self.data, self.reference = ws, data, reference
        self.marked, self.seed = marked, seed
        self.goal = float(retained_ndcg(reference, marked)[1].mean())
        self.unlearned, self.gone = None, []
        self.relative, self.to_full, self.attacks = [], [], []

    def take(self, service, users):
        r"""Looks at a version, a row of the ledger, that the given users are gone
        from since the one before.
        """
        served = Served.of(*self.ws.load())
        ours = float(retained_ndcg(served, self.marked)[1].mean())
        self.relative.append(ours / self.goal - 1)
        self.gone += users
        if service['is_full']:
            self._attack()
            return
        self.unlearned = served, list(self.gone)
        gate = self.ws.ledger.row(
            "SELECT content FROM gate WHERE job = ? AND name = 'utility' "
            'ORDER BY attempt DESC LIMIT 1',
            service['job'],
        )
        self.to_full.append(Gate.of(gate['content']).figures['to_full'])

    def _attack(self):
        r"""Attacks the last unlearned version, and the reference on the same pairs: all
        that were erased until then. Those since the last full training alone are few.
        """
        if self.unlearned is None:
            return
        served, users = self.unlearned
        self.unlearned, pool = None, ForgetUsers(users)(self.data)
        found, control = (
            attack(x, pool, self.seed).figures for x in (served, self.reference)
        )
        if not math.isnan(found['low']):  # Too few pairs.
            self.attacks.append(found | {'control': control['value']})

    def figures(self):
        r"""Ends the record, and returns what it says."""
        self._attack()
        out = {
            'worst_relative': min(self.relative, default=None),
            'worst_to_full': min(self.to_full, default=None),
            'attacks': len(self.attacks),
            'contained': sum(
                x['low'] <= x['control'] <= x['high'] for x in self.attacks
            ),
        }
        largest = max(self.attacks, key=lambda x: x['num_pairs'], default={})
        names = {'value': 'membership', 'low': 'low', 'high': 'high'}
        names |= {'control': 'control', 'num_pairs': 'pairs'}
        return out | {name: largest.get(key) for key, name in names.items()}
