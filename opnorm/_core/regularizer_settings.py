"""The settings of regularizers, which can be checked before anything of them is loaded."""

from opnorm._core.settings import check_choice, check_count, check_number
from opnorm.errors import SpecError

__all__ = ["check_every", "check_weissi"]


def check_every(every: object) -> None:
    """SpecError unless it is "epoch" or a whole number of steps."""
    if every != "epoch":
        check_count("every", every, unit="steps, or 'epoch'")


def check_weissi(energy: float, complexity: float, form: str, eta: object, g: object, least: float) -> None:
    """SpecError for settings of :func:`opnorm.regularizers.weissi` that make no sense."""
    for name, value in (("energy", energy), ("complexity", complexity)):
        check_number(name, value, "a strength of at least 0", least=0)
    check_number("least", least, "a norm of at least 0, such as 0.1", least=0)
    check_choice("form", form, ("product", "cnn", "log"))
    exponents = {name: _exponents(name, pair) for name, pair in (("eta", eta), ("g", g))}
    if complexity and exponents["g"] == exponents["eta"]:
        raise SpecError(
            f"g={g!r} is the norm eta, so the complexity of every layer is always 1; expected another norm"
        )


def _exponents(name: str, pair: object) -> tuple[float, ...]:
    exponents = tuple(pair) if isinstance(pair, tuple | list) and len(pair) == 2 else (0,)
    if any(isinstance(r, bool) or not isinstance(r, int | float) or not r >= 1 for r in exponents):
        raise SpecError(f"{name}={pair!r}: expected (p, q), each at least 1, or inf, such as (2, 2)")
    return exponents
