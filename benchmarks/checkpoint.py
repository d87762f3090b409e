"""The norms of a checkpoint of 7 billion parameters without its model, beside full singular value decompositions.

    python benchmarks/checkpoint.py [--layers 2] [--threads 2] [--folder FOLDER] [--svd] [--quick] [--json checkpoint.json]

The layout is that of a model of 32 layers: four matrices of 4096 x 4096 and three of 4096 x 11008 in each, and two of
32000 x 4096 for the vocabulary, in bfloat16. A file of fewer layers and one vocabulary is made with random weights,
the worst case of Lanczos iteration, and with a few outlying singular values, as trained weights have them; the time
of the whole is that of its matrices by their shapes, times how many of each shape there are. Memory is the largest
resident one of a process that measures the file and does nothing else (Linux).

``--svd`` times others beside it, on the same file of one random matrix of 4096 x 4096, each in a process of its own: opnorm
with all of its norms, ``torch.linalg.svdvals`` in float32, ``WeightWatcher.analyze``, which takes all singular values in
float64 and fits a power law to them (pip install weightwatcher, in an environment of its own), and opnorm again; as the
machine is, and restricted to AVX2. ``--layers 0`` measures nothing else.
"""

import argparse
import importlib.util
import itertools
import json
import logging
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from machine import add_options, begin, resident
from safetensors.torch import load_file, save_file

import opnorm

Shape = tuple[int, int]
WHOLE: dict[Shape, int] = {(4096, 4096): 4 * 32, (11008, 4096): 3 * 32, (32000, 4096): 2}
"""How many matrices of each shape the layout has, whichever way round."""


