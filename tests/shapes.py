"""The type checker of the tests: shapes and types of tensors where a signature states them, not plain numbers and texts.

A wrong number or text must end in one of opnorm's own errors, which the tests look for, and not in beartype's.
"""

from collections.abc import Callable
from typing import Any, Literal

import jaxtyping
from beartype import BeartypeConf, FrozenDict, beartype
from torch import nn

_left_to_opnorm = dict.fromkeys(
    (
        int,
        float,
        str,
        bool,
        Literal["eval", "train", "as is"],
        Literal["point", "uniform", "gaussian"],
        tuple[int, int, int],
        tuple[float, float],
        nn.Module | None,
    ),
    object,
)

check = beartype(conf=BeartypeConf(hint_overrides=FrozenDict(_left_to_opnorm)))


def install() -> None:
    """Check what is imported from opnorm from now on.

    jaxtyping's hook wraps every function, and those inside a function at every call of it, which takes a third of
    the tests' time; where a signature states no shape there is little to check.
    """
    everywhere = jaxtyping.jaxtyped

    def where_shapes_are_stated(*, typechecker: Any) -> Callable[[Any], Any]:
        def decorate(made: Any) -> Any:
            stated = any("jaxtyping" in repr(hint) for hint in getattr(made, "__annotations__", {}).values())
            return everywhere(made, typechecker=typechecker) if stated else made

        return decorate

    jaxtyping.jaxtyped = where_shapes_are_stated  # the name that the hook looks up
    jaxtyping.install_import_hook("opnorm", "tests.shapes.check")
