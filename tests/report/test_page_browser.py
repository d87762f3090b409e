"""The page in a real Chromium: drawn, quiet, offline, sortable, highlightable, on a phone and in the dark."""

import csv
import dataclasses
import re
import shutil

import pytest

from opnorm.report import Column, Progress, Report, Table, accuracy_against_norm, write_page

pytestmark = pytest.mark.browser

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    "--no-sandbox",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no browser on this machine: none of {', '.join(BROWSERS)}")
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=found, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def url(report, tmp_path_factory):
    return write_page(report, tmp_path_factory.mktemp("page") / "report.html").as_uri()


@pytest.fixture
def open_page(browser, url):
    """A function that opens the page and waits for its charts; afterwards it must have been quiet."""
    contexts, noise, requests = [], [], []

    def go(width=1280, height=900, **settings):
        context = browser.new_context(viewport={"width": width, "height": height}, **settings)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(15_000)
        page.on("console", lambda message: noise.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: noise.append(f"error: {error}"))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(url)
        page.wait_for_selector("html[data-state=ready]")
        return page

    yield go
    for context in contexts:
        context.close()
    assert noise == []
    assert [r for r in requests if not r.startswith(("blob:", "data:"))] == [url] * len(contexts)


def column(page, name):
    """A column's texts, from the top."""
    heads = page.locator("#table thead th").all_inner_texts()
    place = next(i for i, head in enumerate(heads) if name in head.replace("\n", " ").replace("\xa0", " "))
    script = "(rows, i) => rows.map(r => (r.cells[i] ?? r.cells[1]).innerText)"
    return place, page.locator("#table tbody tr").evaluate_all(script, place)


def opacities(page, chart, color):
    """How visible the lines and points of one color are in a chart."""
    script = """(marks, color) => marks.filter(m => [m.getAttribute('stroke'), m.getAttribute('fill')].includes(color))
        .map(m => Number(m.getAttribute('opacity') ?? 1)).filter(o => o > 0.01)  // not the unseen carriers of tooltips"""
    return set(
        page.locator(f"#{chart} .role-mark:is(.mark-line, .mark-symbol) path").evaluate_all(script, color)
    )


def legend(page, chart, method):
    return page.locator(f"#{chart} .role-legend-label text", has_text=re.compile(f"^{re.escape(method)}$"))


def test_every_chart_is_drawn(open_page, report):
    page = open_page()
    assert page.locator(".plot").count() == len(report.charts) == 5
    for chart in report.charts:
        svg = page.locator(f"#{chart.key} svg.marks")
        box = svg.bounding_box()
        assert box["width"] > 900, chart.key
        assert box["height"] > 200, chart.key
        lines = page.locator(f"#{chart.key} .mark-line.role-mark path[d*=L]").count()
        points = page.locator(f"#{chart.key} .mark-symbol.role-mark path").evaluate_all(
            "paths => paths.filter(p => p.getBoundingClientRect().width > 3).length"
        )
        assert points >= 8, chart.key
        assert lines >= 8 or chart.key == "accuracy-against-norm"
        assert "NaN" not in svg.inner_html()
        for method in ("plain", "trades(eps=8/255, beta=6)"):
            assert legend(page, chart.key, method).count() == 1


def test_sorting(open_page):
    page = open_page()
    place, before = column(page, "Seconds")
    head = page.locator("#table thead th").nth(place)

    def numbers():
        return [float(text.split()[0].replace(",", "")) for text in column(page, "Seconds")[1][:-1]]

    assert before[-1].startswith("failed")
    head.get_by_role("button").click()  # the less the better: ascending first
    assert numbers() == sorted(numbers())
    assert numbers()[0] == 77.5, "numbers, not words: 77.5 stands before 163"
    assert head.get_attribute("aria-sort") == "ascending"
    head.get_by_role("button").click()
    assert numbers() == sorted(numbers(), reverse=True)
    assert head.get_attribute("aria-sort") == "descending"
    assert column(page, "Seconds")[1][-1].startswith("failed"), "what failed stays below"

    page.locator("#table thead button", has_text="Clean").press("Enter")  # by keyboard; the best first
    clean = [float(text.split()[0]) for text in column(page, "Clean")[1][:-1]]
    assert clean == sorted(clean, reverse=True)
    assert head.get_attribute("aria-sort") == "none"
    page.locator("#table thead button", has_text="ℓ₂").click()
    assert column(page, "ℓ₂")[1][-2:][0] == "not known", "not known stands below the known"


