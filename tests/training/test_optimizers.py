"""Optimizers by name: those of torch, bit for bit, without torch's compiler."""

import copy

import pytest
import torch
from torch import nn

from opnorm.training.optimizers import adam, adamw, rmsprop, sgd

CASES = [
    (sgd(0.1, 0.9, nesterov=True), torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    (adam(0.01), torch.optim.Adam, {"lr": 0.01}),
    (adamw(0.01, 0.1), torch.optim.AdamW, {"lr": 0.01, "weight_decay": 0.1}),
    (rmsprop(0.01, momentum=0.5), torch.optim.RMSprop, {"lr": 0.01, "momentum": 0.5}),
]


def steps(model, optimizer, count):
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        optimizer.zero_grad(set_to_none=True)
        model(torch.randn(4, 3, generator=generator)).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize(("make", "original", "settings"), CASES)
def test_steps_are_torchs(make, original, settings):
    torch.manual_seed(0)
    own = nn.Linear(3, 2)
    expected = copy.deepcopy(own)
    optimizer, other = make(own.parameters()), original(expected.parameters(), **settings)
    assert isinstance(optimizer, original)
    calls = []
    optimizer.register_step_post_hook(lambda *_: calls.append(1))
    steps(own, optimizer, 5)
    steps(expected, other, 5)
    assert len(calls) == 5
    assert torch.equal(own.weight, expected.weight)
    assert own.weight.is_leaf
    again = make(own.parameters())
    again.load_state_dict(other.state_dict())  # either one goes on from what the other saved
    other.load_state_dict(optimizer.state_dict())
    steps(own, again, 2)
    steps(expected, other, 2)
    assert torch.equal(own.weight, expected.weight)
