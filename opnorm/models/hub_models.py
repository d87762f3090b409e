"""Networks of the Hugging Face hub that opnorm wrote."""

from torch import nn

from opnorm._core.data_settings import check_repository
from opnorm._core.hub_access import download
from opnorm.errors import ModelError
from opnorm.models.loading import file
from opnorm.spec import factory

__all__ = ["WEIGHTS", "hf", "hub_weights"]

WEIGHTS = "model.safetensors"
"""The name of the weights in a repository."""


@factory("model")
def hf(repo: str, revision: str | None = None, arch: nn.Module | None = None) -> nn.Module:
    """A network of the Hugging Face hub, as ``opnorm push`` wrote it: ``hf("user/name")``.

    Needs the extra ``opnorm[hub]``. Its weights alone are downloaded, into the hub's own cache (``$HF_HOME``), and no code
    of the repository is run.

    Args:
        repo: "user/name".
        revision: a branch, tag or commit; a commit makes the download reproducible.
        arch: the network to fill; not needed for one of opnorm's own networks, which the weights name.

    Raises:
        ModelError: huggingface-hub is not installed, the download failed, or as :func:`opnorm.models.file`.
    """
    check_repository(repo, error=ModelError)
    return file(hub_weights(repo, revision), arch)


def hub_weights(repo: str, revision: str | None = None) -> str:
    """The file of a repository's weights, downloaded where it is not in the hub's cache."""
    what = f"hf({repo!r})"
    instead = "a folder on this machine is read by file(path)"
    folder = download(repo, "model", revision, [WEIGHTS], what=what, error=ModelError, instead=instead)
    if not (folder / WEIGHTS).is_file():
        raise ModelError(f"{what} has no {WEIGHTS}; expected a network that opnorm push wrote")
    return str(folder / WEIGHTS)