def test_a_report_begins_with_what_it_highlights(browser, report, tmp_path):
    path = write_page(dataclasses.replace(report, highlight=["plain"]), tmp_path / "r.html")
    page = browser.new_page()
    page.goto(path.as_uri())
    page.wait_for_selector("html[data-state=ready]")
    page.wait_for_timeout(150)
    assert page.locator("#picked span").inner_text() == "Highlighted: plain"
    assert page.locator("tr.picked").count() == 1
    assert opacities(page, "layer-norms", "var(--ink)") == {1}
    assert max(opacities(page, "layer-norms", "#009988")) < 0.2
    page.locator("#picked button").click()
    page.wait_for_timeout(150)
    assert opacities(page, "layer-norms", "#009988") == {1}
    page.close()


def test_the_page_of_a_study_under_way_reloads_itself(browser, report, tmp_path):
    """What the reader has chosen stays; the last page no longer reloads."""
    path, context = tmp_path / "r.html", browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.clock.install()
    progress = Progress(3, 24, ["plain, seed 1 (epoch 2/9)"], 100.0, page.evaluate("Date.now()") / 1000)
    write_page(report, path, progress)
    page.goto(path.as_uri())
    page.wait_for_selector("html[data-state=ready]")
    assert page.title().startswith("3/24: ")
    assert page.locator("#progress strong").inner_text() == "3 of 24 runs have ended, about 2 min left."
    page.get_by_role("button", name="parseval(beta=1e-2)").click()
    page.locator("#table thead button", has_text="Seconds").click()
    page.locator(".primer summary").click()
    page.evaluate("scrollTo({ top: 1900, behavior: 'instant' })")
    places = """[...document.querySelectorAll('section[id]')].map(
        (s) => [s.id, s.getBoundingClientRect().top, s.getBoundingClientRect().bottom])"""
    seen, before = next((name, top) for name, top, bottom in page.evaluate(places) if bottom > 0)
    order = column(page, "Seconds")[1]

    write_page(dataclasses.replace(report, findings=["A new one."]), path)
    page.clock.run_for(2000)  # it notices that it is drawn
    page.clock.run_for(100_000)
    page.wait_for_selector("html[data-state=ready]:not([data-written])")
    assert page.locator("#findings li").inner_text() == "A new one."
    assert page.locator("#progress").count() == 0
    assert page.locator("#picked span").inner_text() == "Highlighted: parseval(beta=1e-2)"
    assert column(page, "Seconds")[1] == order
    assert page.locator(".primer").get_attribute("open") is not None
    after = {name: top for name, top, _ in page.evaluate(places)}[seen]
    assert abs(after - before) < 5, "the section at the top of the window stays where it was"
    page.evaluate("document.title = 'the same'")
    page.clock.run_for(60_000)
    assert page.title() == "the same", "a finished page does not reload"
    context.close()


def test_legend_highlights_in_all_charts(open_page):
    page = open_page()
    plain, orange, rest = "var(--ink)", "#ee7733", "#009988"
    assert opacities(page, "accuracy-against-eps", rest) == {1}
    legend(page, "accuracy-against-eps", "plain").click()
    page.wait_for_selector("#picked:not([hidden])")
    page.wait_for_timeout(150)
    for chart in ("accuracy-against-eps", "accuracy-against-norm", "layer-norms"):
        assert opacities(page, chart, plain) == {1}, chart
        assert max(opacities(page, chart, rest)) < 0.2, chart
    assert page.locator("tr.picked").all_inner_texts()[0].startswith("plain")

    legend(page, "layer-norms", "norm_decay(p=1, beta=1e-3)").click(modifiers=["Shift"])
    page.wait_for_timeout(150)
    assert opacities(page, "accuracy-against-eps", plain) == {1}
    assert opacities(page, "accuracy-against-eps", orange) == {1}
    assert max(opacities(page, "accuracy-against-eps", rest)) < 0.2
    assert page.locator("tr.picked").count() == 2

    legend(page, "accuracy-against-eps", "plain").dblclick()
    page.wait_for_selector("#picked", state="hidden")
    page.wait_for_timeout(150)
    assert opacities(page, "layer-norms", rest) == {1}

    button = page.get_by_role("button", name="svc(bound=1.0)")  # the same from the table
    button.click()
    page.wait_for_timeout(150)
    assert button.get_attribute("aria-pressed") == "true"
    assert max(opacities(page, "layer-norms", rest)) < 0.2
    page.get_by_role("button", name="Show all").click()
    page.wait_for_timeout(150)
    assert opacities(page, "layer-norms", rest) == {1}


def test_tooltip(open_page):
    page = open_page()
    point = '#accuracy-against-eps .mark-symbol.role-mark path[aria-label*="{}"][aria-label*="= 8/255"]'
    tip = page.locator("#vg-tooltip-element.visible")
    page.locator(point.format("pgd_at")).hover()
    tip.wait_for()
    assert "pgd_at(eps=8/255)" in tip.inner_text()
    assert "0.03137 = 8/255" in tip.inner_text()
    assert "(3 seeds)" in tip.inner_text()
    legend(page, "accuracy-against-eps", "plain").click()  # its point lies below others, which now make way
    page.wait_for_selector("#picked:not([hidden])")
    page.locator(point.format("plain")).hover()
    page.wait_for_function("document.querySelector('#vg-tooltip-element').innerText.includes('plain')")
    page.locator("#margins .mark-symbol.role-mark path").nth(3).hover(force=True)
    page.wait_for_function(
        "document.querySelector('#vg-tooltip-element').innerText.includes('misclassified')"
    )


