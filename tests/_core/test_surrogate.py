"""A surrogate is the same function as its model up to rounding, and follows its weights."""

import copy
import gc
import math
import os
import subprocess
import sys
import warnings
import weakref

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_full_backward_hook

from opnorm import attacks, objectives
from opnorm._core.fast_convolutions import fast_convolutions
from opnorm._core.surrogate import Surrogate, has_bf16, replace_modules, training_surrogate
from opnorm._core.thin_convolution import ThinConv2d
from opnorm.data import digits
from opnorm.models import cnn, resnet
from opnorm.training import TrainingSettings, optimizers, train


class Named(nn.Module):
    """Layers by name, and a forward given as a function of them."""

    def __init__(self, forward, **layers):
        super().__init__()
        self.parts, self.way = nn.ModuleDict(layers), forward

    def forward(self, x):
        return self.way(self.parts, x)


def conv(**how):
    return nn.Conv2d(1, 4, 3, **how)


def flat(x):
    return x.mean((2, 3))


CASES = {
    "bias": (1, lambda: Named(lambda m, x: flat(m.b(m.c(x)).relu()), c=conv(), b=nn.BatchNorm2d(4))),
    "no bias": (1, lambda: Named(lambda m, x: flat(m.b(m.c(x)).relu()), c=conv(bias=False), b=nn.BatchNorm2d(4, eps=0.1))),
    "not affine": (1, lambda: Named(lambda m, x: flat(m.b(m.c(x)).relu()), c=conv(), b=nn.BatchNorm2d(4, affine=False))),
    "many filters": (1, lambda: Named(
        lambda m, x: flat(m.k(m.b(m.c(x)).relu())),
        c=nn.Conv2d(1, 16, 3, padding=1, bias=False), b=nn.BatchNorm2d(16), k=nn.Conv2d(16, 4, 3),
    )),
    "strided": (1, lambda: Named(lambda m, x: flat(m.b(m.c(x))), c=conv(stride=2, dilation=2), b=nn.BatchNorm2d(4))),
    "grouped": (2, lambda: Named(
        lambda m, x: flat(m.b2(m.g(m.b(m.c(x)).relu())).relu()),
        c=conv(), b=nn.BatchNorm2d(4),
        g=nn.Conv2d(4, 8, 3, groups=2, padding=1, padding_mode="reflect"), b2=nn.BatchNorm2d(8),
    )),
    "linear": (1, lambda: Named(lambda m, x: m.b(m.l(x.flatten(1))).tanh(), l=nn.Linear(64, 5), b=nn.BatchNorm1d(5))),
    "1d": (1, lambda: Named(lambda m, x: m.b(m.c(x.flatten(2))).mean(2), c=nn.Conv1d(1, 3, 2), b=nn.BatchNorm1d(3))),
    "residual": (2, lambda: Named(
        lambda m, x: flat((m.b(m.c(x)) + m.s(m.k(x))).relu()),
        c=conv(), b=nn.BatchNorm2d(4), k=nn.Conv2d(1, 4, 3), s=nn.BatchNorm2d(4),
    )),
    "seen by another": (0, lambda: Named(
        lambda m, x: (lambda z: flat(m.b(z)) + flat(z.relu()))(m.c(x)), c=conv(), b=nn.BatchNorm2d(4)
    )),
    "changed in place": (0, lambda: Named(lambda m, x: flat(m.b(m.c(x).mul_(2))), c=conv(), b=nn.BatchNorm2d(4))),
    "layer twice": (0, lambda: Named(lambda m, x: flat(m.b(m.c(m.c(x)))), c=nn.Conv2d(1, 1, 3), b=nn.BatchNorm2d(1))),
    "norm twice": (0, lambda: Named(lambda m, x: flat(m.b(m.b(m.c(x)))), c=conv(), b=nn.BatchNorm2d(4))),
    "norm first": (0, lambda: Named(lambda m, x: flat(m.c(m.b(x))), c=conv(), b=nn.BatchNorm2d(1))),
    "no statistics": (0, lambda: Named(
        lambda m, x: flat(m.b(m.c(x)).relu()), c=conv(), b=nn.BatchNorm2d(4, track_running_stats=False)
    )),
    "parametrized": (0, lambda: Named(
        lambda m, x: flat(m.b(m.c(x)).relu()),
        c=nn.utils.parametrizations.weight_norm(conv()), b=nn.BatchNorm2d(4),
    )),
    "tied": (2, lambda: tied()),
    "resnet": (7, lambda: resnet(depth=8, in_shape=(1, 8, 8), width=4, mean=0.3, std=0.2)),
    "cnn": (0, lambda: cnn(in_shape=(1, 8, 8), width=4)),
}  # fmt: skip


