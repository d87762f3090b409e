"""What every attack keeps to."""

import math
import random
import warnings
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

from opnorm._core.modes import model_state_preserved
from opnorm.errors import AttackError, ModelError, OpnormError
from tests.attacks.victims import (
    ATTACKS,
    EPS,
    OTHERS,
    Linear,
    images,
    make,
    net,
    on_all_attacks,
    on_the_others,
)


def exactly_inside(x, z, eps, norm):
    """In the ball and in the box, in rational arithmetic: no rounding at all."""
    eps = Fraction(eps)
    for a, b in zip(x, z, strict=True):
        assert ((b >= 0) & (b <= 1)).all()
        gaps = [
            Fraction(p) - Fraction(q)
            for p, q in zip(a.double().flatten().tolist(), b.double().flatten().tolist(), strict=True)
        ]
        if norm == math.inf:
            assert max(map(abs, gaps)) <= eps
        else:
            assert sum(abs(g) ** norm for g in gaps) <= eps**norm


@pytest.mark.each_value
@on_all_attacks(pytest.mark.parametrize)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("random_start", [True, False])
def test_points_are_exactly_in_the_ball_and_in_the_box(name, norm, dtype, random_start):
    x, y = images(12, dtype=dtype)
    x[0], x[1], x[2, 0, 0, 0] = 0, 1, 0
    model = net(dtype=dtype)
    for eps, loss, restarts in (
        (EPS[norm], "cw", 2),
        (0.1, "ce", 1),
        (1e-3, "ce", 2),
        (1e-9, "ce", 1),
        (0.9, "cw", 1),
    ):
        attack = make(name, norm, eps=eps, random_start=random_start, steps=3, loss=loss, restarts=restarts)
        z = attack(model, x, y)
        assert z.shape == x.shape
        assert z.dtype == x.dtype
        exactly_inside(x, z, eps, norm)
        if eps == 0.1:
            assert all((a != b).any() for a, b in zip(x, z, strict=True))


@pytest.mark.each_value
@on_the_others(pytest.mark.parametrize)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.filterwarnings("ignore:with 3 classes:UserWarning", "ignore:the DLR loss:UserWarning")
def test_points_of_the_others_are_exactly_in_the_ball_and_in_the_box(name, norm, dtype):
    x, y = images(12, dtype=dtype)
    x[0], x[1], x[2, 0, 0, 0] = 0, 1, 0
    model, moved = net(dtype=dtype), 0
    y[:8] = model.eval()(x[:8]).argmax(1)
    for eps in (0.1, 1e-9, 0.9):
        z = make(name, norm, eps=eps)(model, x, y)
        assert z.shape == x.shape
        assert z.dtype == x.dtype
        exactly_inside(x, z, eps, norm)
        moved += int((z != x).flatten(1).any(1).sum())
    assert moved


@on_the_others(pytest.mark.parametrize)
@pytest.mark.filterwarnings("ignore:with 3 classes:UserWarning", "ignore:the DLR loss:UserWarning")
def test_the_others_disturb_nothing_and_have_seeds(name, norm):
    model = net().train()
    model[1].eval()
    model.insert(0, Rebinds())
    x, y = images(6)
    model(x).sum().backward()
    before, inputs = record(model), x.clone()
    attack = make(name, norm, eps=0.5, seed=3)
    z = attack(model, x, y)
    after = record(model)
    del before["python"]  # the checks of shapes and types in tests draw from it
    for key, value in before.items():
        assert same(value, after[key]), key
    assert torch.equal(x, inputs)
    assert not z.requires_grad
    del model[0]  # which draws random numbers
    z = attack(model, x, y)
    torch.manual_seed(99)
    assert torch.equal(make(name, norm, eps=0.5)(model, x, y, seed=3), z)
    assert torch.equal(make(name, norm, eps=0)(model, x, y), x)
    assert len(attack(model, x[:0], y[:0])) == 0


