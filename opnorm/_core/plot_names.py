"""The names of plots, which say in which format to draw."""

from pathlib import Path

from opnorm.errors import NormError

__all__ = ["check_plot_name"]


def check_plot_name(path: Path) -> str:
    """The format of a plot, by its name; NormError for one that cannot be drawn."""
    ending = path.suffix.lower().removeprefix(".")
    if ending not in ("svg", "pdf", "png", "html"):
        raise NormError(f"a plot's name ends in .svg, .pdf, .png or .html, not {path.suffix!r}")
    return ending
