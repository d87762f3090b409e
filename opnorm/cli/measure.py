"""``opnorm norms`` and ``opnorm separation``: numbers about a network by itself, and about a data set."""

import math
import os
import sys
from dataclasses import dataclass, replace
from json import loads as load_json
from pathlib import Path
from typing import Annotated, Any, Literal

from opnorm._core.orders import check_interval, label, order, plain_order
from opnorm._core.plot_names import check_plot_name
from opnorm._core.settings import check_choice
from opnorm.cli.call_checks import check_call, check_weights
from opnorm.cli.gates import Gate, check_norms, norm_gates, refuse
from opnorm.cli.marks import Help, Positional
from opnorm.cli.options import Data, Json, ModelRunOrWeights, Results, Trust, absolute, number, print_json
from opnorm.cli.subjects import (
    check_network,
    is_weights,
    named_run,
    network_of_run,
    results_folder,
    run_folder,
    trust_runs,
)
from opnorm.cli.torch_loading import load_torch
from opnorm.errors import NormError, OpnormError

__all__ = ["norms", "separation"]


@dataclass(frozen=True)
class NormsOptions:
    """The options of the command."""

    input: str | None = None  # shape of one input: 3,32,32; taken from the model's in_shape when left out
    ord: str = "1,2,inf"  # which norms: 1, 2, inf, rms (from RMS to RMS), or pairs such as 1:2, from l1 to l2
    relative_width: str | None = None  # of the l2 intervals: upper / lower - 1 to aim at; 0.005 when left out
    against: str | None = None
    """a second model, run, or what --json wrote: how its norms differ; of weights: how far each one moved"""
    condition: bool = False  # of weights without a model: also the condition, from all singular values; slow
    layers: str = "*"  # only layers whose name or class matches: 'layer1.*', '*conv*', Conv2d
    fail_over: tuple[str, ...] = ()
    """end with status 1 where a norm is above, or not known: inf=12 of a layer, network:2=1e4 of the whole"""
    plot: Path | None = None  # also draw the norms: a file ending in .svg, .pdf, .png or .html
    out: Results = None
    trust: Trust = False
    json: Json = False
    csv: bool = False  # print comma-separated values
    markdown: bool = False  # print a Markdown table


def norms(model: Positional[ModelRunOrWeights], options: NormsOptions = NormsOptions()) -> None:
    """How far each layer of a network can amplify a change of its input: its operator norms, in eval mode.

    l1 and linf are exact and cost one pass over the weights; l2 is an interval that holds the true value. Below the table
    are the product of the l2 norms (spectral complexity) and, where the network's graph can be followed, upper bounds on
    its Lipschitz constants. Large norms alone do not make a network easy to attack: see the page "Which norm do I need?"
    in the documentation.

    opnorm norms 'resnet(depth=20)'

    opnorm norms 3f2a9c01d4e7 --against 'file("x.safetensors", arch=resnet(depth=20))' --ord 1,inf --plot norms.svg

    opnorm norms 'my_package.models.build(width=64)' --input 3,64,64 --layers 'stage1.*'

    opnorm norms 'cnn(width=16)' --ord 2 --relative-width 1e-6

    opnorm norms 'file("before.safetensors")' --against 'file("after.safetensors")'

    opnorm norms 3f2a9c01d4e7 --fail-over inf=12 network:2=1e4

    opnorm norms model.safetensors.index.json --against fine-tuned/   # without the model: every weight by its name
    """
    out = results_folder((model,), options.out)
    o = replace(options, plot=absolute(options.plot), out=out)
    ords = _orders(o.ord)
    gates = norm_gates(o.fail_over, ords, o.layers)
    weights = is_weights(model) and (os.path.isfile(model) or run_folder(model, out) is None)
    _check_options(o, model, weights, gates)
    _check_subjects(model, o.against, weights, out)
    load_torch()
    if weights:
        _print_weights(model, ords, gates, o)
        return

    from opnorm.norms import compare, lipschitz_bound
    from opnorm.norms.network.lipschitz import lipschitz_bounds

    if o.trust:
        trust_runs((model, *([o.against] if o.against else [])), out)
    network, example = _model_and_example(model, o)
    table = _measure(network, example, ords, o)
    result: Any = table
    bounds = {}
    if o.against is not None:
        result = compare(table, _other_table(o, example, ords))
    elif o.layers == "*":
        single = [p for p in ords if not isinstance(p, tuple | str)]
        bounds = lipschitz_bounds(network, example, single, table=table)
    if o.plot is not None:
        table.plot(o.plot)
        print(f"drawn in {o.plot}", file=sys.stderr)
    _print_norms(result, table, bounds, o)
    refuse(
        check_norms(
            gates, table, lambda p: bounds.get(p) or lipschitz_bound(network, example, p, table=table)
        )
    )