def test_saving(open_page, tmp_path):
    page = open_page(accept_downloads=True, color_scheme="dark")
    for kind, start in {"svg": b"<svg", "png": b"\x89PNG", "csv": b"panel,method,"}.items():
        with page.expect_download() as download:
            page.locator(f"#layer-norms [data-save={kind}]").click()
        assert download.value.suggested_filename == f"layer-norms.{kind}"
        path = tmp_path / f"figure.{kind}"
        download.value.save_as(path)
        assert path.read_bytes().startswith(start)
        assert b"var(" not in path.read_bytes(), "black on white, also from a dark screen"
    rows = list(csv.DictReader((tmp_path / "figure.csv").open(encoding="utf-8")))
    assert sum(row["panel"] in ("1", "2", "inf") for row in rows) == 8 * 4 * 3
    assert {row["method"] for row in rows} >= {"norm_decay(p=1, beta=1e-3)"}


def test_on_a_phone(open_page, report):
    page = open_page(390, 844, has_touch=True, is_mobile=True, device_scale_factor=2)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    for chart in report.charts:
        box = page.locator(f"#{chart.key} svg.marks").bounding_box()
        assert 300 < box["width"] <= 390, chart.key
        assert box["x"] + box["width"] <= 390, chart.key
    legend(page, "accuracy-against-eps", "plain").tap()
    legend(page, "accuracy-against-eps", "svc(bound=1.0)").tap()  # no shift key on a phone: taps add up
    page.wait_for_function("document.querySelectorAll('tr.picked').length === 2")
    page.set_viewport_size({"width": 844, "height": 390})  # turned
    page.wait_for_function("document.querySelector('#margins svg.marks').getBoundingClientRect().width > 700")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.locator("tr.picked").count() == 2, "a turned phone keeps what is highlighted"
    assert max(opacities(page, "layer-norms", "#009988")) < 0.2


def test_in_the_dark(open_page, tmp_path):
    page = open_page(color_scheme="dark")
    colors = page.evaluate(
        """() => [document.body, document.querySelector('.role-axis-label text'),
                  document.querySelector('#margins .mark-line.role-mark path')]
             .map((e, i) => getComputedStyle(e)[['backgroundColor', 'fill', 'stroke'][i]])"""
    )
    brightness = [sum(map(int, re.findall(r"\d+", color)[:3])) / 3 for color in colors]
    assert brightness[0] < 40
    assert brightness[1] > 150
    assert brightness[2] > 200, "the baseline is drawn in the color of the text"
    shot = page.screenshot(path=tmp_path / "dark.png", full_page=True)
    assert len(shot) > 100_000


def test_without_javascript_the_table_and_the_figures_are_there(browser, url, report):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(url)
    assert page.locator("#table tbody tr").count() == 9
    assert page.locator("header noscript").is_visible()
    figures = page.locator("img.figure")
    assert figures.count() == len(report.charts)
    widths = [
        figures.nth(i).evaluate("async e => { await e.decode(); return e.naturalWidth }") for i in range(5)
    ]
    assert min(widths) > 300, "each is a picture that the browser can draw"
    assert not page.locator(".plot, .save").first.is_visible()
    context.close()


def test_hostile_text_stays_text(browser, tmp_path):
    bad = "</script><img src=x onerror=document.title='owned'><b>&{{ 1 }}"
    rows = [
        {"method": bad, "norm_inf": 2.0, "robust": 0.5},
        {"method": "plain", "norm_inf": 3.0, "robust": 0.6},
    ]
    chart = accuracy_against_norm(rows, [bad], accuracy_label=bad)
    report = Report(
        bad, bad, [bad], Table([Column("method", bad, "text", None, bad)], rows), [chart], {bad: bad}
    )
    page = browser.new_page()
    noise = []
    page.on("console", lambda message: noise.append(message.text))
    page.on("pageerror", lambda error: noise.append(str(error)))
    page.goto(write_page(report, tmp_path / "hostile.html").as_uri())
    page.wait_for_selector("html[data-state=ready]")
    page.locator("#table tbody button").first.click()
    page.locator("#accuracy-against-norm .mark-symbol.role-mark path").first.hover()
    page.locator("#vg-tooltip-element.visible").wait_for()
    assert bad in page.locator("#vg-tooltip-element").inner_text()
    assert page.locator("img, b").count() == 0
    assert page.title() == bad
    assert noise == []
    page.close()
