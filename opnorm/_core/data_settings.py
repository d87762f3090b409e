"""The settings of data sets that are read, which can be checked before anything of them is loaded."""

from pathlib import PurePosixPath

from opnorm._core.settings import check_count
from opnorm.errors import DataError, OpnormError

__all__ = ["check_names", "check_repository", "check_sides"]


def check_sides(**sides: object) -> None:
    """DataError unless each side of an image is None or a whole number of pixels."""
    for name, side in sides.items():
        check_count(name, side, unit="pixels", optional=True, error=DataError)


def check_names(**names: object) -> None:
    """DataError unless each is text or None."""
    for name, value in names.items():
        if value is not None and not isinstance(value, str):
            raise DataError(f"{name}={value!r:.60}: expected a name as text")


def check_repository(repo: object, config: str | None = None, error: type[OpnormError] = DataError) -> None:
    """Raise unless it is a name on the hub and a folder inside the repository, or None for the whole of it."""
    if not isinstance(repo, str):
        raise error(f"repo={repo!r:.60}: expected the owner and the name, such as 'uoft-cs/cifar10'")
    inside = PurePosixPath(config or ".")
    if config is not None and (not config.strip("/ ") or ".." in inside.parts or inside.is_absolute()):
        raise error(f"config={config!r}: expected a folder of the repository, such as config='plain_text'")
