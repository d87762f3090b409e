"""Table 1: the time of computing a layer's norm, for six kernels and by several methods."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from opnorm.analyses._norm_times import CHECKED
from opnorm.report import Cell, Column, Section, Stat, Table
from opnorm.runs.run import Result, Run
from opnorm.studies._shared.claim import Claim, Verdict, above, decide, decided
from opnorm.studies._shared.outcomes import Case, Outcomes
from opnorm.studies._shared.paired_tests import Comparison
from opnorm.studies._shared.paper import Part, Setting
from opnorm.studies._shared.printed import printed_numbers
from opnorm.studies._shared.unit import times_the

__all__ = ["PART"]

KERNELS = (
    (3, 3, 32, 32),
    (3, 3, 32, 128),
    (3, 3, 128, 256),
    (3, 3, 256, 512),
    (5, 5, 256, 128),
    (5, 5, 512, 256),
)

METHODS = {"vs": "VS ℓ2", "sgl": "SGL ℓ2", "certified": "certified ℓ2", "l1": "exact ℓ1", "linf": "exact ℓ∞"}
COMPUTATIONS = 100  # that the table counts


def _kernels(setting: Setting) -> tuple[tuple[int, int, int, int], ...]:
    small = ((3, 3, 4, 4), (5, 5, 4, 10))
    return small if setting.size == "smoke" else KERNELS


def kernel_name(kernel: Sequence[int]) -> str:
    """A kernel's name in the table."""
    height, width, inputs, outputs = kernel
    return f"{height}x{width}, {inputs} to {outputs}"


def cases(setting: Setting) -> list[Case]:
    """One network without training a seed; its weights and the times are the seed's own."""
    kernels, size = _kernels(setting), setting.pick(8, 32, 32)
    found = []
    for seed in range(setting.seeds or setting.pick(1, 3, 3)):
        model = f"parallel_convs(kernels={kernels!r}, size={size})"
        run = Run(
            model=model,
            data=setting.data or "digits()",
            epochs=0,
            seed=seed,
            analyses=("norm_times(seconds=0.1)",),
        )
        found.append(Case("kernels", "times", run))
    return found


def _kernel_rows(result: Result) -> list[dict[str, Any]]:
    """The rows of the kernels, without those of the linear layers after them."""
    return [row for row in result.find("norm_times") if row["kind"] == "Conv2d"]


def _times(key: str, index: int) -> Callable[[Result], float]:
    return lambda result: float(_kernel_rows(result)[index]["times"][key])


def section(setting: Setting, outcomes: Outcomes) -> Section:
    kernels = _kernels(setting)
    printed = printed_numbers("liang2021", "table1", "kernels")
    columns = [
        Column("method", "kernel", "text", None, "Height, width, input and output channels; input 32x32.")
    ]
    for key, name in METHODS.items():
        columns.append(
            Column(key, name, "number", None, f"Seconds of {COMPUTATIONS} computations on this machine.")
        )
        if key != "certified":
            columns.append(Column(f"{key}_paper", "paper, GTX 1080 Ti"))
    rows: list[dict[str, Cell]] = []
    for index, kernel in enumerate(kernels):
        row: dict[str, Cell] = {"method": kernel_name(kernel)}
        for key in METHODS:
            row[key] = Stat.of([COMPUTATIONS * _times(key, index)(o.result) for o in outcomes.good])
            row[f"{key}_paper"] = printed.get(kernel_name(kernel), {}).get(key)
        rows.append(row)
    tables = {f"Seconds of {COMPUTATIONS} computations": Table(columns, rows, {})}
    return Section("table1", "Table 1: time of a layer's norm", tables=tables)


def faster(outcomes: Outcomes) -> Verdict:
    """Each exact norm against each ℓ2 method, of each kernel: the logarithm of the ratio of times."""
    count = len(_kernel_rows(outcomes.good[0].result)) if outcomes.good else 0
    comparisons = []
    for index in range(count):
        for exact in ("l1", "linf"):
            for other in ("vs", "sgl"):
                slow, fast = outcomes.by_seed(_times(other, index)), outcomes.by_seed(_times(exact, index))
                ratios = tuple(math.log10(slow[seed] / fast[seed]) for seed in slow)
                comparisons.append(
                    Comparison(f"{METHODS[other]} over {METHODS[exact]}, kernel {index + 1}", ratios)
                )
    return decide(comparisons, above(), unit=times_the("time of the exact norm"))


def exact(outcomes: Outcomes) -> Verdict:
    """The largest difference from the explicit matrix, and from sums of absolute values."""
    rows = [row for found in outcomes.by_seed(_kernel_rows).values() for row in found]
    small = max(max(row["differences"].values()) for row in rows)
    whole = max(max(row["whole_differences"].values()) for row in rows)
    height, width = rows[0]["in_shape"][1:]
    text = (
        f"Of {len(rows)} layers, the norms differ by {small:.1e} (relative) at most from those of the explicit float64 "
        f"matrix, on inputs of {min(CHECKED, height)}x{min(CHECKED, width)} pixels, and on the table's {height}x{width} by "
        f"{whole:.1e} at most from the largest sums of |A|'s columns and rows, by a convolution with |K| in "
        "float64."
    )
    return decided(max(small, whole) < 1e-5, text, len(outcomes.all))


WHERE = "Section “Experiments”, Table 1"
PART = Part(
    asks="How long does it take to compute the norm of a layer, by which method?",
    cases=cases,
    section=section,
    claims=(
        Claim(
            "exact_norms_are_exact",
            "The formulas for ℓ1 and ℓ∞ give the norms of the layer's matrix.",
            "Theorem 1, Table 1",
            exact,
        ),
        Claim(
            "exact_norms_are_fast",
            "The exact ℓ1 and ℓ∞ norms take less time than the methods for ℓ2 of Virmaux and Scaman and of Sedghi et al.",
            WHERE,
            faster,
        ),
    ),
)
