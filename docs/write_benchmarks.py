"""Write docs/benchmarks.md from benchmarks/results/MACHINE/BENCHMARK.json, which the benchmarks' --json writes."""

import ast
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from opnorm._core.plain_text import markdown_row

ROOT = Path(__file__).parents[1]
KEPT = ROOT / "benchmarks" / "results"
MACHINES = ("amx", "avx2")
"""Folders of :data:`KEPT`: a Xeon as it is, and AVX2 alone, there or on a processor that has no more."""
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


def norms_exact(record: Record) -> str:
    """Time of ours and of the authors' formulae, and of reading the kernel."""
    rows = []
    for run in record["runs"]:
        for row in run["kernels"]:
            us, kernel = row["us"], row["kernel"].split(",")
            for name in ("l1 /1", "linf /1", "l1 /2", "linf /2"):
                norm, stride = name.split(" /")
                ours, authors = us[name], us[f"authors {name}"]
                rows.append([
                    f"{norm}, stride {stride}", f"{kernel[0]}x{kernel[0]}, {kernel[1]} to {kernel[2]}", str(run["threads"]),
                    f"{ours:.1f}", f"{authors:.1f}", f"{authors / ours:.1f}", f"{ours / us['read']:.1f}",
                ])  # fmt: skip
    head = ["norm", "kernel", "threads", "ours µs", "authors' µs", "times faster", "over reading it"]
    return _table(head, rows)


def attacks(record: Record) -> str:
    """CPU time, passes and robust accuracy of each attack."""
    rows = []
    for case, found in record.items():
        if not case.startswith(("AutoAttack ", "PGD-40 ")):
            continue
        ours = found[0]["cpu"]
        for row in found:
            low, high = (100 * end(row["robust"]) for end in (min, max))
            rows.append([
                row["attack"], case, f"{row['cpu']:.2f}", f"{row['cpu'] / ours:.1f}", f"{row['forward']:,.0f}",
                f"{row['backward']:,.0f}", f"{low:.1f}" + f" to {high:.1f}" * (high > low), str(row["outside"]),
            ])  # fmt: skip
    head = ["attack", "case, ε", "CPU s", "times ours", "forward", "backward", "robust %", "outside"]
    return _table(head, rows)


def training(record: Record) -> str:
    """Seconds a step beside a plain loop, the cost of regularizers, and accuracy in both precisions."""
    steps = {name: row for name, row in record.items() if isinstance(row, dict) and "plain loop" in row}
    ways = list(next(iter(steps.values())))
    speed = [
        [name, *(f"{row[way]:.3f} ({row['plain loop'] / row[way]:.2f}x)" for way in ways)]
        for name, row in steps.items()
    ]
    text = "Seconds a step; in parentheses, how many times faster than the plain loop.\n\n" + _table(
        ["network, objective", *ways], speed
    )
    if "costs" in record:
        plain = record["costs"]["plain()"]
        costs = [[name, f"{seconds / plain:.2f}"] for name, seconds in record["costs"].items()]
        text += "\n\n" + _table(["resnet(depth=20), a step with", "cost in plain steps"], costs)
    return text


def scaling(record: Record) -> str:
    """Measured slopes beside theory, with time and memory at both ends."""
    rows = []
    for sweep in record["sweeps"]:
        ends = (0, -1)
        sizes, seconds = (" to ".join(f"{sweep[of][end]:.3g}" for end in ends) for of in ("sizes", "seconds"))
        memory = " to ".join(
            "not known" if sweep["MiB"][end] is None else f"{sweep['MiB'][end]:.1f}" for end in ends
        )
        rows.append([
            f"{sweep['name']}, {sweep['variable']}", sizes, seconds, memory, f"{sweep['slope']:.2f}", str(sweep["theory"]),
            sweep["why"],
        ])  # fmt: skip
    return _table(["work, what grows", "from and to", "seconds", "MiB", "slope", "theory", "why"], rows)


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
    "norms_exact": norms_exact, "norms_l2": norms_l2, "jacobian": jacobian, "checkpoint": checkpoint, "attacks": attacks,
    "training": training, "scaling": scaling,
}  # fmt: skip


def kept(name: str) -> list[Record]:
    """What one benchmark measured, a record a machine."""
    paths = [KEPT / machine / f"{name}.json" for machine in MACHINES]
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.exists()]


def section(name: str) -> str:
    """One benchmark: what it compares, and its figures on each machine."""
    source = (ROOT / "benchmarks" / f"{name}.py").read_text(encoding="utf-8")
    title, _, rest = (ast.get_docstring(ast.parse(source)) or "").partition("\n")
    parts = [f"## {title.rstrip('.')}\n\n```text\n{rest.strip()}\n```\n"]
    for record in kept(name):
        about = record["about"]
        threads = about["threads"]
        threads = threads if isinstance(threads, int) else " and ".join(map(str, threads))
        parts.append(
            f"**torch uses {about['used by torch']}**, of {about['instruction sets']} (oneDNN: "
            f"{about['ONEDNN_MAX_CPU_ISA'] or 'all'}); {about['machine']}, {threads} thread(s), opnorm "
            f"{about['opnorm']}, torch {about['torch']}.\n\n{PARTS[name](record)}\n"
        )
    return "\n".join(parts)


def page() -> str:
    """The page, of the benchmarks whose figures are kept."""
    names = [name for name in PARTS if kept(name)]
    head = (
        "# Benchmarks\n\nSpeed beside other methods, from the figures in `benchmarks/results/`: on one processor with "
        "AVX-512 and AMX, and with AVX2 alone, as on most laptops: on the same one restricted to it, or on one that has no "
        "more. Each comparison is made in one process, in turns. Measure on your own:\n\n```sh\n"
        "python benchmarks/norms_l2.py --json benchmarks/results/amx/norms_l2.json\n"
        "ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 python benchmarks/norms_l2.py --json "
        "benchmarks/results/avx2/norms_l2.json\nmake benchmarks-page\n```\n"
    )
    return "\n".join([head, *map(section, names)])


if __name__ == "__main__":
    (ROOT / "docs" / "benchmarks.md").write_text(page(), encoding="utf-8")
