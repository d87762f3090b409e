"""The certified l2 interval beside what the field uses, on the kernels of Liang & Huang 2021, Table 1.

    python benchmarks/norms_l2.py [--threads 1 2] [--repeats 3] [--quick] [--numpy] [--json l2.json]

CPU seconds, medians of interleaved runs in one process. Truth is float64 Lanczos on the zero-padded operator. The peers'
methods are our own plain re-implementations of what their papers say:

    coarse   our own bound from a few frequencies, for a millisecond or so on small kernels
    vs       100 power iterations through autograd on the layer, whose weights get gradients too, as in the published code
             (Virmaux & Scaman 2018)
    power    100 power iterations by convolution and its adjoint
    sgl      FFT and SVD of every frequency, circular padding (Sedghi, Gupta & Long 2019); numpy as published, and torch
    gram     6 Gram iterations of every frequency, circular padding (Delattre et al. 2023)
    gram 24  2 Gram iterations with zero padding, by the package orthogonium (Delattre et al. 2024)
    lconv    the reshaped kernel's norm times a coefficient, by the package deel-torchlip

The last two run where those packages are installed (pip install 'opnorm[bench]').
"""

import argparse
import importlib.util
import json
import math
import statistics
from collections.abc import Callable

import numpy as np
import torch
from machine import add_options, begin, used_seconds
from torch import nn

from opnorm._core.convolution import conv_geometry
from opnorm._core.linear_map import linear_map
from opnorm.norms.spectral.cheap_bounds import bound
from opnorm.norms.spectral.frequency_response import polyphase
from opnorm.norms.spectral.iterations import lanczos
from opnorm.norms.spectral.upper_bound import certify

KERNELS = [(3, 32, 32), (3, 32, 128), (3, 128, 256), (3, 256, 512), (5, 256, 128), (5, 512, 256)]
SIZE = 32


def interval(layer: nn.Conv2d) -> tuple[float, float]:
    found = certify(polyphase(layer.weight.detach(), conv_geometry(layer), (SIZE, SIZE)))
    return found.lower, found.upper


def coarse(layer: nn.Conv2d) -> float:
    return float(bound(layer, (layer.in_channels, SIZE, SIZE), "coarse").upper)


def vs(layer: nn.Conv2d, iterations: int = 100) -> float:
    x = torch.randn(1, layer.in_channels, SIZE, SIZE)
    for _ in range(iterations):
        x = (x / x.norm()).requires_grad_()
        out = layer(x).norm()
        (out**2 / 2).backward()
        x = x.grad
    layer.weight.grad = None
    return float(out.detach())


def power(layer: nn.Conv2d, iterations: int = 100) -> float:
    W, p = layer.weight.detach(), layer.padding[0]
    x = torch.randn(1, layer.in_channels, SIZE, SIZE)
    for _ in range(iterations):
        y = nn.functional.conv2d(x / x.norm(), W, padding=p)
        x = nn.functional.conv_transpose2d(y, W, padding=p)
    return float(y.norm())


def sgl_numpy(layer: nn.Conv2d) -> float:
    K = np.fft.fft2(layer.weight.detach().permute(2, 3, 1, 0).cpu().numpy(), (SIZE, SIZE), axes=(0, 1))
    return float(np.linalg.svd(K, compute_uv=False).max())


def _frequencies(layer: nn.Conv2d) -> torch.Tensor:
    return (
        torch.fft.fft2(layer.weight.detach(), s=(SIZE, SIZE)).permute(2, 3, 0, 1).flatten(0, 1).contiguous()
    )


def sgl_torch(layer: nn.Conv2d) -> float:
    return float(torch.linalg.svdvals(_frequencies(layer)).max())


def gram_2023(layer: nn.Conv2d, iterations: int = 6) -> float:
    K = _frequencies(layer)
    G = K.mH @ K if K.shape[-1] <= K.shape[-2] else K @ K.mH
    log = torch.zeros(len(G))
    for t in range(iterations):
        size = torch.linalg.matrix_norm(G)
        log += size.log() / 2**t
        G = G / size[:, None, None]
        G = G @ G
    log += torch.linalg.matrix_norm(G).log() / 2**iterations
    return math.exp(float(log.max()) / 2)


def gram_2024(layer: nn.Conv2d) -> float:
    from orthogonium.layers.conv.singular_values.delattre24 import compute_delattre2024

    return float(compute_delattre2024(layer.weight.detach().clone(), n_iter=2))


