"""The type checker of the tests: it looks at tensors, their shapes, modules and tuples, not at plain numbers and texts.

A wrong number or text must end in one of opnorm's own errors, which the tests look for, and not in beartype's.
"""

from typing import Literal

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
