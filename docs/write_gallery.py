"""Write docs/gallery/ and docs/gallery.md from examples/gallery/: `make gallery`.

Each script leaves a ``chart`` and an ``answer``. Sphinx-gallery would run them at every build of the documentation, draws
matplotlib's figures only, and has no text that is measured; here pictures and answers are kept, and so reviewed.
"""

import argparse
import json
import re
import runpy
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from opnorm.report.page import small_svg

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "examples" / "gallery"
KEPT = ROOT / "docs" / "gallery"
CELL = re.compile(r"^# %%( \[markdown\])?[^\n]*\n", re.MULTILINE)
ORDER = (
    "layer_gains",
    "norms_and_robustness",
    "linear_approximation",
    "masked_gradients",
    "norm_decay_transformer",
    "attack_steps",
    "proved_robustness",
    "power_iteration",
    "jacobian_spectrum",
    "weight_scale",
    "linear_regions",
)


def cells(text: str) -> Iterator[tuple[str, str]]:
    """The cells of a script in percent format: ("markdown" or "code", text)."""
    parts = CELL.split(text)
    for mark, body in zip(parts[1::2], parts[2::2], strict=True):
        if mark:
            yield "markdown", re.sub(r"^# ?", "", body, flags=re.MULTILINE).strip()
        else:
            yield "code", body.strip()


def question(name: str) -> str:
    """The heading of a script, and the sentences below it."""
    kind, text = next(cells((SCRIPTS / f"{name}.py").read_text(encoding="utf-8")))
    assert kind == "markdown", f"{name}.py begins with a markdown cell"
    return text.removeprefix("# ")


def notebook(name: str) -> dict[str, Any]:
    """A script as a notebook, as jupytext would make it."""
    found = [
        {"cell_type": kind, "metadata": {}, "source": text}
        | ({"outputs": [], "execution_count": None} if kind == "code" else {})
        for kind, text in cells((SCRIPTS / f"{name}.py").read_text(encoding="utf-8"))
    ]
    return {"cells": found, "metadata": {}, "nbformat": 4, "nbformat_minor": 4}


def run(name: str) -> None:
    """Run one script, and keep its picture and its answer."""
    started = time.process_time()
    found = runpy.run_path(str(SCRIPTS / f"{name}.py"))
    KEPT.mkdir(exist_ok=True)
    (KEPT / f"{name}.svg").write_text(small_svg(found["chart"].spec, ()), encoding="utf-8")
    kept = {"answer": found["answer"], "caption": found["chart"].caption}
    kept["cpu_seconds"] = round(time.process_time() - started, 1)
    (KEPT / f"{name}.json").write_text(
        json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )


def page(names: Sequence[str] = ORDER) -> str:
    """docs/gallery.md."""
    parts = [
        "# Gallery\n\nOne question each, answered on the digits that come with opnorm, in seconds on a laptop. Pictures and "
        "numbers are measured by the script that is named; on another machine the last digits may differ. They are in "
        "`examples/gallery/`, and open as notebooks in Jupyter (with jupytext), VS Code and PyCharm."
    ]
    for name in names:
        title, _, text = question(name).partition("\n")
        kept = json.loads((KEPT / f"{name}.json").read_text(encoding="utf-8"))
        answer = kept["answer"].replace("*", "\\*")
        parts.append(
            f"## {title}\n\n{text.strip()}\n\n![{title}](gallery/{name}.svg)\n\n{answer}\n\n"
            f"`examples/gallery/{name}.py`, {kept['cpu_seconds']:.0f} s of one core."
        )
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="scripts, all when none is named")
    parser.add_argument("--notebooks", type=Path, help="also write them as notebooks into this folder")
    args = parser.parse_args()
    for name in args.names or ORDER:
        run(name)
        if args.notebooks:
            args.notebooks.mkdir(parents=True, exist_ok=True)
            (args.notebooks / f"{name}.ipynb").write_text(json.dumps(notebook(name)), encoding="utf-8")
    (ROOT / "docs" / "gallery.md").write_text(page(), encoding="utf-8")
