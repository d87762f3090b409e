"""The sizes of opnorm's own networks, which can be checked before anything of them is loaded."""

from collections.abc import Sequence
from typing import Any

from opnorm._core.settings import check_choice, check_count, is_number
from opnorm.errors import ModelError

__all__ = ["CHW", "Pixels", "check_kernels", "check_pixels", "check_sizes", "check_stages"]

CHW = tuple[int, int, int]
"""Channels, height and width of one image."""

Pixels = float | Sequence[float] | None
"""One number, or one for each channel; None when it is left open."""

LARGEST, SMALLEST = 3.4028234e38, 1.5e-45  # of float32; half of the smallest one and less are rounded to 0


def check_sizes(*, in_shape: object, mean: object = None, std: object = None, **sizes: object) -> None:
    """ModelError unless a network for images of such a shape can have these sizes, whole numbers of at least 1.

    Args:
        in_shape: channels, height and width.
        mean: of the pixels, as for :func:`check_pixels`.
        std: likewise.
        sizes: numbers, or sequences of them.
    """
    if not isinstance(in_shape, Sequence) or len(in_shape) != 3:
        raise ModelError(
            f"in_shape={in_shape!r}: expected (channels, height, width), as opnorm's own networks are for images; one "
            "of yours, package.module.name(), takes other shapes. Gray images get a channel by images.unsqueeze(1)"
        )
    for name, value in {"in_shape": in_shape, **sizes}.items():
        for number in value if isinstance(value, Sequence) else (value,):
            check_count(name, number, error=ModelError)
    check_pixels(in_shape[0], mean, std)


def check_kernels(kernels: Sequence[Sequence[object]]) -> None:
    """ModelError unless there are some, each of sizes that are whole numbers of at least 1."""
    if not kernels:
        raise ModelError(f"kernels={kernels!r}: expected one or more, such as ((3, 3, 32, 32),)")
    for kernel in kernels:
        for size in kernel:
            check_count("kernels", size, error=ModelError)


def check_pixels(channels: int, mean: object, std: object) -> None:
    """ModelError unless the mean and the standard deviation of pixels are numbers in float32, one or one for each channel.

    None is right, too; a standard deviation is above 0.
    """
    for name, given in (("mean", mean), ("std", std)):
        value: Any = given.tolist() if hasattr(given, "tolist") else given  # of numpy and torch
        many = (
            value
            if isinstance(value, Sequence)
            else (0 if name == "mean" else 1,)
            if value is None
            else (value,)
        )
        fits = len(many) in (1, channels) and all(is_number(v) and abs(v) <= LARGEST for v in many)
        if not fits or (name == "std" and not all(v >= SMALLEST for v in many)):
            raise ModelError(
                f"{name}={value!r}: expected one number, or one for each of {channels} channels; std > 0"
            )


def check_stages(depth: int, norm: str, ends: int, layers: int, examples: str) -> None:
    """ModelError unless a residual network of three stages has such a depth, and its norm is "bn" or "fixup".

    Args:
        depth: ``layers`` n + ``ends`` layers, n at least 1.
        norm: what keeps the scale of the activations.
        ends: layers before, between and after the stages.
        layers: of three stages with a block each.
        examples: of right depths, for the message.
    """
    check_choice("norm", norm, ("bn", "fixup"), ModelError)
    if depth < layers + ends or (depth - ends) % layers:
        raise ModelError(f"depth={depth!r}: expected {layers} n + {ends}, such as {examples}")