def best_in_ball_and_box(x, direction, eps, norm):
    """The point of the ball cut with the box that goes furthest along a direction, in float64.

    In closed form for ℓ∞, and for ℓ1, where the steepest coordinates go as far as the box lets them.
    """
    x, direction = x.double(), direction.double()
    if norm == math.inf:
        return (x + eps * direction.sign()).clamp(0, 1)
    if norm == 1:
        best = x.clone().flatten(1)
        for point, slope in zip(best, direction.flatten(1), strict=True):
            left = eps
            for j in sorted(range(len(point)), key=lambda j: -abs(float(slope[j]))):
                far = 1 - point[j] if slope[j] > 0 else point[j]
                moved = min(float(far), left)
                point[j] += moved * slope[j].sign()
                left -= moved
        return best.view_as(x)
    direction = direction.sign() * direction.abs() ** (1 / (norm - 1))
    low, high = torch.zeros(len(x), 1, 1, 1), torch.full((len(x), 1, 1, 1), 1e6)
    for _ in range(200):  # the length of clip(x + t d) - x grows with t
        t = (low + high) / 2
        gap = ((x + t * direction).clamp(0, 1) - x).flatten(1).norm(norm, dim=1).view(-1, 1, 1, 1)
        low, high = torch.where(gap <= eps, t, low), torch.where(gap > eps, t, high)
    return (x + low * direction).clamp(0, 1)


@pytest.mark.each_value
@on_all_attacks(pytest.mark.parametrize)
@pytest.mark.parametrize("box", ["inactive", "active"])
def test_near_the_optimum_of_a_linear_model(name, norm, box):
    w = torch.randn(1, 4, 4, generator=torch.Generator().manual_seed(1))
    model = Linear(w)
    x, y = images(40, low=0.4, high=0.6) if box == "inactive" else images(40)
    y = y % 2
    eps = EPS[norm]
    towards = torch.where(y == 0, 1.0, -1.0).view(-1, 1, 1, 1) * w
    # one ℓ2 step along the gradient does not share out what the box cuts off; ℓ1 steps end within about a step; for other
    # p than 1, 2 and inf the steps and the projection end at a point near the optimum
    least = {("fgsm", 2): 0.5, ("fgsm", 3): 0.5, ("pgd", 1): 0.99} if box == "active" else {}
    enough = (least | {("pgd", 3): 0.97}).get((name, norm), 1 - 1e-4)
    steps, step = (50, eps / 12) if norm == 1 else (30, eps)
    best = best_in_ball_and_box(x, towards, eps, norm)
    if box == "inactive":
        dual = torch.linalg.vector_norm(w, {math.inf: 1, 3: 1.5, 2: 2, 1: math.inf}[norm])
        gain = ((best - x) * towards).flatten(1).sum(1)
        assert torch.allclose(gain, (eps * dual).double().expand(40), rtol=1e-5)
    for settings in ({}, {"loss": "cw"}, {"restarts": 3}, {"restarts": 2, "loss": "cw"}):
        z = make(name, norm, steps=steps, step=step, **settings)(model, x, y)
        reached = ((z - x) * towards).flatten(1).sum(1).double()
        optimum = ((best - x) * towards).flatten(1).sum(1)
        share = reached / optimum
        assert share.max() <= 1 + 1e-5
        assert share.min() >= enough


# ---------------------------------------------------------------- the model and the world are left as they were


