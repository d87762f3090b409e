"""Sphinx: `make docs` writes docs/_build/index.html."""

import inspect
import re
import sys
from pathlib import Path

import opnorm
from opnorm.analyses import all_analyses

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import method_pages  # noqa: E402
import reference_pages  # noqa: E402

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
html_static_path = ["_static"]
html_css_files = ["tables.css"]
html_title = f"opnorm {version}"
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
nitpicky = False


def _escape(text: str) -> str:
    """Formulas in docstrings have bars, stars and trailing underscores that reStructuredText would read as markup."""
    pieces = re.split(r"(``.*?``|:\w+:`[^`]*`|`[^`]*`)", text)
    pieces[::2] = [re.sub(r"[|*]|(?<=\w)_(?=\W|$)", r"\\\g<0>", piece) for piece in pieces[::2]]
    return "".join(pieces)


def _before(app, what, name, obj, options, lines):
    """Escape formulas in sentences; show indented blocks (formulas, programs) and doctests as they are."""
    shown, doctest, block = [], False, False
    text = "\n".join(lines)  # a source that goes on in the next line is one paragraph
    lines[:] = re.sub(
        r"^Source: .*(?:\n +\S.*)+", lambda found: re.sub(r"\n +", " ", found[0]), text, flags=re.MULTILINE
    ).split("\n")
    for i, line in enumerate(lines):
        after_blank = i > 0 and not lines[i - 1].strip()
        doctest = line.lstrip().startswith(">>>") or (doctest and bool(line.strip()))
        if line.strip() and not line.startswith(" "):
            block = False
        elif line.startswith("    ") and after_blank and not block and not doctest:
            above = next((text for text in reversed(shown) if text.strip()), "")
            if above and not above.startswith((" ", "- ")):
                shown += ["::", ""]
                block = True
        shown.append(line if doctest or block else _escape(line))
    lines[:] = shown


def _after(app, what, name, obj, options, lines):
    """Escape the star of a shape, such as "N *shape", in the types of attributes, which napoleon takes from annotations."""
    lines[:] = [line.replace("*", r"\*") if line.startswith(":vartype") else line for line in lines]


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
            result = method_pages.cell(text.splitlines()[0])
            lines.append(
                f"| `{one.name}` | {result} | {first}{count} | {source[1].strip('.') if source else ''} |"
            )
    return "\n".join(lines)


def insert_tables(text):
    """A page's text with the tables that are made from the docstrings."""
    text = re.sub(r"<!-- analyses: (.*?) -->", lambda found: _analyses_table(found[1]), text)
    text = re.sub(r"<!-- other names -->", lambda _: method_pages.names_table(), text)
    return re.sub(
        r"<!-- names:\n(.*?)-->", lambda found: reference_pages.short_list(found[1]), text, flags=re.DOTALL
    )


def _read(app, docname, source):
    source[0] = insert_tables(source[0])


def _write_pages(app):
    """The pages that are made from docstrings; those that are as they were keep their date."""
    made = method_pages.pages() | reference_pages.pages()
    for name, text in made.items():
        path = HERE / name
        path.parent.mkdir(exist_ok=True)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
    for folder in ("methods", "reference"):
        for path in (HERE / folder).glob("*.md"):
            if path.relative_to(HERE).as_posix() not in made:
                path.unlink()


def _find(app, env, node, contnode):
    """A reference to a name where it is imported leads to where it is documented."""
    from sphinx.util.nodes import make_refnode

    place = reference_pages.place_of(node.get("reftarget", ""))
    found = env.domaindata["py"]["objects"].get(place)
    if found is None:
        return None
    return make_refnode(app.builder, node["refdoc"], found.docname, found.node_id, contnode, place)


def _check_reference(app, env):
    """A public name without an entry is a warning, and so an error of `make docs`."""
    from sphinx.util import logging

    missing = reference_pages.all_places() - set(env.domaindata["py"]["objects"])
    for name in sorted(missing):
        logging.getLogger(__name__).warning("%s is public and has no entry in the reference", name)


def _skip(app, what, name, obj, skip, options):
    """The fields of a named tuple are in its docstring."""
    return True if inspect.isdatadescriptor(obj) and "Alias for field" in (obj.__doc__ or "") else None


def setup(app):
    """Called by Sphinx."""
    app.connect("autodoc-skip-member", _skip)
    app.connect("builder-inited", _write_pages)
    app.connect("source-read", _read)
    app.connect("missing-reference", _find)
    app.connect("env-check-consistency", _check_reference)
    app.connect("autodoc-process-docstring", _before, priority=100)  # before napoleon writes its own markup
    app.connect("autodoc-process-docstring", _after, priority=900)
