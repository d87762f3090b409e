"""Attacks beside other people's: the same models, the same points, the same radii, one process.

    python benchmarks/attacks.py [--threads 1] [--quick] [--only mnist-pgd ...] [--seeds 3] [--turns 3] [--json attacks.json]

AutoAttack as published, alone and with certificates, and its version "fast", beside that of torchattacks and, with
--reference, the paper's own code; PGD-40 beside torchattacks, foolbox and ART. For each: seconds of the processor and on
the clock, points that went forward and backward through the model (in whatever precision), robust accuracy as the model
itself sees the returned points, and how many of these are outside of the ball or of [0, 1].

In parts of some minutes: --only NETWORK --attack pgd or autoattack --eps RADIUS --points N. Where points survive, time grows
in proportion to them: with 20 points the paper's own code takes 2 minutes at 90 % robust, with 500 it takes 20. Parts that
name the same --json are kept together there.

AutoAttack runs with several seeds, PGD in turns: medians are shown, and of robust accuracies the least and the largest.
torchattacks' "standard" takes 10 steps where the paper and we take 100. Networks are trained here once, some minutes each,
and kept in local/benchmarks. MNIST and CIFAR-10 are looked for in $OPNORM_DATA; --quick needs neither.
"""

import argparse
import json
import math
import os
import statistics
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
from attack_peers import PEERS, Way, autoattacks_of, pgds_of
from machine import add_options, begin, synchronize
from torch import Tensor, nn

from opnorm import attacks, data, spec
from opnorm._core.surrogate import has_bf16
from opnorm.certificates import certified, proof
from opnorm.data.dataset import Dataset, Split, as_pixels
from opnorm.training import TrainingSettings, train

KEPT = Path(__file__).parents[1] / "local" / "benchmarks"


class Case(NamedTuple):
    """A network and what to ask of it."""

    data: str
    model: str
    objective: str
    regularizers: tuple[str, ...]
    examples: int
    epochs: int
    points: int
    norm: float
    autoattack: tuple[float, ...]  # radii
    pgd: tuple[float, ...]


MNIST, SMALL, PGD = "cnn(stride=2)", "cnn(width=32, stride=2)", "pgd_at(eps=0.1, steps=5)"
DECAY = ("norm_decay(p=inf, beta=0.01)",)
CASES = {
    "mnist-pgd": Case("mnist", MNIST, PGD, (), 30_000, 1, 500, math.inf, (0.1, 0.215, 0.3), (0.1, 0.3)),
    "mnist-plain": Case("mnist", MNIST, "plain()", (), 30_000, 1, 500, math.inf, (0.1,), (0.1,)),
    "mnist-norms": Case("mnist", SMALL, PGD, DECAY, 30_000, 2, 500, math.inf, (0.1,), ()),
    "mnist-l2": Case("mnist", SMALL, "plain()", ("svc(c=1.0, every=100, linear=True)",), 30_000, 2, 500, 2, (0.3,), ()),
    # where many survive, a quarter of the width: the peers take 15 ms a point and a query at the full one
    "cifar-resnet": Case(
        "cifar10", "resnet18(width=16)", "pgd_at(eps=4/255, steps=3)", (), 20_000, 1, 100, math.inf, (4 / 255, 8 / 255), ()
    ),
    "cifar-resnet18": Case("cifar10", "resnet18()", "plain()", (), 20_000, 1, 100, math.inf, (8 / 255,), (8 / 255,)),
    "cifar-resnet18-pgd": Case(
        "cifar10", "resnet18()", "pgd_at(eps=4/255, steps=3)", (), 20_000, 1, 100, math.inf, (8 / 255,), ()
    ),
}  # fmt: skip
QUICK = {
    "digits-pgd": Case("digits", "cnn(width=32)", PGD, (), 10_000, 10, 100, math.inf, (0.1, 0.3), (0.1,)),
    "digits-norms": Case("digits", "cnn(width=16)", PGD, DECAY, 10_000, 10, 100, math.inf, (0.05,), ()),
}

# The paper's own code beside torchattacks', on a network of the same shape as mnist-pgd, measured elsewhere on one thread:
# radius -> points, CPU seconds of either, and the robust accuracy that the paper's own code found there.
REFERENCE = {0.1: (500, 1154, 435, 0.902), 0.2: (100, 81, 41, 0.35), 0.3: (500, 26, 4.2, 0.0)}


# ---------------------------------------------------------------- networks


def dataset(name: str, examples: int) -> Dataset:
    if name == "digits":
        return data.digits()
    if "OPNORM_DATA" not in os.environ:
        raise SystemExit(
            "OPNORM_DATA is not set: it names the folder with mnist/ and cifar10/; or try --quick"
        )
    whole = data.parquet(str(Path(os.environ["OPNORM_DATA"]) / name))
    part = Split(*(t[:examples] for t in whole.train))
    return Dataset(whole.name, part, whole.test, whole.classes)


