import pytest

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.report import build_report
from torch_geometric_unlearn.unlearn import UnlearnResult


@pytest.mark.parametrize(
    ('forget', 'status', 'words'),
    [
        (0.0, 'within', 'within the tolerance of'),
        (1.0, 'outside', 'still remembers'),
        (-1.0, 'outside', 'over-forgotten'),
    ],
)
def test_verdict_judges_both_sides(inputs, monkeypatch, forget, status, words):
    module = 'torch_geometric_unlearn.evaluation'
    unlearned = inputs['result'].model

    def planted(served, data, k):
        shift = 0.03 * forget if served.model is unlearned else 0.0
        return {'exposure@20': 0.5, 'reach@20': 0.5, 'pair@20': 0.2 + shift}

    def ranking(served, data, **kwargs):
        return {'retain_ndcg@20': 0.04, 'forget_recall@20': 0.1}

    monkeypatch.setattr(f'{module}.exposure', planted)
    monkeypatch.setattr(f'{module}.evaluate_request', ranking)
    verdict = build_report(**inputs)['verdict']
    assert verdict['status'] == status
    text = ' '.join(verdict['sentences'])
    assert words in text
    assert f'ranks {20 + 3 * forget:.1f} % of the deleted interactions' in text
    assert "the comparison 'edge drop' is within the same tolerance" in text
    assert 'not a legal guarantee' in text
    wide = build_report(**inputs, tolerance={'forget': 0.05})['verdict']
    assert wide['status'] == 'within'


def test_edges_left_in_the_data_fail_the_verdict(inputs):
    bad = UnlearnResult(model=inputs['original'], data=inputs['data'].clone())
    del bad.data[schema.EDGE_TYPE].forget_mask
    content = build_report(bad, data=inputs['data'])
    marked = int(schema.forget_mask(inputs['data']).sum())
    assert content['request']['remaining'] == marked
    assert content['verdict']['status'] == 'outside'
    assert 'the deletion failed' in content['verdict']['sentences'][0]
