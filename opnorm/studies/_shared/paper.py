"""A paper's study: its parts (tables, figures), their runs in three sizes, one report with a verdict on every claim."""

import fnmatch
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from opnorm._core.part_names import check_part
from opnorm._core.settings import check_choice, check_count
from opnorm.errors import OpnormError, SpecError
from opnorm.report import Report, Section
from opnorm.runs.run import Result, Run
from opnorm.runs.runner import Study
from opnorm.runs.training_run import environment
from opnorm.spec import factory
from opnorm.studies._shared.claim import Claim
from opnorm.studies._shared.outcomes import Case, MissingError, Outcome, Outcomes

__all__ = ["SIZES", "Paper", "Part", "Setting", "data_of", "no_result", "outcomes_of", "study_of"]

Size = Literal["smoke", "laptop", "paper"]
SIZES = get_args(Size)
"""Seconds, to see that all works; minutes on two cores; the published settings."""


@dataclass(frozen=True)
class Setting:
    """What a caller can choose of a study.

    Attributes:
        size: "smoke", "laptop" or "paper".
        seeds: how many times each method is repeated; the study's own number when None.
        data: a data set as a call, instead of that of the size.
        limit: at most so many training and test points.
        only: a pattern; runs whose network or method does not match it are left out.
    """

    size: Size = "laptop"
    seeds: int | None = None
    data: str | None = None
    limit: int | None = None
    only: str | None = None

    def __post_init__(self) -> None:
        check_choice("size", self.size, SIZES)
        check_count("seeds", self.seeds, optional=True)

    def pick(self, smoke: Any, laptop: Any, paper: Any) -> Any:
        """The value for this size."""
        return dict(zip(SIZES, (smoke, laptop, paper), strict=True))[self.size]

    @property
    def published(self) -> bool:
        """Whether the settings are those of the paper, so that measured numbers can be set against printed ones."""
        return self.size == "paper" and self.data is None and self.limit is None

    def base(self, run: Run) -> Run:
        """A run with the chosen data and limit."""
        limit = run.limit if self.limit is None else min(self.limit, run.limit or self.limit)
        return replace(run, data=self.data or run.data, limit=limit)

    def repeated(self, case: Case, seeds: int) -> list[Case]:
        """A case with each seed, ``seeds`` of them unless the caller chose another number."""
        return [replace(case, run=replace(case.run, seed=seed)) for seed in range(self.seeds or seeds)]


@dataclass(frozen=True)
class Part:
    """A table or figure of a paper.

    Attributes:
        asks: the question that it answers.
        cases: the runs behind it.
        section: what the page shows: tables and charts.
        claims: what the paper concludes from it.
        more: further runs that depend on what the first ones gave, if there are any; an empty list at the end.
    """

    asks: str
    cases: Callable[[Setting], list[Case]]
    section: Callable[[Setting, Outcomes], Section]
    claims: tuple[Claim, ...] = ()
    more: Callable[[Setting, Outcomes], list[Case]] | None = None