def network(name: str, case: Case) -> tuple[nn.Module, Tensor, Tensor]:
    """The trained network and its first test points."""
    images = dataset(case.data, case.examples)
    torch.manual_seed(0)
    model = spec.build(case.model, "model", in_shape=images.image_shape, classes=images.num_classes)
    path, text = KEPT / f"{name}.pt", repr(case[:6])
    if path.exists() and (kept := torch.load(path, weights_only=True))["case"] == text:
        model.load_state_dict(kept["weights"])
    else:
        print(f"training {name}: {case.model}, {case.objective}, {', '.join(case.regularizers)}", flush=True)
        settings = TrainingSettings(
            objective=spec.build(case.objective, "objective"), epochs=case.epochs,
            regularizers=[spec.build(r, "regularizer") for r in case.regularizers],
            optimizer=spec.build("sgd(lr=0.05)", "optimizer"), channels_last=True,
            precision="bf16" if has_bf16(torch.device("cpu")) else "fp32",
        )  # fmt: skip
        train(model, images, settings)
        model = model.to(memory_format=torch.contiguous_format)
        KEPT.mkdir(parents=True, exist_ok=True)
        torch.save({"case": text, "weights": model.state_dict()}, path)
    test = images.test
    return model.eval(), as_pixels(test.images[: case.points]), test.labels[: case.points]


# ---------------------------------------------------------------- measuring


class Counts:
    """Points through a model; a copy of the model counts with it."""

    def __init__(self) -> None:
        self.forward = self.backward = 0

    def __deepcopy__(self, memo: Any) -> "Counts":
        return self

    def back(self, grad: Tensor) -> None:
        """To be told of a gradient."""
        self.backward += len(grad)


class Counted(nn.Module):
    """A model that counts what goes through it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.counts = model, Counts()

    def forward(self, x: Tensor) -> Tensor:
        """What the model gives."""
        out = self.model(x)
        self.counts.forward += len(x)
        if out.requires_grad:
            out.register_hook(self.counts.back)
        return out


class Row(NamedTuple):
    """What one attack did."""

    attack: str
    cpu: float
    wall: float
    forward: int
    backward: int
    robust: tuple[float, ...]  # by seeds
    outside: int
    certified: int


def middle(rows: list[Row]) -> Row:
    """The median of several runs of one attack."""
    medians = {
        k: statistics.median(getattr(r, k) for r in rows) for k in ("cpu", "wall", "forward", "backward")
    }
    robust = tuple(share for r in rows for share in r.robust)
    return rows[0]._replace(**medians, robust=robust, outside=max(r.outside for r in rows))


def run(
    name: str,
    way: Way,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    norm: float,
    eps: float,
    seed: int,
    proved: int = 0,
) -> Row:
    counted = Counted(model).eval()
    torch.manual_seed(seed)
    synchronize(str(x.device))
    cpu, wall = time.process_time(), time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = way(counted, x, y, seed).detach()
    synchronize(str(x.device))
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    away = torch.linalg.vector_norm((found.double() - x.double()).flatten(1), ord=norm, dim=1) > eps
    away |= ((found < 0) | (found > 1)).flatten(1).any(1)
    with torch.no_grad():
        right = torch.cat([model(z) for z in found.split(64)]).argmax(1) == y
    robust, seen = float(right.double().mean()), counted.counts
    return Row(name, cpu, wall, seen.forward, seen.backward, (robust,), int(away.sum()), proved)


def autoattacks(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    norm: float,
    eps: float,
    seeds: int,
    peers: dict[str, Way],
    peer_seeds: int,
) -> list[Row]:
    """Ours, alone and with certificates, and the peers', each with several seeds."""

    def ours(**settings: Any) -> Way:
        attack = attacks.AutoAttack(norm, eps, **settings)

        def way(m: nn.Module, x: Tensor, y: Tensor, seed: int) -> Tensor:
            result = attack.evaluate(m, x, y, seed=seed)
            for s in result.stages:
                print(
                    f"    {s.name}: {s.attacked} attacked, {s.misclassified} misclassified, {s.cpu_seconds:.1f} CPU s",
                    flush=True,
                )
            return result.points

        return way

    # a certificate looks into the model, which the one that counts would hide
    proved = int(certified(model, x, y, eps, norm).sum())

    def certify(_: nn.Module, x: Tensor, y: Tensor, eps: float, norm: float) -> Tensor:
        return proof()(model, x, y, eps, norm)

    ways = {
        "opnorm": (ours(), seeds, 0),
        "opnorm, certify=proof()": (ours(certify=certify), seeds, proved),
        'opnorm, version="fast"': (ours(version="fast"), seeds, 0),
    }
    ways |= {name: (way, peer_seeds, 0) for name, way in peers.items()}
    rows: dict[str, list[Row]] = {name: [] for name in ways}
    for seed in range(max(seeds, peer_seeds)):  # in turns, so that a loud neighbor does not spoil one of them
        for name, (way, count, known) in ways.items():
            if seed < count:
                rows[name].append(run(name, way, model, x, y, norm, eps, seed, known))
    return [middle(own) for own in rows.values()]