class Rebinds(nn.Module):
    """Puts a new tensor in the place of a buffer, and draws random numbers in every mode."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        if self.training:
            self.calls = self.calls + 1
        return x + 1e-4 * torch.randn_like(x)


class Fails(nn.Module):
    def __init__(self, after):
        super().__init__()
        self.left = after

    def forward(self, x):
        self.left -= 1
        if self.left < 0:
            raise KeyError("as asked")
        return x


def record(model):
    return {
        "modes": [m.training for m in model.modules()],
        "state": {k: v.clone() for k, v in model.state_dict().items()},
        "buffers": [id(b) for b in model.buffers()],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "grads": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "hooks": [
            (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks))
            for m in model.modules()
        ],
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state()[1].copy(),
        "python": random.getstate(),
        "grad_mode": torch.is_grad_enabled(),
    }


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.each_value
@on_all_attacks(pytest.mark.parametrize)
@pytest.mark.parametrize("mode", ["eval", "train", "as is"])
@pytest.mark.parametrize("fails_after", [None, 0, 2])
def test_nothing_is_disturbed(name, norm, mode, fails_after):
    model = net()
    model.insert(0, Rebinds())
    model.train()
    model[2].eval()  # a frozen batch norm
    model[1].weight.requires_grad_(False)
    model[3].register_forward_hook(lambda *_: None)
    x, y = images(6)
    model(x).sum().backward()  # some weights have gradients, others none
    model[6].bias.grad = None
    if fails_after is not None:
        model.append(Fails(fails_after))
    inputs, labels = x.clone(), y.clone()
    before = record(model)
    attack = make(name, norm, mode=mode, steps=3, restarts=2, random_start=True)
    if fails_after is None:
        attack(model, x, y)
    else:
        with pytest.raises(KeyError, match="as asked"):
            attack(make_failing(model, name), x, y)
    after = record(model)
    for key, value in before.items():
        assert same(value, after[key]), key
    assert torch.equal(x, inputs)
    assert torch.equal(y, labels)


def make_failing(model, name):
    if name == "fgsm":
        model[-1].left = 0  # it has one pass
    return model


class InPlace(nn.Module):
    """Writes to its input."""

    def forward(self, x):
        return x.mul_(0.5).add_(0.2)


class OutOfPlace(nn.Module):
    def forward(self, x):
        return x * 0.5 + 0.2


@pytest.mark.parametrize(("name", "norm"), [*ATTACKS, *((other, math.inf) for other in OTHERS)])
@pytest.mark.filterwarnings("ignore:with 3 classes:UserWarning", "ignore:the DLR loss:UserWarning")
def test_models_may_write_to_their_inputs(name, norm):
    writes, other = (nn.Sequential(first, *net().eval()) for first in (InPlace(), OutOfPlace()))
    x, _ = images(6)
    y, inputs = other(x).argmax(1), x.clone()
    attack = make(name, norm, eps=0.3, steps=12, restarts=2, stop_at_success=True)
    z = attack(writes, x, y)
    assert torch.equal(x, inputs)
    assert torch.allclose(z, attack(other, x, y), atol=1e-6)


@pytest.mark.parametrize(("name", "norm"), [*ATTACKS, *((other, math.inf) for other in OTHERS)])
def test_one_logit_is_refused_with_the_remedy(name, norm):
    x, _ = images(4)
    with pytest.raises(AttackError, match=r"1 class.*torch\.cat\(\[torch\.zeros_like\(z\), z\], 1\)"):
        make(name, norm)(net(classes=1).eval(), x, torch.zeros(4, dtype=torch.long))


@pytest.mark.each_value
@pytest.mark.parametrize("grad", [torch.no_grad, torch.enable_grad])
@on_all_attacks(pytest.mark.parametrize)
def test_gradient_mode_of_the_caller_does_not_matter(name, norm, grad):
    model, (x, y) = net(), images(4)
    want = make(name, norm, steps=20)(model, x, y)
    with grad():
        z = make(name, norm, steps=20)(model, x.clone().requires_grad_(), y)
        none = make(name, norm, eps=0)(model, x.clone().requires_grad_(), y)
    assert torch.equal(z, want)
    assert not z.requires_grad
    assert not none.requires_grad
    assert z.is_leaf


@pytest.mark.parametrize(("name", "norm"), [*ATTACKS, *((other, math.inf) for other in OTHERS)])
@pytest.mark.filterwarnings("ignore:with 3 classes:UserWarning", "ignore:the DLR loss:UserWarning")
def test_the_default_type_does_not_matter(name, norm):
    model, (x, _) = net().eval(), images(4)
    y = model(x).argmax(1)
    settings = {"restarts": 2, "stop_at_success": True} | ({} if name in OTHERS else {"steps": 20})
    want = make(name, norm, **settings)(model, x, y)
    torch.set_default_dtype(torch.float64)
    try:
        found = make(name, norm, **settings)(model, x, y)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found, want)


@on_all_attacks(pytest.mark.parametrize)
def test_the_mode_is_that_asked_for(name, norm):
    seen = []

    class Spy(nn.Module):
        def forward(self, x):
            seen.append(self.training)
            return x

    model = nn.Sequential(Spy(), nn.Flatten(), nn.Linear(16, 3))
    x, y = images(2)
    for mode, training, want in (
        ("eval", True, False),
        ("train", False, True),
        ("as is", True, True),
        ("as is", False, False),
    ):
        model.train(training)
        seen.clear()
        make(name, norm, mode=mode, steps=10)(model, x, y)
        assert set(seen) == {want}
        assert model.training is training


def test_model_state_preserved_restores_after_training_steps_inside():
    model = net().train()
    before = record(model)
    with model_state_preserved(model, "train"):
        model(torch.full((3, 1, 4, 4), 0.5))
        torch.rand(3)
    assert same(before, record(model))
    with pytest.raises(OpnormError, match="unknown mode 'training'; expected one of eval, train, as is"):
        model_state_preserved(model, "training").__enter__()


# ---------------------------------------------------------------- seeds and batches


@on_all_attacks(pytest.mark.parametrize)
def test_a_point_is_attacked_alike_in_any_batch(name, norm):
    """Sums of integers in float64 are exact, so the model's own rounding cannot hide a difference."""
    w = torch.randint(-8, 9, (1, 4, 4), generator=torch.Generator().manual_seed(3)).double() / 64
    model = Linear(w)
    x, y = images(16)
    x, y = x.double(), y % 2
    attack = make(name, norm, random_start=True, restarts=2, steps=3)
    together = attack(model, x, y)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    rounding = 1e-12 if norm == 3 else 0  # of powers, which depends on the place in a vector of the processor
    assert torch.allclose(attack(model, x[order], y[order]), together[order], rtol=0, atol=rounding)
    for i in range(16):
        alone = attack(model, x[i : i + 1], y[i : i + 1])[0]
        assert torch.allclose(alone, together[i], rtol=0, atol=rounding)