def tied():
    model = Named(
        lambda m, x: flat(m.b(m.c(x)) * m.s(m.k(x)).sigmoid()),
        c=conv(), b=nn.BatchNorm2d(4), k=conv(), s=nn.BatchNorm2d(4),
    )  # fmt: skip
    model.parts["k"].weight = model.parts["c"].weight
    return model


BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
needs_bf16 = pytest.mark.skipif(not has_bf16(torch.device("cpu")), reason="no bfloat16 in this processor")


def outputs_and_gradients(network, x):
    x = x.clone().requires_grad_()
    out = network(x)
    (grad,) = torch.autograd.grad((out.flatten(1) @ torch.linspace(1, 2, out[0].numel())).sum(), x)
    return out.detach(), grad


def trained(make, seed=0):
    """Not trained, but with weights and statistics that could be."""
    torch.manual_seed(seed)
    model = make()
    for m in model.modules():
        if isinstance(m, BATCH_NORMS):
            for name in ("running_mean", "weight", "bias"):
                if getattr(m, name) is not None:
                    getattr(m, name).data.normal_(0.5, 0.5)
            if m.running_var is not None:
                m.running_var.uniform_(0.3, 3)
    return model


# ModuleDict has no attributes by key; the cases read better with them
nn.ModuleDict.__getattr__ = lambda self, name: (
    self._modules[name] if name in self._modules else nn.Module.__getattr__(self, name)
)


def under_autocast(model, x, mode="eval"):
    with torch.autocast("cpu", torch.bfloat16):
        return training_surrogate(model, x, mode)


@pytest.mark.parametrize("name", CASES)
def test_the_surrogate_is_the_same_function(name):
    pairs, make = CASES[name]
    model, x = trained(make), torch.rand(6, 1, 8, 8)
    surrogate = Surrogate(model, x)
    surrogate.check(model, x)
    assert len(surrogate.folded) == pairs
    model.eval()
    for own, right in zip(outputs_and_gradients(surrogate, x), outputs_and_gradients(model, x), strict=True):
        torch.testing.assert_close(own, right, rtol=1e-4, atol=1e-5)
    own, right = outputs_and_gradients(surrogate.to_bf16(), x), outputs_and_gradients(model, x)
    assert own[0].dtype == own[1].dtype == torch.float32
    for a, b, share in zip(
        own, right, (0.05, 0.2), strict=True
    ):  # a gradient also where a ReLU has changed sides
        assert (a - b).norm() <= share * b.norm()


@pytest.mark.parametrize("name", CASES)
def test_in_float32_a_network_with_folded_batch_norms_or_convolutions_is_the_same_function(name):
    pairs, make = CASES[name]
    model, x = trained(make).eval(), torch.rand(6, 1, 8, 8)
    surrogate = training_surrogate(model, x)
    assert (surrogate is model) == (pairs == 0 and not any(type(m) is nn.Conv2d for m in model.modules()))
    for own, right in zip(outputs_and_gradients(surrogate, x), outputs_and_gradients(model, x), strict=True):
        torch.testing.assert_close(own, right, rtol=1e-4, atol=1e-5)


def test_in_float32_only_networks_in_eval_mode_without_hooks_have_one():
    model, x = trained(CASES["resnet"][1]), torch.rand(6, 1, 8, 8)
    assert training_surrogate(model, x) is not model
    assert training_surrogate(model, x, "train") is model
    assert training_surrogate(model.double(), x.double()) is model
    handle = model.float()[3].register_forward_hook(lambda *args: None)
    assert training_surrogate(model, x) is model
    handle.remove()
    for register in (register_module_forward_hook, register_module_full_backward_hook):
        handle = register(lambda *args: None)
        assert training_surrogate(model, x) is model
        handle.remove()
    assert training_surrogate(model, x) is not model
    with torch.autocast("cpu", torch.float16):
        assert training_surrogate(model, x) is model
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for other in (Random(64, 3), Locked(nn.Conv2d(1, 4, 8), nn.BatchNorm2d(4), nn.Flatten())):
            assert training_surrogate(other, x) is other


@pytest.mark.parametrize("of", [training_surrogate, pytest.param(under_autocast, marks=needs_bf16)])
@pytest.mark.parametrize("how", ["optimizer", "data", "new parameter", "statistics"])
def test_the_surrogate_follows_the_model(how, of):
    model, x = trained(CASES["resnet"][1]), torch.rand(6, 1, 8, 8)
    surrogate = of(model, x)
    before = surrogate(x)
    if how == "optimizer":
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        model(x).square().mean().backward()
        optimizer.step()
    elif how == "data":
        model[1].weight.data *= -1
    elif how == "new parameter":
        model[1].weight = nn.Parameter(-model[1].weight.detach())
    else:
        model(x + 1)
    again = of(model, x)
    assert again is surrogate
    after, right = again(x), model.eval()(x)
    assert (after - right).norm() < 0.05 * right.norm() < (after - before).norm()


