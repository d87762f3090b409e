"""The text of an exported network: its model card for the Hugging Face hub, and the script that loads it."""

import json
from typing import Any, NamedTuple

import opnorm
from opnorm import spec
from opnorm._core.confidence import confidence_interval
from opnorm._core.plain_text import markdown_row
from opnorm.errors import OpnormError
from opnorm.runs.run_columns import RobustAccuracy

__all__ = ["Exported", "loading_lines", "model_card", "needs_code"]

ORDS = (("1", "ℓ1"), ("2", "ℓ2"), ("inf", "ℓ∞"))

LIMITS = """\
- Images are as those of the data above: the same shape, pixels in [0, 1]; normalization is inside the network. Nothing is
  known of other images.
- A robust accuracy is what one attack left, on these points: an upper bound of the true one. A stronger attack, another norm
  or a larger radius finds more adversarial points, and robustness to other changes of an image is not covered.
- Norms are of the network in eval mode. Small norms bound how far outputs move; they do not make predictions right.
- It is a research network, trained to study norms and robustness, and was not tested for use where errors do harm.
"""

CITE = """\
@software{{opnorm,
  title = {{opnorm: operator norms of neural networks}},
  author = {{{{The opnorm authors}}}},
  version = {{{version}}},
}}
"""


class Exported(NamedTuple):
    """What is known of a network that is exported.

    Attributes:
        key: of the run.
        call: that builds the network; None where none is recorded.
        settings: of the run.
        known: what the network took from the data: in_shape, classes, mean, std.
        data: the data set's name, sizes and shape.
        where: versions and machine of the training.
        ended: when the training ended.
        clean: rows of the accuracy, by split.
        robust: robust accuracies by attack and radius.
        norms: rows of the table of norms.
    """

    key: str
    call: spec.Call | None
    label: str
    settings: dict[str, Any]
    known: dict[str, Any]
    data: dict[str, Any]
    where: dict[str, Any]
    ended: str
    clean: list[dict[str, Any]]
    robust: list[RobustAccuracy]
    norms: list[dict[str, Any]]

    @property
    def title(self) -> str:
        """Network, way of training and data, in a line."""
        run = self.settings
        return f"{run.get('model')} on {self.data.get('name', run.get('data'))}, {self.label}"


def needs_code(call: spec.Call | None) -> list[str]:
    """The packages beside opnorm whose code builds a network."""
    parts = [] if call is None else list(spec.calls_in(call))
    return list(dict.fromkeys(part.name.partition(".")[0] for part in parts if "." in part.name))


def loading_lines(exported: Exported) -> list[str]:
    """A script of at most ten lines that loads the network from its own folder, and classifies a random image."""
    shape, own = exported.known.get("in_shape") or (3, 32, 32), needs_code(exported.call)
    extra = "[timm]" if exported.call and any(c.name == "timm" for c in spec.calls_in(exported.call)) else ""
    also = f" It needs {' and '.join(own)}, too." if own else ""
    arch = f", arch=spec.build({str(exported.call)!r}, 'model')" if own else ""
    return [
        f'"""Load this network: pip install "opnorm{extra}=={opnorm.__version__}", then python load.py.{also}"""',
        "from pathlib import Path",
        "",
        "import torch",
        *(["from opnorm import spec"] if own else []),
        "from opnorm.models import file",
        "",
        f'model = file(str(Path(__file__).with_name("model.safetensors")){arch}).eval()',
        f"images = torch.rand(1, {', '.join(map(str, shape))})  # pixels in [0, 1]; normalization is inside",
        "print(model(images).argmax(1))",
    ]