@on_all_attacks(pytest.mark.parametrize)
def test_equal_seeds_give_equal_bits_and_others_do_not(name, norm):
    model, (x, y) = net(), images(6)
    first = make(name, norm, random_start=True, steps=1, step=1e-4, seed=5)
    want = first(model, x, y)
    torch.manual_seed(99)
    assert torch.equal(first(model, x, y), want)
    assert torch.equal(
        make(name, norm, random_start=True, steps=1, step=1e-4, seed=6)(model, x, y, seed=5), want
    )
    for seed in (0, 6, 2**40, -1):
        other = make(name, norm, random_start=True, steps=1, step=1e-4, seed=seed)(model, x, y)
        if name not in ("fgsm", "apgd"):  # whose first steps of ε and 2 ε take most of the start away
            assert all((a != b).any() for a, b in zip(other, want, strict=True))


def test_the_same_point_twice_in_a_batch_and_two_restarts():
    model, (x, y) = net(), images(2)
    twice, labels = x[[0, 0, 1]], y[[0, 0, 1]]
    z = make("pgd", math.inf, steps=0)(model, twice, labels)
    assert torch.equal(z[0], z[1])
    assert not torch.equal(z[0], z[2])


# ---------------------------------------------------------------- settings and inputs that make no sense


@on_all_attacks(pytest.mark.parametrize)
def test_eps_zero_and_empty_batches(name, norm):
    model, (x, y) = net(), images(4)
    z = make(name, norm, eps=0)(model, x, y)
    assert torch.equal(z, x)
    assert z is not x
    assert make(name, norm)(model, x[:0], y[:0]).shape == (0, 1, 4, 4)


@on_all_attacks(pytest.mark.parametrize)
@pytest.mark.parametrize("eps", [math.nan, -1e-9, math.inf, -math.inf])
def test_bad_radii(name, norm, eps):
    with pytest.raises(AttackError, match="eps="):
        make(name, norm, eps=eps)


def test_pixels_of_255_are_guessed():
    with pytest.raises(AttackError, match=r"eps=8 is larger than the whole range .* did you mean 8/255\?"):
        make("pgd", math.inf, eps=8)
    make("pgd", 2, eps=8)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": -1}, "steps=-1"),
        ({"steps": 2.5}, "steps=2.5: expected a whole number"),
        ({"steps": True}, "steps=True"),
        ({"restarts": 0}, "restarts=0"),
        ({"restarts": 1.5}, "restarts=1.5"),
        ({"step": -0.1}, "step=-0.1"),
        ({"step": math.nan}, "step=nan"),
        ({"step": True}, "step=True"),
        ({"eps": True}, "eps=True"),
        ({"loss": "mse"}, "loss='mse': expected 'ce', 'cw', 'dlr', 'kl', 'l1', 'l2' or 'linf'"),
        ({"loss": "l2", "random_start": False}, "its gradient is zero: expected a random start"),
        ({"mode": "training"}, "mode='training': expected 'eval'"),
        ({"seed": 1.5}, "seed=1.5"),
        ({"seed": 2**64}, "seed="),
        ({"norm": 0.5}, r"norm=0\.5: expected a number from 1 on"),
        ({"ascent": "eq17"}, "ascent='eq17': expected 'box' or 'roth'"),
        ({"norm": True}, "norm=True: expected a number from 1 on"),
        ({"norm": math.nan}, "norm=nan"),
        ({"norm": "inf"}, "norm='inf'"),
    ],
)
def test_bad_settings(settings, message):
    from opnorm.attacks import pgd

    with pytest.raises(AttackError, match=message):
        pgd(**settings)


