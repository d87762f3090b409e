"""The largest singular value of a network's Jacobian at many points, beside torch.func and a power method.

    python benchmarks/jacobian.py [--threads 1 2] [--points 128] [--repeats 3] [--quick] [--json jacobian.json]

ResNet-20 at 32x32 (10 logits, 64 hidden features), random weights, batch norm with statistics of its own, float32.
CPU seconds, medians of interleaved runs in one process. Truth is ours in float64. The others are what one would write:

    ours           an interval to rounding; with 8 steps, by Lanczos iteration where outputs are many: a lower end alone
    jacrev         vmap(jacrev(f)) over the points, then torch.linalg.svdvals
    jacrev, 8      the same, 8 points at a time, by vmap's chunk_size
    jacrev each    jacrev(f) point by point, then svdvals
    double         power method by double backward: graphs of one forward pass, until no point changes by more than 1e-4

Then what they need: the growth of the resident memory, each in a process of its own (Linux).
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable

import torch
from machine import add_options, begin, used_seconds
from torch import Tensor, nn

from opnorm.jacobian import features, jacobian_norm
from opnorm.models import resnet

MAPS = ("logits", "hidden features")


def network(width: int) -> nn.Module:
    torch.manual_seed(0)
    model = resnet(20, width=width)
    with torch.no_grad():  # statistics of random images, so that no layer is scaled away
        for _ in range(20):
            model.train()(torch.rand(8, 3, 32, 32))
    return model.eval()


def ours(model: nn.Module, x: Tensor) -> Tensor:
    return jacobian_norm(model, x).lower


def lanczos(model: nn.Module, x: Tensor) -> Tensor:
    return jacobian_norm(model, x, steps=8).lower


def jacrev(model: nn.Module, x: Tensor, together: int | None = None) -> Tensor:
    J = torch.func.vmap(torch.func.jacrev(lambda z: model(z[None])[0]), chunk_size=together)(x)
    return torch.linalg.svdvals(J.detach().flatten(2))[:, 0]


def jacrev_8(model: nn.Module, x: Tensor) -> Tensor:
    return jacrev(model, x, 8)


def jacrev_each(model: nn.Module, x: Tensor) -> Tensor:
    found = []
    for z in x:
        J = torch.func.jacrev(lambda z: model(z[None])[0])(z)
        found.append(torch.linalg.svdvals(J.detach().flatten(1))[0])
    return torch.stack(found)


def double(model: nn.Module, x: Tensor, most: int = 200) -> Tensor:
    x = x.clone().requires_grad_()
    y = model(x)
    u = torch.zeros_like(y, requires_grad=True)
    (back,) = torch.autograd.grad(y, x, u, create_graph=True)
    v = torch.randn_like(x)
    v = v / v.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    sigma = torch.zeros(len(x))
    for _ in range(most):
        (image,) = torch.autograd.grad(back, u, v, retain_graph=True)
        last, sigma = sigma, image.norm(dim=1)
        if ((sigma - last).abs() <= 1e-4 * sigma).all():
            break
        (v,) = torch.autograd.grad(y, x, image, retain_graph=True)
        v = v / v.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    return sigma


METHODS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "ours": ours,
    "ours, 8 steps": lanczos,
    "jacrev": jacrev,
    "jacrev, 8": jacrev_8,
    "jacrev each": jacrev_each,
    "double": double,
}


def measure(model: nn.Module, x: Tensor, repeats: int) -> tuple[dict[str, float], dict[str, Tensor]]:
    seconds: dict[str, list[float]] = {name: [] for name in METHODS}
    values: dict[str, Tensor] = {}
    for turn in range(repeats + 1):
        for name, method in METHODS.items():
            if turn > 1 and seconds[name][-1] > 60:
                continue  # a long one has shown itself
            if name == "jacrev" and not fits(model, x):
                continue  # the system would end us, or somebody else
            started = used_seconds(x.device.type)
            values[name] = method(model, x if turn else x[:4])
            if turn:  # the first turn warms up
                seconds[name].append(used_seconds(x.device.type) - started)
    known = {name: statistics.median(times) for name, times in seconds.items() if times}
    return known, {name: values[name] for name in known}


def fits(model: nn.Module, x: Tensor) -> bool:
    """Whether jacrev has the memory for its 4 MiB, about, a row of a Jacobian at full width."""
    with open("/proc/meminfo") as status:
        left = next(int(line.split()[1]) / 1024 for line in status if line.startswith("MemAvailable"))
    with torch.no_grad():
        return 4 * len(x) * model(x[:1]).shape[1] < left


def grown(name: str, where: str, points: int, width: int) -> float:
    """MiB of resident memory that a method adds at its peak, in a process of its own."""
    command = [sys.executable, __file__, "--peak", name, where, str(points), str(width)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return float(done.stdout) if done.returncode == 0 else float("nan")


def peak(name: str, where: str, points: int, width: int) -> None:
    torch.set_num_threads(1)
    model = network(width)
    x = torch.rand(points, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    f = features(model, x).eval() if where == "hidden features" else model
    METHODS[name](f, x[:1])
    if name == "jacrev" and not fits(f, x):
        sys.exit("not enough memory")
    before = memory("VmRSS")
    METHODS[name](f, x)
    print(memory("VmHWM") - before)


def memory(what: str) -> float:
    """MiB, as Linux counts them; ru_maxrss would begin with the parent's."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith(what))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser, [1])
    parser.add_argument("--points", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="8 points and a quarter of the width, once")
    parser.add_argument(
        "--peak", nargs=4, metavar=("METHOD", "MAP", "POINTS", "WIDTH"), help=argparse.SUPPRESS
    )
    args = parser.parse_args(argv)
    if args.peak:
        peak(args.peak[0], args.peak[1], int(args.peak[2]), int(args.peak[3]))
        return
    machine = begin(parser, args)
    points, repeats, width = (8, 1, 4) if args.quick else (args.points, args.repeats, 16)
    model = network(width).to(args.device)
    x = torch.rand(points, 3, 32, 32, generator=torch.Generator().manual_seed(1)).to(args.device)
    rows: list[dict[str, object]] = []
    for threads in args.threads:
        torch.set_num_threads(threads)
        print(
            f"\nResNet-20, width {width}, {points} points, {threads} thread(s): CPU s, times ours, largest error"
        )
        for where in MAPS:
            f = features(model, x).eval() if where == "hidden features" else model
            seconds, values = measure(f, x, repeats)
            f.double()
            true = jacobian_norm(f, x.double()).lower
            f.float()
            for name, found in values.items():
                error = float((found.double() / true - 1).abs().max())
                ratio = seconds[name] / seconds["ours"]
                rows.append(
                    {
                        "threads": threads,
                        "map": where,
                        "method": name,
                        "seconds": seconds[name],
                        "error": error,
                    }
                )
                print(f"{where:>16}{name:>15}{seconds[name]:>10.2f}{ratio:>8.1f}{error:>11.1e}", flush=True)
    print("\nMiB that the peak of the memory grows by, for so many points")
    sizes = (points, 4 * points)
    for where in MAPS:
        for name in METHODS:
            need = [grown(name, where, size, width) for size in sizes]
            rows.append({"map": where, "method": name, "points": sizes, "MiB": need})
            print(
                f"{where:>16}{name:>15}"
                + "".join(f"{n:>6}: {m:>6.0f}" for n, m in zip(sizes, need, strict=True))
            )
    if args.json:
        settings = {"points": points, "width": width}
        with open(args.json, "w") as file:
            json.dump({"about": machine | settings, "rows": rows}, file, indent=1)


if __name__ == "__main__":
    main()
