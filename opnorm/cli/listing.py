"""``opnorm ls`` and ``opnorm rm``: the runs of a folder, what belongs to them, and how to be rid of them."""

import os
import sys
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

from opnorm._core.files import shown
from opnorm.cli.marks import Help, Positional
from opnorm.cli.options import Json, RunNames, Runs, print_json
from opnorm.cli.subjects import choose, no_run, run_of_path
from opnorm.errors import BusyError, OpnormError, RunError

__all__ = ["ls", "rm"]

Row = dict[str, Any]

NAMED = ("model", "data", "objective", "regularizers", "ema", "seed", "analyses")
"""The settings that every line of ``opnorm ls`` has, and those that tell nothing apart."""

STATES = ("finished", "partial", "failed")
"""Those of a folder that is as it should be; any other one is what is wrong."""

ON_THE_LINE = (
    "key",
    "state",
    "begun",
    "seconds",
    "method",
    "model",
    "data",
    "objective",
    "regularizers",
    "seed",
)
"""Columns that every line shows."""


def ls(
    out: Runs = Path("runs"),
    where: Annotated[
        str | None, Help("only runs that meet a condition: 'robust_accuracy > 0.5 and model ~ resnet'")
    ] = None,
    sort: Annotated[
        str | None, Help("order of the runs: a column, such as 'accuracy desc'; by begin when left out")
    ] = None,
    parquet: Annotated[
        Path | None, Help("write one row a run, with all columns, to this .parquet file")
    ] = None,
    json: Json = False,
) -> None:
    """List the runs of a folder: key, state, when begun, seconds, what; below each run the attacks on its network.

    Of the settings, model, data, way of training and seed are always there, and every other one in which the runs differ.
    --where and --sort take the columns of --json and --parquet: settings, state, accuracy, robust_accuracy (the lowest
    that is known), robust_NORM_EPS_ATTACK, norms; those that they name are shown. The status is 2 where one is damaged.

    opnorm ls --where 'robust_accuracy > 0.5 and model ~ resnet' --sort 'accuracy desc'

    opnorm ls --where 'state = finished and not (data ~ digits or seed > 2)' --parquet runs.parquet
    """
    if parquet is not None and parquet.suffix != ".parquet":
        raise OpnormError(f"--parquet {parquet}: expected a name that ends in .parquet")
    if out.exists() and not out.is_dir():
        raise OpnormError(f"--out {out}: expected a folder of runs; this is a file")
    runs, others = _runs(out)
    flat: dict[str, Row] = {}
    named: list[str] = []
    if where is not None or sort is not None or parquet or json:
        flat, named = _selected(out, where, sort)
        by_key = {row["key"]: row for row in runs}
        runs = [by_key[key] for key in flat if key in by_key]
        others = [] if where is not None or sort is not None else others
    if parquet:
        from opnorm.runs.run_columns import write_parquet

        write_parquet(parquet, list(flat.values()))
        print(f"{len(flat)} rows in {shown(parquet)}", file=sys.stderr)
    if json:
        kept = ({"run": row.get("run"), "attacks": row["attacks"]} for row in runs)
        print_json([*(flat[row["key"]] | more for row, more in zip(runs, kept, strict=True)), *others])
    elif not runs + others:
        print(f"no runs in {out}{' meet the condition' * (where is not None)}", file=sys.stderr)
    else:
        _print_runs(runs, others, flat, named)
    _check_listed([*runs, *(attack for run in runs for attack in run["attacks"]), *others], flat)


def _check_listed(rows: Sequence[Row], flat: dict[str, Row]) -> None:
    """OpnormError where some of what was listed is damaged, as far as it was read."""
    from opnorm.runs.damage import check_whole

    damaged = []
    for row in rows:
        state = str(flat.get(row["key"], row)["state"])
        if state == "no weights" or (state not in STATES and "run" in row):
            try:
                check_whole(Path(row["folder"]))
            except RunError as e:
                state = str(e)
        if state not in STATES:
            damaged.append(state)
    if damaged:
        more = f" (and {len(damaged) - 1} more of those listed)" * (len(damaged) > 1)
        raise OpnormError(damaged[0] + more)