def model_card(exported: Exported, script: str) -> str:
    """The card: a header for the hub, then data, training, accuracies, norms, limits of use and how to cite."""
    e = exported
    own = needs_code(e.call)
    needs = (
        f"The network is built by code of {', '.join(own)}, which is not in this repository.\n\n"
        if own
        else ""
    )
    parts = [
        "---\n" + "".join(f"{name}: {json.dumps(value)}\n" for name, value in _header(e).items()) + "---\n",
        f"# {e.title}\n",
        f"Trained with opnorm {opnorm.__version__}, run `{e.key}`.\n",
        f"## Load it\n\n{needs}```python\n{script}```\n\n"
        f"`opnorm.models.hf(\"user/name\")` loads it from the hub; `opnorm norms`, `attack` and `analyze` take this call.\n",
        "## Data\n\n" + _table(["", ""], [[name, str(value)] for name, value in e.data.items()]),
        "## Training\n\n" + _table(["setting", "value"], [[k, f"`{_text(v)}`"] for k, v in e.settings.items()]),
        "## Accuracy\n\n" + _accuracies(e),
        "## Norms\n\n" + _norms(e.norms),
        f"## Limits of use\n\n{LIMITS}",
        f"## How to cite\n\n```bibtex\n{CITE.format(version=opnorm.__version__)}```\n\n"
        "And the paper whose method was used: the documentation of each method of opnorm names it.\n",
    ]  # fmt: skip
    return "\n".join(parts)


def _text(value: Any) -> str:
    return " + ".join(map(str, value)) or "none" if isinstance(value, list | tuple) else str(value)


def _header(e: Exported) -> dict[str, Any]:
    """The metadata that the hub reads; JSON is YAML."""
    metrics = [
        {"type": "accuracy", "name": f"{row['split']} accuracy", "value": row["correct"] / row["points"]}
        for row in e.clean
        if row["points"]
    ]
    metrics += [
        {"type": "accuracy", "name": f"robust accuracy: {r.attack}, norm {r.norm}, eps {r.eps:.6g}, {r.points} points",
         "value": r.accuracy}
        for r in e.robust
    ]  # fmt: skip
    repo = _hub_data(e.settings.get("data"))
    dataset = {"name": str(e.data.get("name", "unknown")), "type": repo or str(e.data.get("name", "unknown"))}
    task = {"type": "image-classification", "name": "Image classification"}
    header: dict[str, Any] = {
        "library_name": "opnorm",
        "pipeline_tag": "image-classification",
        "tags": ["opnorm", "operator-norm", "adversarial-robustness", "image-classification"],
    }
    header |= {"datasets": [repo]} if repo else {}
    results = [{"task": task, "dataset": dataset, "metrics": metrics}] if metrics else []
    return header | ({"model-index": [{"name": e.title, "results": results}]} if results else {})


def _hub_data(data: Any) -> str | None:
    """The hub's name of the data, where they are from there."""
    try:
        call = spec.parse(str(data))
    except OpnormError:
        return None
    repo = dict(call.kwargs).get("repo", call.args[0] if call.args else None)
    return repo if call.name == "hf" and isinstance(repo, str) else None


def _accuracies(e: Exported) -> str:
    rows = [[f"clean, {row['split']}", "", "", *_share(row["correct"], row["points"])] for row in e.clean]
    rows += [[f"`{r.attack}`", r.norm, f"{r.eps:.6g}", *_share(r.robust, r.points)] for r in e.robust]
    if not rows:
        return "Not measured: `opnorm attack` and `opnorm analyze` measure it.\n"
    return _table(["attack", "norm", "ε", "accuracy", "95 % interval", "points"], rows)


def _share(correct: int, points: int) -> list[str]:
    low, high = confidence_interval(correct, points)
    return [f"{correct / points:.2%}" if points else "-", f"{low:.1%} to {high:.1%}", str(points)]


def _norms(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return "Not measured: `opnorm norms` measures them.\n"
    cells = [
        [row["layer"] or "(model)", row["kind"], *(_norm(row, ord) for ord, _ in ORDS)]
        for row in rows
        if row["norms"]
    ]
    head = ["layer", "kind", *(label for _, label in ORDS)]
    return (
        _table(head, cells)
        + "\nUpper ends of what each layer can do to a change of its input, in eval mode.\n"
    )


def _norm(row: dict[str, Any], ord: str) -> str:
    upper = row["norms"].get(ord, {}).get("upper")
    return "not known" if upper is None else f"{upper:.5g}"


def _table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(map(markdown_row, [head, ["---"] * len(head), *rows])) + "\n"
