import pytest
import torch

from torch_geometric_unlearn.unlearn.branch_scaling import branch_energy, branch_scales


def test_branch_scales_by_hand():
    alpha = branch_scales({'a': 3.0, 'b': 1.0}, {'a': 1.0, 'b': 3.0})
    assert alpha == pytest.approx({'a': 0.75 / 0.5, 'b': 0.25 / 0.5})
    assert branch_scales({'a': 1.0, 'b': 0.0}, {'a': 1.0, 'b': 1.0})['b'] == 0.25
    none = branch_scales({'a': 0.0, 'b': 0.0}, {'a': 0.0, 'b': 0.0})
    assert none == {'a': 0.25, 'b': 0.25}
    assert branch_scales({'a': 1.0}, {'a': 0.0}) == {'a': 1.0}


def test_the_memorising_branch_gets_the_larger_scale():
    r"""Scores are a sum over two branches, of which one has memorised the pairs."""
    torch.manual_seed(0)
    users, pos, neg = torch.randn(3, 32, 8).unbind()
    memory = torch.nn.Parameter(pos.clone())
    innocent = torch.nn.Parameter(0.01 * torch.randn(32, 8))

    def energies(forget):
        x = (memory * (pos - neg)).sum(-1) + (innocent * users).sum(-1)
        loss = torch.nn.functional.softplus(x if forget else -x).mean()
        grads = torch.autograd.grad(loss, [memory, innocent])
        names = {'m': 'memory', 'i': 'innocent'}
        return branch_energy(dict(zip(names, grads)), names)

    alpha = branch_scales(energies(True), energies(False))
    assert alpha['memory'] >= alpha['innocent']
    # Measured with the forward loss, a memorised branch would look forgotten.
    assert energies(True)['memory'] > 10 * energies(False)['memory']
