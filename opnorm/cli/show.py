"""``opnorm show``: all that is known of a run: settings, curves, results, attacks, and how to load its network."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from opnorm._core.files import shown
from opnorm.cli.marks import Positional
from opnorm.cli.options import Json, RunName, Runs, print_json
from opnorm.cli.subjects import named_run, no_run
from opnorm.errors import RunError

__all__ = ["show", "sparkline"]

LEVELS = "▁▂▃▄▅▆▇█"
CURVES = ("loss", "train_accuracy", "test_accuracy", "norm_1", "norm_2", "norm_inf", "lr")
WIDTH = 60  # characters of a curve


def show(
    run: Positional[RunName],
    out: Runs = Path("runs"),
    json: Json = False,
) -> None:
    """Show a run: state, settings, curves over the epochs, results, attacks on its network, and how to load it.

    What can be read of a damaged run is shown, and the status is 2.

    opnorm show 3f2a9c01d4e7
    """
    from opnorm._core.plain_text import printable
    from opnorm.runs.damage import check_whole
    from opnorm.runs.run_columns import run_row
    from opnorm.runs.store import Store

    folder = _folder(run, Path(os.path.abspath(out)))
    store = Store(folder.parent)
    about = next(row for row in store.ls() if row["folder"] == str(folder))
    attacks = [row for row in Store(store.root / "attacks").ls() if row.get("subject") == about["key"]]
    row, metrics = run_row(store, about, attacks), _metrics(store, folder)
    if json:
        print_json(row | {"metrics": metrics, "attacks": attacks})
    else:
        loading = _loading(folder, str(row["model"]))
        for line in (*_values(row), *_curves(metrics), *_attacks(attacks), *loading):
            print(printable(line))
    check_whole(folder)


def _folder(text: str, out: Path) -> Path:
    from opnorm.runs.store import Store

    folder = named_run(text, out)
    if folder is None:
        raise no_run(text, out)
    Store(folder.parent).read(folder)
    return folder


def _metrics(store: Any, folder: Path) -> list[dict[str, Any]]:
    try:
        return list(store.metrics(folder))
    except RunError:  # which is said at the end
        return []


def _values(row: dict[str, Any]) -> Iterable[str]:
    for name, value in row.items():
        if value not in (None, "") and name not in CURVES:
            yield f"{name:30}  {f'{value:.6g}' if isinstance(value, float) else value}"


def _curves(metrics: Sequence[dict[str, Any]]) -> Iterable[str]:
    for name in CURVES:
        values = [row.get(name) for row in metrics]
        known = [value for value in values if isinstance(value, int | float)]
        if known:
            yield f"{name:30}  {sparkline(values)}  {known[0]:.4g} to {known[-1]:.4g}"


def sparkline(values: Sequence[float | None], width: int = WIDTH) -> str:
    """A curve in one line of at most ``width`` characters, each the mean of its part; blank where nothing is known."""
    parts = min(width, len(values))
    means: list[float | None] = []
    for i in range(parts):
        part = values[i * len(values) // parts : (i + 1) * len(values) // parts]
        numbers = [value for value in part if value is not None]
        means.append(sum(numbers) / len(numbers) if numbers else None)
    known = [mean for mean in means if mean is not None]
    low, span = (min(known), max(known) - min(known)) if known else (0.0, 0.0)
    top = len(LEVELS) - 1
    return "".join(
        " " if mean is None else LEVELS[round((mean - low) / span * top) if span else 0] for mean in means
    )


def _attacks(attacks: Iterable[dict[str, Any]]) -> Iterable[str]:
    for row in attacks:
        found = f"{row['robust']} of {row['points']} robust" if "robust" in row else row["state"]
        yield f"{'attack ' + row['key']:30}  {row.get('attack', '')}: {found}"


def _loading(folder: Path, model: str) -> Iterable[str]:
    weights = folder / "weights.safetensors"
    if weights.is_file():
        own = "." in model.partition("(")[0]  # the file does not choose which code is run
        arch = f", arch=spec.build({model!r}, 'model')" if own else ""
        yield f"{'load it':30}  {'from opnorm import spec; ' * own}from opnorm.models import file"
        yield f"{'':30}  model = file({str(shown(weights))!r}{arch}).eval()"
        yield f"{'give it away':30}  opnorm export {folder.name} --to FOLDER --out {shown(folder.parent)}"
