"""The papers' claims, each with the measured evidence for or against it."""

import math
from collections.abc import Sequence

from opnorm.report import Stat, Table
from opnorm.report.model import Cell

__all__ = ["findings"]

Rows = dict[str, dict[str, Cell]]


def findings(table: Table, key: str, attack: str) -> list[str]:
    """Plain sentences with the measured numbers; a difference within the seeds' spread is called none.

    Args:
        table: one row a method, with ``clean``, ``norm_1``, ``norm_2``, ``norm_inf`` and a robust accuracy.
        key: of that robust accuracy.
        attack: its radius, in words.
    """
    rows = {str(row["method"]): row for row in table.rows if "_failed" not in row}
    failed = [str(row["method"]) for row in table.rows if "_failed" in row]
    found = [f"No result: {', '.join(failed)}. The reason stands in the table."] if failed else []
    if "plain" not in rows or len(rows) < 2:
        return found
    for claim in (_best, _penalties, _adversarial, _data_dependent, _correlation):
        found += claim(rows, key, attack)
    return found


def _best(rows: Rows, key: str, attack: str) -> list[str]:
    plain = rows["plain"]
    best = max(rows, key=lambda m: _mean(rows[m][key]))
    return [
        f"Most robust at {attack}: {best}, {_percent(rows[best][key])} (plain: {_percent(plain[key])}), "
        f"at {_percent(rows[best]['clean'])} clean accuracy (plain: {_percent(plain['clean'])})."
    ]


def _penalties(rows: Rows, key: str, attack: str) -> list[str]:
    """Liang & Huang 2021: norm penalties shrink norms and do not make robust."""
    plain = rows["plain"]
    decays = [m for m in rows if m.startswith("norm_decay")]
    if not decays:
        return []
    smallest = min(decays, key=lambda m: _mean(rows[m]["norm_inf"]))
    small = rows[smallest]
    verb = "shrink" if _compare(small["norm_inf"], plain["norm_inf"]).endswith("below") else "do not shrink"
    return [
        f"Norm penalties {verb} norms: {smallest} has a typical ℓ∞ layer norm of {_mean(small['norm_inf']):.3g} "
        f"(plain: {_mean(plain['norm_inf']):.3g}). Its robust accuracy at {attack} is "
        f"{_percent(small[key])}, {_compare(small[key], plain[key])} plain training's."
    ]


def _adversarial(rows: Rows, key: str, attack: str) -> list[str]:
    """Liang & Huang 2021: adversarially trained networks have layer norms as large or larger."""
    trained = [m for m in rows if m.startswith("pgd_at") and "+" not in m]
    if not trained:
        return []
    norm, plain = rows[trained[0]]["norm_inf"], rows["plain"]["norm_inf"]
    return [
        f"Adversarial training, with no penalty on norms, ends with a typical ℓ∞ layer norm of "
        f"{_mean(norm):.3g}, {_compare(norm, plain)} plain training's {_mean(plain):.3g}."
    ]


def _data_dependent(rows: Rows, key: str, attack: str) -> list[str]:
    """Roth et al. 2020: regularizing the Jacobian at the data is as robust as adversarial training; globally it is not."""
    names = [
        next((m for m in rows if m.startswith(start)), None) for start in ("dd_snr", "global_snr", "pgd_at")
    ]
    local, layers, trained = ((m, rows[m][key]) for m in names if m) if all(names) else (None,) * 3
    if not (local and layers and trained):
        return []
    return [
        f"A spectral norm kept small at the data ({local[0]}) gives {_percent(local[1])} at {attack}, "
        f"{_compare(local[1], trained[1])} adversarial training's {_percent(trained[1])}; kept small in each layer "
        f"({layers[0]}) it gives {_percent(layers[1])}, {_compare(layers[1], rows['plain'][key])} plain training's."
    ]


def _correlation(rows: Rows, key: str, attack: str) -> list[str]:
    """Whether small norms and robustness go together."""
    rho = rank_correlation(
        [_mean(r["norm_inf"]) for r in rows.values()], [_mean(r[key]) for r in rows.values()]
    )
    if rho is None:
        return []
    return [
        f"Over the {len(rows)} ways, the rank correlation of typical ℓ∞ norm and robust accuracy at {attack} "
        f"is {rho:+.2f} (-1: the smaller the norms, the more robust; 0: no relation)."
    ]


def _mean(cell: Cell) -> float:
    return cell.mean if isinstance(cell, Stat) else math.nan


def _percent(cell: Cell) -> str:
    return (
        f"{cell.mean:.1%}" + (f" ± {100 * cell.std:.1f}" if cell.n > 1 else "")
        if isinstance(cell, Stat)
        else "not known"
    )


def _compare(a: Cell, b: Cell) -> str:
    if not isinstance(a, Stat) or not isinstance(b, Stat):
        return "not comparable with"
    if abs(a.mean - b.mean) <= a.std + b.std:
        return "within the spread of seeds of" if a.n > 1 else "not told apart, with one seed, from"
    alone = "" if min(a.n, b.n) > 1 else "(one seed, so no spread is known) "
    return alone + ("above" if a.mean > b.mean else "below")


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Spearman's, with ties given their mean rank; None where it is not defined."""
    x, y = _ranks(a), _ranks(b)
    mx, my = sum(x) / len(x), sum(y) / len(y)
    sx, sy = math.hypot(*(v - mx for v in x)), math.hypot(*(v - my for v in y))
    if len(a) < 3 or sx == 0 or sy == 0:
        return None
    return sum((u - mx) * (v - my) for u, v in zip(x, y, strict=True)) / (sx * sy)


def _ranks(values: Sequence[float]) -> list[float]:
    return [sum(w < v for w in values) + sum(w == v for w in values) / 2 for v in values]
