"""Write docs/benchmarks.md from benchmarks/results/, which the benchmarks' --json writes."""

import ast
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from opnorm._core.plain_text import markdown_row

ROOT = Path(__file__).parents[1]
KEPT = ROOT / "benchmarks" / "results"
Record = Mapping[str, Any]


def _table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join([markdown_row(head), "|---|" + "---:|" * (len(head) - 1), *map(markdown_row, rows)])


def norms_l2(record: Record) -> str:
    """CPU time and value of each method, over the truth, by kernel."""
    rows = []
    for row in record["rows"]:
        size, c_in, c_out = row["kernel"]
        kernel = f"{size}x{size}, {c_in} to {c_out}"
        for method, seconds in row["seconds"].items():
            ends = [row["lower"], row["upper"]] if method == "ours" else [row.get(method)]
            over = " to ".join(f"{end / row['truth']:.4f}" for end in ends if end is not None)
            ratio = f"{seconds / row['seconds']['ours']:.1f}"
            rows.append([method, kernel, f"{1e3 * seconds:.1f}", ratio, over or "none"])
    head = ["method", "kernel", "CPU ms", "times ours", "value over the truth"]
    return f"On maps of {record['about']['size']}x{record['about']['size']}.\n\n" + _table(head, rows)


def jacobian(record: Record) -> str:
    """CPU time and error of each method, and the memory that it needs."""
    timed = [row for row in record["rows"] if "seconds" in row]
    rows = [[row["method"], row["map"], f"{row['seconds']:.2f}", f"{row['error']:.1e}"] for row in timed]
    needed = [row for row in record["rows"] if "MiB" in row]
    points = [f"MiB for {count} points" for count in needed[0]["points"]] if needed else []
    memory = [[row["method"], row["map"], *(f"{amount:.0f}" for amount in row["MiB"])] for row in needed]
    text = _table(["method", "of", "CPU s", "largest relative error"], rows)
    return text + ("\n\n" + _table(["method", "of", *points], memory) if needed else "")


def checkpoint(record: Record) -> str:
    """CPU time, memory and value of each method for one matrix, by instruction set."""
    rows = [
        [
            row["method"],
            row["instruction_set"],
            f"{row['cpu_seconds']:.1f}",
            f"{row['peak_mib']:.0f}",
            " to ".join(f"{end:.4f}" for end in row["sigma_max"]),
        ]
        for row in record["peers"]
    ]
    sides = " x ".join(map(str, record["peers"][0]["shape"]))
    head = ["method", "torch uses", "CPU s", "MiB at most", "largest singular value"]
    return f"A file of one matrix of {sides} in bfloat16, in the order of the runs.\n\n" + _table(head, rows)


PARTS: dict[str, Callable[[Record], str]] = {
    "norms_l2": norms_l2,
    "jacobian": jacobian,
    "checkpoint": checkpoint,
}
SETTINGS = {"checkpoint": "--layers 0 --svd --threads 1"}
"""How a benchmark was run, if not with --quick."""


def section(name: str) -> str:
    """One benchmark: what it compares, on which machine, and its figures."""
    record = json.loads((KEPT / f"{name}.json").read_text(encoding="utf-8"))
    text = (
        ast.get_docstring(ast.parse((ROOT / "benchmarks" / f"{name}.py").read_text(encoding="utf-8"))) or ""
    )
    title, _, rest = text.partition("\n")
    about = record["about"]
    where = (
        f"opnorm {about['opnorm']}, torch {about['torch']}, {about['machine']}, {about['threads']} thread(s); "
        f"instruction sets {about['instruction sets']}, torch uses {about['used by torch']}."
    )
    return f"## {title.rstrip('.')}\n\n```text\n{rest.strip()}\n```\n\n{where}\n\n{PARTS[name](record)}\n"


def page() -> str:
    """The page, of the benchmarks whose figures are kept."""
    names = [name for name in PARTS if (KEPT / f"{name}.json").exists()]
    head = (
        "# Benchmarks\n\nSpeed beside other methods, from the figures in `benchmarks/results/`. They are of the quick form "
        "of each benchmark or of a part of it, on a machine with other work; times are CPU times. Measure on your own:\n\n"
        + "\n".join(
            [
                "```sh",
                *(
                    f"python benchmarks/{n}.py {SETTINGS.get(n, '--quick')} --json benchmarks/results/{n}.json"
                    for n in names
                ),
            ]
        )
        + "\npython docs/write_benchmarks.py\n```\n"
    )
    return "\n".join([head, *map(section, names)])


if __name__ == "__main__":
    (ROOT / "docs" / "benchmarks.md").write_text(page(), encoding="utf-8")
