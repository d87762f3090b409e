"""Honest networks of other kinds, added after the first indicators were chosen."""

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
from honest_networks import Honest, Scaled, Transformer, honest
from networks import dataset, fit, trained
from torch import Tensor, nn

__all__ = ["all_honest"]


class GroupSort(nn.Module):
    """Sorts pairs of units: of slope 1."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, F), F even."""
        return x.view(len(x), -1, 2).sort(2).values.flatten(1)


class Distances(nn.Module):
    """Minus the squared distances to a center of each class, as of a Gaussian for each."""

    def __init__(self, size: int, centers: int = 30) -> None:
        super().__init__()
        self.centers = nn.Parameter(torch.rand(centers, size))
        self.head = nn.Linear(centers, 10)

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) -> (B, 10)."""
        squares = (x.flatten(1)[:, None] - self.centers).square().sum(2)
        z: Tensor = self.head(torch.exp(-squares / 8))
        return z


class Rows(nn.Module):
    """An LSTM over the rows of an image."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(width, 32, batch_first=True), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, H, W) -> (B, 10)."""
        z: Tensor = self.head(self.lstm(x[:, 0])[0][:, -1])
        return z


class Square(nn.Module):
    """x² / 2 + x."""

    def forward(self, x: Tensor) -> Tensor:
        """Of any shape."""
        return x * x / 2 + x


class Converted(nn.Module):
    """A network in another type, which takes and gives float32."""

    def __init__(self, inner: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.inner, self.dtype = inner.to(dtype), dtype

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K)."""
        z: Tensor = self.inner(x.to(self.dtype)).to(x.dtype)
        return z


def made(data: str, make: Callable[[int], nn.Module], *more: str) -> nn.Module:
    """Of modules that get the number of pixels."""
    torch.manual_seed(7)
    return fit(make(math.prod(dataset(data).image_shape)), data, *more)


def dense(*layers: Callable[[], nn.Module], width: int = 32, size: int = 64) -> nn.Module:
    """A perceptron with these activations, with layer norm after each."""
    modules: list[nn.Module] = [nn.Flatten()]
    for make in layers:
        modules += [nn.Linear(size, width), nn.LayerNorm(width), make()]
        size = width
    return nn.Sequential(*modules, nn.Linear(width, 10))


def all_honest() -> Iterator[Honest]:
    """Those of honest_networks.py, and these."""
    yield from honest()
    cnn, mlp = "cnn(width=8)", "mlp(width=64)"
    attacked, mnist = "pgd_at(eps=0.1, steps=5)", "cnn(width=16, stride=2)"
    yield Honest("linear", lambda: made("digits", lambda n: nn.Sequential(nn.Flatten(), nn.Linear(n, 10))))
    yield Honest(
        "linear, PGD training",
        lambda: made("digits", lambda n: nn.Sequential(nn.Flatten(), nn.Linear(n, 10)), attacked),
        broken=0.7,
    )
    yield Honest(
        "4 hidden units, tanh",
        lambda: made(
            "digits", lambda n: nn.Sequential(nn.Flatten(), nn.Linear(n, 4), nn.Tanh(), nn.Linear(4, 10))
        ),
        broken=0.7,
    )
    yield Honest("2 channels", lambda: trained("digits", "cnn(width=2)"))
    yield Honest("Gaussian units", lambda: made("digits", Distances), broken=0.7)
    yield Honest("LSTM over rows", lambda: made("digits", lambda n: Rows(8)))
    yield Honest(
        "sorted pairs, spectral normalization",
        lambda: made(
            "digits",
            lambda n: nn.Sequential(
                nn.Flatten(), nn.Linear(n, 32), GroupSort(), nn.Linear(32, 32), GroupSort(), nn.Linear(32, 10)
            ),
            "plain()",
            "spectral_normalization(sp=1.0)",
        ),
    )
    yield Honest("squares as activations", lambda: made("digits", lambda n: dense(Square, width=16)))
    yield Honest(
        "layer norm, leaky ReLU, 4 layers", lambda: made("digits", lambda n: dense(*[nn.LeakyReLU] * 4))
    )
    yield Honest(
        "layer norm, ELU, PGD training", lambda: made("digits", lambda n: dense(nn.ELU, nn.ELU), attacked)
    )
    yield Honest("hard tanh", lambda: made("digits", lambda n: dense(nn.Hardtanh, nn.Hardtanh)), broken=0.8)
    yield Honest(
        "norm decay and PGD training",
        lambda: trained("digits", mlp, attacked, "norm_decay(p=inf, beta=0.01)"),
        broken=0.7,
    )
    yield Honest(
        "norm decay, ℓ2",
        lambda: trained("digits", cnn, "plain()", "norm_decay(p=1, beta=0.05)"),
        norm=2,
        broken=0.8,
    )
    yield Honest(
        "TRADES, nine tenths broken", lambda: trained("digits", mlp, "trades(eps=0.1, steps=5)"), broken=0.9
    )
    yield Honest("logits times 30", lambda: Scaled(trained("digits", cnn), 30), broken=0.8)
    yield Honest("in float64", lambda: Converted(trained("digits", cnn), torch.float64))
    yield Honest("in bfloat16", lambda: Converted(trained("digits", cnn), torch.bfloat16))
    yield Honest(
        "dropout in training",
        lambda: made(
            "digits",
            lambda n: nn.Sequential(
                nn.Flatten(), nn.Linear(n, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 10)
            ),
        ),
        norm=2,
    )
    yield Honest(
        "layer norm, ReLU, 8 layers, a tenth broken",
        lambda: made("digits", lambda n: dense(*[nn.ReLU] * 8)),
        broken=0.1,
    )
    yield Honest(
        "global average pooling",
        lambda: made(
            "digits",
            lambda n: nn.Sequential(
                nn.Conv2d(1, 16, 3),
                nn.ReLU(),
                nn.Conv2d(16, 32, 3),
                nn.ReLU(),
                nn.AdaptiveAvgPool2d(1),
                nn.Flatten(),
                nn.Linear(32, 10),
            ),
        ),
    )
    yield Honest("mnist: transformer", partial(mnist_transformer), "mnist")
    yield Honest("mnist: TRADES", lambda: trained("mnist", mnist, "trades(eps=0.2, steps=5)"), "mnist")
    yield Honest(
        "mnist: norm decay",
        lambda: trained("mnist", mlp, "plain()", "norm_decay(p=inf, beta=0.01)"),
        "mnist",
        broken=0.8,
    )
    yield Honest(
        "mnist: linear, ℓ1",
        lambda: made("mnist", lambda n: nn.Sequential(nn.Flatten(), nn.Linear(n, 10))),
        "mnist",
        norm=1,
    )


def mnist_transformer() -> nn.Module:
    torch.manual_seed(4)
    return fit(Transformer(dataset("mnist").image_shape), "mnist")
