"""Products with a transposed Jacobian are those of torch, can be differentiated, and load no library for algebra."""

import subprocess
import sys

import pytest
import torch

from opnorm._core.pull_back import pull_back


def test_values_are_those_of_autograd():
    torch.manual_seed(0)
    for scale in (1e-40, 1e-30, 1.0, 1e30):
        x, u = torch.randn(3, 4, requires_grad=True), torch.randn(3, 2) * scale
        outputs = torch.tanh(x @ torch.randn(4, 2)) * 1e20
        expected = torch.autograd.grad(outputs, x, u, retain_graph=True)[0]
        torch.testing.assert_close(pull_back(outputs, x, u), expected, rtol=0, atol=0, equal_nan=True)


def test_it_can_be_differentiated_in_the_inputs_and_in_u():
    def product(x, u):
        return pull_back(x.tanh() @ x, x, u, create_graph=True)

    x, u = (torch.randn(3, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(product, (x, u))


def test_what_does_not_depend_on_the_inputs_and_wrong_shapes():
    x, other = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    assert pull_back(2 * other, x, torch.ones(2), allow_unused=True) is None
    with pytest.raises(ValueError, match=r"u of shape \(1, 2\); expected \(2,\), that of the outputs"):
        pull_back(2 * x, x, torch.ones(1, 2))


def test_norms_and_jacobians_do_not_load_sympy():
    code = """
import sys, torch
from opnorm import jacobian, models, norms
model = models.resnet(depth=8, width=4).eval()
norms.measure(model, torch.rand(1, 3, 8, 8))
with jacobian.linearized(model, torch.rand(2, 3, 8, 8)) as J:
    J.T @ (J @ torch.rand(2, 3, 8, 8))
print("sympy" in sys.modules)
"""
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        == "False\n"
    )
