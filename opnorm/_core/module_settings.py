"""What the outputs of a network depend on beside its tensors: the classes of its modules, and their plain attributes."""

from types import BuiltinFunctionType, FunctionType
from typing import Any

from torch import nn

__all__ = ["settings_of_modules"]

# they equal themselves, are not changed in place and do not keep a network alive
PLAIN = bool, int, float, complex, str, type, FunctionType, BuiltinFunctionType


def settings_of_modules(network: nn.Module) -> list[tuple[str, type, dict[str, Any]]]:
    """Each module's name, class and attributes such as numbers and functions, but for its mode."""
    return [
        (
            name,
            type(m),
            {key: value for key, value in vars(m).items() if key != "training" and _is_plain(value)},
        )
        for name, m in network.named_modules(remove_duplicate=False)
    ]


def _is_plain(value: Any) -> bool:
    if type(value) is tuple:
        return all(map(_is_plain, value))
    return value is None or isinstance(value, PLAIN)
