"""All benchmarks of the norms: exact l1 and linf, the certified l2 interval, and a whole ResNet-50.

    python benchmarks/norms.py [--threads 1 2] [--quick] [--json norms.json]

One process, interleaved runs, medians. The parts can be run alone: norms_exact.py and norms_l2.py say what they compare.
"""

import argparse
import json
import resource
import sys
import tempfile
import time
from pathlib import Path

import norms_exact
import norms_l2
import torch
from machine import add_options

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "norms"))
import nets

import opnorm


def whole_network(device: str) -> dict[str, float]:
    """``opnorm.measure`` of a ResNet-50 at 224x224: seconds and peak memory, without and with l2."""
    model, example = nets.resnet50().to(device), torch.zeros(1, 3, 224, 224, device=device)
    opnorm.measure(model, example, (1,))  # warm up
    found: dict[str, float] = {}
    for name, ords in (("l1 and linf", (1, float("inf"))), ("l1, linf and l2", (1, 2, float("inf")))):
        before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
        table = opnorm.measure(model, example, ords)
        found[f"{name}, seconds"] = time.perf_counter() - started
        found[f"{name}, peak MB above"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    widths = [row.norms[2].relative_width for row in table.rows if 2 in row.norms]
    found["widest l2 interval"] = max(widths)
    found["l2 intervals within 5e-3"] = sum(w <= 5e-3 for w in widths) / len(widths)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser, [1, 2])
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    options = ["--device", args.device, *(["--quick"] if args.quick else [])]
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, part in (("exact", norms_exact), ("l2", norms_l2)):
            path = Path(folder) / f"{name}.json"
            part.main(["--threads", *map(str, args.threads), *options, "--json", str(path)])
            figures[name] = json.loads(path.read_text())
    print(f"\nResNet-50 at 224x224, {torch.get_num_threads()} threads")
    figures["resnet50"] = whole_network(args.device)
    for name, value in figures["resnet50"].items():
        print(f"  {name}: {value:.3g}")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