def _selected(out: Path, where: str | None, sort: str | None) -> tuple[dict[str, Row], list[str]]:
    """The rows that meet a condition, in order, by their keys; and the columns that were named."""
    from opnorm.runs.run_columns import COLUMNS, run_rows
    from opnorm.runs.store import Store
    from opnorm.runs.where import condition, sort_rows

    rows, named = run_rows(Store(out)), []
    if where is not None:
        meets = condition(where, rows, COLUMNS)
        rows, named = [row for row in rows if meets(row)], list(meets.columns)
    if sort is not None:
        rows, column = sort_rows(sort, rows, COLUMNS)
        named.append(column)
    return {row["key"]: row for row in rows}, [
        name for name in dict.fromkeys(named) if name not in ON_THE_LINE
    ]


def _print_runs(runs: list[Row], others: list[Row], flat: dict[str, Row], named: list[str]) -> None:
    differing = _differing([row["run"] for row in runs if isinstance(row.get("run"), dict)])
    shown: dict[str, str] = {}
    for row in runs:
        what, note = _settings(row, differing), ""
        if what and (twin := shown.setdefault(what, row["key"])) != row["key"]:
            note = f" (as {twin}, with other code, files or version of opnorm)"
        values = {name: flat[row["key"]].get(name) for name in named if name not in differing}
        note += "".join(f"  {name} {_number(value)}" for name, value in values.items())
        _print(row, what + note)
        for attack in row["attacks"]:
            _print(attack, _attack(attack), "    ")
    for attack in others:
        _print(attack, f"{_attack(attack)}: {attack.get('subject') or attack.get('model', '')}")


def _number(value: Any) -> str:
    return "not known" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def _runs(out: Path) -> tuple[list[Row], list[Row]]:
    """The runs, each with its ``attacks``; and the attacks on other networks."""
    from opnorm.runs.store import Store

    runs, attacks = Store(out).ls(), Store(out / "attacks").ls()
    mine: dict[str, list[Row]] = {row["key"]: [] for row in runs}
    others = [row for row in attacks if row.get("subject") not in mine]
    for row in attacks:
        if row.get("subject") in mine:
            mine[row["subject"]].append(row)
    return [row | {"attacks": mine[row["key"]]} for row in runs], others


def _differing(runs: Sequence[Row]) -> list[str]:
    """The settings in which runs differ, beyond those that are always shown."""
    names = dict.fromkeys(name for run in runs for name in run if name not in NAMED)
    return [name for name in names if any(run.get(name) != runs[0].get(name) for run in runs)]


def _settings(row: Row, differing: Iterable[str]) -> str:
    """A run in a line; as text, for the user's own modules need not be importable from here."""
    from opnorm.runs.method_label import label_of

    run = row.get("run")
    if not isinstance(run, dict):
        return ""
    more = "".join(f", {name}={_value(run.get(name))}" for name in differing)
    return f"{label_of(row)}, seed {run.get('seed')}: {run.get('model')} on {run.get('data')}{more}"


def _value(value: Any) -> str:
    return " + ".join(map(str, value)) or "none" if isinstance(value, list | tuple) else str(value)


def _attack(row: Row) -> str:
    points = f" of {row['limit']} points" if row.get("limit") else ""
    found = (
        f": {row['robust']} of {row['points']} robust, {row['correct']} correct"
        if "robust" in row
        else points
    )
    return f"attack {row.get('attack', '')}{found}"


