"""The page of a study that is under way: there before anything is trained, rewritten as runs end, complete at the end."""

from dataclasses import replace

import pytest

from opnorm.report import Column, Report, Stat, Table
from opnorm.runs import study_page
from opnorm.runs.run import Result
from opnorm.runs.runner import WAITING, Study, StudyProgress, run_study
from opnorm.runs.study_page import StudyPage, page_path, write_study


def report(results):
    """One row a method, in the order of the study."""
    rows = {}
    for result in results:
        rows.setdefault(result.run.label, []).append(result)
    table = [
        {"method": label, "clean": Stat.of(r.find("accuracy")[0]["accuracy"] for r in group if not r.failure)}
        for label, group in rows.items()
    ]
    return Report(
        "A title", "A question?", table=Table([Column("method", "m", "text"), Column("clean", "c")], table)
    )


@pytest.fixture
def study(tiny, seeds):
    ways = ({}, {"objective": "plain(smoothing=0.1)"}, {"ema": 0.5})
    runs = [run for way in ways for run in seeds(replace(tiny, epochs=1, **way), 2)]
    return Study("mine", runs, report, rank=lambda run: 0 if run.ema else 1)


class Clock:
    """The time, for a page: moved by hand; each page takes ``cost`` seconds."""

    def __init__(self):
        self.now, self.cpu, self.cost = 100.0, 0.0, 0.0

    def monotonic(self):
        return self.now

    def time(self):
        return self.now

    def process_time(self):
        self.cpu += self.cost  # asked for before and after a page
        return self.cpu


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(study_page, "time", made)
    return made


def test_one_seed_of_all_first_and_rows_in_the_order_of_the_study(study, store):
    begun, page = [], StudyPage(study, store)

    def progress(event):
        if event.text not in (WAITING, "done") and event.run not in begun:
            begun.append(event.run)
        page(event)

    results = run_study(study, store, jobs=1, progress=progress)
    assert [r.run for r in results] == study.runs
    assert [(run.label, run.seed) for run in begun] == [
        (way, seed) for seed in (0, 1) for way in ("ema=0.5", "plain", "plain(smoothing=0.1)")
    ]
    html = page.path.read_text(encoding="utf-8")
    assert html.index(">plain<") < html.index(">plain(smoothing=0.1)<") < html.index(">ema=0.5<")


def test_the_page_from_the_first_minute_to_the_end(study, store, clock):
    page, seen = StudyPage(study, store), []
    assert page.path == page_path(study, store)

    def progress(event):
        clock.now += 100
        existed = page.path.exists()
        page(event)
        if event.result or not existed:
            seen.append(page.path.read_text(encoding="utf-8") if page.path.exists() else "")

    results = run_study(study, store, jobs=1, progress=progress)
    *unknown, waiting = seen[: len(study.runs)]
    assert unknown == [""] * len(unknown), "all runs are known first"
    first, last = seen[len(study.runs)], seen[-2]
    assert "0 of 6 runs have ended.</strong> The first ones begin." in waiting
    assert "1 of 6 runs have ended, about " in first
    assert "5 of 6 runs have ended, about " in last
    for html in (waiting, first, last):
        assert 'http-equiv="refresh"' in html
        assert "data-written=" in html
        assert "<noscript><img" not in html, "pictures take seconds"
    written = write_study(study, results, store)
    assert written == page.path
    html = written.read_text(encoding="utf-8")
    assert 'http-equiv="refresh"' not in html
    assert "data-written=" not in html
    assert "runs have ended" not in html


def test_what_runs_and_the_time_that_is_left(study, store, clock):
    page = StudyPage(study, store)
    for i, run in enumerate(study.runs):
        page(StudyProgress(i, run, 0.0, WAITING))
    page(StudyProgress(0, study.runs[0], 0.1, "epoch 1/9"))
    page(StudyProgress(2, study.runs[2], 0.1, "epoch 2/9"))
    clock.now += 60
    page(StudyProgress(0, study.runs[0], 1.0, "done", Result(study.runs[0], [], {}, 600.0)))
    # five of 600 s are missing, of which one has run for 60 s; two at a time
    text = page.path.read_text(encoding="utf-8")
    assert "1 of 6 runs have ended, about 25 min left" in text
    assert "Running: plain(smoothing=0.1), seed 0 (epoch 2/9)." in text


def test_pages_cost_two_percent_at_most(study, store, clock):
    study = replace(study, report=lambda results: written.append(clock.now) or report(results))
    written, page = [], StudyPage(study, store)
    clock.cost = 2.0
    for i, run in enumerate(study.runs):
        page(StudyProgress(i, run, 0.0, WAITING))
    for second in range(1200):
        clock.now += 1
        page(StudyProgress(0, study.runs[0], 0.1, f"epoch {second}"))
    assert len(written) >= 1200 * 0.02 / clock.cost / 2, "rewritten although no run ends"
    assert clock.cost * len(written) <= 0.02 * 1200 + 2 * clock.cost


def test_a_report_that_needs_all_runs_does_not_end_the_study(study, store, capsys):
    def needs_all(results):
        assert all(r.find("accuracy")[0]["accuracy"] >= 0 for r in results)
        return report(results)

    study = replace(study, report=needs_all)
    page = StudyPage(study, store)
    results = run_study(study, store, jobs=1, progress=page)
    text = page.path.read_text(encoding="utf-8")
    assert "cannot be made before all runs have ended (IndexError: list index out of range)" in text
    assert "of 6 runs have ended" in text
    assert "IndexError" in capsys.readouterr().err
    assert "cannot be made" not in write_study(study, results, store).read_text(encoding="utf-8")


def test_a_finished_page_is_not_replaced_where_all_is_found(study, store):
    done = write_study(study, run_study(study, store, jobs=1), store)
    before = done.read_bytes()
    run_study(study, store, jobs=1, progress=StudyPage(study, store))
    assert done.read_bytes() == before
