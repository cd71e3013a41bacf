import pytest

from torch_geometric_unlearn.audit import compare_membership, membership

FAST = {'classifiers': ['logistic'], 'num_bootstrap': 200}


def test_compare(marked, memory):
    models = {
        'original': memory(marked),
        'over': memory(marked, forgotten=-1.0),
        'retrained': memory(marked, forgotten=0.0),
    }
    out = compare_membership(models, marked, **FAST)
    rows = {(row['method'], row['mode']): row for row in out['rows']}
    assert len(rows) == 6
    assert out['missing'] == {}
    assert out['confounded'] is False
    assert out['self_check']['original_ok']
    own, reference = rows['over', 'direct'], rows['retrained', 'direct']
    gap = own['balanced_accuracy'] - reference['balanced_accuracy']
    assert own['priv_gap'] == pytest.approx(gap)
    assert gap > 0.3
    change = 100 * (own['auc'] / reference['auc'] - 1)
    assert own['auc_relative'] == pytest.approx(change)
    assert rows['retrained', 'transfer']['priv_gap'] == 0
    alone = membership(models['over'], marked, mode='transfer', **FAST)
    assert alone.auc == rows['over', 'transfer']['auc']

    del models['retrained'], models['original']
    out = compare_membership(models, marked, modes=['direct'], **FAST)
    assert set(out['missing']) == {'retrained', 'original'}
    assert out['confounded'] is out['self_check'] is None
    assert 'priv_gap' not in out['rows'][0]
    with pytest.raises(ValueError, match="'modes' must be one of"):
        compare_membership(models, marked, modes=['all'])


@pytest.mark.usefixtures('few_trees')
def test_excess_is_paired(marked, memory):
    models = {
        'retrained': memory(marked, forgotten=0.0),
        'a': memory(marked, forgotten=0.1),
    }
    out = compare_membership(models, marked, modes=['direct'], **FAST)
    reference, other = out['rows']
    assert reference['excess_auc'] == reference['excess_auc_low'] == 0
    assert other['excess_auc'] == pytest.approx(other['auc'] - reference['auc'])
    assert other['excess_auc_low'] <= other['excess_auc'] <= other['excess_auc_high']
