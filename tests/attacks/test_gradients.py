"""Gradients that an attack can follow: finite ones as they are, otherwise the direction that infinite components give."""

import math

import pytest
import torch

from opnorm.attacks._gradients import GradientMonitor, finite_gradient


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_rows_that_are_not_finite_leave_the_others_as_they_are(value, dtype):
    grad = torch.randn(4, 1, 3, 3, generator=torch.Generator().manual_seed(0), dtype=dtype)
    broken = grad.clone()
    broken[1, 0, 0, 0] = value
    found = finite_gradient(broken)
    assert found.isfinite().all()
    assert torch.equal(found[[0, 2, 3]], grad[[0, 2, 3]])
    if math.isnan(value):
        assert torch.equal(found[1].flatten()[1:], grad[1].flatten()[1:])
        assert found[1, 0, 0, 0] == 0
    else:
        assert found[1, 0, 0, 0] == math.copysign(1, value)
        assert 0 < found[1].flatten()[1:].abs().max() <= 1.001e-3


def test_infinite_components_that_cancel_count_as_infinite():
    grad = torch.tensor([[math.inf, -math.inf, 2.0], [0.0, 1.0, -1.0]])
    found = finite_gradient(grad)
    torch.testing.assert_close(found, torch.tensor([[1.0, -1.0, 1e-3], [0.0, 1.0, -1.0]]))


def test_finite_gradients_whose_sum_overflows_stay_as_they_are():
    grad = torch.full((2, 1, 2, 2), 3e38)
    assert torch.equal(finite_gradient(grad), grad)


def test_the_last_gradient_decides_whether_a_point_has_none():
    monitor, zero, one = (
        GradientMonitor.of(torch.zeros(3, dtype=torch.long)),
        torch.zeros(3, 4),
        torch.ones(3, 4),
    )
    right = torch.zeros(3, dtype=torch.bool)
    monitor.record(slice(None), zero, right)
    monitor.record(torch.tensor([0, 1]), one[:2], right[:2])
    assert monitor.zero.tolist() == [False, False, True]
    monitor.record(torch.tensor([0, 2]), one[:2] * torch.tensor([[math.nan], [1]]), right[:2])
    monitor.record(slice(None), one, right)
    assert monitor.zero.tolist() == [False, False, False]
    assert monitor.nonfinite.tolist() == [True, False, False]
    monitor.record(slice(None), zero, torch.tensor([True, False, False]), torch.tensor([False, True, False]))
    assert monitor.zero.tolist() == [False, False, True]