def _print(row: Row, what: str, indent: str = "") -> None:
    """One line of text that no file can make more of: control characters are written as escapes."""
    from opnorm._core.plain_text import printable

    seconds, begun = row.get("seconds"), str(row.get("begun", ""))
    time = f"{seconds:8.1f} s" if isinstance(seconds, int | float) else " " * 10
    line = f"{row['key']}  {row['state']:10}  {begun:19.19}  {time}  {what}"
    print(printable(f"{indent}{line}".rstrip()))


# ---------------------------------------------------------------- removing


def rm(
    runs: Positional[RunNames],
    out: Runs = Path("runs"),
    yes: Annotated[bool, Help("do not ask")] = False,
    json: Json = False,
) -> None:
    """Remove runs, and the attacks on and analyses of their networks; asks before. Pages that show them stay, and are named.

    opnorm rm 3f2a9c01d4e7 a01b --yes
    """
    from opnorm.runs.store import Store

    if not runs:
        raise OpnormError("no run to remove was named; expected keys of opnorm ls")
    out = Path(os.path.abspath(out))
    removed = dict.fromkeys(folder for text in runs for folder in _removed(text, out))
    with ExitStack() as locks:
        for folder in removed:
            try:
                locks.enter_context(Store(folder.parent).lock(_key(folder)))
            except BusyError as e:
                raise OpnormError(
                    f"{shown(folder)} is under way in another process, and was not removed; stop that before"
                ) from e
        pages = [str(shown(page)) for page in _pages({_key(folder) for folder in removed}, out)]
        for folder in () if json else removed:
            print(f"{'remove' if not yes else 'removed'} {shown(folder)}")
        for page in () if json else pages:
            print(
                f"kept {page}, a page that shows what was removed; remove it yourself where it is not wanted"
            )
        if not yes and not _agreed(len(removed)):
            raise OpnormError("nothing was removed")
        for folder in removed:
            Store(folder.parent).remove(_key(folder))
    if json:
        print_json({"removed": [str(shown(folder)) for folder in removed], "pages": pages})


def _key(folder: Path) -> str:
    return folder.name.removesuffix(".partial")


def _removed(text: str, out: Path) -> list[Path]:
    """The folder of a run or of an attack, and the folders of what was made of the run's network."""
    from opnorm.runs.store import Store

    if os.path.isfile(Path(text) / "run.json"):
        folder = Path(os.path.abspath(text))
        out = folder.parent
    elif run := run_of_path(text):
        raise OpnormError(f"{text} is a file of a run, and whole runs are removed: opnorm rm {shown(run)}")
    else:
        stores = Store(out), Store(out / "attacks")
        folders = {_key(folder): folder for store in stores for folder in store.folders()}
        found = choose(text, folders, out)
        if found is None:
            raise no_run(text, out)
        folder = found
    key = _key(folder)
    kept = [
        about
        for kind in ("attacks", "analyses")
        for about in map(_about, sorted(out.glob(f"{kind}/[!.]*/run.json")))
    ]
    of_run = f"run {key}: "  # as opnorm analyze calls its network
    made = [
        a["folder"] for a in kept if a.get("subject") == key or str(a.get("model", "")).startswith(of_run)
    ]
    return [folder, *made, *(found for found in (out / "tensorboard" / key,) if found.is_dir())]


def _about(file: Path) -> Row:
    from opnorm._core.files import read_json

    try:
        return read_json(file, checked=True) | {"folder": file.parent}
    except RunError:
        return {}  # damaged: nothing says to which run it belongs


def _pages(keys: set[str], out: Path) -> list[Path]:
    """The pages that show some of these runs."""
    found = []
    for file in sorted({*out.glob("*/report.json"), *out.glob("analyses/*/report.json")}):
        text = file.read_text(encoding="utf-8", errors="replace")
        if any(key in text for key in keys):
            found.append(file.with_name("report.html"))
    return found


def _agreed(number: int) -> bool:
    if not sys.stdin.isatty():
        raise OpnormError("nothing was removed: there is no terminal to ask; add --yes")
    print(f"Remove {number} folder{'s' * (number > 1)}? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")
