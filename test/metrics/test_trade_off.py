import pytest

from torch_geometric_unlearn.metrics import trade_off


def row(ndcg, recall):
    return {'retain_ndcg@20': ndcg, 'forget_recall@20': recall}


@pytest.mark.parametrize(
    ('unlearned', 'expected'),
    [
        (row(0.04, 0.1), 1.0),  # The retrained model itself.
        (row(0.05, 0.1), 1.0),  # Better than it counts no more.
        (row(0.04, 0.5), 0.0),  # Nothing forgotten.
        (row(0.00, 0.1), 0.0),  # Nothing kept.
        (row(0.02, 0.2), 2 * 0.5 * 0.75 / 1.25),
        (row(0.04, 0.0), 2 * 0.75 / 1.75),  # Over-forgetting costs as well.
    ],
)
def test_by_hand(unlearned, expected):
    out = trade_off(row(0.04, 0.5), row(0.04, 0.1), unlearned)
    assert out == pytest.approx(expected)


def test_degenerate_cases():
    same = row(0.04, 0.1)
    assert trade_off(same, same, same) == 1.0
    assert trade_off(row(0, 0), row(0, 0), row(0, 0)) == 1.0
    assert trade_off(row(0, 0.5), row(0.1, 0.1), row(0, 0.5)) == 0.0