@needs_bf16
def test_a_model_whose_shape_has_changed_gets_another_surrogate():
    model, x = trained(CASES["resnet"][1]), torch.rand(6, 1, 8, 8)
    surrogate = under_autocast(model, x)
    model[-1] = nn.Linear(16, 3)
    assert under_autocast(model, x) is not surrogate
    assert under_autocast(model, x)(x).shape == (6, 3)


class Tempered(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.smooth, self.linear = nn.Conv2d(1, 4, 3), nn.Softplus(), nn.Linear(4 * 36, 5)
        self.temperature, self.after, self.shift, self.last = 1.0, torch.tanh, (0.0, 1.0), nn.Tanh()

    def forward(self, x):
        z = self.linear(self.smooth(self.conv(x)).flatten(1))
        return self.last(self.after(z) / self.temperature + self.shift[0])


CHANGES = {
    "a number": lambda m: setattr(m, "temperature", 0.1),
    "a number of a module": lambda m: setattr(m.smooth, "beta", 10.0),
    "a tuple": lambda m: setattr(m, "shift", (1.0, 1.0)),
    "a function": lambda m: setattr(m, "after", torch.exp),
    "a function in Python": lambda m: setattr(m, "after", lambda z: 2 * z),
    "a module without weights": lambda m: setattr(m, "smooth", nn.ReLU()),
    "a module without settings": lambda m: setattr(m, "last", nn.Sigmoid()),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_model_whose_settings_have_changed_gets_another_surrogate(what):
    torch.manual_seed(0)
    model, x = Tempered().eval(), torch.rand(4, 1, 8, 8)
    first = training_surrogate(model, x)
    assert isinstance(first, Surrogate)
    model.train()
    assert training_surrogate(model, x) is first
    model.eval()
    before = model(x)
    CHANGES[what](model)
    assert (model(x) - before).abs().max() > 0.01
    torch.testing.assert_close(training_surrogate(model, x)(x), model(x))


def test_when_the_model_itself_is_attacked():
    model, x = resnet(depth=8, in_shape=(1, 8, 8), width=4), torch.rand(6, 1, 8, 8)
    with torch.autocast("cpu", torch.float16):
        assert training_surrogate(model, x) is model
    for mode in ("train", "as is"):
        assert under_autocast(model, x, mode) is model
    fast = has_bf16(torch.device("cpu"))
    assert (under_autocast(model, x) is model) == (not fast)
    handle = model[3].register_forward_hook(lambda *args: None)
    assert under_autocast(model, x) is model
    handle.remove()
    assert (under_autocast(model, x) is model) == (not fast)


def test_no_surrogate_without_bfloat16_in_hardware():
    """PyTorch's own switch makes it forget AVX-512 in another process."""
    code = """
import torch
from opnorm._core.surrogate import evaluation_surrogate, has_bf16, training_surrogate
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3)).eval()
x, y = torch.rand(2, 1, 2, 2), torch.tensor([0, 1])
with torch.autocast("cpu", torch.bfloat16):
    print(has_bf16(x.device), training_surrogate(model, x) is model, evaluation_surrogate(model, x, y))
"""
    env = {**os.environ, "ATEN_CPU_CAPABILITY": "avx2"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True", "None"]


class Random(nn.Linear):
    def forward(self, x):
        return super().forward(x.flatten(1) + torch.randn(64))


class Locked(nn.Sequential):
    def __deepcopy__(self, memo):
        raise TypeError("cannot be copied")


class Looks(nn.Sequential):
    """Asks its batch norm for something that no other layer has."""

    def forward(self, x):
        return super().forward(x) * self[1].running_var.mean()


@needs_bf16
@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: Random(64, 3), "^no bf16 copy of Random is possible.* model itself.*outputs are off"),
        (
            lambda: Locked(nn.Flatten(), nn.Linear(64, 3)),
            "^no bf16 copy of Locked .* model itself.*cannot be copied",
        ),
        (
            lambda: Locked(nn.Conv2d(1, 4, 8), nn.BatchNorm2d(4), nn.Flatten()),
            "^no bf16 copy of Locked .* model itself.*cannot be copied",
        ),
        (
            lambda: Looks(nn.Conv2d(1, 4, 8), nn.BatchNorm2d(4), nn.Flatten()),
            "^batch norms of Looks are not folded .*running_var",
        ),
    ],
)
def test_what_cannot_be_copied_is_said_once(make, what):
    model, x = make(), torch.rand(6, 1, 8, 8)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    with pytest.warns(UserWarning, match=what) as caught:
        first = under_autocast(model, x)
    assert len(caught) == 1
    assert (first is model) == ("itself" in what)
    assert torch.equal(torch.get_rng_state(), state)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert under_autocast(model, x) is first


