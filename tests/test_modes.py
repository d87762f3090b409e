"""Global modes of the caller - inference mode, autocast, the default type and others - change no result."""

import math
from collections import OrderedDict
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

import opnorm
from opnorm import attacks, jacobian, norms
from opnorm._core.modes import ordinary
from opnorm.attacks import AutoAttack, fab, minimal_eps, pgd
from opnorm.certificates import certified, lipschitz_radius
from opnorm.data import Dataset, Split
from opnorm.runs.attack_evaluation import evaluate
from opnorm.spec import build, names
from opnorm.training import TrainingSettings, train, weight_metrics
from tests.regularizers.test_contract import CASES

X = torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))


@contextmanager
def global_setting(change, value, before):
    change(value)
    try:
        yield
    finally:
        change(before)


MODES = {
    "inference": torch.inference_mode,
    "no_grad": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "float64": lambda: global_setting(torch.set_default_dtype, torch.float64, torch.float32),
    "deterministic": lambda: global_setting(torch.use_deterministic_algorithms, True, False),
    "anomaly": torch.autograd.detect_anomaly,
    "device": lambda: torch.device("meta"),
}
SLOW = [pytest.param((mode,), id=mode, marks=pytest.mark.slow) for mode in MODES]  # one by one
TOGETHER = [("autocast", "inference", "anomaly"), ("no_grad", "float64", "deterministic", "device")]


def network():
    torch.manual_seed(3)
    layers = nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 4)
    return nn.Sequential(*layers).eval()


def labels(model):
    with torch.no_grad():
        return model(X).argmax(1)


LABELS = labels(network())


def data():
    images = torch.randint(
        0, 256, (40, 1, 4, 4), generator=torch.Generator().manual_seed(1), dtype=torch.uint8
    )
    split = Split(images, (images.float().flatten(1).mean(1) > 127).long())
    return Dataset("toy", split, split, ("dark", "bright"))


DATA = data()


def attacked(name):
    short = {
        "autoattack": {"attacks": ("apgd-ce",), "version": "fast"},
        "square": {"queries": 20},
        "fgsm": {},
    }
    attack = getattr(attacks, name)(norm=2, eps=0.5, **short.get(name, {"steps": 4}))
    return lambda model: attack(model, X, LABELS)


def evaluated(model):
    found = evaluate(model, X, LABELS, pgd(eps=0.05, steps=3))
    return found.result.points, found.masking


def products(model):
    with jacobian.linearized(model, X) as J:
        return J @ X, J.T @ torch.ones(3, 4, dtype=torch.float32, device="cpu")


def objective(name):
    def value(model):
        torch.manual_seed(0)
        return build(f"{name}()", "objective")(model, X, LABELS)

    return value


def regularized(case):
    def value(model):
        hooks = build(case)(model, X)
        penalty = hooks.penalty(model, X, LABELS)
        hooks.after_step(0.1)
        hooks.after_epoch()
        return [penalty.detach(), model.state_dict()]

    return value


def trained(model):
    torch.manual_seed(0)
    list(train(model, DATA, TrainingSettings(epochs=1, batch=20)))
    return dict(model.state_dict())


FUNCTIONS = {
    **{f"attack {name}": attacked(name) for name in names("attack")},
    "closest": lambda m: fab(norm=2, steps=4, targets=2).closest(m, X, LABELS),
    "robust_at": lambda m: AutoAttack(attacks=("apgd-ce",)).robust_at(m, X, LABELS, [0.1, 0.01]),
    "minimal_eps": lambda m: minimal_eps(m, X, LABELS, lambda eps: pgd(eps=eps, steps=3), halvings=2),
    "evaluate": evaluated,
    "certified": lambda m: certified(m, X, LABELS, 0.01),
    "lipschitz_radius": lambda m: lipschitz_radius(m, X, LABELS, 2),
    "jacobian_norm": lambda m: jacobian.jacobian_norm(m, X),
    "jacobian_norm 1 3": lambda m: jacobian.jacobian_norm(m, X, 1, 3),
    "jacobian_norm hard": lambda m: jacobian.jacobian_norm(m, X[:1], 3, 1.5, restarts=1, steps=3),
    "linearized": products,
    "explicit": lambda m: jacobian.explicit(m, X),
    "jacobian.singular_values": lambda m: jacobian.singular_values(m, X),
    "alignment": lambda m: jacobian.alignment(m, X, X),
    "activations": lambda m: jacobian.activations(m, X),
    "theorem_1": lambda m: jacobian.theorem_1(m, X, 1e-3, steps=2),
    "features": lambda m: jacobian.features(m, X).layer,
    "measure": lambda m: str(opnorm.measure(m, X)),
    "lipschitz_bound": lambda m: opnorm.lipschitz_bound(m, X).value,
    "operator_norm": lambda m: [opnorm.operator_norm(m[0], ord, (1, 4, 4)) for ord in (1, 2, math.inf)],
    "l1": lambda m: norms.l1(m[0], (1, 4, 4)),
    "linf": lambda m: norms.linf(m[0], (1, 4, 4)),
    "spectral_norm": lambda m: norms.spectral_norm(m[0], (1, 4, 4)),
    "bound": lambda m: norms.bound(m[0], (1, 4, 4)),
    "singular_values": lambda m: norms.singular_values(m[0], (1, 4, 4)).values,
    "smallest_singular_value": lambda m: norms.smallest_singular_value(m[4], (48,)),
    "spread": lambda m: norms.singular_value_spread(m[0], (1, 4, 4)),
    "induced_norm": lambda m: norms.induced.induced_norm(m[4], 1, 2),
    "weight_metrics": lambda m: weight_metrics(m, X),
    **{f"objective {name}": objective(name) for name in names("objective")},
    **{f"regularizer {case}": regularized(case) for case in CASES},
    "train": trained,
}


