"""``opnorm export`` and ``opnorm push``: a finished run as a folder for others, and on the Hugging Face hub."""

import os
import tempfile
from pathlib import Path
from typing import Annotated

from opnorm._core.files import shown
from opnorm.cli.call_checks import check_folder
from opnorm.cli.marks import Help, Positional
from opnorm.cli.options import Json, RunName, Runs, print_json
from opnorm.cli.subjects import no_run, run_folder
from opnorm.cli.torch_loading import load_torch

__all__ = ["export", "finished_run", "push"]


def finished_run(text: str, out: Path) -> Path:
    """The folder of a run that has weights; OpnormError where there is none, or it is damaged."""
    from opnorm.runs.damage import check_whole

    out = Path(os.path.abspath(out))
    folder = run_folder(text, out)
    if folder is None:
        raise no_run(text, out)
    check_whole(folder)
    return folder


def export(
    run: Positional[RunName],
    to: Annotated[Path, Help("folder to write to: new, or of an earlier export")],
    out: Runs = Path("runs"),
    json: Json = False,
) -> None:
    """Write a finished run as a folder for others: weights, model card, settings, and load.py, as the hub expects them.

    opnorm export 3f2a9c01d4e7 --to my_network
    """
    folder = finished_run(run, out)
    check_folder(to)
    load_torch()

    from opnorm.runs.export import export as write

    files = [str(shown(path)) for path in write(folder, Path(os.path.abspath(to)))]
    if json:
        return print_json({"files": files})
    return print("\n".join(files))


def push(
    run: Positional[RunName],
    repo: Annotated[str, Help("user/name on the hub; made where it is missing")],
    private: Annotated[bool, Help("make the repository private")] = False,
    dry_run: Annotated[
        bool, Help("say which files would be uploaded; needs no network and no token")
    ] = False,
    out: Runs = Path("runs"),
    json: Json = False,
) -> None:
    """Upload what opnorm export writes to the Hugging Face hub (or the one at HF_ENDPOINT); needs a token of the hub.

    opnorm push 3f2a9c01d4e7 --repo user/name --private

    opnorm push 3f2a9c01d4e7 --repo user/name --dry-run
    """
    folder = finished_run(run, out)
    load_torch()

    from opnorm.runs.export import push as upload

    if dry_run:
        return _print_files(folder, repo, json)
    url = upload(folder, repo, private=private)
    if json:
        return print_json({"url": url, "call": f"hf({repo!r})"})
    return print(f"{url}\nload it: hf({repo!r}), in Python opnorm.models.hf({repo!r})")


def _print_files(folder: Path, repo: str, json: bool) -> None:
    """What would be uploaded."""
    from opnorm.runs.export import export as write

    with tempfile.TemporaryDirectory(prefix="opnorm-push-") as made:
        sizes = {path.name: path.stat().st_size for path in write(folder, Path(made))}
    if json:
        return print_json({"repo": repo, "files": sizes})
    for name, size in sizes.items():
        print(f"{name:20}  {size:12,} bytes")
    again = f"opnorm export {shown(folder)} --to FOLDER"
    return print(f"nothing was uploaded; these would be, to {repo}; {again} writes them to look at")
