"""Where results are kept that any later process can use again."""

import os
from pathlib import Path

from opnorm.errors import OpnormError

__all__ = ["cache_folder"]


def cache_folder() -> Path:
    """``$OPNORM_CACHE``, else ``$XDG_CACHE_HOME/opnorm``, else ``~/.cache/opnorm``.

    Raises:
        OpnormError: ``$OPNORM_CACHE`` begins with the home of a user who is not known.
    """
    if own := os.environ.get("OPNORM_CACHE"):
        try:
            return Path(own).expanduser()
        except RuntimeError as e:
            raise OpnormError(f"OPNORM_CACHE={own!r}: expected a folder; {e}") from e
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared) / "opnorm"
    return Path(os.path.expanduser("~")) / ".cache" / "opnorm"
