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


class Root(torch.autograd.Function):
    """√x, whose gradient at 0 is NaN also where the gradient of the result is 0."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x.sqrt())
        return x.sqrt()

    @staticmethod
    def backward(ctx, grad):
        return grad / (2 * ctx.saved_tensors[0])


@pytest.mark.parametrize("create_graph", [False, True])
def test_the_graph_behind_u_is_not_walked(create_graph):
    x = torch.tensor([0.0, 4.0], requires_grad=True)
    u = Root.apply(x) * x.exp()
    assert pull_back(3 * x, x, u, create_graph=create_graph).tolist() == (3 * u).tolist()
    torch.autograd.grad(u.sum(), x)  # nor freed


def test_u_stays_as_it_was_and_may_come_from_inference_mode():
    x = torch.ones(4, 4, requires_grad=True)
    with torch.inference_mode():
        inferred = torch.rand(4, 4)
    for u in (torch.rand(4, 4), inferred):
        before = u.clone()
        outputs = (2 * x + x) + (x + x.T) + x
        expected = torch.autograd.grad(outputs, x, u, retain_graph=True)[0]
        torch.testing.assert_close(pull_back(outputs, x, u), expected, rtol=0, atol=0)
        assert torch.equal(u, before)


def test_complex_outputs_and_vmap_over_u():
    x, u = torch.rand(3, requires_grad=True), torch.randn(5, 3, dtype=torch.complex64)
    outputs = x * (1 + 2j)
    expected = torch.stack([torch.autograd.grad(outputs, x, row, retain_graph=True)[0] for row in u])
    found = torch.func.vmap(lambda row: pull_back(outputs, x, row, retain_graph=True))(u)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(pull_back(outputs, x, u[0]), expected[0])


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
