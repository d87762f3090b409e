"""Exact l1 and linf norms beside the authors' formulae and beside reading the kernel, on Liang & Huang 2021, Table 1.

    python benchmarks/norms_exact.py [--threads 1 2] [--quick] [--quantile 0.5] [--json exact.json]

Medians of interleaved runs in one process (on a busy machine, ask for the quantile 0.1), in microseconds a call, float32,
32x32 inputs, "same" padding. The authors' steps are our own plain re-implementation:

    authors l1     transpose, abs, view a row per input channel, sum, max, item(); with stride 2 one sum for each part of
                   the taps
    authors linf   abs, sum over all but the output channel, max, item()
    read           K.sum(): the kernel is read once
    copy           memcpy of the kernel

Ours counts borders and strides exactly. Then the norms of all layers of a ResNet-18, and their gradients; Python time is
what is left when the same network has next to no weights.
"""

import argparse
import json
import time
from collections.abc import Callable

import torch
from machine import add_options, begin, synchronize
from torch import Tensor, nn

from opnorm.norms import conv_l1, conv_linf, l1, linf

KERNELS = [(3, 32, 32), (3, 32, 128), (3, 128, 256), (3, 256, 512), (5, 256, 128), (5, 512, 256)]
SIZE = (32, 32)
Run = Callable[[], object]


def authors_l1(K: Tensor, stride: int) -> float:
    rows = K.transpose(0, 1).abs()
    if stride == 1:
        return rows.reshape(K.shape[1], -1).sum(1).max().item()
    k = K.shape[-1]
    taps = [(a, b) for a in range(k) for b in range(k)]
    sums = []
    for first in ((a, b) for a in range(stride) for b in range(stride)):
        part = [a * k + b for a, b in taps if (a % stride, b % stride) == first]
        sums.append(rows.flatten(2)[:, :, part].sum((1, 2)))
    return torch.stack(sums).max().item()


def authors_linf(K: Tensor) -> float:
    return K.abs().sum((1, 2, 3)).max().item()


def timed(runs: dict[str, Run], seconds: float, quantile: float, device: str) -> dict[str, float]:
    """The time of each, in microseconds; they take turns, so that a slow moment hits all of them."""
    inner = {}
    for name, run in runs.items():
        run()
        start = time.perf_counter()
        run()
        inner[name] = max(1, int(2e-4 / (time.perf_counter() - start)))
    found: dict[str, list[float]] = {name: [] for name in runs}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(found[next(iter(runs))]) < 5:
        for name, run in runs.items():
            start = time.perf_counter()
            for _ in range(inner[name]):
                run()
            synchronize(device)
            found[name].append((time.perf_counter() - start) / inner[name])
    return {
        name: 1e6 * sorted(times)[int(quantile * (len(times) - 1) + 0.5)] for name, times in found.items()
    }


