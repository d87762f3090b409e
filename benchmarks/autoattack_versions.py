"""Whether AutoAttack's version "fast" leaves points robust that the published one, "standard", breaks.

    python benchmarks/autoattack_versions.py [--points 30] [--only digits] [--json local/benchmarks/autoattack_versions.json]

Each network is trained here in seconds, on the bundled digits, or on a part of MNIST and CIFAR-10 from $OPNORM_DATA. The
radius is the one at which PGD breaks half of its points, so that many points are near their limit. Both versions attack the
same points with two seeds. A version's own spread is the number of points that one of its seeds breaks and the other does
not; a difference between versions counts beyond that. The file is written after each network, and a run that was stopped
goes on with the next one.
"""

import argparse
import json
import math
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from machine import add_options, begin, used_seconds
from networks import test_points, trained
from torch import Tensor, nn

from opnorm._core.files import write_json
from opnorm.attacks import AutoAttack, minimal_eps, pgd

VERSIONS, SEEDS = ("standard", "fast"), (0, 1)


class Case(NamedTuple):
    """A network, its training, and the norm in which it is attacked; ``mask`` names what hides its gradients."""

    data: str
    model: str
    objective: str = "plain()"
    regularizer: str = ""
    norm: float = math.inf
    mask: str = ""

    def __str__(self) -> str:
        parts = [self.data, self.model, self.objective, self.regularizer, f"norm={self.norm:g}", self.mask]
        return ", ".join(part for part in parts if part)


MODELS = {
    "digits": ("cnn(width=8)", "mlp(width=64)"),
    "mnist": ("cnn(width=8, stride=2)", "mlp(width=64)"),
    "cifar10": ("cnn(width=16, stride=2)",),
}
AT = {"digits": "eps=0.1, steps=5", "mnist": "eps=0.1, steps=5", "cifar10": "eps=2/255, steps=3"}
MASKS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "rounded inputs": lambda model: Around(model, before=lambda x: (x * 8).round() / 8),
    "saturated softmax": lambda model: Around(model, after=lambda z: 1e4 * z),
    "rounded logits": lambda model: Around(model, after=lambda z: (4 * z).round() / 4 + 1e-4 * z),
}


class Around(nn.Module):
    """A network with something before it and after it."""

    def __init__(
        self,
        inner: nn.Module,
        before: Callable[[Tensor], Tensor] = lambda x: x,
        after: Callable[[Tensor], Tensor] = lambda z: z,
    ) -> None:
        super().__init__()
        self.inner, self.before, self.after = inner, before, after

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K)."""
        z: Tensor = self.after(self.inner(self.before(x)))
        return z


def cases() -> Iterator[Case]:
    for name, models in MODELS.items():
        trainings = (
            ("plain()", ""),
            (f"pgd_at({AT[name]})", ""),
            (f"trades({AT[name]})", ""),
            ("plain()", "norm_decay(p=inf, beta=0.05)"),
            ("plain()", "weight_decay(lam=0.01)"),
            ("plain()", "global_snr(lam=0.05)"),
            ("plain()", "dd_snr(lam=0.1)"),
            ("plain()", "input_gradient(lam=0.1)"),
        )
        for model in models:
            yield from (Case(name, model, *training) for training in trainings)
        yield from (Case(name, models[0], *training, norm=2) for training in trainings[:2])
        yield from (Case(name, models[0], *trainings[1], mask=mask) for mask in MASKS)


def network(case: Case) -> tuple[nn.Module, Tensor, Tensor]:
    """The trained network and the test points."""
    model = trained(case.data, case.model, case.objective, case.regularizer)
    model = MASKS[case.mask](model) if case.mask else model
    return model.eval(), *test_points(case.data)


def compare(case: Case, points: int, device: str) -> dict[str, Any]:
    """Which points each version and seed breaks on one network."""
    model, x, y = (part.to(device) for part in network(case))
    with torch.no_grad():
        correct = (model(x[:2000]).argmax(1) == y[:2000]).nonzero().squeeze(1)[:points]
    x, y = x[correct], y[correct]
    honest = model.inner if isinstance(model, Around) else model
    highest = 0.5 if case.norm == math.inf else 3.0
    closest = minimal_eps(honest, x, y, lambda eps: pgd(case.norm, eps, 10), case.norm, highest)
    eps = min(statistics.median(closest.distance.tolist()), highest)
    row: dict[str, Any] = {"network": str(case), "points": len(y), "eps": eps}
    broken, seconds = {}, {}
    for version in VERSIONS:
        started = used_seconds(device)
        for seed in SEEDS:
            result = AutoAttack(case.norm, eps, version, seed=seed).evaluate(model, x, y)
            broken[version, seed] = result.misclassified
            row[f"{version}, seed {seed}"] = int(result.robust.sum())
        seconds[version] = (used_seconds(device) - started) / len(SEEDS)
    for version in VERSIONS:
        first, second = (broken[version, seed] for seed in SEEDS)
        row[f"{version}: seeds differ"] = int((first ^ second).sum())
    for seed in SEEDS:
        standard, fast = (broken[version, seed] for version in VERSIONS)
        row[f"only standard, seed {seed}"] = int((standard & ~fast).sum())
        row[f"only fast, seed {seed}"] = int((fast & ~standard).sum())
    always = broken["standard", 0] & broken["standard", 1]
    never = ~(broken["fast", 0] | broken["fast", 1])
    row["missed"] = int((always & never).sum())  # both seeds of standard break it, neither of fast
    row["found"] = int(
        (broken["fast", 0] & broken["fast", 1] & ~broken["standard", 0] & ~broken["standard", 1]).sum()
    )
    return row | {f"{version}, CPU seconds": seconds[version] for version in VERSIONS}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--points", type=int, default=30)
    parser.add_argument("--only", nargs="+", choices=list(MODELS), default=list(MODELS))
    add_options(parser)
    parser.set_defaults(json=Path("local/benchmarks/autoattack_versions.json"))
    args = parser.parse_args()
    begin(parser, args)
    rows: list[dict[str, Any]] = json.loads(args.json.read_text()) if args.json.exists() else []
    for case in cases():
        if case.data not in args.only or any(row["network"] == str(case) for row in rows):
            continue
        rows.append(compare(case, args.points, args.device))
        write_json(args.json, rows)
        print(json.dumps(rows[-1], ensure_ascii=False), flush=True)
    print(summary(rows))


def summary(rows: list[dict[str, Any]]) -> str:
    def total(key: str) -> Any:
        return sum(row[key] for row in rows)

    lines = [f"{len(rows)} networks, {total('points')} points"]
    for version in VERSIONS:
        robust = [total(f"{version}, seed {seed}") for seed in SEEDS]
        lines.append(
            f"{version}: robust {robust}; its seeds differ on {total(f'{version}: seeds differ')} points; "
            f"{total(f'{version}, CPU seconds'):.0f} CPU seconds a seed"
        )
    lines += [
        f"seed {seed}: only standard breaks {total(f'only standard, seed {seed}')}, "
        f"only fast {total(f'only fast, seed {seed}')}"
        for seed in SEEDS
    ]
    lines.append(
        f"both seeds of standard and neither of fast break {total('missed')}; the reverse {total('found')}"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