AUTOCAST_STAYS = {"train", *(f"objective {name}" for name in names("objective"))}


def flat(value):
    """Tensors and numbers of nested values."""
    if isinstance(value, torch.Tensor) or value is None or isinstance(value, str | int | float):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    elif hasattr(value, "__dict__") and not isinstance(value, tuple):
        value = list(vars(value).values())
    return [part for one in value for part in flat(one)]


def same(a, b):
    if isinstance(a, torch.Tensor):
        return (
            a.dtype == b.dtype
            and a.device == b.device
            and torch.allclose(a, b, rtol=1e-5, atol=1e-6, equal_nan=True)
        )
    return a == b or (isinstance(a, float) and math.isclose(a, b, rel_tol=1e-6)) or (a != a and b != b)


WANTED = {}


@pytest.mark.each_value
@pytest.mark.parametrize("modes", [*(pytest.param(m, id=", ".join(m)) for m in TOGETHER), *SLOW])
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.filterwarnings("ignore")
def test_results_are_those_without(name, modes):
    if name not in WANTED:
        WANTED[name] = flat(FUNCTIONS[name](network()))
    model = network()
    with ExitStack() as stack:
        for mode in modes:
            if not (mode == "autocast" and name in AUTOCAST_STAYS):
                stack.enter_context(MODES[mode]())
        found = flat(FUNCTIONS[name](model))
    assert len(found) == len(WANTED[name])
    for a, b in zip(WANTED[name], found, strict=True):
        assert same(a, b), (a, b)


def test_masked_positions_of_a_transformer_are_the_same_with_gradients_and_without():
    """torch's fast path without gradients leaves them 0, and nested tensors in between, which hooks cannot read."""

    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)
            self.encoder, self.head = nn.TransformerEncoder(layer, 2), nn.Linear(8, 3)

        def forward(self, x):
            padding = torch.arange(x.shape[1]).expand(len(x), -1) >= 4
            return self.head(self.encoder(x, src_key_padding_mask=padding).mean(1))

    torch.manual_seed(0)
    model, x = Masked().eval(), torch.rand(3, 6, 8)
    assert [row.kind for row in norms.measure(model, x, ords=(1,)).rows].count("Linear") == 5
    explicit = torch.autograd.functional.jacobian(model, x[:1]).view(3, 48)
    found = jacobian.jacobian_norm(model, x[:1])
    assert float(found.lower) == pytest.approx(float(torch.linalg.matrix_norm(explicit, 2)), rel=1e-4)
    assert torch.backends.mha.get_fastpath_enabled()


class Pair(NamedTuple):
    first: torch.Tensor
    second: int


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda t: t,
        lambda t: [1, t],
        lambda t: (t, (40, 40)),
        lambda t: {"a": [t]},
        lambda t: OrderedDict(a=t),
        lambda t: Pair(t, 2),
    ],
)
def test_tensors_of_inference_mode_are_copied_inside_any_container(wrapped):
    with torch.inference_mode():
        given = wrapped(torch.ones(2))
    taken = ordinary(given)
    assert type(taken) is type(given)
    (tensor,) = [t for t in tree_leaves(taken) if isinstance(t, torch.Tensor)]
    assert not tensor.is_inference()
    assert torch.equal(tensor, torch.ones(2))
    (before,) = [t for t in tree_leaves(given) if isinstance(t, torch.Tensor)]
    assert before.is_inference(), "what the caller has stays as it was"
