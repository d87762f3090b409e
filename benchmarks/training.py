"""The training loop beside a plain hand-written one: what it costs, what the fast options gain, what regularizers cost.

    python benchmarks/training.py [--device cuda] [--threads 2] [--turns 3] [--quick] [--json training.json]

Seconds a step (on the CPU: of CPU time, over the number of threads), medians over interleaved turns in one process; ratios
are how many times faster than the plain loop in float32. The plain loop is what one would write: no autocast, no folding.
The last table trains small networks in float32 and with the fast options and compares them, all evaluated in float32. Where
bfloat16 is emulated, it is left out: it takes several times as long.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from machine import add_options, begin
from torch import nn

from opnorm import attacks, objectives, spec
from opnorm._core.surrogate import has_bf16
from opnorm.data import digits
from opnorm.data.dataset import Dataset, Split, as_pixels
from opnorm.errors import SpecError
from opnorm.models import resnet
from opnorm.training import TrainingSettings, optimizers, train

FAST = {"precision": "bf16", "channels_last": True}
COSTS = [
    "norm_decay(p=inf)", "global_snr()", "global_snr(steps=10)", "svc(every=1, linear=True)", "weight_decay()",
    "dd_snr(steps=1)", "dd_snr(steps=10)", "pgd_at(steps=1)", "pgd_at(steps=10)", "trades()",
]  # fmt: skip


class Clock:
    """Times from the end of one optimizer step to the end of the next."""

    def __init__(self, device: str, threads: int) -> None:
        self.device, self.threads, self.stamps = device, threads, [0.0]

    def stamp(self) -> None:
        """Note the time."""
        if self.device == "cpu":
            self.stamps.append(time.process_time() / self.threads)
        else:
            torch.cuda.synchronize()
            self.stamps.append(time.perf_counter())

    def steps(self, run: Callable[[], Any]) -> list[float]:
        """Seconds of every step of a training but the first, which warms up."""
        self.stamps = []
        run()
        return [b - a for a, b in zip(self.stamps, self.stamps[1:], strict=False)]

    def sgd(self, parameters: Any) -> torch.optim.Optimizer:
        """An optimizer that notes the time after every step."""
        optimizer = torch.optim.SGD(parameters, lr=0.01, momentum=0.9)
        optimizer.register_step_post_hook(lambda *args: self.stamp())
        return optimizer


def images(count: int) -> Dataset:
    """Noise, which costs what pictures cost."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
    split = Split(pixels, torch.randint(10, (count,), generator=generator))
    return Dataset("noise", split, split, tuple(str(i) for i in range(10)))


def plain_loop(model: nn.Module, data: Dataset, clock: Clock, batch: int, attack_steps: int) -> None:
    """By hand."""
    model.to(clock.device)
    x_all, y_all = data.train.images.to(clock.device), data.train.labels.to(clock.device)
    optimizer = clock.sgd(model.parameters())
    model.train()
    for chosen in torch.randperm(len(x_all), device=clock.device).split(batch):
        x, y = x_all[chosen].float() / 255, y_all[chosen]
        if attack_steps:
            model.eval()
            eps, step = 8 / 255, 2 / 255
            z = (x + torch.empty_like(x).uniform_(-eps, eps)).clamp(0, 1)
            for _ in range(attack_steps):
                z.requires_grad_()
                (grad,) = torch.autograd.grad(F.cross_entropy(model(z), y), z)
                z = torch.min(torch.max(z.detach() + step * grad.sign(), x - eps), x + eps).clamp(0, 1)
            model.train()
            x = z
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def build(call: str) -> nn.Module:
    torch.manual_seed(0)
    return spec.build(call, "model")


def speed(network: str, attack_steps: int, clock: Clock, turns: int, batch: int) -> dict[str, float]:
    """Seconds a step of the plain loop and of ours."""
    objective = objectives.pgd_at(steps=attack_steps, step=2 / 255) if attack_steps else objectives.plain()
    data = images((3 if attack_steps else 6) * batch)

    def ours(**settings: Any) -> Callable[[], Any]:
        chosen = TrainingSettings(objective=objective, epochs=1, batch=batch, optimizer=clock.sgd, **settings)
        return lambda: train(build(network), data, chosen, device=clock.device)

    ways = {
        "plain loop": lambda: plain_loop(build(network), data, clock, batch, attack_steps),
        "ours fp32": ours(),
        "ours fp32, channels last": ours(channels_last=True),
    }
    if has_bf16(torch.device(clock.device)):
        ways["ours bf16"] = ours(**FAST)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(turns):
        for name, way in ways.items():
            seconds[name] += clock.steps(way)
    return {name: statistics.median(times) for name, times in seconds.items()}


