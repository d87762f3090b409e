"""How time and memory grow with the size of the work, beside what theory says.

    python benchmarks/scaling.py [--only norms] [--device cpu] [--threads 1] [--quick] [--json scaling.json]

A slope of s means that doubling the size takes 2^s times as long; it is fitted to the larger half of the sizes, where fixed
costs matter less. Theory is the order of the operations that cannot be avoided. Memory is the growth of the resident memory
at its peak (Linux, CPU); on a GPU that of torch's allocator.
"""

import argparse
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from machine import add_options, begin, peak_memory, seconds
from torch import nn

import opnorm
from opnorm.analyses import margins
from opnorm.attacks import AutoAttack, pgd
from opnorm.data import Dataset
from opnorm.data.dataset import Split
from opnorm.models import cnn
from opnorm.norms import l1, operator_norm


@dataclass(frozen=True)
class Sweep:
    """One quantity at several sizes.

    Attributes:
        name: of the quantity, such as "norms l1".
        variable: what grows.
        sizes: in growing order.
        work: makes, for a size and a device, the function that is timed.
        theory: the slope that the operations have.
        why: how the operations grow, in a few words.
    """

    name: str
    variable: str
    sizes: Sequence[int]
    work: Callable[[int, str], Callable[[], Any]]
    theory: float
    why: str


def conv(channels: int, kernel: int, device: str) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(channels, channels, kernel, padding=kernel // 2, device=device)


def norm(ord: float, channels: int = 32, kernel: int = 3, image: int = 32) -> Callable[..., Any]:
    """The norm of a square convolution, where one of its sizes is given later."""

    def work(size: int, device: str, variable: str) -> Callable[[], Any]:
        chosen = {"channels": channels, "kernel": kernel, "image": image} | {variable: size}
        layer = conv(chosen["channels"], chosen["kernel"], device)
        shape = (chosen["channels"], chosen["image"], chosen["image"])
        return (lambda: l1(layer, shape)) if ord == 1 else (lambda: operator_norm(layer, ord, shape))

    return work


def norm_sweep(ord: float, variable: str, sizes: Sequence[int], theory: float, why: str) -> Sweep:
    work = norm(ord)
    return Sweep(
        f"norms l{ord}", variable, sizes, lambda size, device: work(size, device, variable), theory, why
    )


def deep(layers: int, device: str) -> Callable[[], Any]:
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()) for _ in range(layers)]
    model, example = nn.Sequential(*blocks).to(device), torch.rand(1, 16, 16, 16, device=device)
    return lambda: opnorm.measure(model, example, ords=(1, 2, math.inf))


def network(image: int, classes: int, device: str) -> nn.Module:
    torch.manual_seed(0)
    return cnn(width=8, in_shape=(3, image, image), classes=classes).eval().to(device)


def attack(attack: Any, points: int = 32, image: int = 32, classes: int = 10) -> Callable[..., Any]:
    """An attack of a random network on its own predictions, where one of the sizes is given later."""

    def work(size: int, device: str, variable: str) -> Callable[[], Any]:
        chosen = {"points": points, "image": image, "classes": classes} | {variable: size}
        model = network(chosen["image"], chosen["classes"], device)
        x = torch.rand(chosen["points"], 3, chosen["image"], chosen["image"], device=device)
        y = model(x).argmax(1)
        return lambda: attack(model, x, y)

    return work


def attack_sweep(name: str, one: Any, variable: str, sizes: Sequence[int], theory: float, why: str) -> Sweep:
    work = attack(one)
    return Sweep(
        f"attacks {name}", variable, sizes, lambda size, device: work(size, device, variable), theory, why
    )


def analysis(points: int, device: str) -> Callable[[], Any]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (points, 3, 32, 32), dtype=torch.uint8, generator=generator)
    split = Split(images, torch.randint(10, (points,), generator=generator))
    data, model = Dataset("noise", split, split, tuple("0123456789")), network(32, 10, device)
    return lambda: margins()(model, data)


