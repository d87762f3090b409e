"""Image sets of the Hugging Face hub, downloaded once and then read like any parquet folder."""

from pathlib import Path

from opnorm._core.data_settings import check_names, check_repository, check_sides
from opnorm._core.hub_access import download
from opnorm.data._parquet import read_parquet
from opnorm.data.dataset import Dataset
from opnorm.data.encoded_parts import Reading
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
    *,
    center_crop: int | None = None,
    train: str | None = None,
    test: str | None = None,
    stream: bool = False,
    skip_bad: bool = False,
) -> Dataset:
    """Download a data set's parquet files from the Hugging Face hub and read them as :func:`opnorm.data.parquet` does.

    Needs the extra ``opnorm[hub]``. Only parquet files are downloaded, into the hub's own cache (``$HF_HOME``), and no
    code of the repository is run.

    Args:
        repo: "owner/name", such as "uoft-cs/cifar10".
        config: the subfolder of one of several data sets in the repository.
        revision: a branch, tag or commit; a commit makes the download reproducible, and "refs/convert/parquet" is the
            hub's own parquet copy of a set stored in another format.
        image: the image column; found from the schema if there is only one.
        label: the label column; found from the schema if there is only one.
        size: resize to a short side of this many pixels and crop the center.
        center_crop: evaluations see only the central square of this many pixels; see :meth:`Dataset.center_crop`.
        train: the name of the training part, as of :func:`opnorm.data.parquet`.
        test: the name of the test part, such as "validation".
        stream: leave the images encoded on the disk, as of :func:`opnorm.data.parquet`.
        skip_bad: leave out images that cannot be decoded, as of :func:`opnorm.data.parquet`.

    Returns:
        A data set of uint8 (N, C, H, W) images, named ``repo``, or ``repo/config``.

    Raises:
        DataError: huggingface-hub is not installed, the download failed, or as :func:`opnorm.data.parquet`.
    """
    check_sides(size=size, center_crop=center_crop)
    check_names(image=image, label=label, train=train, test=test, config=config, revision=revision)
    check_repository(repo, config)
    root = _download(repo, config, revision) / (config or ".")
    if not root.is_dir() or next(root.rglob("*.parquet"), None) is None:
        searched = f"the folder {config!r} of {repo!r}" if config else repo
        raise DataError(
            f"hf({repo!r}): no parquet files in {searched}. Likely cause: a wrong config, or a set stored in another "
            "format; revision='refs/convert/parquet' is the hub's own parquet copy of most sets"
        )
    name = f"{repo}/{config}" if config else repo
    reading = Reading(size, stream, skip_bad)
    return read_parquet(root, name, (image, label), reading, (train, test)).center_crop(center_crop)


def _download(repo: str, config: str | None, revision: str | None) -> Path:
    pattern = f"{config.strip('/')}/*.parquet" if config else "*.parquet"
    return download(
        repo, "dataset", revision, [pattern], what=f"hf({repo!r})", error=DataError,
        instead="Files that are already on this machine are read by parquet(path)",
    )  # fmt: skip
