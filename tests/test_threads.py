"""Several threads at a time: each model is used by one of them, and results are those of one after another."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from opnorm import jacobian
from opnorm._core.modes import evaluating, model_state_preserved
from opnorm.attacks import apgd, pgd, square

X = torch.rand(6, 1, 5, 5, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2, 0, 1, 2])


def network():
    """In train mode, with statistics that each pass moves and with random numbers in it."""
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3), nn.Linear(36, 3)
    return nn.Sequential(*layers).train()


JOBS = [
    *(lambda m, mode=mode, norm=norm: pgd(norm, eps=0.2, steps=8, mode=mode)(m, X, Y)
      for mode in ("train", "eval", "as is") for norm in (2, float("inf"))),
    lambda m: apgd(2, eps=0.2, steps=8)(m, X, Y),
    lambda m: square(2, eps=0.2, queries=20)(m, X, Y),
    lambda m: jacobian.jacobian_norm(m, X).upper,
    lambda m: jacobian.explicit(m, X),
]  # fmt: skip


@pytest.mark.parametrize("shared", ["the model", "a part of the model"])
def test_three_threads_on_one_model_find_what_one_finds(shared):
    model = network()
    users = [model if shared == "the model" else nn.Sequential(nn.Identity(), model) for _ in JOBS]
    torch.manual_seed(1)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    want = [job(user) for job, user in zip(JOBS, users, strict=True)]
    with ThreadPoolExecutor(3) as pool:
        for _ in range(3):
            found = list(pool.map(lambda pair: pair[0](pair[1]), zip(JOBS, users, strict=True)))
            assert all(torch.equal(a, b) for a, b in zip(want, found, strict=True))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert all(p.requires_grad for p in model.parameters())


def test_two_models_are_used_at_the_same_time():
    both = threading.Barrier(2, timeout=60)  # broken where one waits for the other

    def use(model):
        with model_state_preserved(model), evaluating(model):
            both.wait()

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(use, (network(), network())))


def test_an_error_lets_the_next_thread_in():
    model = network()
    with pytest.raises(ZeroDivisionError), evaluating(model):
        raise ZeroDivisionError
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: pgd(eps=0.1, steps=2)(model, X, Y)).result(60).shape == X.shape
