"""What a GPU does with opnorm: exactness beside float64 on the CPU, then speed. One command, one JSON file, one table.

    python benchmarks/gpu.py [--device cuda] [--quick] [--json gpu.json]

It needs torch and this repository; with CIFAR-10 below $OPNORM_DATA it trains on that, otherwise on noise of the same shape,
which costs the same and has no accuracy. ``--quick`` is a test of the script, on any device.
"""

import argparse
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from machine import add_options, begin, seconds, synchronize
from torch import nn

import opnorm
from opnorm.attacks import AutoAttack, pgd
from opnorm.data import Dataset, parquet
from opnorm.data.dataset import Split, as_pixels
from opnorm.models import cnn, resnet, resnet18
from opnorm.norms import l1, linf, operator_norm
from opnorm.objectives import pgd_at, plain
from opnorm.regularizers import norm_decay
from opnorm.training import TrainingSettings, optimizers, train

KERNELS = [
    (3, 32, 32),
    (3, 32, 128),
    (3, 128, 256),
    (3, 256, 512),
    (5, 256, 128),
    (5, 512, 256),
]  # Liang, Table 1
SIZE = 32


def kernel(k: int, c_in: int, c_out: int) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(c_in, c_out, k, padding=k // 2, bias=False)


def cifar(points: int) -> Dataset:
    """CIFAR-10 cut to so many points, or noise of its shape."""
    folder = Path(os.environ.get("OPNORM_DATA", "")) / "cifar10"
    if os.environ.get("OPNORM_DATA") and folder.is_dir():
        data = parquet(str(folder))
        return Dataset(
            data.name,
            Split(*(t[:points] for t in data.train)),
            Split(*(t[:points] for t in data.test)),
            data.classes,
        )
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (points, 3, 32, 32), dtype=torch.uint8, generator=generator)
    split = Split(images, torch.randint(10, (points,), generator=generator))
    return Dataset("noise", split, split, tuple(str(i) for i in range(10)))


# ---------------------------------------------------------------- exactness


def exactness(device: str, quick: bool) -> dict[str, float]:
    """The largest relative difference between the device and float64 on the CPU, by part; each has its limit in LIMITS."""
    shape, found = (3, SIZE, SIZE), {}
    norms = []
    for k, c_in, c_out in KERNELS[: 2 if quick else 4]:
        layer = kernel(k, c_in, c_out)
        exact = [norm(layer.double(), (c_in, SIZE, SIZE)) for norm in (l1, linf)]
        there = [norm(layer.float().to(device), (c_in, SIZE, SIZE)).cpu() for norm in (l1, linf)]
        norms += [abs(b.item() / a.item() - 1) for a, b in zip(exact, there, strict=True)]
    found["l1 and linf, float32"] = max(norms)
    layer = kernel(3, 3, 32)
    here, there = (operator_norm(net, 2, shape) for net in (layer, kernel(3, 3, 32).to(device)))
    overlap = max(float(here.lower), float(there.lower)) <= min(float(here.upper), float(there.upper)) * (
        1 + 1e-6
    )
    found["l2 intervals that do not overlap"] = float(not overlap)

    torch.manual_seed(0)
    model, x = cnn(width=8, in_shape=shape).eval(), torch.rand(16, *shape)
    exact_jacobian = opnorm.jacobian_norm(model.double(), x.double()).lower
    on_device = opnorm.jacobian_norm(model.float().to(device), x.to(device)).lower.cpu()
    found["Jacobian norms, float32"] = float((on_device / exact_jacobian - 1).abs().max())

    y = model(x.to(device)).argmax(1)
    points = pgd(eps=8 / 255)(model, x.to(device), y).cpu()
    outside = max(float((points - x).abs().max()) - 8 / 255, float(-points.min()), float(points.max()) - 1)
    found["PGD outside the ball"] = max(outside, 0.0)
    robust = [
        int(
            AutoAttack(eps=2 / 255, attacks=("apgd-ce",)).evaluate(model.to(d), x.to(d), y.to(d)).robust.sum()
        )
        for d in ("cpu", device)
    ]
    found["AutoAttack, share of verdicts that differ"] = abs(robust[0] - robust[1]) / len(x)
    losses = [_losses(d) for d in ("cpu", device)]
    found["training loss, float32"] = max(abs(a / b - 1) for a, b in zip(*losses, strict=True))
    return found


# Rounding of float32 sums of up to a few thousand terms; a verdict may differ where two logits are that close.
LIMITS = {
    "l1 and linf, float32": 1e-5,
    "l2 intervals that do not overlap": 0.0,
    "Jacobian norms, float32": 1e-3,
    "PGD outside the ball": 1e-7,
    "AutoAttack, share of verdicts that differ": 0.1,
    "training loss, float32": 5e-2,
}


def _losses(device: str) -> list[float]:
    torch.manual_seed(0)
    settings = TrainingSettings(objective=plain(), regularizers=[norm_decay(p=1)], epochs=2, batch=64)
    return [m["loss"] for m in train(resnet(8, width=8), cifar(128), settings, device=device)]


# ---------------------------------------------------------------- speed


