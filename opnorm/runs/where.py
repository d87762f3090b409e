"""Conditions on rows: ``robust_accuracy > 0.5 and (model ~ resnet or not seed = 0)``."""

import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from opnorm.errors import OpnormError, did_you_mean

__all__ = ["Condition", "condition", "sort_rows"]

Row = Mapping[str, Any]

TOKEN = re.compile(
    r"""\s*(?:(?P<text>'[^']*'|"[^"]*")|(?P<sign><=|>=|!=|==|!~|[<>=~()])|(?P<word>[^\s<>=!~()'"]+))"""
)
SIGNS: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "=": operator.eq, "==": operator.eq,
    "!=": operator.ne, "~": lambda have, want: want.lower() in have.lower(),
    "!~": lambda have, want: want.lower() not in have.lower(),
}  # fmt: skip
CONTAINS, EQUAL = ("~", "!~"), ("=", "==", "!=")
TRUTH = {"true": True, "false": False}


class Condition:
    """A condition on a row, from :func:`condition`.

    Attributes:
        columns: those that it names, in order.
    """

    def __init__(self, holds: Callable[[Row], bool], columns: Sequence[str]) -> None:
        self.holds, self.columns = holds, tuple(dict.fromkeys(columns))

    def __call__(self, row: Row) -> bool:
        """Whether the row meets it."""
        return self.holds(row)


def condition(text: str, rows: Sequence[Row], names: Iterable[str] = ()) -> Condition:
    """Read a condition.

    Comparisons of a column with a value, joined by ``and``, ``or``, ``not`` and parentheses. The signs are ``=``, ``!=``,
    ``<``, ``<=``, ``>``, ``>=``, and of texts ``~`` (contains, in any case of letters) and ``!~``. Values are numbers (such
    as 8/255), true, false, none (not known), or texts, with quotes where they have spaces, parentheses or signs. A
    comparison with a value that is not known does not hold; ``= none`` finds these.

    Args:
        text: the condition.
        rows: that it will be asked about: they say which columns are numbers.
        names: columns beside those of the rows.

    Raises:
        OpnormError: it cannot be read, names an unknown column, or compares a number with a text.
    """
    reader = _Reader(text, rows, names)
    found = reader.either()
    if (token := reader.next()) is not None:
        raise reader.error(f"{token!r} is not expected here; join conditions with and, or")
    return Condition(found, reader.columns)


def sort_rows(text: str, rows: Sequence[Row], names: Iterable[str] = ()) -> tuple[list[Any], str]:
    """Rows in the order of a column, ``COLUMN`` or ``COLUMN desc``, those without a value last; and the column.

    Raises:
        OpnormError: an unknown column, or another word after it.
    """
    column, *rest = text.split()[:3] or [""]
    _check_column(column, rows, names, f"--sort {text!r}")
    if rest not in ([], ["asc"], ["desc"]):
        raise OpnormError(f"--sort {text!r}: expected a column, and asc or desc after it")
    known = [row for row in rows if row.get(column) is not None]
    known.sort(key=lambda row: (str(_kind(row[column])), row[column]), reverse=rest == ["desc"])
    return known + [row for row in rows if row.get(column) is None], column


class _Reader:
    """Reads a condition from left to right."""

    def __init__(self, text: str, rows: Sequence[Row], names: Iterable[str]) -> None:
        self.text, self.rows, self.names, self.at = text, rows, list(names), 0
        self.columns: list[str] = []

    def error(self, why: str) -> OpnormError:
        return OpnormError(
            f"--where {self.text!r}: {why}; expected such as 'robust_accuracy > 0.5 and model ~ resnet'"
        )

    def next(self, take: bool = True) -> str | None:
        """The next token, with its quotes; None at the end."""
        if not self.text[self.at :].strip():
            return None
        found = TOKEN.match(self.text, self.at)
        if found is None:
            raise self.error(f"{self.text[self.at :].strip()[:20]!r} cannot be read")
        if take:
            self.at = found.end()
        return found[found.lastgroup or 0]

    def took(self, word: str) -> bool:
        token = self.next(take=False)
        if token is None or token.lower() != word:
            return False
        self.next()
        return True

    def either(self) -> Callable[[Row], bool]:
        parts = [self.both()]
        while self.took("or"):
            parts.append(self.both())
        return lambda row: any(part(row) for part in parts)

    def both(self) -> Callable[[Row], bool]:
        parts = [self.one()]
        while self.took("and"):
            parts.append(self.one())
        return lambda row: all(part(row) for part in parts)

    def one(self) -> Callable[[Row], bool]:
        if self.took("not"):
            inner = self.one()
            return lambda row: not inner(row)
        if self.took("("):
            whole = self.either()
            if not self.took(")"):
                raise self.error("a ) is missing")
            return whole
        return self.comparison()

    def comparison(self) -> Callable[[Row], bool]:
        column, sign, token = self.next(), self.next(), self.next()
        if column is None or column in (")", *SIGNS):
            raise self.error(
                "a column is missing" if column is None else f"{column!r} has no column before it"
            )
        if sign not in SIGNS:
            raise self.error(f"after {column} comes {sign or 'nothing'}, not one of {' '.join(SIGNS)}")
        if token is None or token in ("(", ")", *SIGNS):
            raise self.error(f"after {column} {sign} a value is missing")
        column = column.strip("'\"")
        _check_column(column, self.rows, self.names, f"--where {self.text!r}")
        self.columns.append(column)
        if token.lower() == "none" and sign in EQUAL:
            return lambda row: (row.get(column) is None) == (sign != "!=")
        value, holds = self.value(column, sign, token), SIGNS[sign]
        kind = _kind(value)
        return lambda row: _kind(have := row.get(column)) is kind and holds(have, value)

    def value(self, column: str, sign: str, token: str) -> Any:
        """The value, of the type of the column."""
        example = next((row[column] for row in self.rows if row.get(column) is not None), None)
        quoted, kind = token[0] in "'\"", _kind(example)
        value = token[1:-1] if quoted else token if sign in CONTAINS else _value(token)
        if sign in CONTAINS and kind not in (str, None):
            raise self.error(f"{sign} looks into texts, and {column} is {_named(example)}")
        if kind is str and sign in EQUAL and not quoted:
            value = token  # such as a key of digits alone
        if kind is None or (kind is _kind(value) and (kind is not bool or sign in EQUAL)):
            return value
        raise self.error(f"{column} is {_named(example)}, and {token} is not one to compare with {sign}")


def _check_column(column: str, rows: Sequence[Row], names: Iterable[str], where: str) -> None:
    known = dict.fromkeys([*(name for row in rows[:1] for name in row), *names])
    if column not in known:
        hint = did_you_mean(column, known, f"there are {', '.join(known)}")
        raise OpnormError(f"{where}: no column {column!r}{hint}")


def _value(token: str) -> Any:
    if token.lower() in TRUTH:
        return TRUTH[token.lower()]
    above, _, below = token.partition("/")
    try:
        return float(above) / float(below) if below else float(above)
    except (ValueError, ZeroDivisionError):
        return token


def _kind(value: Any) -> type | None:
    """bool, float (of every number), str, or None where nothing is known."""
    return (
        None
        if value is None
        else bool
        if isinstance(value, bool)
        else float
        if isinstance(value, int | float)
        else str
    )


def _named(value: Any) -> str:
    kind = {bool: "true or false", float: "a number", str: "text"}[_kind(value) or str]
    return f"{kind}, such as {value!s:.40}"
