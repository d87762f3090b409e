"""Where results are kept that any later process can use again."""

import os
from pathlib import Path

__all__ = ["cache_folder"]


def cache_folder() -> Path:
    """``$OPNORM_CACHE``, else ``$XDG_CACHE_HOME/opnorm``, else ``~/.cache/opnorm``."""
    if own := os.environ.get("OPNORM_CACHE"):
        return Path(own).expanduser()
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared) / "opnorm"
    return Path(os.path.expanduser("~")) / ".cache" / "opnorm"
