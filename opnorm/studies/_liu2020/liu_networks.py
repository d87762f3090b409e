"""The networks, trainings and columns that several parts of Liu et al. 2020 share."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opnorm.report import Column
from opnorm.runs.run import Result, Run
from opnorm.studies._shared.methods_table import Quantity, accuracy_of
from opnorm.studies._shared.outcomes import Case, by_point_of
from opnorm.studies._shared.paper import Setting

__all__ = [
    "ABLATION",
    "METHODS",
    "MNIST_NETWORKS",
    "RADII",
    "TRAININGS",
    "attacked",
    "cases",
    "columns",
    "evaluation",
    "methods_of",
]

WEIGHT_DECAY, WEISSI, WEISSI_CA = "weight decay", "WEISSI", "WEISSI-CA"
METHODS = (WEIGHT_DECAY, "Parseval OC", "Parseval", WEISSI, WEISSI_CA)
ABLATION = ("energy alone", "complexity alone", WEISSI_CA)  # of WEISSI-CA, Figure 4
CONVEX = ("Parseval", *ABLATION)  # sums of shortcut and branch are convex
MNIST_NETWORKS = ("MLP", "CNN")
TRAININGS = ("standard", "adversarial")
RADII = (0.05, 0.03, 0.01)  # FGSM; PGD at the last two
DIGITS_SCALE = 3.0  # digits need longer changes

PUBLISHED = {
    "MLP": "mlp(mean=0, std=1)",
    "CNN": "cnn(mean=0, std=1)",
    "VGG-16": "vgg16(mean=0, std=1)",
    "WRN-28-10": "wrn(norm='fixup', mean=0, std=1)",
}
SMALL = {
    "MLP": "mlp(width=128, mean=0, std=1)",
    "CNN": "cnn(width=16, mean=0, std=1)",
    "VGG-16": "vgg16(width=8, pools=2, mean=0, std=1)",  # five poolings would leave maps of one pixel
    "WRN-28-10": "wrn(depth=10, width=1, norm='fixup', mean=0, std=1)",
}
# λ_e, λ_c; a product of norms changes with widths by many powers of ten, so small networks have their own
PUBLISHED_WEIGHTS = {
    ("standard", "MLP"): (1e-6, 1e-5), ("standard", "CNN"): (1e-6, 1e-5),
    ("standard", "VGG-16"): (1e-31, 3e-5), ("standard", "WRN-28-10"): (1e-24, 1e-5),
    ("standard", WEISSI_CA): (1e-30, 1e-5),
    ("adversarial", "MLP"): (1e-6, 1e-5), ("adversarial", "CNN"): (1e-6, 1e-5),
    ("adversarial", "VGG-16"): (1e-30, 3e-5), ("adversarial", "WRN-28-10"): (1e-24, 1e-5),
    ("adversarial", WEISSI_CA): (1e-25, 1e-5),
}  # fmt: skip
SMALL_WEIGHTS = {
    "MLP": (1e-5, 1e-4),
    "CNN": (1e-5, 1e-4),
    "VGG-16": (1e-28, 3e-5),
    "WRN-28-10": (1e-12, 1e-4),
}
LEAST_NORM = 0.1
"""Of a layer that counts in the complexity: Fixup starts layers at zero, where the gradient of the complexity diverges."""


def radius(eps: float, setting: Setting) -> float:
    """A radius of the paper, or one that tells networks on digits apart."""
    return eps if setting.size == "paper" else round(DIGITS_SCALE * eps, 6)


def regularizer(method: str, network: str, training: str, setting: Setting) -> tuple[str, ...]:
    """What a method adds to the training of a network."""
    if method == WEIGHT_DECAY:
        return ("weight_decay(lam=1e-4, form='squares')",)
    if method.startswith("Parseval"):
        return ("parseval()",)
    key = WEISSI_CA if method in ABLATION else network
    small = SMALL_WEIGHTS[network]
    energy, complexity = PUBLISHED_WEIGHTS[training, key] if setting.size == "paper" else small
    form = "product" if network in MNIST_NETWORKS else "cnn"
    least = LEAST_NORM if network == "WRN-28-10" else 0.0
    if method == "energy alone":
        complexity = 0.0
    if method == "complexity alone":
        energy = 0.0
    return (f"weissi(energy={energy!r}, complexity={complexity!r}, form={form!r}, least={least!r})",)


def base_run(setting: Setting, network: str, *, convex: bool) -> Run:
    """Training without regularization, as published or small."""
    call = (PUBLISHED if setting.size == "paper" else SMALL)[network]
    if convex:
        call = call.replace("norm='fixup'", "norm='fixup', aggregation='convex'")
    if setting.size != "paper":
        vgg = network == "VGG-16"  # 15 layers without normalization need smaller steps, and more of them
        run = Run(
            model=call, data="digits()", optimizer=f"sgd(lr={0.03 if vgg else 0.1})",
            epochs=setting.pick(1, 20 if vgg else 12, None), batch=32 if vgg else 64,
            limit=setting.pick(100, None, None),
        )  # fmt: skip
    elif network in MNIST_NETWORKS:
        run = Run(
            model=call,
            data='hf("ylecun/mnist")',
            optimizer="sgd(lr=0.1)",
            schedule="constant()",
            epochs=60,
            batch=100,
        )
    else:
        vgg = network == "VGG-16"
        run = Run(
            model=call, data='hf("uoft-cs/cifar10")', optimizer=f"sgd(lr={0.01 if vgg else 0.03})",
            schedule="step((100, 200))" if vgg else "step((100,))", epochs=300 if vgg else 200, batch=100,
            augment=("crop(padding=4)", "flip()"),
        )  # fmt: skip
    return setting.base(run)


def evaluation(setting: Setting, radii: Sequence[float] = RADII) -> str:
    """FGSM at all radii, PGD with 10 steps at those of the table."""
    fgsm = tuple(radius(eps, setting) for eps in radii)
    pgd = tuple(radius(eps, setting) for eps in radii if eps < 0.05)
    return f"liu_robust_accuracy(fgsm_eps={fgsm!r}, pgd_eps={pgd!r}, points={setting.pick(20, 300, None)})"


def methods_of(network: str, setting: Setting) -> tuple[str, ...]:
    """The rows of a network's table."""
    if network in MNIST_NETWORKS:
        return (WEIGHT_DECAY, WEISSI)
    return (WEIGHT_DECAY, "Parseval OC", WEISSI) if network == "VGG-16" else METHODS


