"""Sphinx: `make docs` writes docs/_build/index.html."""

import re

import opnorm

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


def setup(app):
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", _before, priority=100)  # before napoleon writes its own markup
