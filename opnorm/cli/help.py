"""What ``opnorm --help`` and ``opnorm COMMAND --help`` show."""

import shutil
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import is_dataclass
from inspect import getdoc
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from tyro.conf import Positional, arg

from opnorm.cli.arguments import plain_type

__all__ = ["overview", "readable"]

POSITIONAL = get_args(Positional[str])[1]
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


def readable(command: Callable[..., Any]) -> None:
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
    if is_dataclass(kind) or kind is type(None):
        return hint
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
    return Annotated[hint, arg(metavar=metavar, help_behavior_hint=_default)]


def _default(text: str) -> str:
    return "" if text.strip("'") in UNSAID else f"({text} when left out)"
