"""The networks of the theorems: a chain of layers and residual blocks."""

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from opnorm._core.layers import Shape, is_standard
from opnorm._core.modes import evaluating
from opnorm.errors import ModelError
from opnorm.models.stages import PreActivated, Residual

__all__ = ["BLOCKS", "ChainLayer", "chain_layers"]

BLOCKS = (Residual, PreActivated)


class ChainLayer(NamedTuple):
    """A layer or a block with its name and a batch that it takes."""

    name: str
    module: nn.Module
    example: Tensor

    @property
    def in_shape(self) -> Shape:
        """The shape of one input."""
        return tuple(self.example.shape[1:])


def chain_layers(model: nn.Module, example: Tensor, name: str = "") -> list[ChainLayer]:
    """The layers and residual blocks of nested ``nn.Sequential``, in order, each with its input.

    Raises:
        ModelError: another kind of network.
    """
    with evaluating(model):
        return list(_layers(model, example, name))


def _layers(module: nn.Module, x: Tensor, name: str) -> Iterator[ChainLayer]:
    if is_standard(module, nn.Sequential):
        for key, child in module.named_children():
            yield from _layers(child, x, f"{name}.{key}".removeprefix("."))
            x = child(x)
        return
    if list(module.children()) and not isinstance(module, BLOCKS) and not is_parametrized(module):
        raise ModelError(
            f"{name or 'the model'} is a {type(module).__name__}; expected nn.Sequential of layers and of opnorm's residual "
            "blocks, the networks of the theorem"
        )
    yield ChainLayer(name, module, x)