def kernels(seconds: float, quantile: float, device: str) -> list[dict[str, object]]:
    rows = []
    for k, c_in, c_out in KERNELS:
        K = torch.randn(c_out, c_in, k, k, device=device)
        buffer = torch.empty_like(K)
        runs: dict[str, Run] = {"read": K.sum, "copy": lambda b=buffer, K=K: b.copy_(K)}
        for stride in (1, 2):
            args = (K, SIZE, stride, k // 2)
            runs[f"authors l1 /{stride}"] = lambda K=K, s=stride: authors_l1(K, s)
            runs[f"authors linf /{stride}"] = lambda K=K: authors_linf(K)
            for name, norm in (("l1", conv_l1), ("linf", conv_linf)):
                runs[f"{name} /{stride}"] = lambda norm=norm, args=args: norm(*args)
        rows.append(
            {
                "kernel": f"{k},{c_in},{c_out}",
                "mb": K.numel() * 4 / 1e6,
                "us": timed(runs, seconds, quantile, device),
            }
        )
    return rows


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), nn.BatchNorm2d(c_out)
        self.conv2, self.bn2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False), nn.BatchNorm2d(c_out)
        same = c_in == c_out and stride == 1
        self.skip = nn.Identity() if same else nn.Conv2d(c_in, c_out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, c_in, H, W) -> (B, c_out, H / stride, W / stride)."""
        out = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (out + self.skip(x)).relu()


def resnet18(width: int = 64) -> nn.Sequential:
    blocks, c = [], width
    for i in range(8):
        c_out = width * 2 ** (i // 2)
        blocks.append(Block(c, c_out, 2 if i in (2, 4, 6) else 1))
        c = c_out
    stem = (nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c, 10))


def layers_of(model: nn.Module, device: str) -> list[tuple[nn.Module, tuple[int, ...]]]:
    found, handles = [], []
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            hook = lambda layer, args, out: found.append((layer, tuple(args[0].shape[1:])))  # noqa: E731
            handles.append(module.register_forward_hook(hook))
    with torch.no_grad():
        model.eval()(torch.zeros(1, 3, 32, 32, device=device))
    for handle in handles:
        handle.remove()
    return found


def whole_network(seconds: float, quantile: float, device: str) -> dict[str, object]:
    results: dict[str, object] = {}
    for width in (64, 1):
        layers = layers_of(resnet18(width).to(device), device)
        weights = [layer.weight for layer, _ in layers]

        def norms(norm: Callable, layers: list = layers) -> Tensor:
            with torch.no_grad():
                return torch.stack([norm(*layer) for layer in layers])

        def grads(norm: Callable, layers: list = layers, weights: list = weights) -> object:
            return torch.autograd.grad(torch.stack([norm(*layer) for layer in layers]).sum(), weights)

        def plain(weights: list = weights) -> object:
            """The gradient of the l-infinity norms through torch's own abs, sum and max."""
            total = torch.stack([w.abs().flatten(1).sum(1).max() for w in weights]).sum()
            return torch.autograd.grad(total, weights)

        runs: dict[str, Run] = {
            "read": lambda weights=weights: [w.sum() for w in weights],
            "plain gradient": plain,
        }
        for name, norm in (("l1", l1), ("linf", linf)):
            for what, call in (("norms", norms), ("gradients", grads)):
                runs[f"{name} {what}"] = lambda call=call, norm=norm: call(norm)
        results[f"width {width}"] = {"layers": len(layers), "us": timed(runs, 8 * seconds, quantile, device)}
    return results


def table(rows: list[dict]) -> None:
    print("\nratio to the authors' formula (higher is better), ratio to reading the kernel (lower is better)")
    print("kernel     MB     norm     authors us   ours us |   x ours |  ours/read")
    for row in rows:
        us = row["us"]
        for stride in (1, 2):
            for norm in ("l1", "linf"):
                authors, ours = us[f"authors {norm} /{stride}"], us[f"{norm} /{stride}"]
                print(
                    f"{row['kernel']:10s} {row['mb']:5.2f}  {norm + ' /' + str(stride):8s} {authors:10.1f} {ours:9.1f} "
                    f"| {authors / ours:8.1f} | {ours / us['read']:10.1f}"
                )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(parser, [1, 2])
    parser.add_argument("--quick", action="store_true", help="under a minute")
    parser.add_argument("--quantile", type=float, default=0.5, help="0.5 for medians, less on a busy machine")
    args = parser.parse_args(argv)
    seconds = 0.5 if args.quick else 4.0
    torch.manual_seed(0)
    record: dict = {"about": begin(parser, args), "runs": []}
    for threads in args.threads:
        torch.set_num_threads(threads)
        print(f"\n{threads} thread{'s' * (threads > 1)}, torch {torch.__version__}")
        rows = kernels(seconds, args.quantile, args.device)
        network = whole_network(seconds / 2, args.quantile, args.device)
        record["runs"].append({"threads": threads, "kernels": rows, "resnet18": network})
        table(rows)
        for width, found in network.items():
            print(f"\nResNet-18, {width}, {found['layers']} layers: microseconds for all, and for each")
            for name, us in found["us"].items():
                print(f"  {name:24s} {us:10.0f} {us / found['layers']:8.1f}")
    if args.json:
        with open(args.json, "w", encoding="utf-8") as f:
            json.dump(record, f, indent=1)


if __name__ == "__main__":
    main()