def costs(network: str, clock: Clock, turns: int, batch: int) -> dict[str, float]:
    """Seconds a step with each regularizer or objective, in float32; svc(every=1, linear=True) clips after every step."""
    data, ways = images(4 * batch), {"plain()": {}}
    for call in COSTS:
        for kind, name in (("regularizer", "regularizers"), ("objective", "objective")):
            try:
                built = spec.build(call, kind)
            except SpecError:
                continue
            ways[call] = {name: [built] if kind == "regularizer" else built}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(turns):
        for name, way in ways.items():
            seconds[name] += clock.steps(
                lambda way=way: train(
                    build(network),
                    data,
                    TrainingSettings(epochs=1, batch=batch, optimizer=clock.sgd, **way),
                    device=clock.device,
                )
            )
    return {name: statistics.median(times) for name, times in seconds.items()}


def accuracy(seeds: int, epochs: int) -> dict[str, list[tuple[float, float]]]:
    """Clean and PGD-20 accuracy on the digits, of networks that were PGD-trained."""
    data, found = digits(), {}
    x, y = as_pixels(data.test.images), data.test.labels
    ways = {"fp32": {}, "fp32, channels last": {"channels_last": True}}
    if has_bf16(torch.device("cpu")):
        ways["bf16"] = FAST
    for name, settings in ways.items():
        found[name] = []
        for seed in range(seeds):
            torch.manual_seed(seed)
            model = resnet(depth=8, in_shape=data.image_shape, width=8)
            chosen = TrainingSettings(
                epochs=epochs, batch=64, seed=seed, optimizer=optimizers.sgd(0.05),
                objective=objectives.pgd_at(eps=0.1, steps=5), **settings,
            )  # fmt: skip
            train(model, data, chosen)
            model.eval().to(memory_format=torch.contiguous_format)
            worst = attacks.pgd(eps=0.1, steps=20)(model, x, y)
            found[name].append(tuple(float((model(z).argmax(1) == y).float().mean()) for z in (x, worst)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser, 2)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--quick", action="store_true", help="ResNet-20 alone, one turn, one seed")
    args = parser.parse_args()
    machine = begin(parser, args)
    clock, turns = Clock(args.device, args.threads), 1 if args.quick else args.turns
    figures: dict[str, Any] = {"about": machine | {"turns": args.turns, "batch": args.batch}}

    for network in ["resnet(depth=20)"] if args.quick else ["resnet(depth=20)", "resnet18()"]:
        for steps in (0, 10):
            row = speed(network, steps, clock, turns, args.batch)
            name = f"{network} {f'PGD-{steps}' if steps else 'plain'}"
            figures[name] = row
            plain = row["plain loop"]
            print(name)
            for way, seconds in row.items():
                print(f"  {way:26}{seconds:10.3f} s{plain / seconds:7.2f}x", flush=True)

    print("\nresnet(depth=20), cost of a step in plain steps")
    figures["costs"] = found = costs("resnet(depth=20)", clock, turns, args.batch)
    for name, seconds in found.items():
        print(f"  {name:26}{seconds / found['plain()']:8.2f}", flush=True)

    print("\nPGD-trained on the digits, evaluated in fp32: clean and PGD-20 accuracy, mean (least to most)")
    figures["accuracy"] = accuracy(*((1, 4) if args.quick else (3, 15)))
    for name, rows in figures["accuracy"].items():
        parts = [f"{statistics.mean(v):.3f} ({min(v):.3f} to {max(v):.3f})" for v in zip(*rows, strict=True)]
        print(f"  {name}  {'  '.join(parts)}", flush=True)
    if args.json:
        with open(args.json, "w") as f:
            json.dump(figures, f, indent=1)


if __name__ == "__main__":
    main()