@on_all_attacks(pytest.mark.parametrize)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda x, y: (x * 2 - 0.5, y),
            r"inputs range from -0\.\d+ to 1\.\d+; expected \[0, 1\]: put the normal",
        ),
        (lambda x, y: ((x * 255).to(torch.uint8), y), "inputs are torch.uint8.* divide uint8 pixels by 255"),
        (lambda x, y: (x.index_fill(0, torch.tensor(1), math.nan), y), "1 of 4 inputs contain NaN"),
        (lambda x, y: (x, y + 1), "labels range from 1 to 3, but the model has 3 classes"),
        (lambda x, y: (x, y - 1), "labels range from -1"),
        (lambda x, y: (x, y[:3]), r"labels of shape \(3,\)"),
        (lambda x, y: (x, y.float()), "torch.float32 labels"),
        (lambda x, y: (x, torch.eye(3, dtype=torch.int64)[y]), r"labels of shape \(4, 3\)"),
    ],
)
def test_bad_inputs(name, norm, change, message):
    x, _ = images(4)
    with pytest.raises(AttackError, match=message):
        make(name, norm)(net(), *change(x, torch.tensor([0, 1, 2, 0])))


class Wrap(nn.Module):
    def __init__(self, change):
        super().__init__()
        self.inner, self.change = net(), change

    def forward(self, x):
        return self.change(self.inner(x))


@on_all_attacks(pytest.mark.parametrize)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda z: z[:, 0], r"a tensor of shape \(4,\)"),
        (lambda z: z[:2], r"a tensor of shape \(2, 3\); expected logits of shape \(4, classes\)"),
        (lambda z: z * math.nan, "the model returns NaN or infinity for 4 of 4 points"),
        (lambda z: z.detach(), "no gradient reaches the inputs"),
    ],
)
def test_bad_models(name, norm, change, message):
    with pytest.raises(AttackError, match=message):
        make(name, norm)(Wrap(change), *images(4))


class NaNGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return torch.where(torch.arange(len(grad)).view(-1, 1) < 2, math.nan, grad)


@on_all_attacks(pytest.mark.parametrize)
def test_outputs_of_several_tensors_are_named(name, norm):
    with pytest.raises(
        ModelError, match=r"tuple with 2 tensors: 0 \(4, 3\), 1 \(4, 3\); expected one tensor"
    ):
        make(name, norm)(Wrap(lambda z: (z, z)), *images(4))


@on_all_attacks(pytest.mark.parametrize)
def test_nan_gradients_warn_and_stay_inside(name, norm):
    x, y = images(4)
    with pytest.warns(
        UserWarning, match="NaN or infinite for 2 of 4 points: the attack has no direction there"
    ):
        z = make(name, norm, steps=20)(Wrap(NaNGradient.apply), x, y)
    exactly_inside(x, z, EPS[norm], norm)
    assert (z[2:] != x[2:]).any()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(name, norm, steps=20)(net(), x, y)


class Root(nn.Module):
    """Class 1 wins where the first pixel is at least 0.0025; its derivative is infinite at 0."""

    def forward(self, x):
        z = x.flatten(1)
        other = 0.05 + 0.001 * z[:, 1:].mean(1)
        return torch.stack([other, z[:, 0].sqrt()], 1)


@on_all_attacks(pytest.mark.parametrize)
@pytest.mark.filterwarnings("ignore:the gradient is NaN or infinite")
def test_an_infinite_derivative_is_followed(name, norm):
    x, _ = images(4)
    x[:, 0, 0, 0] = 0
    z = make(name, norm)(Root(), x, torch.zeros(4, dtype=torch.long))
    exactly_inside(x, z, EPS[norm], norm)
    assert (Root()(z).argmax(1) == 1).sum() >= 3


def test_the_attacks_are_found():
    assert {"apgd", "fgsm", "pgd"} <= {a for a, _ in ATTACKS}
