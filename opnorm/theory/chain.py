"""Networks as the theorems see them: a sequence of layers and residual blocks, one after the other."""

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor, nn

from opnorm._core.layers import LINEAR_OR_CONV, Shape, overrides
from opnorm._core.modes import evaluating
from opnorm.errors import ModelError
from opnorm.models.stages import PreActivated, Residual

__all__ = ["BLOCKS", "Place", "is_weighted", "places"]

BLOCKS = (Residual, PreActivated)


class Place(NamedTuple):
    """A layer or a block with its name and a batch that it takes."""

    name: str
    module: nn.Module
    example: Tensor

    @property
    def in_shape(self) -> Shape:
        """The shape of one input."""
        return tuple(self.example.shape[1:])


def places(model: nn.Module, example: Tensor, name: str = "") -> list[Place]:
    """The layers and residual blocks of nested ``nn.Sequential``, in order, each with its input.

    Raises:
        ModelError: another kind of network.
    """
    with evaluating(model):
        return list(_places(model, example, name))


def _places(module: nn.Module, x: Tensor, name: str) -> Iterator[Place]:
    if isinstance(module, nn.Sequential) and not overrides(module, nn.Sequential):
        for key, child in module.named_children():
            yield from _places(child, x, f"{name}.{key}".removeprefix("."))
            x = child(x)
        return
    if list(module.children()) and not isinstance(module, BLOCKS):
        raise ModelError(
            f"{name or 'the model'} is a {type(module).__name__}; expected nn.Sequential of layers and of opnorm's residual "
            "blocks, which are the networks that the theorem speaks of"
        )
    yield Place(name, module, x)


def is_weighted(module: nn.Module) -> bool:
    """Whether this is a linear or convolutional layer with its own forward."""
    return isinstance(module, LINEAR_OR_CONV) and not overrides(module, *LINEAR_OR_CONV)