def pgds(model: nn.Module, x: Tensor, y: Tensor, eps: float, turns: int, peers: bool) -> list[Row]:
    """PGD-40 in ℓ∞, in turns."""
    step = eps / 10
    ours = {"norm": math.inf, "eps": eps, "steps": 40, "step": step}
    plain, early = attacks.pgd(**ours), attacks.pgd(**ours, stop_at_success=True)
    ways: dict[str, Way] = {
        "opnorm": lambda m, x, y, seed: plain(m, x, y, seed=seed),
        "opnorm, stop_at_success": lambda m, x, y, seed: early(m, x, y, seed=seed),
        **(pgds_of(eps, step) if peers else {}),
    }
    rows: dict[str, list[Row]] = {name: [] for name in ways}
    for turn in range(turns):
        for name, way in ways.items():
            rows[name].append(run(name, way, model, x, y, math.inf, eps, turn))
    return [middle(r) for r in rows.values()]


# ---------------------------------------------------------------- printing


def show(title: str, rows: list[Row]) -> None:
    times = {r.attack: r.cpu for r in rows}
    heads = [
        "CPU s",
        "wall s",
        "x torchatt.",
        "x paper's",
        "forward",
        "backward",
        "robust %",
        "over seeds",
        "certified",
        "outside",
    ]
    print(f"\n{title}\n{'':26}" + "".join(f"{head:>12}" for head in heads))
    for r in rows:
        gains = [
            f"{times[peer] / r.cpu:.1f}" if peer in times else "" for peer in ("torchattacks", "paper's code")
        ]
        spread = f"{100 * min(r.robust):.1f}-{100 * max(r.robust):.1f}" if len(r.robust) > 1 else "1 seed"
        cells = (
            f"{r.cpu:.2f}", f"{r.wall:.2f}", *gains, f"{r.forward:,.0f}", f"{r.backward:,.0f}",
            f"{100 * statistics.mean(r.robust):.1f}", spread, r.certified, r.outside,
        )  # fmt: skip
        print(f"{r.attack:26}" + "".join(f"{cell:>12}" for cell in cells), flush=True)


def beside_the_reference(eps: float, rows: list[Row]) -> str:
    points, reference, peer, robust = REFERENCE[eps]
    theirs = next(r.cpu for r in rows if r.attack == "torchattacks")
    scaled = theirs * reference / peer
    return (
        f"  the paper's own code, measured elsewhere with {points} points: {reference} CPU s, {100 * robust:.1f} % robust, "
        f"{reference / peer:.1f} times torchattacks; scaled by that, {scaled:.1f} here: "
        f"{scaled / rows[0].cpu:.1f} times ours, {scaled / rows[1].cpu:.1f} times ours with certificates"
    )


def arguments() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser)
    parser.add_argument("--turns", type=int, default=3, help="of PGD")
    parser.add_argument("--seeds", type=int, default=3, help="of our AutoAttack")
    parser.add_argument("--peer-seeds", type=int, default=1, help="of the others', which take long")
    parser.add_argument(
        "--reference", help="folder with the package autoattack, the paper's own code, to run it too"
    )
    parser.add_argument("--attack", choices=["autoattack", "pgd"], help="one of the two alone")
    parser.add_argument("--eps", type=float, nargs="+", help="these radii only")
    parser.add_argument("--points", type=int, help="the first so many of the points")
    parser.add_argument("--only", nargs="+", choices=[*CASES, *QUICK], help="some of the networks")
    parser.add_argument("--no-peers", action="store_true", help="our own attacks alone")
    parser.add_argument("--quick", action="store_true", help="the bundled digits, a minute")
    return parser, parser.parse_args()


def measured(
    kind: str, case: Case, eps: float, points: tuple[nn.Module, Tensor, Tensor], args: Any
) -> list[Row]:
    """The rows of one attack, network and radius."""
    model, x, y = points
    if kind == "PGD-40":
        return pgds(model, x, y, eps, args.turns, not args.no_peers)
    peers = {} if args.no_peers else autoattacks_of(case.norm, eps, args.reference)
    return autoattacks(model, x, y, case.norm, eps, args.seeds, peers, args.peer_seeds)


def main() -> None:
    parser, args = arguments()
    figures: dict[str, Any] = json.loads(args.json.read_text()) if args.json and args.json.exists() else {}
    figures["about"] = begin(parser, args, PEERS)
    for name in args.only or (QUICK if args.quick else CASES):
        case = (CASES | QUICK)[name]
        model, x, y = network(name, case)
        model, x, y = (
            model.to(args.device),
            x[: args.points].to(args.device),
            y[: args.points].to(args.device),
        )
        for kind, radii in (("AutoAttack", case.autoattack), ("PGD-40", case.pgd)):
            if args.attack and not kind.lower().startswith(args.attack):
                continue
            for eps in args.eps or radii:
                rows = measured(kind, case, eps, (model, x, y), args)
                show(f"{kind}, {name}, {len(x)} points, l{case.norm:g}, eps {eps:.4g}", rows)
                here = kind == "AutoAttack" and name == "mnist-pgd" and not args.reference
                if here and eps in REFERENCE and not args.no_peers:
                    print(beside_the_reference(eps, rows))
                figures[f"{kind} {name} {eps:.4g}, {len(x)} points"] = [r._asdict() for r in rows]
                if args.json:
                    args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