def norm_speed(device: str, quick: bool) -> list[dict[str, Any]]:
    """Seconds of each norm, beside an empty launch and the time to read the kernel once at the measured bandwidth."""
    one, large = torch.zeros(1, device=device), torch.zeros(1 << (22 if quick else 28), device=device)
    floor = seconds({"launch": lambda: one.add_(1), "copy": large.clone}, device, 20)
    bandwidth = 2 * large.numel() * 4 / floor["copy"]
    rows = [{"launch_us": 1e6 * floor["launch"], "bandwidth_GB_s": bandwidth / 1e9}]
    for k, c_in, c_out in KERNELS[: 2 if quick else 6]:
        layer, shape = kernel(k, c_in, c_out).to(device), (c_in, SIZE, SIZE)
        ways: dict[str, Callable[[], Any]] = {
            "l1": lambda layer=layer, shape=shape: l1(layer, shape),
            "linf": lambda layer=layer, shape=shape: linf(layer, shape),
        }
        if not quick:
            ways["l2"] = lambda layer=layer, shape=shape: operator_norm(layer, 2, shape)
        rows.append(
            {"kernel": [k, k, c_in, c_out], "bytes_us": 1e6 * layer.weight.numel() * 4 / bandwidth}
            | {f"{name}_us": 1e6 * value for name, value in seconds(ways, device, 5).items()}
        )
    return rows


def training_speed(device: str, quick: bool) -> tuple[list[dict[str, Any]], nn.Module, Dataset]:
    """An epoch of ResNet-18, plain and PGD-10 adversarial, after one of a few batches that warms up."""
    data = cifar(128 if quick else 50_000)
    rows = []
    for name, objective in (("plain", plain()), ("PGD-10", pgd_at(steps=10, step=2 / 255))):
        torch.manual_seed(0)
        model = resnet(8, width=2) if quick else resnet18()
        settings = TrainingSettings(
            objective=objective, epochs=1, batch=64 if quick else 256, optimizer=optimizers.sgd(lr=0.05),
            precision="fp32" if quick else "bf16", channels_last=not quick,
        )  # fmt: skip
        train(model, cifar(1024 if not quick else 64), settings, device=device)
        synchronize(device)
        started = time.perf_counter()
        metrics = train(model, data, settings, device=device)
        synchronize(device)
        elapsed = time.perf_counter() - started
        rows.append(
            {
                "training": name,
                "data": data.name,
                "seconds": elapsed,
                "images_s": len(data.train.images) / elapsed,
                "loss": metrics[-1]["loss"],
            }
        )
    return rows, model, data


def attack_speed(model: nn.Module, data: Dataset, device: str, quick: bool) -> dict[str, Any]:
    """AutoAttack of the adversarially trained network."""
    points = 16 if quick else 10_000
    x, y = as_pixels(data.test.images[:points]).to(device), data.test.labels[:points].to(device)
    attack = AutoAttack(eps=8 / 255, attacks=("apgd-ce",) if quick else None)
    synchronize(device)
    started = time.perf_counter()
    result = attack.evaluate(model.eval().to(device), x, y)
    synchronize(device)
    return {
        "attack": "APGD-CE" if quick else f"AutoAttack, version {attack.version}",
        "points": points, "seconds": time.perf_counter() - started,
        "clean": result.clean_accuracy, "robust": result.robust_accuracy,
    }  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser, torch.get_num_threads(), "cuda")
    parser.add_argument("--quick", action="store_true", help="small sizes, which test the script")
    args = parser.parse_args(argv)
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error(f"--device {args.device}: torch sees no GPU here; --device cpu --quick tests the script")
    figures: dict[str, Any] = {"about": begin(parser, args)}

    def keep(name: str, value: Any) -> None:
        figures[name] = value
        if args.json:  # after each part, so that a stop loses nothing
            args.json.write_text(json.dumps(figures, indent=1) + "\n")

    keep("exactness", exactness(args.device, args.quick))
    wrong = [name for name, value in figures["exactness"].items() if not value <= LIMITS[name]]
    for name, value in figures["exactness"].items():
        print(
            f"{name:>44}  {value:.1e}  {'too large' if name in wrong else f'within {LIMITS[name]:.0e}'}",
            flush=True,
        )
    keep("norms", norm_speed(args.device, args.quick))
    for row in figures["norms"]:
        print(
            "  ".join(
                f"{name} {value:.4g}" if isinstance(value, float) else f"{value}"
                for name, value in row.items()
            ),
            flush=True,
        )
    rows, model, data = training_speed(args.device, args.quick)
    keep("training", rows)
    for row in rows:
        print(
            f"{row['training']:>10} on {row['data']}: {row['seconds']:.2f} s an epoch, {row['images_s']:.0f} images/s",
            flush=True,
        )
    keep("attack", found := attack_speed(model, data, args.device, args.quick))
    print(
        f"{found['attack']}, {found['points']} points: {found['seconds']:.1f} s, "
        f"clean {found['clean']:.1%}, robust {found['robust']:.1%}"
    )
    if not all(math.isfinite(value) for value in figures["exactness"].values()):
        wrong.append("a figure that is not finite")
    return len(wrong) > 0


if __name__ == "__main__":
    raise SystemExit(main())
