"""The networks and trainings that several parts of Liang & Huang 2021 share."""

from opnorm.analyses._shared.points import at_any_radius
from opnorm.report import Chart, slug
from opnorm.runs.run import Run
from opnorm.studies._shared.methods_table import Quantity, accuracy_of, robust_accuracy_of, typical_norm_of
from opnorm.studies._shared.outcomes import Outcomes
from opnorm.studies._shared.paper import Setting

__all__ = ["NETWORKS", "PLAIN", "attack_of", "base_run", "columns", "evaluation", "norm_charts"]

PLAIN = "plain"

NETWORKS = {
    "VGG-11": "vgg11",
    "ResNet-18": "resnet18",
    "SENet-18": "senet18",
    "RegNetX-200MF": "regnetx_200mf",
}
LAPTOP_WIDTH = {"vgg11": 8, "resnet18": 8, "senet18": 8, "regnetx_200mf": 1}


def network_call(name: str, setting: Setting) -> str:
    """A network of the paper, or a narrow one of its family."""
    call = NETWORKS[name]
    return f"{call}()" if setting.size == "paper" else f"{call}(width={LAPTOP_WIDTH[call]})"


def evaluation(setting: Setting, eps: float) -> tuple[str, ...]:
    """Accuracy, accuracy under attack, norms."""
    points = setting.pick(10, 200, None)
    attack = "'autoattack'" if setting.size == "paper" else "'apgd', version='fast', restarts=1"
    return (
        "accuracy()",
        f"robust_accuracy(eps=({eps!r},), points={points}, attack={attack})",
        "norm_table()",
    )


def attack_of(outcomes: Outcomes) -> str:
    """The attack that ran, without its radius."""
    rows = [row for o in outcomes.good for row in o.result.find("robust_accuracy")]
    return at_any_radius(rows[0]["attack"]) if rows else "the attack"


def columns(setting: Setting, outcomes: Outcomes, eps: float) -> list[Quantity]:
    """Clean accuracy, that under the attack that ran, typical norms."""
    radius = f"{255 * eps:g}/255" if setting.size == "paper" else f"{eps:g}"
    help = f"Share of test images that stay correct after {attack_of(outcomes)}."
    return [
        accuracy_of(),
        robust_accuracy_of(f"ℓ∞ ε = {radius}", help, eps=eps),
        *(typical_norm_of(ord, name) for ord, name in (("1", "ℓ1"), ("2", "ℓ2"), ("inf", "ℓ∞"))),
    ]


def norm_charts(outcomes: Outcomes, network: str) -> list[Chart]:
    """The norms of a network's layers."""
    title = f"Norms of the layers of {network}"
    return outcomes.of(network).chart("norm_table", f"norms-{slug(network)}", title)


def base_run(
    setting: Setting, network: str, lr: float, analyses: tuple[str, ...], laptop_epochs: int = 8
) -> Run:
    """A plain training, as published or small."""
    model = network_call(network, setting)
    if setting.size == "paper":
        run = Run(
            model=model, data='hf("uoft-cs/cifar10")', optimizer=f"sgd(lr={lr!r})", schedule="step((75, 90, 100))",
            epochs=120, batch=128, augment=("crop(padding=4)", "flip()"), analyses=analyses,
        )  # fmt: skip
    else:
        epochs, limit = setting.pick(1, laptop_epochs, None), setting.pick(100, None, None)
        optimizer = f"sgd(lr={5 * lr if lr < 0.1 else lr!r})"  # so few epochs need longer steps
        run = Run(
            model=model,
            data="digits()",
            optimizer=optimizer,
            epochs=epochs,
            batch=64,
            limit=limit,
            analyses=analyses,
        )
    return setting.base(run)
