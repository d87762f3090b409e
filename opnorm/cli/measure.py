"""``opnorm norms`` and ``opnorm separation``: numbers about a network by itself, and about a data set."""

import sys
from json import loads as load_json
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from opnorm.cli.options import DATA, MODEL, Json, number, print_json
from opnorm.errors import OpnormError

__all__ = ["norms", "separation"]


def norms(
    model: Annotated[Positional[str], arg(help=MODEL)],
    input: Annotated[
        str, arg(help="shape of one input: 3,32,32; taken from the model's in_shape when left out")
    ] = "",
    ord: Annotated[str, arg(help="which norms: 1, 2, inf, or pairs such as 1:2, from l1 to l2")] = "1,2,inf",
    relative_width: Annotated[
        str, arg(help="of the l2 intervals: upper / lower - 1 to aim at; 0.005 when left out")
    ] = "",
    against: Annotated[
        str,
        arg(help="a second model (or a .json file that --json wrote): how its norms differ, layer by layer"),
    ] = "",
    layers: Annotated[
        str, arg(help="only layers whose name or class matches: 'layer1.*', '*conv*', Conv2d")
    ] = "*",
    plot: Annotated[
        Path | None, arg(help="also draw the norms: a file ending in .svg, .pdf, .png or .html")
    ] = None,
    json: Json = False,
    csv: Annotated[bool, arg(help="print comma-separated values")] = False,
    markdown: Annotated[bool, arg(help="print a Markdown table")] = False,
) -> None:
    """How far each layer of a network can amplify a change of its input: its operator norms, in eval mode.

    l1 and linf are exact and cost one pass over the weights; l2 is an interval that holds the true value. Below the table
    are the product of the l2 norms (spectral complexity) and, where the network's graph can be followed, upper bounds on
    its Lipschitz constants. Large norms alone do not make a network easy to attack: see the page "Which norm do I need?"
    in the documentation.

    opnorm norms 'resnet(depth=20)'

    opnorm norms 'file("x.safetensors", arch=resnet(depth=20))' --ord 1,inf --plot norms.svg

    opnorm norms 'my_package.models.build(width=64)' --input 3,64,64 --layers 'stage1.*'

    opnorm norms 'cnn(width=16)' --ord 2 --relative-width 1e-6

    opnorm norms 'file("before.safetensors")' --against 'file("after.safetensors")'
    """
    from rich.console import Console

    from opnorm.norms import NormTable, compare, lipschitz_bound
    from opnorm.norms.display import order
    from opnorm.norms.network.lipschitz import sentences

    if json + csv + markdown > 1:
        raise OpnormError("--json, --csv and --markdown exclude each other")
    ords = tuple(dict.fromkeys(order(part) for part in ord.split(",") if part.strip()))
    if not ords:
        raise OpnormError(f"--ord {ord!r}: expected some of 1, 2, inf, such as 1,2,inf")
    built, example = _model_and_example(model, input)
    narrow = number("--relative-width", relative_width) if relative_width else None
    table = _measured(built, example, ords, layers, narrow)
    result: Any = table
    if against:
        if against.endswith(".json") and "(" not in against:
            other = NormTable.from_json(Path(against).read_text(encoding="utf-8")).select(layers)
        else:
            other = _measured(
                *_model_and_example(against, input or ",".join(map(str, example.shape[1:]))),
                ords,
                layers,
                narrow,
            )
        result = compare(table, other)
    bounds = {}
    if not against and layers == "*":
        bounds = {
            p: lipschitz_bound(built, example, p, table=table) for p in ords if not isinstance(p, tuple)
        }
    if plot is not None:
        table.plot(plot)
        print(f"drawn in {plot}", file=sys.stderr)
    if json:
        value = load_json(result.to_json())
        print_json(value if against else _network_json(value, table, bounds))
    elif csv:
        print(result.to_csv(), end="")
    elif markdown:
        print(result.to_markdown(), end="")
    else:
        console = Console(highlight=False)
        console.print(result)
        for line in sentences(bounds):
            console.print(line, markup=False)


