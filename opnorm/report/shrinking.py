"""A picture of a chart as a small SVG: without what cannot be seen, and with marks of one look in one path."""

import itertools
import re
from collections.abc import Callable

__all__ = ["shrink_svg"]

INVISIBLE = re.compile(
    r'<path (?:[^>]* )?opacity="0(?:\.00\d*)?"[^>]*/>'  # marks that only carry a tooltip
    r'|<text (?:[^>]* )?opacity="0"[^>]*>[^<]*</text>'  # labels that found no place
    r'|<path d="(?:|M0,0h0v0h0Z)"[^>]*/>'
    r'|<path [^>]*display="none"[^>]*/>'
    r'|<line [^>]*\bx2="-?0(?:\.0+)?" y2="-?0(?:\.0+)?"[^>]*/>'
)
NOT_LOOKS = re.compile(r' (?:aria-[a-z-]+|role|class|pointer-events)="[^"]*"')
EMPTY = re.compile(r"<g[^>]*></g>")
PLACES = re.compile(r'(?<= d=")[^"]*|(?<= transform=")[^"]*|(?<= [xy]2=")[^"]*')
TICK = re.compile(r'<path d="M([-\d.]+),([-\d.]+)h([\d.]+)v([\d.]+)h-[\d.]+Z"([^>]*)/>')
LINE = re.compile(
    r'<line transform="translate\(([-\d.]+),([-\d.]+)\)" x2="([-\d.]+)" y2="([-\d.]+)"([^>]*)/>'
)
SYMBOL = re.compile(r'<path transform="translate\(([-\d.]+),([-\d.]+)\)" d="(M[-\d.,LAhvZ]+)"([^>]*)/>')


def shrink_svg(svg: str) -> str:
    """The same picture in a third to a tenth of the size.

    What is invisible is left out, places have one digit after the point (a panel is 300 wide), ticks of one color that
    overlap become one rectangle, and lines or symbols that follow each other in one look become one path. A picture that
    has been shrunk stays as it is.
    """
    svg = INVISIBLE.sub("", NOT_LOOKS.sub("", svg))
    svg = PLACES.sub(lambda found: re.sub(r"-?\d+\.\d+", _one_digit, found[0]), svg)
    for shape, draw in ((TICK, _ticks), (LINE, _lines), (SYMBOL, _symbols)):
        svg = _joined(svg, shape, draw)
    while (smaller := EMPTY.sub("", svg)) != svg:
        svg = smaller
    return svg


def _one_digit(found: re.Match[str]) -> str:
    return _short(float(found[0]))


def _short(value: float) -> str:
    text = f"{value:.1f}".removesuffix(".0")
    return "0" if text == "-0" else text


def _joined(svg: str, shape: re.Pattern[str], draw: Callable[[list[tuple[str, ...]]], str]) -> str:
    """Elements that follow each other with the same look, the attributes after their places, as one path."""

    def paths(run: re.Match[str]) -> str:
        looks = itertools.groupby(shape.findall(run[0]), key=lambda one: one[-1])
        return "".join(f'<path d="{draw([one[:-1] for one in ones])}"{look}/>' for look, ones in looks)

    return re.sub(f"(?:{shape.pattern})+", paths, svg)


def _ticks(places: list[tuple[str, ...]]) -> str:
    """Rectangles (x, y, width, height); those of one row that touch are joined."""
    path = ""
    rows = sorted((float(y), float(height), float(x), float(width)) for x, y, width, height in places)
    for (y, height), row in itertools.groupby(rows, key=lambda one: one[:2]):
        spans: list[tuple[float, float]] = []
        for _, _, x, width in row:
            if spans and x <= spans[-1][1]:
                spans[-1] = (spans[-1][0], max(spans[-1][1], x + width))
            else:
                spans.append((x, x + width))
        for left, right in spans:
            path += (
                f"M{_short(left)},{_short(y)}h{_short(right - left)}v{_short(height)}h{_short(left - right)}Z"
            )
    return path


def _lines(places: list[tuple[str, ...]]) -> str:
    """Lines (x, y, right, down)."""
    return "".join(f"M{x},{y}l{right},{down}" for x, y, right, down in places)


def _symbols(places: list[tuple[str, ...]]) -> str:
    """Symbols (x, y, outline around 0)."""
    path = ""
    for x, y, outline in places:
        (left, top), rest = _relative(outline)
        path += f"M{_short(float(x) + left)},{_short(float(y) + top)}{rest}"
    return path


def _relative(outline: str) -> tuple[tuple[float, float], str]:
    """Where an outline begins, and the rest of it relative to that."""
    start, rest, x, y = (0.0, 0.0), "", 0.0, 0.0
    for command, text in re.findall(r"([MLAhvZ])([^MLAhvZ]*)", outline):
        numbers = [float(number) for number in text.split(",")] if text else []
        if command == "M":
            start = x, y = numbers[0], numbers[1]
        elif command in "LA":
            *radii, right, down = numbers
            rest += command.lower() + ",".join(_short(n) for n in (*radii, right - x, down - y))
            x, y = right, down
        else:
            rest += command + text
            x, y = x + (command == "h" and numbers[0]), y + (command == "v" and numbers[0])
    return start, rest