@dataclass(frozen=True)
class Paper:
    """A paper with its parts.

    Attributes:
        name: of the study, such as ``liang2021``.
        title: of its page.
        source: the paper.
        parts: by name, such as ``table2``, in the order of the paper.
        also: other names, such as those of figures that show the same -> the part's.
        sizes: for each size, in which way it differs from the paper's settings.
        note: more about the study, for its docstring.
    """

    name: str
    title: str
    source: str
    parts: Mapping[str, Part]
    also: Mapping[str, str]
    sizes: Mapping[str, str]
    note: str = ""

    def study(self, part: str | None, setting: Setting) -> Study:
        """The study of one part, or of all.

        Raises:
            SpecError: an unknown part, or a pattern that matches no run.
        """
        chosen = self.chosen(part)
        cases = {key: _matching(p.cases(setting), setting.only) for key, p in chosen.items()}
        if setting.only is not None and not any(cases.values()):
            everything = [case for p in chosen.values() for case in p.cases(setting)]
            names = dict.fromkeys(name for case in everything for name in (case.network, case.method))
            raise SpecError(f"only={setting.only!r} matches no run; there are {', '.join(names)}")

        def more(results: Sequence[Result]) -> list[Run]:
            known = {result.run.key: result for result in results}
            some = [
                case
                for key, p in chosen.items()
                for case in (*cases[key], *_more(p, setting, cases[key], results))
            ]
            return [run for run in merged(case.run for case in some) if _lacking(run, known)]

        def report(results: Sequence[Result]) -> Report:
            outcomes = {key: outcomes_of(p, setting, cases[key], results) for key, p in chosen.items()}
            return self._report(chosen, setting, outcomes, results)

        name = self.name if part is None else f"{self.name}.{part}"
        return Study(
            name,
            merged(case.run for some in cases.values() for case in some),
            report,
            more if any(p.more for p in chosen.values()) else None,
        )

    def chosen(self, part: str | None) -> Mapping[str, Part]:
        """One part, or all, by name.

        Raises:
            SpecError: an unknown part.
        """
        if part is None:
            return self.parts
        check_part(part, self.name, self.parts, self.also)
        name = self.also.get(part, part)
        return {name: self.parts[name]}

    def _report(
        self,
        parts: Mapping[str, Part],
        setting: Setting,
        outcomes: Mapping[str, Outcomes],
        results: Sequence[Result],
    ) -> Report:
        sections, claims = [], []
        for name, part in parts.items():
            section = _section(name, part, setting, outcomes[name])
            charts = [replace(chart, key=f"{name}-{chart.key}") for chart in section.charts]
            sections.append(replace(section, key=name, text=section.text or part.asks, charts=charts))
            study = f"{self.name}.{name}"
            claims += [claim.as_dict(outcomes[name]) | {"study": study} for claim in part.claims]
        where = environment()
        return Report(
            title=self.title if len(parts) > 1 else f"{self.title}: {next(iter(parts))}",
            question=" ".join(part.asks for part in parts.values()),
            findings=[no_result(failed)]
            if (failed := [r for r in results if r.failure and not r.pending])
            else [],
            claims=claims,
            sections=sections,
            settings={
                "paper": self.source,
                "size": f"{setting.size}: {self.sizes[setting.size]}",
                "data": data_of(results),
                "opnorm": where["opnorm"] + (f", commit {where['git']}" if where["git"] else ""),
                "computing time": f"{sum(r.seconds for r in results):.0f} s in all runs together",
                "machine": f"{where['machine']}; Python {where['python']}, torch {where['torch']}",
            },
            runs=[
                {
                    "key": r.run.key,
                    "label": f"{r.run.model}: {r.run.label}",
                    "seed": r.run.seed,
                    "seconds": seconds,
                }
                for r in results
                if not r.pending
                for seconds in [None if r.failure else r.seconds]
            ],
        )


def study_of(paper: Paper) -> Callable[..., Study]:
    """The study of a paper as a call, registered under the paper's name."""

    def study(
        part: str | None = None,
        size: Size = "laptop",
        seeds: int | None = None,
        data: str | None = None,
        limit: int | None = None,
        only: str | None = None,
    ) -> Study:
        check_part(part, paper.name, paper.parts, paper.also)
        check_count("seeds", seeds, optional=True)
        check_count("limit", limit, unit="points", optional=True)
        return paper.study(part, Setting(size, seeds, data, limit, only))

    study.__name__ = study.__qualname__ = paper.name
    note = f"\n    {paper.note}\n" if paper.note else ""
    study.__doc__ = f"""The tables and figures of a paper, with a verdict on every claim: {paper.title}.
{note}
    Args:
        part: one table or figure, all when None.
        size: "smoke", "laptop" or "paper".
        seeds: how many times each training is repeated.
        data: a data set as a call; that of the size when None.
        limit: at most so many training and test points.
        only: a pattern of networks or methods; the others are left out.

    Raises:
        SpecError: an unknown part or size, a pattern that matches nothing.

    Source: {paper.source}.
    """
    return factory("study")(study)