def _model_and_example(text: str, input: str) -> tuple[Any, Any]:
    """The network that a call builds, and a batch of one for it."""
    import torch
    from torch import nn

    from opnorm import spec
    from opnorm.errors import ModelError

    call = spec.parse(text)
    built = spec.build(call, "model")
    if not isinstance(built, nn.Module):
        raise ModelError(f"{call} gave {type(built).__name__}; expected a torch.nn.Module")
    shape = _shape(input) if input else _input_shape(call)
    try:
        return built, torch.zeros(1, *shape)
    except (RuntimeError, TypeError) as e:
        raise OpnormError(f"--input {input}: {e}; expected the shape of one input, such as 3,32,32") from e


def _measured(
    model: Any, example: Any, ords: tuple[Any, ...], only: str, relative_width: float | None
) -> Any:
    from opnorm import measure

    return measure(model, example, ords, only=only, progress=True, relative_width=relative_width)


def _network_json(layers: Any, table: Any, bounds: dict[Any, Any]) -> dict[str, Any]:
    """The table's rows, and what follows from them for the whole network."""
    complexity = table.spectral_complexity
    return {
        "layers": layers,
        "spectral_complexity": complexity._asdict() if complexity else None,
        "lipschitz_bound": {f"{p:g}": {"value": b.value, "reason": b.reason} for p, b in bounds.items()},
        "uncalled": list(table.uncalled),
    }


def _shape(text: str) -> tuple[int, ...]:
    """The shape of one input, from 3,32,32 or 3x32x32."""
    try:
        shape = tuple(int(part) for part in text.strip("()[] ").replace("x", ",").split(",") if part.strip())
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise OpnormError(f"--input {text!r}: expected numbers with commas between them, such as 3,32,32")
    return shape


def _input_shape(call: Any) -> tuple[Any, ...]:
    """The in_shape that the model was made with, anywhere in the call, or in the file that the call names."""
    from opnorm import spec
    from opnorm.models.loading import SPEC_KEY, read_tensors

    calls = list(spec.calls_in(spec.full(call, "model")))
    for part in [c for c in calls if c.name == "file"]:
        _, metadata = read_tensors(str(dict(part.kwargs)["path"]))
        if SPEC_KEY in metadata:
            calls += spec.calls_in(spec.full(metadata[SPEC_KEY], "model"))
    for part in reversed(calls):
        shape = dict(part.kwargs).get("in_shape")
        if isinstance(shape, tuple):
            return shape
    raise OpnormError(f"{call} does not say which inputs it takes; add --input, such as --input 3,32,32")


def separation(
    data: Annotated[Positional[str], arg(help=DATA)] = "digits()",
    norm: Annotated[str, arg(help="1, 2 or inf")] = "inf",
    split: Annotated[
        Literal["train", "test", "all"], arg(help="which points; all: the two together")
    ] = "train",
    json: Json = False,
) -> None:
    """How far the classes of a data set are apart: the nearest two points of different classes, over all pairs, exactly.

    Below half of that distance no two balls around points of different classes meet, so that some network could be robust
    on all of them.

    opnorm separation 'parquet("cifar10")' --norm inf
    """
    from opnorm import spec
    from opnorm.cli.progress import SeparationBar
    from opnorm.data.class_separation import separation as search
    from opnorm.norms.display import label

    dataset = spec.build(data, "data set")
    with SeparationBar() as progress:
        found = search(dataset, number("--norm", norm), split, progress)
    if json:
        return print_json(
            {**found._asdict(), "norm": str(norm), "eps": found.eps, "data": data, "split": split}
        )
    (i, j), (a, b) = found.pair, found.labels
    print(
        f"separation        {found.distance:.6g} in {label(found.norm)}, of {found.points:,} points (pixels in [0, 1])"
    )
    print(f"the nearest two   {i} (class {a}) and {j} (class {b})")
    print(f"balls apart       below ε = {found.eps:.6g}")
    return None
