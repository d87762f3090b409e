"""A claim of a paper, and what the measurements say about it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from opnorm.studies._shared.outcomes import MissingError, Outcomes
from opnorm.studies._shared.paired_tests import ALL_SEEDS, Comparison, holm

__all__ = ["LEVEL", "Claim", "Region", "Verdict", "above", "below", "decide", "decided", "no_lower", "within"]

LEVEL = 0.05
Outcome = Literal["holds", "does not hold", "not decided"]


@dataclass(frozen=True)
class Region:
    """The effects that a claim allows: above ``low`` and below ``high``."""

    low: float
    high: float

    def p_inside(self, comparison: Comparison) -> float:
        """The p-value of "the effect is outside"."""
        return max(
            comparison.p_above(self.low) if math.isfinite(self.low) else 0.0,
            comparison.p_below(self.high) if math.isfinite(self.high) else 0.0,
        )

    def p_outside(self, comparison: Comparison) -> float:
        """The p-value of "the effect is inside"."""
        ends = [
            test(bound)
            for test, bound in ((comparison.p_below, self.low), (comparison.p_above, self.high))
            if math.isfinite(bound)
        ]
        return min(1.0, len(ends) * min(ends))

    def nearest_end(self, effect: float) -> float:
        """The end that has to be told apart from an effect."""
        return min(
            (end for end in (self.low, self.high) if math.isfinite(end)), key=lambda e: abs(e - effect)
        )


def above(bound: float = 0.0) -> Region:
    """Effects above a bound."""
    return Region(bound, math.inf)


def below(bound: float = 0.0) -> Region:
    """Effects below a bound."""
    return Region(-math.inf, bound)


def within(margin: float) -> Region:
    """Effects of at most ``margin`` in either direction: as good as equal."""
    return Region(-margin, margin)


def no_lower(margin: float) -> Region:
    """Effects that are not lower by ``margin`` or more."""
    return Region(-margin, math.inf)


@dataclass(frozen=True)
class Verdict:
    """What the measurements say about a claim.

    Attributes:
        outcome: "holds", "does not hold" or "not decided".
        evidence: one or two sentences with the numbers.
        effect: of the comparison that is furthest from deciding, or None.
        over_seeds, over_points: its 95 % intervals, where they exist.
        seeds: the smallest number behind a comparison.
        points: the smallest number of test points behind one; None where it is not one of shares.
        p_value: the largest, corrected for the number of comparisons (Holm), of those that the outcome needs.
    """

    outcome: Outcome
    evidence: str
    effect: float | None = None
    over_seeds: tuple[float, float] | None = None
    over_points: tuple[float, float] | None = None
    seeds: int = 0
    points: int | None = None
    p_value: float | None = None


@dataclass(frozen=True)
class Claim:
    """A claim of a paper that measurements can decide.

    Attributes:
        name: lower-case words with underscores.
        sentence: in our words.
        section: of the paper, with its table or figure.
        decide: what has been measured -> a verdict.
    """

    name: str
    sentence: str
    section: str
    decide: Callable[[Outcomes], Verdict]

    def verdict(self, outcomes: Outcomes) -> Verdict:
        """The verdict; "not decided", with the reason, where a run that it needs has failed, or any is still to come."""
        if outcomes.pending:
            return Verdict(
                "not decided",
                f"Not run yet: {len(outcomes.pending)} of the {len(outcomes.all)} runs behind it.",
            )
        try:
            return self.decide(outcomes)
        except MissingError as e:
            return Verdict("not decided", f"{e}.")

    def as_dict(self, outcomes: Outcomes) -> dict[str, Any]:
        """The claim and its verdict, for JSON."""
        verdict = self.verdict(outcomes)
        about = {"name": self.name, "sentence": self.sentence, "section": self.section}
        return about | {name: getattr(verdict, name) for name in verdict.__dataclass_fields__}


def decide(
    comparisons: Sequence[Comparison],
    region: Region,
    *,
    share_needed: float = 1.0,
    unit: str = "",
    percent: bool = False,
) -> Verdict:
    """Whether the effects lie where a claim says.

    Each comparison is tested against both answers at 5 %, corrected for their number (Holm). The claim holds where enough
    of them are inside the region, and does not hold where so many are outside that this cannot be reached.

    Args:
        comparisons: at least one.
        region: the effects that the claim allows.
        share_needed: which share of the comparisons must be inside; 1 for all.
        unit: of the effects, for the text.
        percent: whether effects are shares, shown in points of percent.

    Raises:
        MissingError: no comparison.
    """
    if not comparisons:
        raise MissingError("the runs that it compares were left out")
    inside = holm([region.p_inside(c) for c in comparisons])
    outside = holm([region.p_outside(c) for c in comparisons])
    needed = math.ceil(share_needed * len(comparisons) - 1e-9)
    holding = sum(p < LEVEL for p in inside)
    contrary = sum(p < LEVEL for p in outside)
    outcome: Outcome = "not decided"
    if holding >= needed:
        outcome = "holds"
    elif contrary > len(comparisons) - needed:
        outcome = "does not hold"
    tested = outside if outcome == "does not hold" else inside
    # the comparison that decides: the needed-th best one
    order = sorted(range(len(comparisons)), key=lambda i: (tested[i], -abs(comparisons[i].effect)))
    deciding = order[(needed if outcome != "does not hold" else len(comparisons) - needed + 1) - 1]
    shown = comparisons[deciding]
    return Verdict(
        outcome,
        _evidence(comparisons, region, holding, contrary, shown, outcome, unit, percent),
        shown.effect,
        shown.over_seeds,
        shown.over_points,
        min(len(c.by_seed) for c in comparisons),
        min((c.points for c in comparisons if c.points is not None), default=None),
        tested[deciding],
    )


def decided(holds: bool, evidence: str, seeds: int = 0, points: int | None = None) -> Verdict:
    """A verdict without chance, such as one of a construction that is checked exactly."""
    return Verdict("holds" if holds else "does not hold", evidence, seeds=seeds, points=points)


def _evidence(
    comparisons: Sequence[Comparison],
    region: Region,
    holding: int,
    contrary: int,
    shown: Comparison,
    outcome: Outcome,
    unit: str,
    percent: bool,
) -> str:
    many = len(comparisons)
    scale, unit = (100.0, " points") if percent else (1.0, f" {unit}" if unit else "")

    def number(x: float) -> str:
        return f"{scale * x:+.3g}"

    text = f"{shown.name}: {number(shown.effect)}{unit}"
    if shown.over_seeds:
        text += f", 95 % over {len(shown.by_seed)} seeds {number(shown.over_seeds[0])} to {number(shown.over_seeds[1])}"
    if shown.over_points:
        text += (
            f", over {shown.points} points {number(shown.over_points[0])} to {number(shown.over_points[1])}"
        )
    if many > 1:
        effects = [c.effect for c in comparisons]
        text = (
            f"Of {many} comparisons, {holding} are {_scaled(region, scale)}{unit} and {contrary} are not, "
            f"{many - holding - contrary} undecided (5 %, corrected for {many}); effects from {number(min(effects))} to "
            f"{number(max(effects))}. The deciding one: {text}"
        )
    if outcome == "not decided":
        text += _what_would_decide(shown, region)
    return text + "."


def _what_would_decide(comparison: Comparison, region: Region) -> str:
    if len(comparison.by_seed) == 1:
        return "; one seed does not decide it"
    needed = comparison.seeds_needed(region.nearest_end(comparison.effect))
    return (
        f"; {needed} seeds would decide it at this effect"
        if needed
        else f"; {ALL_SEEDS} seeds would not decide it"
    )


def _scaled(region: Region, scale: float) -> str:
    ends = [end for end in (region.low, region.high) if math.isfinite(end)]
    if len(ends) == 2:
        return f"within ±{scale * region.high:g}"
    return f"{'above' if math.isfinite(region.low) else 'below'} {scale * ends[0] + 0.0:g}"
