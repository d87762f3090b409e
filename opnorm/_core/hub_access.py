"""The Hugging Face hub: the package that reaches it, downloads, and why something failed, in one line."""

import os
from pathlib import Path
from typing import Any

from opnorm.errors import OpnormError

__all__ = ["download", "hub_failure", "hub_package"]


def hub_package(what: str, error: type[OpnormError], instead: str = "") -> Any:
    """The package huggingface_hub; ``error`` where it is not installed."""
    try:
        import huggingface_hub
        from huggingface_hub import errors  # noqa: F401 - of the versions that have it
    except ImportError as e:
        raise error(
            f"{what} needs the package huggingface-hub ({e}): pip install 'opnorm[hub]'{instead}"
        ) from e
    return huggingface_hub


def download(
    repo: str,
    kind: str,
    revision: str | None,
    patterns: list[str],
    *,
    what: str,
    error: type[OpnormError],
    instead: str = "",
) -> Path:
    """The folder with a repository's files that match patterns, in the hub's own cache; ``$HF_ENDPOINT`` is the hub.

    Args:
        repo: "owner/name".
        kind: "model" or "dataset".
        revision: a branch, tag or commit.
        patterns: of the files.
        what: asks for it, for messages, such as ``hf('me/set')``.
        error: the class of the error that is raised.
        instead: what else helps where the package is missing or the hub cannot be reached.
    """
    package = hub_package(what, error, f". {instead}" if instead else "")
    where = {"endpoint": os.environ["HF_ENDPOINT"]} if "HF_ENDPOINT" in os.environ else {}
    try:
        return Path(
            package.snapshot_download(
                repo_id=repo, repo_type=kind, revision=revision, allow_patterns=patterns, **where
            )
        )
    except Exception as e:
        expected = f"a {'data set' if kind == 'dataset' else kind} on the Hugging Face hub"
        reason = hub_failure(e, revision, f"; {instead}" if instead else "")
        raise error(f"{what}: expected {expected}, but the download failed {reason}") from e


def hub_failure(e: Exception, revision: str | None = None, instead: str = "") -> str:
    """The first line of an error of the hub in brackets, and its likely cause."""
    from huggingface_hub import errors

    status = getattr(getattr(e, "response", None), "status_code", None)
    causes = {
        errors.GatedRepoError: "access needs a permission: accept the terms on its page, then run `hf auth login`",
        errors.RepositoryNotFoundError: "a typing error in 'owner/name', or it is private and needs `hf auth login`",
        errors.RevisionNotFoundError: f"revision={revision!r} is not a branch, tag or commit of it",
        errors.HFValidationError: "not of the form 'owner/name'",
        Exception: f"no network, a proxy, or the hub is down{instead}",
    }
    cause = next(text for kind, text in causes.items() if isinstance(e, kind))
    if status in (401, 403) and not isinstance(e, errors.GatedRepoError | errors.RepositoryNotFoundError):
        cause = "the token is wrong, has ended, or may not write there: `hf auth login` with one that may"
    lines = [line.strip() for line in str(e).splitlines() if line.strip()]
    reason = ": ".join([type(e).__name__, *(f"{line:.200}" for line in lines[:1])])
    return f"({reason}). Likely cause: {cause}"