def lconv(layer: nn.Conv2d) -> float:
    from deel.torchlip.utils.lconv_norm import compute_lconv_coef

    W = layer.weight.detach()
    coefficient = compute_lconv_coef(layer.kernel_size, (layer.in_channels, SIZE, SIZE))
    return float(torch.linalg.matrix_norm(W.flatten(1), 2)) / coefficient


def truth(layer: nn.Conv2d, steps: int) -> float:
    return lanczos(linear_map(layer, (layer.in_channels, SIZE, SIZE)), steps)


def one_pass(layer: nn.Conv2d) -> None:
    W, p = layer.weight.detach(), layer.padding[0]
    y = nn.functional.conv2d(torch.ones(1, layer.in_channels, SIZE, SIZE), W, padding=p)
    nn.functional.conv_transpose2d(y, W, padding=p)


METHODS: dict[str, Callable] = {
    "ours": interval, "coarse": coarse, "vs": vs, "power": power, "sgl numpy": sgl_numpy, "sgl torch": sgl_torch,
    "gram": gram_2023, "one pass": one_pass,
}  # fmt: skip
PACKAGES = {"gram 24": (gram_2024, "orthogonium"), "lconv": (lconv, "deel")}
METHODS |= {name: method for name, (method, package) in PACKAGES.items() if importlib.util.find_spec(package)}


def measure(layer: nn.Conv2d, repeats: int) -> tuple[dict[str, float], dict[str, object]]:
    seconds: dict[str, list[float]] = {name: [] for name in METHODS}
    values: dict[str, object] = {}
    for turn in range(repeats + 1):
        for name, method in METHODS.items():
            if turn > 1 and seconds[name][-1] > 5:
                continue  # a long one has shown itself
            started = used_seconds(layer.weight.device.type)
            values[name] = method(layer)
            if turn:  # the first turn warms up
                seconds[name].append(used_seconds(layer.weight.device.type) - started)
    return {name: statistics.median(times) for name, times in seconds.items()}, values


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser, [1])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="the three smallest kernels, once")
    parser.add_argument("--numpy", action="store_true", help="SGL with numpy too, as published (minutes)")
    args = parser.parse_args(argv)
    machine = begin(parser, args)
    if args.device != "cpu":
        torch.set_default_device(args.device)
    if not args.numpy:
        del METHODS["sgl numpy"]
    kernels, repeats = (KERNELS[:3], 1) if args.quick else (KERNELS, args.repeats)
    rows = []
    for threads in args.threads:
        torch.set_num_threads(threads)
        print(f"\n{threads} thread(s), CPU ms; ratios are peers' time over ours; values over the truth")
        peers = [name for name in METHODS if name not in ("ours", "power", "one pass")]
        head = [
            "kernel",
            "ours",
            *(x for name in peers for x in (name, "x")),
            "passes",
            "lower",
            "upper",
            "width",
        ]
        print("".join(f"{x:>11}" for x in [*head, *(f"{name}/t" for name in peers)]))
        for k, c_in, c_out in kernels:
            torch.manual_seed(0)
            layer = nn.Conv2d(c_in, c_out, k, padding=k // 2, bias=False)
            layer.weight.data = torch.randn_like(layer.weight)
            seconds, values = measure(layer, repeats)
            lower, upper = values["ours"]
            true = truth(layer, 120)
            row = {
                "threads": threads,
                "kernel": [k, c_in, c_out],
                "seconds": seconds,
                "truth": true,
                "lower": lower,
                "upper": upper,
            }
            row |= {name: value for name, value in values.items() if isinstance(value, float)}
            rows.append(row)
            ours = seconds["ours"]
            cells = [f"{k},{c_in},{c_out}", f"{1e3 * ours:.0f}"]
            for name in peers:
                cells += [f"{1e3 * seconds[name]:.0f}", f"{seconds[name] / ours:.1f}"]
            cells += [
                f"{ours / seconds['one pass']:.0f}",
                f"{lower / true:.5f}",
                f"{upper / true:.5f}",
                f"{upper / lower - 1:.4f}",
            ]
            cells += [f"{values[name] / true:.3f}" for name in peers]
            print("".join(f"{x:>11}" for x in cells), flush=True)
    if args.json:
        with open(args.json, "w") as f:
            json.dump({"about": machine | {"size": SIZE}, "rows": rows}, f, indent=1)


if __name__ == "__main__":
    main()