@needs_bf16
def test_the_model_stays_as_it_was_and_is_freed():
    model, x = trained(CASES["resnet"][1]), torch.rand(6, 1, 8, 8)
    model[0].eval()
    model(x).sum().backward()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    grads = [p.grad.clone() for p in model.parameters()]
    attacks.pgd(eps=0.1, steps=2)(under_autocast(model, x), x, torch.zeros(6, dtype=torch.long))
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(torch.equal(g, p.grad) for g, p in zip(grads, model.parameters(), strict=True))
    assert model.training
    assert not model[0].training
    assert all(p.requires_grad for p in model.parameters())
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


@needs_bf16
def test_attacks_on_the_surrogate_are_as_strong():
    data = digits()
    torch.manual_seed(0)
    model = resnet(depth=8, in_shape=(1, 8, 8), width=8)
    train(model, data, TrainingSettings(epochs=3, batch=64, optimizer=optimizers.sgd(0.05)))
    x, y = data.test.images[:200].float() / 255, data.test.labels[:200]
    pgd = attacks.pgd(eps=0.1, steps=10)
    model.eval()
    losses = [
        nn.functional.cross_entropy(model(pgd(target, x, y)), y).item()
        for target in (model, under_autocast(model, x))
    ]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert losses[0] > 2 * nn.functional.cross_entropy(model(x), y).item()


class CopiesItself(nn.Module):
    """Calls a copy of its layers that is made in each pass, with the hooks on them."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)
        )

    def forward(self, x):
        return self.layers(x) + 2 * copy.deepcopy(self.layers)(x)


@pytest.mark.parametrize("call", [attacks.pgd(eps=0.1, steps=3), attacks.square(eps=0.1, queries=5)])
def test_a_model_that_copies_its_layers_while_it_runs(call):
    torch.manual_seed(0)
    model, x = CopiesItself().eval(), torch.rand(4, 1, 8, 8)
    y = model(x).argmax(1)
    moved = call(model, x, y)
    assert ((moved - x).abs() <= 0.1 + 1e-6).all()
    assert nn.functional.cross_entropy(model(moved), y) > nn.functional.cross_entropy(model(x), y)


@pytest.mark.slow
def test_nets_trained_in_bf16_are_as_good_as_those_in_fp32():
    """Clean and robust accuracy in fp32, of three seeds each: the means differ by less than the seeds do."""
    data, found = digits(), {}
    x, y = data.test.images.float() / 255, data.test.labels
    for precision in ("fp32", "bf16"):
        for seed in range(3):
            torch.manual_seed(seed)
            model = resnet(depth=8, in_shape=(1, 8, 8), width=8)
            settings = TrainingSettings(
                epochs=12, batch=64, seed=seed, precision=precision, channels_last=precision == "bf16",
                objective=objectives.pgd_at(eps=0.1, steps=5), optimizer=optimizers.sgd(0.05),
            )  # fmt: skip
            train(model, data, settings)
            model.eval()
            worst = attacks.pgd(eps=0.1, steps=20)(model, x, y)
            found[precision, seed] = [float((model(z).argmax(1) == y).float().mean()) for z in (x, worst)]
    for i in range(2):
        full, half = ([found[p, seed][i] for seed in range(3)] for p in ("fp32", "bf16"))
        spread = max(max(full) - min(full), max(half) - min(half), math.sqrt(0.25 / len(y)))
        assert abs(sum(full) - sum(half)) / 3 <= spread, found


class TwoNames(nn.Module):
    """Layers are registered under two names, and called by the second; the image is written to."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.Linear(16, 3)
        self.features = nn.Sequential(self.first, self.norm, nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.last(self.features(x).mean((2, 3)))
        x.detach().zero_()
        return out


def test_layers_with_two_names_are_replaced_under_both():
    torch.manual_seed(0)
    model, x = TwoNames().eval(), torch.rand(4, 1, 8, 8)
    model.norm.running_mean.uniform_(-1, 1)
    surrogate, before = Surrogate(model, x), x.clone()
    replace_modules(surrogate.network, fast_convolutions(surrogate.network))
    assert surrogate.folded == [("first", "norm")]
    assert isinstance(surrogate.network.features[0], ThinConv2d)
    assert isinstance(surrogate.network.features[1], nn.Identity)
    assert surrogate.network.first is surrogate.network.features[0]
    with torch.no_grad():
        assert torch.allclose(surrogate(x.clone()), model(x.clone()), atol=1e-6)
    assert torch.equal(x, before)
    assert x.any()


class WritesBetween(nn.Module):
    """Outputs of the convolution are written to before the batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x)
        h[:, :, :2] = 0
        return self.norm(h).mean((2, 3))


def test_a_batch_norm_of_outputs_that_were_written_to_is_not_folded():
    assert Surrogate(WritesBetween().eval(), torch.rand(2, 1, 8, 8)).folded == []
