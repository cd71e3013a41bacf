import torch

from torch_geometric_unlearn.unlearn.masked_adam import MaskedAdam


def test_equals_torch_adam():
    torch.manual_seed(0)
    x, y = torch.randn(5, 3, dtype=torch.float64), None
    y = torch.nn.Parameter(x.clone())
    expected = torch.optim.Adam([y], lr=0.1)
    optimizer = MaskedAdam()
    for _ in range(10):
        grad = torch.randn_like(x)
        optimizer.step('x', x, grad, 0.1)
        y.grad = grad
        expected.step()
    assert torch.allclose(x, y, atol=1e-12)


def test_rows_move_as_a_table_of_their_own():
    torch.manual_seed(0)
    x, rows = torch.randn(6, 3), torch.tensor([1, 4])
    before, part = x.clone(), x[rows].clone()
    optimizer, expected = MaskedAdam(), MaskedAdam()
    for _ in range(5):
        grad = torch.randn_like(x)
        optimizer.step('x', x, grad, 0.1, rows)
        expected.step('x', part, grad[rows], 0.1)
    assert torch.allclose(x[rows], part)
    rest = [0, 2, 3, 5]
    assert torch.equal(x[rest], before[rest])


def test_step_size_scales_the_first_step():
    grad = torch.tensor([[3.0, -0.01]])
    moves = []
    for lr in (0.1, 0.2):
        x = torch.zeros(1, 2)
        MaskedAdam().step('x', x, grad, lr)
        moves.append(x)
    assert torch.allclose(moves[1], 2 * moves[0])
    assert torch.allclose(moves[0], -0.1 * grad.sign(), atol=1e-5)


def test_moments_survive_a_pause():
    optimizer, x, y = MaskedAdam(), torch.zeros(1, 1), torch.zeros(1, 1)
    for _ in range(3):
        optimizer.step('x', x, torch.ones(1, 1), 0.1)
    optimizer.step('y', y, torch.ones(1, 1), 0.1)
    before = x.clone()
    optimizer.step('x', x, torch.zeros(1, 1), 0.1)
    assert (x < before).all()  # Momentum goes on from where it was.
