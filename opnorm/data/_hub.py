"""Image sets of the Hugging Face hub, downloaded once and then read like any parquet folder."""

from pathlib import Path

from opnorm.data._parquet import read
from opnorm.data.dataset import Dataset
from opnorm.data.decode import check_size
from opnorm.errors import DataError
from opnorm.spec import factory

__all__ = ["hf"]


@factory("data set")
def hf(
    repo: str,
    config: str | None = None,
    revision: str | None = None,
    image: str | None = None,
    label: str | None = None,
    size: int | None = None,
) -> Dataset:
    """Download a data set's parquet files from the Hugging Face hub and read them.

    Needs the extra ``opnorm[hub]``. Only parquet files are downloaded, into the hub's own cache
    (``$HF_HOME``), and no code of the repository is run. Splits and columns are found as by
    :func:`opnorm.data.parquet`.

    Args:
        repo: "owner/name", such as "uoft-cs/cifar10".
        config: the repository's subfolder, where it holds several variants of the data.
        revision: a branch, tag or commit; a commit makes the download reproducible, and
            "refs/convert/parquet" is the hub's own parquet copy of a set stored in another way.
        image: the image column; found by itself if there is only one.
        label: the label column; found by itself if there is only one.
        size: resize to a short side of so many pixels and crop the centre.

    Returns:
        A data set of uint8 (N, C, H, W) images, named ``repo``, or ``repo/config``.

    Raises:
        DataError: huggingface-hub is not installed, the download failed, or as :func:`opnorm.data.parquet`.
    """
    check_size(size)
    if config is not None and (
        not config.strip("/ ") or ".." in Path(config).parts or Path(config).is_absolute()
    ):
        raise DataError(
            f"config={config!r}: expected a folder of the repository, such as config='plain_text'"
        )
    root = _download(repo, config, revision)
    if config is not None:
        root = root / config
    if not root.is_dir() or next(root.rglob("*.parquet"), None) is None:
        inside = f"the folder {config!r} of {repo!r}" if config else repo
        raise DataError(
            f"hf({repo!r}): no parquet files in {inside}. Likely cause: a wrong config, or the set is stored "
            "in another way; revision='refs/convert/parquet' is the hub's own parquet copy of most sets"
        )
    return read(root, image, label, size, name=f"{repo}/{config}" if config else repo)


def _download(repo: str, config: str | None, revision: str | None) -> Path:
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError as e:
        raise DataError(
            f"hf({repo!r}) needs the package huggingface-hub ({e}): pip install 'opnorm[hub]'. "
            "Files that are already on this machine are read by parquet(path)"
        ) from e
    pattern = f"{config.strip('/')}/*.parquet" if config else "*.parquet"
    try:
        return Path(
            huggingface_hub.snapshot_download(
                repo_id=repo, repo_type="dataset", revision=revision, allow_patterns=[pattern]
            )
        )
    except errors.GatedRepoError as e:
        cause = "the owner grants access on request: accept the terms on its page, then run `hf auth login`"
        raise _failed(repo, e, cause) from e
    except errors.RepositoryNotFoundError as e:
        cause = "a typing error in 'owner/name', or it is private and needs `hf auth login`"
        raise _failed(repo, e, cause) from e
    except errors.RevisionNotFoundError as e:
        raise _failed(repo, e, f"revision={revision!r} is not a branch, tag or commit of it") from e
    except errors.HFValidationError as e:
        raise _failed(repo, e, "not of the form 'owner/name'") from e
    except Exception as e:
        cause = "no network, a proxy, or the hub is down; what was downloaded before is read by parquet(path)"
        raise _failed(repo, e, cause) from e


def _failed(repo: str, error: Exception, cause: str) -> DataError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = f"{type(error).__name__}: {lines[0]:.200}" if lines else type(error).__name__
    return DataError(
        f"hf({repo!r}): expected a data set on the Hugging Face hub, but the download failed ({said}). "
        f"Likely cause: {cause}"
    )
