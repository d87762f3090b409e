"""Gates for pipelines: a network whose robust accuracy is too low, or whose norms are too large, ends with status 1."""

import math
import sys
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from opnorm._core.orders import label, order
from opnorm.cli.options import number
from opnorm.errors import OpnormError

__all__ = ["Gate", "check_norms", "norm_gates", "refuse", "share", "too_low"]

NETWORK = "network:"


def refuse(reasons: Iterable[str]) -> None:
    """End the command with status 1 and one line that has all reasons; nothing where there is none."""
    if text := "; ".join(reasons):
        sys.stdout.flush()
        print(f"opnorm: refused: {text}", file=sys.stderr)
        sys.exit(1)


# ---------------------------------------------------------------- robust accuracy


def share(option: str, text: str | None) -> float | None:
    """The share of points that an option gives; OpnormError where it is none."""
    value = None if text is None else number(option, text)
    if value is not None and not 0 <= value <= 1:
        raise OpnormError(f"{option} {text}: expected a share of the points from 0 to 1, such as 0.45")
    return value


def too_low(done: Any, least: float | None) -> list[str]:
    """Why an evaluation does not pass: its robust accuracy, as it was found on these points, is below ``least``."""
    accuracy, (low, high) = done.result.robust_accuracy, done.result.interval
    if least is None or accuracy >= least:
        return []
    return [
        f"the robust accuracy on these {len(done.labels)} points is {accuracy:.2%} (95 % interval {low:.1%} to {high:.1%}), "
        f"below --fail-under {least:g}: {done.attack}"
    ]


# ---------------------------------------------------------------- norms


class Gate(NamedTuple):
    """The largest value that a norm may have.

    Attributes:
        text: as the option gave it.
        network: whether it is of the bound of the whole network, and not of each layer.
        ord: the norm's order.
        most: the value.
    """

    text: str
    network: bool
    ord: Any
    most: float


def norm_gates(texts: Iterable[str], ords: tuple[Any, ...], layers: str) -> list[Gate]:
    """The gates that ``--fail-over`` gives, such as ``inf=12`` or ``network:2=1e4``.

    Raises:
        OpnormError: a text that is no gate, or is about a norm that the command does not compute.
    """
    gates = []
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise OpnormError(f"--fail-over {text!r}: expected NORM=NUMBER, such as inf=12 or network:2=1e4")
        network, most = name.startswith(NETWORK), number(f"--fail-over {name}=", value)
        ord = order(name.removeprefix(NETWORK))
        if most < 0:
            raise OpnormError(f"--fail-over {text}: no norm is below 0; expected a number of at least 0")
        if ord not in ords:
            raise OpnormError(f"--fail-over {text}: this norm is not measured; add it to --ord")
        if network and isinstance(ord, tuple | str):
            raise OpnormError(f"--fail-over {text}: the whole network has bounds for 1, 2 and inf only")
        if network and layers != "*":
            raise OpnormError(f"--fail-over {text} is of the whole network; leave --layers out")
        gates.append(Gate(text, network, ord, most))
    return gates


def check_norms(gates: Iterable[Gate], table: Any, bound: Callable[[Any], Any]) -> list[str]:
    """Why a network does not pass: a norm whose upper end is above the gate's number, or is not known.

    Args:
        gates: of :func:`norm_gates`.
        table: the norms of the layers.
        bound: the Lipschitz bound of the whole network for an order.
    """
    reasons = []
    for gate in gates:
        if gate.network:
            found = bound(gate.ord)
            ends = [("the whole network", found.value, found.reason)]
        else:
            ends = [
                (f"layer {row.layer or '(model)'}", _upper(row, gate.ord), row.note) for row in table.rows
            ]
        # what is not known is first: no number says how far it is from the gate
        over = sorted(
            ((where, value, why) for where, value, why in ends if value is None or not value <= gate.most),
            key=lambda end: math.inf if end[1] is None else end[1],
            reverse=True,
        )
        if over:
            reasons.append(_reason(gate, *over[0], len(over) - 1))
    return reasons


def _upper(row: Any, ord: Any) -> float | None:
    """The upper end of a layer's norm, or of its Lipschitz constant where it is not linear; None where it is not known."""
    norm = row.norms.get(ord)
    value = row.lipschitz.get(ord) if norm is None else float(norm.upper)
    return value if value is not None and math.isfinite(value) else None


def _reason(gate: Gate, where: str, value: float | None, why: str, more: int) -> str:
    what = f"the bound of {where} in {label(gate.ord)}" if gate.network else f"{label(gate.ord)} of {where}"
    others = f" (and of {more} more layer{'s' * (more > 1)})" if more else ""
    if value is None:
        return f"{what} is not known{f' ({why})' if why else ''}, which --fail-over {gate.text} does not pass{others}"
    return f"{what} is up to {value:.6g}, above --fail-over {gate.text}{others}"