def _check_options(o: NormsOptions, model: str, weights: bool, gates: list[Gate]) -> None:
    """OpnormError for options that make no sense, or not together, before anything is loaded."""
    if o.json + o.csv + o.markdown > 1:
        raise OpnormError("--json, --csv and --markdown exclude each other")
    if o.relative_width is not None:
        check_interval(number("--relative-width", o.relative_width))
    if not weights:
        if o.condition:
            raise OpnormError(f"--condition is for a file or folder of weights; {model} is a model or a run")
        if o.input is not None:
            _shape(o.input)
        if o.plot is not None:
            check_plot_name(o.plot)
        return
    for name, given in (("--input", o.input), ("--plot", o.plot), ("--trust", o.trust)):
        if given:
            raise OpnormError(
                f"{name} is for a model; {model} is measured without one. Its network: 'file(\"{model}\", arch=...)'"
            )
    if gates and (o.against is not None or any(gate.network for gate in gates)):
        raise OpnormError(
            f"--fail-over {gates[0].text}: of {model} without its model, the norms of each weight are known"
        )


def _check_subjects(model: str, against: str | None, weights: bool, out: Path) -> None:
    """OpnormError where what is to be measured is not there, before anything is loaded."""
    for text in (model, against):
        if text is None:
            continue
        if weights or (text is against and _is_table(text)):
            check_weights(Path(_weights_of(text, out) if weights else text))
        elif run_folder(text, out) is None:
            check_network(text, out)


def _weights_of(text: str, out: Path) -> str:
    """A file or folder of weights; that of a run, should the text be the key of one."""
    run = None if os.path.exists(text) else named_run(text, out)
    return str(run / "weights.safetensors") if run else text


def _is_table(against: str) -> bool:
    """Whether a text names a table of norms that --json wrote."""
    return against.endswith(".json") and "(" not in against


def _print_weights(path: str, ords: tuple[Any, ...], gates: list[Gate], options: NormsOptions) -> None:
    """The table of a checkpoint without its model, or how far it moved."""
    from opnorm._core.progress_bar import stdout
    from opnorm.models import measure_checkpoint

    width = 5e-3 if options.relative_width is None else number("--relative-width", options.relative_width)
    against = None if options.against is None else _weights_of(options.against, Path(str(options.out)))
    # beside l2, its multiple from RMS to RMS costs nothing
    more = ("rms",) if options.ord == NormsOptions.ord else ()
    table = measure_checkpoint(
        path, against, (*ords, *more), only=options.layers, condition=options.condition,
        relative_width=width, progress=True,
    )  # fmt: skip
    if options.json:
        print_json(load_json(table.to_json()))
    elif options.csv or options.markdown:
        print(table.to_csv() if options.csv else table.to_markdown(), end="")
    else:
        stdout().print(table)
    refuse(check_norms(gates, table, lambda p: None))


def _orders(text: str) -> tuple[Any, ...]:
    if not all(part.strip() for part in text.split(",")):
        raise OpnormError(f"--ord {text!r}: expected some of 1, 2, inf, rms, such as 1,2,inf")
    return tuple(dict.fromkeys(order(part) for part in text.split(",")))


def _measure(network: Any, example: Any, ords: tuple[Any, ...], options: NormsOptions) -> Any:
    from opnorm import measure

    width = options.relative_width
    narrow = None if width is None else number("--relative-width", width)
    return measure(network, example, ords, only=options.layers, progress=True, relative_width=narrow)


def _other_table(options: NormsOptions, example: Any, ords: tuple[Any, ...]) -> Any:
    """The table of ``--against``: read, or measured for inputs of the same shape unless another one is given."""
    from opnorm.norms import NormTable

    text = options.against or ""
    if _is_table(text):
        try:
            table = NormTable.from_json(Path(text).read_text(encoding="utf-8", errors="replace"))
        except NormError as e:
            raise OpnormError(f"--against {text}: {e}") from e
        return table.select(options.layers)
    shape = options.input or ",".join(map(str, example.shape[1:]))
    return _measure(*_model_and_example(text, replace(options, input=shape)), ords, options)


