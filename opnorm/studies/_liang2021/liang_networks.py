"""The networks and trainings that several parts of Liang & Huang 2021 share."""

from opnorm.runs.run import Run
from opnorm.studies._shared.paper import Setting

__all__ = ["NETWORKS", "base_run", "network_call", "slug"]

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


def slug(network: str) -> str:
    """A network's name in the key of a chart."""
    return network.lower().replace("-", "")


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
