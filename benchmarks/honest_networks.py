"""Networks whose gradients are what they seem: plain, robust and fragile ones, in the norms and at the radii of attacks."""

import copy
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from networks import dataset, fit, trained
from torch import Tensor, nn


class Honest(NamedTuple):
    """A network, the data, the norm, and the share of its points that PGD breaks at the radius of the attack."""

    name: str
    make: Callable[[], nn.Module]
    data: str = "digits"
    norm: float = math.inf
    broken: float = 0.5


class Scaled(nn.Module):
    """Logits times a number."""

    def __init__(self, inner: nn.Module, factor: float) -> None:
        super().__init__()
        self.inner, self.factor = inner, factor

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K)."""
        z: Tensor = self.factor * self.inner(x)
        return z


class Transformer(nn.Module):
    """Patches of 2x2 (4x4 from 28 pixels on), two layers of attention, the mean of all patches."""

    def __init__(self, in_shape: tuple[int, int, int], width: int = 32) -> None:
        super().__init__()
        channels, size, _ = in_shape
        patch = 2 if size < 28 else 4
        self.embed = nn.Conv2d(channels, width, patch, patch)
        self.place = nn.Parameter(0.02 * torch.randn((size // patch) ** 2, width))
        layer = nn.TransformerEncoderLayer(
            width, 4, 2 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K)."""
        z: Tensor = self.head(self.layers(self.embed(x).flatten(2).mT + self.place).mean(1))
        return z


def small(
    activation: Callable[[], nn.Module], pool: Callable[[], nn.Module] = lambda: nn.AvgPool2d(2)
) -> nn.Module:
    """Two convolutions with batch norm, any activation and pooling, on 8x8 images."""
    torch.manual_seed(3)
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), activation(), pool(),
        nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), activation(), nn.Flatten(), nn.Linear(256, 10),
    )  # fmt: skip
    return fit(net, "digits")


def transformer(data: str, objective: str = "") -> nn.Module:
    torch.manual_seed(4)
    net = fit(Transformer(dataset(data).image_shape), data)
    return fit(net, data, objective) if objective else net


def attacked(model: str, eps: float, data: str = "digits", steps: int = 5) -> nn.Module:
    """Trained plainly and then on PGD, since training on PGD alone does not begin at a large ε."""
    return fit(trained(data, model), data, f"pgd_at(eps={eps}, steps={steps})")


def twice(net: nn.Module, other: nn.Module) -> nn.Module:
    """The mean of two networks' logits."""

    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.nets = nn.ModuleList([copy.deepcopy(net), copy.deepcopy(other)])

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([one(x) for one in self.nets]).mean(0)

    return Mean().eval()


REGULARIZERS = (
    "norm_decay(p=1, beta=0.05)", "norm_decay(p=inf, beta=0.05)", "weight_decay(lam=0.01)", "global_snr(lam=0.05)",
    "dd_snr(lam=0.1)", "dd_onr(lam=0.1)", "input_gradient(lam=0.1)", "parseval(beta=0.01)", "svc(c=1.0)",
    "spectral_normalization(sp=2.0)", "weissi()",
)  # fmt: skip


def honest() -> Iterator[Honest]:
    """All of them, in an order that mixes the kinds: every other one is for development."""
    cnn, mlp = "cnn(width=8)", "mlp(width=64)"

    def net(
        name: str, model: str = cnn, objective: str = "plain()", regularizer: str = "", **settings: object
    ) -> Honest:
        data = str(settings.get("data", "digits"))
        return Honest(name, lambda: trained(data, model, objective, regularizer), **settings)  # type: ignore[arg-type]

    yield net("plain CNN, half broken")
    yield net("plain perceptron, half broken", mlp)
    yield net("plain CNN, a tenth broken", broken=0.1)
    yield net("plain CNN, nine tenths broken", broken=0.9)
    yield net("perceptron of width 1,024, nine tenths broken", "mlp(width=1024)", broken=0.9)
    yield net("perceptron of 5 layers", "mlp(width=512, depth=5)")
    for at_cnn, at_mlp, share in ((0.05, 0.05, 0.2), (0.1, 0.1, 0.5), (0.2, 0.2, 0.5), (0.15, 0.3, 0.8)):
        for kind, model, step in (("CNN", cnn, at_cnn), ("perceptron", mlp, at_mlp)):
            yield Honest(f"PGD training, ε = {step:g}: {kind}", partial(attacked, model, step), broken=share)
    for objective in (
        "trades(eps=0.1, steps=5)",
        "alp(eps=0.1, steps=5)",
        "mmc(radius=3)",
        "plain(smoothing=0.3)",
        "fgsm_at(eps=0.1)",
    ):
        yield net(f"{objective}", cnn, objective)
    for number, regularizer in enumerate(REGULARIZERS):
        yield net(regularizer, (cnn, mlp)[number % 2], "plain()", regularizer)
    yield Honest("batch norm, GELU", lambda: small(nn.GELU))
    yield Honest("batch norm, tanh", lambda: small(nn.Tanh))
    yield Honest("batch norm, softplus", lambda: small(nn.Softplus))
    yield Honest("batch norm, sigmoid", lambda: small(nn.Sigmoid))
    yield Honest("batch norm, max-pooling", lambda: small(nn.ReLU, lambda: nn.MaxPool2d(2)))
    yield Honest("transformer", lambda: transformer("digits"))
    yield Honest("transformer, PGD training", lambda: transformer("digits", "pgd_at(eps=0.03, steps=5)"))
    yield Honest("logits times 0.01", lambda: Scaled(trained("digits", cnn), 0.01))
    yield Honest("logits times 3", lambda: Scaled(trained("digits", cnn), 3))
    yield Honest("mean of two networks", lambda: twice(trained("digits", cnn), trained("digits", mlp)))
    yield net("plain CNN, ℓ2", norm=2)
    yield net("plain CNN, ℓ1", norm=1)
    yield net("PGD training in ℓ2", cnn, "pgd_at(eps=0.5, norm=2, steps=5)", norm=2)
    yield net("perceptron, ℓ1", mlp, norm=1)
    yield net("residual network", "resnet(depth=8, width=8)")
    for data, eps in (("mnist", 0.2), ("cifar10", 2 / 255)):
        model = "cnn(width=16, stride=2)"
        yield net(f"{data}: plain", model, data=data)
        yield Honest(f"{data}: PGD training", partial(attacked, model, eps, data), data)
        yield net(f"{data}: plain, nine tenths broken", model, data=data, broken=0.9)
        yield net(f"{data}: plain perceptron", mlp, data=data)
    yield net(
        "mnist: PGD training, ℓ2",
        "cnn(width=16, stride=2)",
        "pgd_at(eps=1, norm=2, steps=5)",
        data="mnist",
        norm=2,
    )
    small_eps = partial(attacked, "cnn(width=16, stride=2)", 0.1, "mnist", 10)
    yield Honest("mnist: PGD training, ε = 0.1", small_eps, "mnist", broken=0.8)
