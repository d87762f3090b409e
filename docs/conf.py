"""Sphinx: `make docs` writes docs/_build/index.html."""

import inspect
import re

import opnorm
from opnorm.analyses import all_analyses

project = "opnorm"
author = "the opnorm authors"
version = release = opnorm.__version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_custom_sections = [("Source", "Source")]
html_theme = "furo"
html_title = f"opnorm {version}"
html_copy_source = False
html_show_sphinx = False
nitpicky = False


def _escape(text: str) -> str:
    """Formulas in docstrings have bars, stars and trailing underscores that reStructuredText would read as markup."""
    pieces = re.split(r"(``.*?``|:\w+:`[^`]*`|`[^`]*`)", text)
    pieces[::2] = [re.sub(r"[|*]|(?<=\w)_(?=\W|$)", r"\\\g<0>", piece) for piece in pieces[::2]]
    return "".join(pieces)


def _before(app, what, name, obj, options, lines):
    code = False  # doctests are left as they are
    for i, line in enumerate(lines):
        code = line.lstrip().startswith(">>>") or (code and bool(line.strip()))
        if not code:
            lines[i] = _escape(line)


def _analyses_table(section):
    """The registered analyses of a section as a table, so that no page lists them by hand."""
    lines = ["| analysis | result | points | source |", "|---|---|---|---|"]
    for one in all_analyses():
        if one.section == section:
            text = inspect.getdoc(one.factory)
            source = re.search(r"^Source: (.*)$", text, re.MULTILINE)
            points = inspect.signature(one.factory).parameters.get("points")
            count = "all" if points is None or points.default is None else str(points.default)
            count = "none" if section == "weights" else count
            first = "first " if count not in ("all", "none") and "first ``points``" in text else ""
            result = text.splitlines()[0].replace("|", "\\|")
            lines.append(
                f"| `{one.name}` | {result} | {first}{count} | {source[1].strip('.') if source else ''} |"
            )
    return "\n".join(lines)


def insert_tables(text):
    """A page's text with the tables of analyses."""
    return re.sub(r"<!-- analyses: (.*?) -->", lambda found: _analyses_table(found[1]), text)


def _read(app, docname, source):
    source[0] = insert_tables(source[0])


def setup(app):
    """Called by Sphinx."""
    app.connect("source-read", _read)
    app.connect("autodoc-process-docstring", _before, priority=100)  # before napoleon writes its own markup
