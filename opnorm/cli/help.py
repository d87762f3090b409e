"""What ``opnorm --help`` and ``opnorm COMMAND --help`` show."""

import functools
import shutil
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import is_dataclass
from inspect import getdoc
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import tyro
from tyro.conf import Positional, arg

from opnorm.cli.arguments import plain_type
from opnorm.cli.marks import POSITIONAL, Help

__all__ = ["overview", "shown_by_tyro"]

KINDS = {str: "TEXT", int: "INT", float: "NUMBER", Path: "PATH"}
UNSAID = ("None", "False", "")
"""Defaults that say nothing."""

ABOUT = "Operator norms of neural networks: measure them, train with them kept small, see what they did."
END = """\
opnorm COMMAND --help says what a command takes, with examples. --json prints results for programs. --debug, of any
command, shows where an error came from. --version says which opnorm this is; --print-completion bash (or zsh) prints what
completes commands and options by Tab. In what order to use them: opnorm alone."""


def overview(commands: Iterable[Callable[..., Any]]) -> str:
    """All commands with a sentence each, as wide as the terminal."""
    width = min(shutil.get_terminal_size().columns - 1, 110)
    lines = ["usage: opnorm COMMAND ...", "", *textwrap.wrap(ABOUT, width), ""]
    for command in commands:
        sentence = " ".join((getdoc(command) or "").partition("\n\n")[0].split())
        begin = f"  {command.__name__:<12}"
        lines += textwrap.wrap(sentence, width, initial_indent=begin, subsequent_indent=" " * len(begin))
    return "\n".join([*lines, "", *textwrap.wrap(" ".join(END.split()), width)])


def shown_by_tyro(args: list[str], commands: Iterable[Callable[..., Any]]) -> None:
    """Print the help of a command, or what completes its arguments in a shell."""
    app = tyro.extras.SubcommandApp()
    for command in commands:
        _make_readable(command)
        app.command(name=command.__name__)(command)
    app.cli(prog="opnorm", args=args)


@functools.cache
def _make_readable(command: Callable[..., Any]) -> None:
    """Let the help of a command name its values as messages do (MODEL), and leave out None, which nobody can type."""
    hints = get_type_hints(command, include_extras=True)
    command.__annotations__ = {name: _shown(name, hint) for name, hint in hints.items()}
    for hint in hints.values():
        kind, _ = plain_type(hint)
        if is_dataclass(kind):
            of_fields = get_type_hints(kind, include_extras=True)
            kind.__annotations__ = {name: _shown(name, hint) for name, hint in of_fields.items()}


def _shown(name: str, hint: Any) -> Any:
    """The type of a parameter, with what the help shows for it."""
    kind, marks = plain_type(hint)
    if kind is type(None):
        return hint
    if is_dataclass(kind):
        return Annotated[hint, arg(name="")]
    several = get_origin(kind) is tuple
    kind = plain_type(get_args(kind)[0])[0] if several else kind
    if POSITIONAL in marks:
        metavar = name.upper()
    elif get_origin(kind) is Literal:
        metavar = "{" + ",".join(get_args(kind)) + "}"
    elif kind is bool:
        metavar = None
    else:
        metavar = KINDS[kind]
    if several and metavar is not None:
        metavar = f"{metavar} ..."
    text = next((_text(mark) for mark in marks if isinstance(mark, Help)), None)
    shown = Annotated[hint, arg(metavar=metavar, help=text, help_behavior_hint=_default)]
    return Annotated[shown, *get_args(Positional[str])[1:]] if POSITIONAL in marks else shown


def _text(mark: Help) -> str:
    """What the help says of an argument, with the names that it may take."""
    from opnorm import spec

    return (
        f"{mark.text}; known names: {', '.join(spec.known_names(mark.family))}" if mark.family else mark.text
    )


def _default(text: str) -> str:
    return "" if text.strip("'") in UNSAID else f"({text} when left out)"
