"""Where the user's own code raised an error."""

import os
import sysconfig
import traceback
from pathlib import Path

__all__ = ["place_of"]

OTHERS = (str(Path(__file__).parents[1]) + os.sep, sysconfig.get_path("stdlib"), "<")
"""How the names of files begin that are not the user's own."""


def place_of(error: BaseException) -> str:
    """Where the user's own code raised an error, or called what did: the last line that is not opnorm's or installed.

    Returns:
        ``, at line 5 of mine.py, in build``; empty where no such line is known.
    """
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not frame.filename.startswith(OTHERS) and "site-packages" not in frame.filename:
            file, here = Path(frame.filename), Path.cwd()
            shown = file.relative_to(here) if file.is_relative_to(here) else file
            return f", at line {frame.lineno} of {shown}, in {frame.name}"
    return ""
