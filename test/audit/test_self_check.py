import json

from torch_geometric_unlearn.audit import self_check
from torch_geometric_unlearn.nn import Served

FAST = {'classifiers': ['logistic'], 'num_bootstrap': 200}


def test_self_check_sees_a_blunt_original(marked, memory):
    check = self_check(memory(marked, 0.0, 0.0), marked, **FAST)
    assert check['null_ok']
    assert not check['original_ok']
    json.dumps(check)
    served = Served.before(memory(marked, 0.0, 0.0), marked)
    assert self_check(served, marked, **FAST) == check