def matrices(layers: int, divisor: int) -> Iterator[tuple[str, Shape]]:
    """The names and shapes of the file that is measured."""
    side, middle, words = (n // divisor for n in (4096, 11008, 32000))
    yield "model.embed_tokens.weight", (words, side)
    for i in range(layers):
        for name in "qkvo":
            yield f"model.layers.{i}.self_attn.{name}_proj.weight", (side, side)
        for name in ("gate", "up"):
            yield f"model.layers.{i}.mlp.{name}_proj.weight", (middle, side)
        yield f"model.layers.{i}.mlp.down_proj.weight", (side, middle)


def make(path: Path, layers: int, outliers: bool, divisor: int) -> None:
    """Write the file: Gaussian weights of the usual scale, with outliers a few larger singular values."""
    generator = torch.Generator().manual_seed(0)

    def weight(shape: Shape) -> torch.Tensor:
        W = torch.randn(shape, generator=generator).mul_(0.02)
        if outliers:
            U, V = (torch.randn(n, 8, generator=generator) for n in shape)
            sizes = 0.02 * torch.linspace(1, 12, 8)
            W += (U * sizes) @ V.T / math.sqrt(min(shape))
        return W.bfloat16()

    save_file({name: weight(shape) for name, shape in matrices(layers, divisor)}, path)


def measured(path: Path, threads: int) -> dict[str, Any]:
    """The seconds of each matrix in a process of its own, wall and CPU, and the memory of that process."""
    code = [sys.executable, __file__, "--measure", str(path), "--threads", str(threads)]
    done = subprocess.run(code, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def measure(path: Path) -> dict[str, Any]:
    """What :func:`measured` asks for."""
    from opnorm.models.weight_files import open_weights

    opnorm.measure_checkpoint(
        path, ords=(1,), only=next(iter(open_weights(path).tensors))
    )  # loads what is loaded once
    rows = []
    for name, tensor in open_weights(path).tensors.items():
        wall, cpu = time.perf_counter(), time.process_time()
        (row,) = opnorm.measure_checkpoint(path, only=name).rows
        rows.append(
            {
                "name": name,
                "shape": list(tensor.shape),
                "seconds": time.perf_counter() - wall,
                "cpu_seconds": time.process_time() - cpu,
                "relative_width": row.norms[2].relative_width,
                "method": row.norms[2].method,
            }
        )
    return {"rows": rows, "peak_mib": resident("VmHWM")}


def scaled(rows: list[dict[str, Any]], field: str, divisor: int) -> float:
    """Seconds of the whole layout: the mean of each shape, whichever way round, times how many there are."""
    total = 0.0
    for shape, count in WHOLE.items():
        sides = sorted(n // divisor for n in shape)
        same = [row[field] for row in rows if sorted(row["shape"]) == sides]
        total += count * sum(same) / len(same)
    return total


PEERS = ("opnorm", "svdvals", "weightwatcher", "opnorm")
"""Who measures the file of one matrix, in turns: the second turn of opnorm shows how far the machine's speed moves."""


RESTRICTED = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
}
"""The environment in which torch uses no more than AVX2."""


def peers(folder: Path, threads: int, divisor: int) -> list[dict[str, Any]]:
    """The seconds of each of :data:`PEERS` for a file of one random matrix, each in its own process."""
    shape, rows = (4096 // divisor,) * 2, []
    W = torch.randn(shape, generator=torch.Generator().manual_seed(0)).mul_(0.02).bfloat16()
    path = folder / "model.safetensors"  # the name that weightwatcher looks for in a folder
    save_file({"model.layers.0.self_attn.q_proj.weight": W}, path)
    for environment, name in itertools.product(({}, RESTRICTED), PEERS):
        if name == "weightwatcher" and importlib.util.find_spec(name) is None:
            continue
        code = [sys.executable, __file__, "--peer", name, "--measure", str(path), "--threads", str(threads)]
        done = subprocess.run(
            code, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, **environment}
        )
        rows.append({"method": name, "shape": list(shape), **json.loads(done.stdout.splitlines()[-1])})
        print(
            "{method}, {shape}, {instruction_set}: {seconds:.1f} s, {cpu_seconds:.1f} CPU s".format(
                **rows[-1]
            ),
            flush=True,
        )
    return rows


def peer(name: str, path: Path) -> dict[str, Any]:
    """What one of :data:`PEERS` finds in a file of one matrix, and its seconds without those of the imports."""
    if name == "weightwatcher":
        from weightwatcher import WeightWatcher

        logging.disable(logging.INFO)
        watcher = WeightWatcher()
        way = lambda: [watcher.analyze(model=str(path.parent))["sv_max"][0]]  # noqa: E731
    elif name == "svdvals":
        way = lambda: torch.linalg.svdvals(next(iter(load_file(path).values())).float())[:1]  # noqa: E731
    else:
        way = lambda: opnorm.measure_checkpoint(path).rows[0].norms[2][:2]  # noqa: E731
        opnorm.measure_checkpoint(path, ords=(1,))  # loads what is loaded once
    wall, cpu = time.perf_counter(), time.process_time()
    found = [float(end) for end in way()]
    return {
        "seconds": time.perf_counter() - wall,
        "cpu_seconds": time.process_time() - cpu,
        "sigma_max": found,
        "peak_mib": resident("VmHWM"),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=2)
    add_options(parser, 2)
    parser.add_argument(
        "--folder", type=Path, help="where the file is made; a temporary folder when left out"
    )
    parser.add_argument("--svd", action="store_true", help="also time full decompositions: minutes")
    parser.add_argument("--quick", action="store_true", help="an eighth of every side")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--peer", choices=PEERS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    found: dict[str, Any]
    if args.measure:
        torch.set_num_threads(args.threads)
        found = peer(args.peer, args.measure) if args.peer else measure(args.measure)
        return print(json.dumps(found))
    divisor = 8 if args.quick else 1
    found = {"about": begin(parser, args, cpu_only=True), "layers": args.layers, "divisor": divisor}
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        for kind in ("random", "outlying") if args.layers else ():
            path = Path(folder) / f"{kind}.safetensors"
            make(path, args.layers, kind == "outlying", divisor)
            found[kind] = result = measured(path, args.threads)
            for field in ("seconds", "cpu_seconds"):
                result[f"whole_{field}"] = scaled(result["rows"], field, divisor)
            widest = max(row["relative_width"] for row in result["rows"])
            print(
                f"{kind}: {sum(row['seconds'] for row in result['rows']):.1f} s for {len(result['rows'])} matrices; the "
                f"whole layout {result['whole_seconds']:.0f} s ({result['whole_cpu_seconds']:.0f} CPU s); "
                f"memory at most {result['peak_mib']:.0f} MiB; widest interval {widest:.2%}"
            )
            path.unlink()
    if args.svd:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            found["peers"] = peers(Path(folder), args.threads, divisor)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")
    return None


if __name__ == "__main__":
    main()