def _print_norms(result: Any, table: Any, bounds: dict[Any, Any], options: NormsOptions) -> None:
    """The table or the comparison, and what follows from the table for the whole network."""
    from opnorm._core.progress_bar import stdout
    from opnorm.norms.network.lipschitz import sentences

    if options.csv:
        print(result.to_csv(), end="")
    elif options.markdown:
        print(result.to_markdown(), end="")
    elif not options.json:
        console = stdout()
        console.print(result)
        for line in sentences(bounds):
            console.print(line, markup=False)
    elif options.against is not None:
        print_json(load_json(result.to_json()))
    else:
        complexity = table.spectral_complexity
        known = {f"{p:g}": {"value": b.value, "reason": b.reason} for p, b in bounds.items()}
        print_json(
            {
                "layers": load_json(table.to_json()),
                "spectral_complexity": complexity._asdict() if complexity else None,
                "lipschitz_bound": known,
                "uncalled": list(table.uncalled),
            }
        )


def _model_and_example(text: str, options: NormsOptions) -> tuple[Any, Any]:
    """A network in eval mode, of a run or built by a call, with the weights that a training begins with; a batch of one."""
    import torch
    from torch import nn

    from opnorm import spec
    from opnorm.errors import ModelError

    out, input = results_folder((text,), options.out), options.input
    if folder := run_folder(text, out):
        network, shape = network_of_run(folder)
    else:
        check_network(text, out)
        call = spec.parse(text)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = spec.build(call, "model")
        if not isinstance(network, nn.Module):
            raise ModelError(f"{call} gave {type(network).__name__}; expected a torch.nn.Module")
        shape = () if input is not None else _input_shape(call)
    shape = shape if input is None else _shape(input)
    try:
        return network.eval(), torch.zeros(1, *shape)
    except (RuntimeError, TypeError) as e:
        raise OpnormError(f"--input {input}: {e}; expected the shape of one input, such as 3,32,32") from e


def _shape(text: str) -> tuple[int, ...]:
    """The shape of one input, from 3,32,32 or 3x32x32."""
    try:
        shape = tuple(map(int, text.strip("()[] ").removesuffix(",").replace("x", ",").split(",")))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise OpnormError(
            f"--input {text!r}: expected numbers from 1 on with commas between them, such as 3,32,32"
        )
    return shape


def _input_shape(call: Any) -> tuple[Any, ...]:
    """The in_shape that the model was made with, anywhere in the call, or in the file that the call names."""
    from opnorm import spec
    from opnorm.models.hub_models import hub_weights
    from opnorm.models.loading import READERS, SPEC_KEY, read_state_dicts, recorded_call

    calls = list(spec.calls_in(spec.full(call, "model")))
    shapes = [dict(part.kwargs).get("in_shape") for part in calls]
    if not any(isinstance(shape, tuple) for shape in shapes):
        for part in [part for part in calls if part.name in READERS]:
            read: dict[str, Any] = dict(part.kwargs)
            path = str(read["path"]) if "path" in read else hub_weights(read["repo"], read["revision"])
            metadata = read_state_dicts(path)[1]
            if read["arch"] is None:
                recorded = spec.full(recorded_call(path, metadata), "model")
            else:  # of another network: as text, for nothing in it is looked up
                recorded = spec.parse(metadata.get(SPEC_KEY, "unknown()"))
            shapes += [dict(part.kwargs).get("in_shape") for part in spec.calls_in(recorded)]
    for shape in reversed(shapes):
        if isinstance(shape, tuple):
            return shape
    raise OpnormError(f"{call} does not say which inputs it takes; add --input, such as --input 3,32,32")


def separation(
    data: Positional[Data] = "digits()",
    norm: Annotated[str, Help("1, 2 or inf")] = "inf",
    split: Annotated[Literal["train", "test", "all"], Help("which points; all: both")] = "train",
    json: Json = False,
) -> None:
    """How far the classes of a data set are apart: the nearest two points of different classes, over all pairs, exactly.

    Below half of that distance no two balls around points of different classes meet, so that some network could be robust
    on all of them.

    opnorm separation 'parquet("cifar10")' --norm inf
    """
    p = number("--norm", plain_order(norm))
    check_choice("norm", p, (1, 2, math.inf))
    check_call(data, "data set")
    load_torch()

    from opnorm import spec
    from opnorm.cli.progress import Bar
    from opnorm.data.class_separation import separation as search

    dataset = spec.build(data, "data set")
    with Bar("all pairs", total=1.0) as bar:
        found = search(
            dataset, p, split,
            lambda share, least: bar.update(share, f"nearest {least:.4g}"),
        )  # fmt: skip
    if json:
        about = {"norm": norm, "eps": found.eps, "data": data, "split": split}
        return print_json(found._asdict() | about)
    (i, j), (a, b) = found.pair, found.labels
    where = f"{label(found.norm)}, of {found.points:,} points (pixels in [0, 1])"
    print(f"separation        {found.distance:.6g} in {where}")
    print(f"the nearest two   {i} (class {a}) and {j} (class {b})")
    print(f"balls apart       below ε = {found.eps:.6g}")
    return None
