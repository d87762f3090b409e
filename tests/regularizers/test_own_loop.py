"""The order of a loop of one's own: parts of a batch, a loss scale, clipping and several learning rates."""

import pytest
import torch
from torch import nn

from opnorm import spec

LR = 0.05
SCALE = 1024.0
REGULARIZERS = (
    "weight_decay(lam=0.1)", "weight_decay(lam=0.1, decoupled=True)", "norm_decay(p=1, beta=0.1)", "global_snr(lam=0.1)",
    "dd_snr(lam=0.1)", "input_gradient(lam=0.1)", "parseval(beta=0.01)", "svc(c=1.0)", "spectral_normalization(sp=1.0)",
    "weissi()",
)  # fmt: skip


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(108, 8), nn.ReLU(), nn.Linear(8, 4)
    ).double()


def points():
    generator = torch.Generator().manual_seed(1)
    return torch.rand(8, 1, 6, 6, generator=generator).double(), torch.arange(8) % 4


def groups(model, rates):
    half = list(model.parameters())
    return [{"params": half[:2], "lr": rates[0]}, {"params": half[2:], "lr": rates[1]}]


def a_step(regularizer, parts, scale, *, clip=0.1, rates=(LR, LR)):
    """The weights after one step in the documented order."""
    model, (x, y) = network(), points()
    hooks = spec.build(regularizer, "regularizer")(model, x)
    optimizer = torch.optim.SGD(groups(model, rates))
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, enabled=scale != 1)
    for x_part, y_part in zip(x.chunk(parts), y.chunk(parts), strict=True):
        loss = nn.functional.cross_entropy(model(x_part), y_part) + hooks.penalty(model, x_part, y_part)
        scaler.scale(loss / parts).backward()
    scaler.unscale_(optimizer)
    hooks.edit_grads()
    size = nn.utils.clip_grad_norm_(model.parameters(), clip)
    scaler.step(optimizer)
    scaler.update()
    hooks.after_step(rates[1])
    return torch.cat([p.detach().flatten() for p in model.parameters()]), float(size)


@pytest.mark.each_value
@pytest.mark.parametrize("regularizer", REGULARIZERS)
def test_parts_and_a_scale_change_nothing(regularizer):
    """Parts: but where each call of the penalty draws or improves vectors of its own."""
    whole, size = a_step(regularizer, 1, 1)
    scaled, _ = a_step(regularizer, 1, SCALE)
    assert size > 0.1  # so that the step was clipped
    torch.testing.assert_close(scaled, whole)
    if not regularizer.startswith(("dd_", "global_snr")):
        torch.testing.assert_close(a_step(regularizer, 2, SCALE)[0], whole)


def test_what_is_added_to_gradients_is_clipped_with_them():
    """Weight decay is: without clipping the step is longer, and it is as long as the limit says with it."""
    before = torch.cat([p.detach().flatten() for p in network().parameters()])
    after, _ = a_step("norm_decay(p=1, beta=10)", 2, SCALE, clip=0.01)
    assert torch.linalg.vector_norm(after - before) == pytest.approx(LR * 0.01, rel=1e-5)


def test_decoupled_decay_shrinks_by_the_rate_that_it_is_given():
    """With several rates, that of the group whose weights decay."""
    plain, _ = a_step("weight_decay(lam=0)", 1, 1, rates=(0.0, 0.2))
    decayed, _ = a_step("weight_decay(lam=0.1, decoupled=True)", 1, 1, rates=(0.0, 0.2))
    kernel = network()[0].weight.numel()  # of the group with the rate 0, whose own step is none
    torch.testing.assert_close(decayed[:kernel], (1 - 0.2 * 0.1) * plain[:kernel])
