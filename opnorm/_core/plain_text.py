"""Text for encodings that lack some of its characters: ``l1``, ``<=`` and ``eps`` for question marks; rows as text."""

import codecs
import csv
import io
import os
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

__all__ = ["PLAIN", "csv_text", "encodable", "file_name", "is_unicode", "markdown_row", "printable"]

PLAIN = "opnorm.plain"
"""The name of the error handler of encoders, as in ``text.encode("ascii", PLAIN)``."""

WORDS = {
    "ℓ": "l", "∞": "inf", "ε": "eps", "λ": "lambda", "Λ": "Lambda", "≤": "<=", "≥": ">=", "≠": "!=", "±": "+-", "→": "->",
    "←": "<-", "↦": "->", "−": "-", "–": "-", "—": "-", "‖": "||", "∥": "||", "×": "x", "·": "*", "⊙": "*", "∂": "d",
    "∇": "grad ", "Σ": "sum ", "∑": "sum ", "∏": "prod ", "√": "sqrt", "∈": " in ", "∩": "&", "⟨": "<", "⟩": ">", "≈": "~",
    "²": "^2", "³": "^3", "ᵀ": "^T", "ᴴ": "^H", "⁻": "^-", "½": "1/2", "…": "...", "“": '"', "”": '"', "‘": "'", "’": "'",
    "•": "*", "⊗": " kron ", "▁": "_", "▂": ".", "▃": "-", "▄": "=", "▅": "+", "▆": "*", "▇": "#", "█": "@",
}  # fmt: skip


def encodable(text: str, encoding: str) -> str:
    """The text in the characters of an encoding."""
    return text.encode(encoding, PLAIN).decode(encoding)


def is_unicode(encoding: str | None) -> bool:
    """Whether an encoding has all characters."""
    return (encoding or "ascii").lower().startswith("utf")


def file_name(name: str) -> str:
    """The name of a file as text; bytes of it that are not UTF-8 are written as hexadecimal numbers."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def printable(text: str) -> str:
    """The text in one line, with escapes for control characters, which could command a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def csv_text(rows: Iterable[Sequence[Any]]) -> str:
    """Rows as CSV, the first of them the names of the columns."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue()


def markdown_row(cells: Sequence[str]) -> str:
    """One row; bars and line breaks in a cell do no harm."""
    return "| " + " | ".join(c.replace("|", "\\|").replace("\n", " ") for c in cells) + " |"


def _plain(char: str) -> str:
    """ASCII for one character: a word for a symbol, the name of a Greek letter, a bare letter, or its number."""
    if char in WORDS:
        return WORDS[char]
    name = unicodedata.name(char, "")
    if name.startswith("GREEK") and "LETTER" in name:
        word = name.split()[-1].lower()
        return word.capitalize() if "CAPITAL" in name else word
    if name.startswith("BOX DRAWINGS"):
        sides = name.removeprefix("BOX DRAWINGS LIGHT ").removeprefix("BOX DRAWINGS HEAVY ")
        return {"HORIZONTAL": "-", "VERTICAL": "|"}.get(sides, "+")
    bare = "".join(c for c in unicodedata.normalize("NFKD", char) if not unicodedata.combining(c))
    return bare if bare.isascii() and (bare or name) else char.encode("ascii", "backslashreplace").decode()


def _handle(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_plain, error.object[error.start : error.end])), error.end


codecs.register_error(PLAIN, _handle)
