"""A finished run as a folder that others can use: weights, model card, settings, a script that loads it; and on the hub."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import opnorm
from opnorm import spec
from opnorm._core import files
from opnorm._core.hub_access import hub_failure, hub_package
from opnorm.errors import OpnormError, RunError
from opnorm.models.hub_models import WEIGHTS
from opnorm.models.loading import READERS, SPEC_KEY
from opnorm.runs.method_label import label_of
from opnorm.runs.model_card import Exported, loading_lines, model_card
from opnorm.runs.run_columns import robust_accuracies
from opnorm.runs.store import Store

__all__ = ["export", "push"]

CONFIG, CARD, SCRIPT = "config.json", "README.md", "load.py"
WRITTEN = {WEIGHTS, CONFIG, CARD, SCRIPT}


def export(folder: Path, to: Path) -> list[Path]:
    """Write the network of a finished run as a model repository: four files, which are named in the order of writing.

    The weights, as safetensors, record the call of the network; ``config.json`` has the settings of the run; ``README.md``
    is a model card with accuracies, norms and limits of use; ``load.py`` loads the network. Of absolute paths in
    calls, the last part alone is written.

    Args:
        folder: of the run.
        to: made where it is missing; an earlier export in it is replaced.

    Raises:
        RunError: the run is damaged or has no weights, or the folder cannot be written.
        OpnormError: the folder has other files.
    """
    try:
        others = sorted({path.name for path in to.iterdir()} - WRITTEN) if to.exists() else []
    except OSError as e:
        raise RunError(f"{files.shown(to)} is no folder to write to: {e.strerror or e}") from e
    if others:
        raise OpnormError(
            f"{files.shown(to)} has other files, such as {others[0]}; expected a new folder, or one of an earlier export"
        )
    about = Store(folder.parent).read(folder)
    if not isinstance(about.get("run"), dict) or folder.name.endswith(".partial"):
        raise RunError(f"{files.shown(folder)} is no finished run of opnorm train")
    tensors, metadata = files.read_tensors(folder / "weights.safetensors", checked=True)
    call = _network_alone(spec.parse(metadata[SPEC_KEY])) if SPEC_KEY in metadata else None
    exported = _exported(folder, about, call)
    files.make_folder(to)
    written = {"format": "pt"} | ({SPEC_KEY: str(call)} if call is not None else {})
    files.write_tensors(to / WEIGHTS, tensors, written)
    files.write_json(to / CONFIG, _config(exported))
    script = "\n".join(loading_lines(exported)) + "\n"
    for name, text in ((CARD, model_card(exported, script)), (SCRIPT, script)):
        files.write_bytes(to / name, text.encode("utf-8", "backslashreplace"))
    return [to / name for name in (WEIGHTS, CONFIG, CARD, SCRIPT)]


def _network_alone(call: spec.Call) -> spec.Call:
    """The network of a call, without the file that it was first filled from, whose place these weights take."""
    while call.name in READERS and isinstance(inner := dict(call.kwargs).get("arch"), spec.Call):
        call = inner
    return _last_parts(call)


def _exported(folder: Path, about: dict[str, Any], call: spec.Call | None) -> Exported:
    store = Store(folder.parent)
    analyses = store.results(folder.name)
    attacks = [row for row in Store(store.root / "attacks").ls() if row.get("subject") == folder.name]
    robust = robust_accuracies(analyses, attacks, str(about["run"].get("data")))
    return Exported(
        key=folder.name,
        call=call,
        label=label_of(about),
        settings={
            name: _without_folders(value) if name in ("model", "data") else value
            for name, value in about["run"].items()
            if name != "analyses"
        },
        known=about.get("known", {}),
        data=about.get("data", {}),
        where=about.get("where", {}),
        ended=str(about.get("ended", "")),
        clean=[row for row in _rows(analyses, "accuracy") if {"split", "correct", "points"} <= row.keys()],
        robust=robust,
        norms=_rows(analyses, "norm_table"),
    )


def _rows(analyses: dict[str, dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [
        row for call, saved in analyses.items() if call.partition("(")[0] == name for row in saved["rows"]
    ]


def _without_folders(text: Any) -> str:
    """A call with the last part alone of the paths of this machine."""
    try:
        return str(_last_parts(spec.parse(str(text))))
    except OpnormError:
        return str(text)


def _last_parts(call: spec.Call) -> spec.Call:
    def new(value: Any) -> Any:
        return Path(value).name if isinstance(value, str) and os.path.isabs(value) else value

    call = spec.map_calls(call, _last_parts)
    return spec.Call(call.name, tuple(map(new, call.args)), tuple((k, new(v)) for k, v in call.kwargs))


def _config(exported: Exported) -> dict[str, Any]:
    return {
        "library_name": "opnorm",
        "opnorm_version": opnorm.__version__,
        "model": None if exported.call is None else str(exported.call),
        "key": exported.key,
        "run": exported.settings,
        "in_shape": exported.known.get("in_shape"),
        "classes": exported.known.get("classes"),
        "trained_with": exported.where,
    }


def push(folder: Path, repo: str, *, private: bool = False) -> str:
    """Upload the network of a finished run to the Hugging Face hub, or the hub at ``$HF_ENDPOINT``; gives its address.

    Needs the extra ``opnorm[hub]``, and a token: ``hf auth login``, or ``$HF_TOKEN``.

    Args:
        folder: of the run.
        repo: "user/name", made where it is missing.
        private: make it private; a public repository that exists is refused.

    Raises:
        OpnormError: huggingface-hub is not installed, there is no token, or the upload failed.
        RunError: as :func:`export`.
    """
    what = f"push to {repo}"
    package = hub_package(what, OpnormError)
    if package.get_token() is None:
        raise OpnormError(
            f"{what}: not logged in to the hub; run `hf auth login`, or set HF_TOKEN; --dry-run shows what would be uploaded"
        )
    api = package.HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
    with tempfile.TemporaryDirectory(prefix="opnorm-push-") as made:
        export(folder, Path(made))
        try:
            address = api.create_repo(repo, private=private or None, exist_ok=True)
            public = private and not api.model_info(repo).private
            if not public:
                message = json.loads((Path(made) / CONFIG).read_text(encoding="utf-8"))["key"]
                api.upload_folder(repo_id=repo, folder_path=made, commit_message=f"opnorm run {message}")
        except Exception as e:
            raise OpnormError(
                f"{what} failed {hub_failure(e)}. Nothing is lost; the same command tries again"
            ) from e
    if public:
        raise OpnormError(
            f"{what}: the repository exists and is public, and --private was given; nothing was uploaded"
        )
    return str(address)