def jacobian(points: int, device: str) -> Callable[[], Any]:
    model, x = network(32, 10, device), torch.rand(points, 3, 32, 32, device=device)
    return lambda: opnorm.jacobian_norm(model, x)


PGD = pgd(eps=4 / 255, steps=10)
TARGETED = AutoAttack(eps=4 / 255, attacks=("apgd-t",))
SWEEPS = [
    norm_sweep(1, "channels", (32, 64, 128, 256, 512), 2, "one pass over the kernel"),
    norm_sweep(1, "kernel", (3, 5, 9, 17, 31), 2, "one pass over the kernel"),
    norm_sweep(1, "image", (32, 64, 128, 256, 512), 0, "the kernel alone is read"),
    norm_sweep(2, "channels", (8, 16, 32, 64, 128), 3, "a matrix of channels by channels a frequency"),
    norm_sweep(2, "kernel", (3, 5, 7, 9), 2, "frequencies grow with the kernel"),
    norm_sweep(2, "image", (16, 32, 64, 128, 256), 0, "the certificate knows no image size; one product does"),
    Sweep("measure", "layers", (4, 8, 16, 32, 64), deep, 1, "a layer after the other"),
    attack_sweep("pgd", PGD, "points", (16, 32, 64, 128, 256), 1, "a pass a step and point"),
    attack_sweep("pgd", PGD, "image", (16, 32, 64, 128), 2, "a pass costs what the pixels cost"),
    attack_sweep("apgd-t", TARGETED, "classes", (10, 20, 40, 80, 160), 0, "at most 9 targets"),
    Sweep("analyses margins", "points", (256, 512, 1024, 2048, 4096), analysis, 1, "a pass a point"),
    Sweep("jacobian l2", "points", (8, 16, 32, 64, 128), jacobian, 1, "a backward pass an output and point"),
]  # fmt: skip


def slope(sizes: Sequence[int], times: Sequence[float]) -> float:
    """The least-squares slope of the larger half in doubly logarithmic axes."""
    half = len(sizes) // 2
    x = torch.tensor(sizes[half - 1 :], dtype=torch.float64).log()
    y = torch.tensor(times[half - 1 :], dtype=torch.float64).log()
    return float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())


def measure(sweep: Sweep, device: str, sizes: Sequence[int], turns: int) -> dict[str, Any]:
    times, memory = [], []
    for size in sizes:
        work = sweep.work(size, device)
        memory.append(peak_memory(work, device))  # first: freed memory that is used again does not count
        times.append(seconds({"": work}, device, turns)[""])
    return {
        "name": sweep.name, "variable": sweep.variable, "sizes": list(sizes), "seconds": times, "MiB": memory,
        "slope": slope(sizes, times), "theory": sweep.theory, "why": sweep.why,
    }  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", default="", help="sweeps whose name contains this: norms, measure, attacks, ..."
    )
    add_options(parser)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="the three smallest sizes, once")
    args = parser.parse_args(argv)
    chosen = [sweep for sweep in SWEEPS if args.only in sweep.name]
    if not chosen:
        parser.error(
            f"--only {args.only!r}: no such sweep; there are {', '.join(dict.fromkeys(s.name for s in SWEEPS))}"
        )
    figures: dict[str, Any] = {"about": begin(parser, args), "sweeps": []}
    for sweep in chosen:
        sizes = sweep.sizes[:3] if args.quick else sweep.sizes
        row = measure(sweep, args.device, sizes, 1 if args.quick else args.turns)
        figures["sweeps"].append(row)
        print(
            f"\n{row['name']} against {row['variable']}: slope {row['slope']:.2f}, theory {row['theory']} ({row['why']})"
        )
        for size, time, mib in zip(row["sizes"], row["seconds"], row["MiB"], strict=True):
            print(
                f"{size:>10}{time:>12.4f} s{'not known' if mib is None else f'{mib:.1f} MiB':>14}", flush=True
            )
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
