"""A claim of a paper, and what the measurements say about it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from opnorm.errors import OpnormError
from opnorm.studies._shared.outcomes import MissingError, Outcomes
from opnorm.studies._shared.paired_tests import Comparison, holm
from opnorm.studies._shared.unit import NO_UNIT, Unit

__all__ = [
    "ALL_SEEDS",
    "LEVEL",
    "Claim",
    "Region",
    "Verdict",
    "above",
    "below",
    "decide",
    "decided",
    "no_lower",
    "within",
]

LEVEL = 0.05
ALL_SEEDS = 30
"""The largest number of seeds that is proposed to decide a claim."""

Outcome = Literal["holds", "does not hold", "not decided"]


@dataclass(frozen=True)
class Region:
    """The effects that a claim allows: above ``low`` and below ``high``."""

    low: float
    high: float

    def p_inside(self, comparison: Comparison, seeds: int | None = None) -> float:
        """The p-value of "the effect is outside"; with another number of seeds where one is given."""
        return max(
            comparison.p_above(self.low, seeds) if math.isfinite(self.low) else 0.0,
            comparison.p_below(self.high, seeds) if math.isfinite(self.high) else 0.0,
        )

    def p_outside(self, comparison: Comparison, seeds: int | None = None) -> float:
        """The p-value of "the effect is inside"; with another number of seeds where one is given."""
        ends = [
            test(bound, seeds)
            for test, bound in ((comparison.p_below, self.low), (comparison.p_above, self.high))
            if math.isfinite(bound)
        ]
        return min(1.0, len(ends) * min(ends))

    def words(self, unit: Unit = NO_UNIT) -> str:
        """Such as "above -5 percentage points"."""
        if math.isfinite(self.low) and math.isfinite(self.high):
            return f"between {unit.bound(self.low, self.high)}"
        return (
            f"above {unit.bound(self.low)}" if math.isfinite(self.low) else f"below {unit.bound(self.high)}"
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
        """The verdict; "not decided", with the reason, where any run is still to come, or what it needs is not known."""
        if outcomes.pending:
            return Verdict(
                "not decided",
                f"Not run yet: {len(outcomes.pending)} of the {len(outcomes.all)} runs behind it.",
            )
        try:
            return self.decide(outcomes)
        except OpnormError as e:
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
    unit: Unit = NO_UNIT,
) -> Verdict:
    """Whether the effects lie where a claim says.

    Each comparison is tested against both answers at 5 %, corrected for their number (Holm). The claim holds where enough
    of them are inside the region, and does not hold where so many are outside that this cannot be reached.

    Args:
        comparisons: at least one.
        region: the effects that the claim allows.
        share_needed: more than this share of the comparisons must be inside, such as 0.5 for "most"; 1 for all.
        unit: of the effects, for the text.

    Raises:
        MissingError: no comparison.
    """
    if not comparisons:
        raise MissingError("the runs that it compares were left out")
    many = len(comparisons)
    needed = many if share_needed >= 1 else math.floor(share_needed * many + 1e-9) + 1
    tests = _Tests.of(comparisons, region, needed)
    # the comparison that decides: the needed-th best one
    holds_or_open = tests.outcome != "does not hold"
    tested, place = (tests.inside, needed) if holds_or_open else (tests.outside, many - needed + 1)
    deciding = sorted(range(many), key=lambda i: (tested[i], -abs(comparisons[i].effect)))[place - 1]
    shown = comparisons[deciding]
    text = _evidence(tests, region, shown, unit)
    if tests.outcome == "not decided":
        text += f" {_what_would_decide(tests, region, shown)}"
    return Verdict(
        tests.outcome,
        text,
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


@dataclass(frozen=True)
class _Tests:
    """The tests of a claim's comparisons, with p-values corrected for their number.

    Attributes:
        comparisons: that were tested.
        needed: how many must be inside the region.
        inside, outside: the p-values of either answer.
    """

    comparisons: Sequence[Comparison]
    needed: int
    inside: list[float]
    outside: list[float]

    @classmethod
    def of(
        cls, comparisons: Sequence[Comparison], region: Region, needed: int, seeds: int | None = None
    ) -> "_Tests":
        """The tests; as they would be with another number of seeds where one is given."""
        return cls(
            comparisons,
            needed,
            holm([region.p_inside(c, seeds) for c in comparisons]),
            holm([region.p_outside(c, seeds) for c in comparisons]),
        )

    @property
    def holding(self) -> int:
        return sum(p < LEVEL for p in self.inside)

    @property
    def contrary(self) -> int:
        return sum(p < LEVEL for p in self.outside)

    @property
    def outcome(self) -> Outcome:
        if self.holding >= self.needed:
            return "holds"
        return "does not hold" if self.contrary > len(self.comparisons) - self.needed else "not decided"


def _evidence(tests: _Tests, region: Region, shown: Comparison, unit: Unit) -> str:
    """The numbers of the comparison that decides; of several, also how many are where the claim says, and must be."""
    many, holding, contrary = len(tests.comparisons), tests.holding, tests.contrary
    found = []
    if shown.over_seeds:
        p = min(region.p_inside(shown), region.p_outside(shown))
        sides = "" if math.isfinite(region.low) and math.isfinite(region.high) else "one-sided "
        low, high = map(unit.number, shown.over_seeds)
        found.append(f"{sides}p = {p:.2g}; 95 %: {low} to {high} over {len(shown.by_seed)} seeds")
    if shown.over_points:
        low, high = map(unit.number, shown.over_points)
        found.append(f"{low} to {high} over {shown.points} test points")
    text = f"{shown.name}: {unit.after(unit.number(shown.effect))}"
    if found:
        text += f" ({', '.join(found)})"
    if many == 1:
        return f"{text}. The claim: {region.words(unit)}."
    undecided = many - holding - contrary
    counts = [f"{holding} of {many} comparisons {_are(holding)} {region.words(unit)}"]
    counts += [f"{contrary} {_are(contrary)} not"] if contrary else []
    counts += [f"{undecided} {_are(undecided)} undecided"] if undecided else []
    effects = [c.effect for c in tests.comparisons]
    ends = f"{unit.number(min(effects))} to {unit.number(max(effects))}"
    return (
        f"{', '.join(counts)} (tests at 5 %, corrected for {many}); the claim needs {tests.needed}. "
        f"They range from {ends}. The one that decides: {text}."
    )


def _are(count: int) -> str:
    return "is" if count == 1 else "are"


def _what_would_decide(tests: _Tests, region: Region, shown: Comparison) -> str:
    """With how many seeds the claim would be decided if effects, spreads and points stayed as they are."""
    if min(len(c.by_seed) for c in tests.comparisons) == 1:
        networks = (
            ""
            if shown.mcnemar is None
            else f" (of these two networks alone: McNemar's p = {shown.mcnemar:.2g})"
        )
        return f"One seed does not decide it{networks}."
    for seeds in range(max(len(c.by_seed) for c in tests.comparisons) + 1, ALL_SEEDS + 1):
        if _Tests.of(tests.comparisons, region, tests.needed, seeds).outcome != "not decided":
            return f"With {seeds} seeds of this effect and spread it would be decided."
    points = "" if shown.points is None else f" and {shown.points} test points"
    return f"With {ALL_SEEDS} seeds of this effect and spread{points} it would still not be decided."