def cases(
    setting: Setting,
    network: str,
    analyses: Sequence[str],
    methods: Sequence[str],
    *,
    trainings: Sequence[str] = TRAININGS,
    objective: str | None = None,
    label: str | None = None,
) -> list[Case]:
    """Each method in each training, with each seed.

    Args:
        setting: size, seeds, data.
        network: a key of the tables.
        analyses: of every run.
        methods: in order.
        trainings: "standard", "adversarial".
        objective: of all trainings; plain or PGD when None.
        label: the name of network and training; both with a comma when None.
    """
    eps = radius(0.03 if network in MNIST_NETWORKS else 0.01, setting)
    found = []
    for training in trainings if setting.size != "smoke" else trainings[:1]:
        plain = (
            "plain()" if training == "standard" else f"pgd_at(eps={eps!r}, steps={setting.pick(2, 10, 10)})"
        )
        for method in methods if setting.size != "smoke" else (methods[0], methods[-1]):
            run = replace(
                base_run(setting, network, convex=method in CONVEX),
                objective=objective or plain,
                regularizers=regularizer(method, network, training, setting),
                analyses=tuple(analyses),
            )
            name = label or f"{network}, {training}"
            trials = 5 if network in MNIST_NETWORKS else 3
            found += setting.repeated(Case(name, method, run), setting.pick(1, 3, trials))
    return found


def attacked(kind: str, eps: float) -> Callable[[Result], NDArray[np.bool_]]:
    """The points that stay correct after an attack, "fgsm" or "pgd", of a radius."""

    def measure(result: Result) -> NDArray[np.bool_]:
        for row in result.find("liu_robust_accuracy"):
            if row["attack"].startswith(kind) and row["eps"] == eps:
                return by_point_of(row)
        raise KeyError(f"no {kind} at {eps}")

    return measure


def columns(setting: Setting, radii: Sequence[float] = RADII) -> list[Quantity]:
    """Clean accuracy, and accuracy under each attack."""
    found = [replace(accuracy_of(), column=replace(accuracy_of().column, key="clean"))]
    some: list[tuple[str, Any]] = [
        *(("fgsm", eps) for eps in radii),
        *(("pgd", eps) for eps in radii if eps < 0.05),
    ]
    for kind, eps in some:
        real = radius(eps, setting)
        name = "FGSM" if kind == "fgsm" else "PGD10"
        help = f"Share of test images that stay correct after {name} in ℓ∞."
        column = Column(f"{kind}_{eps:g}", f"{name} ε = {real:g}", "percent", "high", help)
        found.append(Quantity(column, attacked(kind, real)))
    return found