def no_result(failed: Sequence[Result]) -> str:
    """A sentence that names the runs that failed, the seeds of a method together, for the top of a page."""
    methods: dict[tuple[str, str], list[Result]] = {}
    for r in failed:
        methods.setdefault((r.run.model, r.run.label), []).append(r)
    runs = "; ".join(
        f"{model}, {label}, seed{'s' * (len(some) > 1)} {', '.join(str(r.run.seed) for r in some)}: {some[0].failure}"
        for (model, label), some in methods.items()
    )
    many, needed = len(failed), "it" if len(failed) == 1 else "them"
    return f"{many} run{'s' * (many > 1)} failed, and claims that need {needed} are not decided. {runs}."


def _section(name: str, part: Part, setting: Setting, outcomes: Outcomes) -> Section:
    """The section of a part; without tables, and with the reason, where what one of them needs is not known."""
    try:
        return part.section(setting, outcomes)
    except OpnormError as e:
        return Section(name, name, f"{part.asks} Not known: {e}.")


def data_of(results: Sequence[Result]) -> str:
    """The data of all runs, each with its limit, as text."""
    limits = {
        r.run: f", at most {r.run.limit} training and test points" if r.run.limit else "" for r in results
    }
    return "; ".join(dict.fromkeys(run.data + limit for run, limit in limits.items()))


def merged(runs: Iterable[Run]) -> list[Run]:
    """Runs without repetitions; one that stands twice is asked for the analyses of both."""
    found: dict[str, Run] = {}
    for run in runs:
        other = found.get(run.key)
        if other is not None and not set(run.analyses) <= set(other.analyses):
            other = replace(other, analyses=tuple(dict.fromkeys((*other.analyses, *run.analyses))))
        found[run.key] = other or run
    return list(found.values())


def _matching(cases: list[Case], only: str | None) -> list[Case]:
    """The cases whose network or method matches a pattern, or holds it as a part of its name."""
    if only is None:
        return cases
    pattern = f"*{only}*".lower()
    return [c for c in cases if any(fnmatch.fnmatch(n.lower(), pattern) for n in (c.network, c.method))]


def _more(part: Part, setting: Setting, cases: Sequence[Case], results: Sequence[Result]) -> list[Case]:
    """All further cases that can be named from what is known, round by round."""
    known = {result.run.key: result for result in results if not result.pending}
    further: list[Case] = []
    if any(case.run.key not in known for case in cases):
        return further
    while part.more:
        try:
            new = part.more(setting, _outcomes([*cases, *further], results))
        except MissingError:  # a run that they depend on failed
            return further
        done = {_names(case) for case in (*cases, *further)}
        new = [case for case in new if _names(case) not in done]
        further += new
        if not new or any(_lacking(case.run, known) for case in new):
            return further
    return further


def _names(case: Case) -> tuple[str, str, str]:
    """What tells cases apart: one run may stand for several, such as the best trial of a search."""
    return case.network, case.method, case.run.key


def _lacking(run: Run, known: Mapping[str, Result]) -> bool:
    """Whether a run, or an analysis that it asks for, has not been carried out."""
    result = known.get(run.key)
    return result is None or not (result.failure or set(run.analyses) <= result.rows.keys())


def outcomes_of(part: Part, setting: Setting, cases: Sequence[Case], results: Sequence[Result]) -> Outcomes:
    """The outcomes of the first cases of a part, and of those that depend on what these gave."""
    return _outcomes([*cases, *_more(part, setting, cases, results)], results)


def _outcomes(cases: Sequence[Case], results: Sequence[Result]) -> Outcomes:
    """The outcomes of cases whose results are there, each with the analyses that its case asked for."""
    known = {result.run.key: result for result in results}
    return Outcomes(
        [
            Outcome(case, _restricted(known[case.run.key], case.run))
            for case in cases
            if not _lacking(case.run, known)
        ]
    )


def _restricted(result: Result, run: Run) -> Result:
    return replace(
        result, run=run, rows={call: result.rows[call] for call in run.analyses if call in result.rows}
    )
