"""The arguments of a command: what is missing, misspelled or of the wrong kind is said in one line before anything is read.

What a command takes is read from its signature, as tyro does, which then reads the values.
"""

import re
import shlex
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass
from inspect import Parameter, getdoc, signature
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from tyro.conf import Positional

from opnorm.errors import OpnormError, did_you_mean

__all__ = ["checked", "plain_type"]

Command = Callable[..., Any]

POSITIONAL = get_args(Positional[str])[1]
HELP = ("-h", "--help")
NUMBERS = {int: "a whole number", float: "a number, such as 0.5"}


class Argument(NamedTuple):
    """What a command takes under one name.

    Attributes:
        name: ``--eps``, or ``MODEL`` where it stands alone.
        kind: of its values: str, int, float, Path, or bool of an option without one.
        several: whether it takes more than one value.
        choices: all values, where they are few.
        required: whether it has to be given.
    """

    name: str
    kind: type
    several: bool
    choices: tuple[str, ...]
    required: bool


def checked(args: list[str], commands: Iterable[Command]) -> list[str]:
    """The arguments, with the values of a repeated option together where it takes several.

    Raises:
        OpnormError: no such command or option; a value is missing, too many, empty or of the wrong kind.
    """
    if not args or args[0] in HELP:
        return args
    known = {command.__name__: command for command in commands}
    if args[0] not in known:
        norms = f"did you mean opnorm norms {shlex.quote(args[0])}?" if set("(./") & set(args[0]) else ""
        raise OpnormError(
            f"unknown {'option' if args[0].startswith('-') else 'command'} {args[0]!r}"
            f"{did_you_mean(args[0], known, norms)}; expected first one of {', '.join(known)}; "
            "opnorm --help says what each does"
        )
    command = known[args[0]]
    taken = [*_taken(command)]
    options = {argument.name: argument for argument in taken if argument.name.startswith("--")}
    alone = [argument for argument in taken if argument.name not in options]
    if any(token in HELP for token in args):
        return args
    groups: dict[str, list[str]] = {"": [args[0]]}  # by option: its tokens
    values: list[str] = []  # of no option
    option, name = None, ""
    for token in args[1:]:
        if re.match(r"--|-[^\d.]", token) and not re.match(r"-(inf|nan)\b", token):
            word, equals, value = token.partition("=")
            option = _option(word, command, options, known)
            name = option.name
            if name in groups and not option.several:
                raise OpnormError(f"{word} is given twice; expected one value")
            groups.setdefault(name, [word.replace("_", "-")])
            if equals and option.kind is bool:
                raise OpnormError(f"{token}: {word} takes no value; {_see(command)}")
            groups[name] += [value] * bool(equals)
        elif option is not None and option.kind is not bool and (option.several or len(groups[name]) == 1):
            groups[name].append(token)
        else:
            if not alone or (values and not alone[0].several):
                raise OpnormError(_too_many(token, command, option, alone, options))
            values.append(token)
            groups[name].append(token)
    for name, tokens in groups.items():
        _check_values(options[name], tokens[1:], command) if name else None
    _check_values(alone[0], values, command) if values else None
    _check_given(command, taken, {*groups, *(argument.name for argument in alone if values)}, groups)
    return [token for group in groups.values() for token in group]


def _taken(command: Command) -> Iterable[Argument]:
    """What a command takes: its parameters, and the fields of a class of options."""
    hints = get_type_hints(command, include_extras=True)
    for parameter in signature(command).parameters.values():
        kind, marks = plain_type(hints[parameter.name])
        if is_dataclass(kind):
            assert isinstance(kind, type)
            of_fields = get_type_hints(kind, include_extras=True)
            for field in fields(kind):
                yield _argument(f"--{field.name}", of_fields[field.name], False)
        else:
            name = parameter.name.upper() if POSITIONAL in marks else f"--{parameter.name}"
            yield _argument(name, hints[parameter.name], parameter.default is Parameter.empty)


def plain_type(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """A type without its annotations and without None; and the annotations."""
    marks: tuple[Any, ...] = ()
    while get_origin(hint) in (Annotated, Union, types.UnionType):
        if get_origin(hint) is Annotated:
            marks += hint.__metadata__
        hint = next(part for part in get_args(hint) if part is not types.NoneType)
    return hint, marks


def _argument(name: str, hint: Any, required: bool) -> Argument:
    kind, _ = plain_type(hint)
    several = get_origin(kind) is tuple
    kind = plain_type(get_args(kind)[0])[0] if several else kind
    choices = get_args(kind) if get_origin(kind) is Literal else ()
    return Argument(
        name.replace("_", "-"), str if choices else kind, several, choices, required and not several
    )


# ---------------------------------------------------------------- what is wrong


def _see(command: Command) -> str:
    return f"see opnorm {command.__name__} --help"


def _option(
    word: str, command: Command, options: Mapping[str, Argument], known: Mapping[str, Command]
) -> Argument:
    """The option that a word names, ``--no-json`` too; OpnormError where there is none, with the closest one."""
    name = word.replace("_", "-")
    for found in (name, f"--{name.removeprefix('--no-')}"):
        if found in options and (found == name or options[found].kind is bool):
            return options[found]
    hint = did_you_mean(name[2:], (other[2:] for other in options), show="--{}".format)
    if not hint:
        has = [f"opnorm {n}" for n, other in known.items() if name in (a.name for a in _taken(other))]
        hint = f"; an option of {' and '.join(has)}" if has else ""
    raise OpnormError(f"unknown option {word} of opnorm {command.__name__}{hint}; {_see(command)}")


def _too_many(
    token: str,
    command: Command,
    option: Argument | None,
    alone: list[Argument],
    options: Mapping[str, Argument],
) -> str:
    name = f"opnorm {command.__name__}"
    if option is not None:
        number = "no value" if option.kind is bool else "one value"
        return f"{token!r} is too much: {option.name} takes {number}; {_see(command)}"
    if alone:
        return f"{token!r} is too much: {name} takes one {alone[0].name}; {_see(command)}"
    hint = f"; did you mean --model {shlex.quote(token)}?" if "--model" in options else ""
    return f"{token!r} is too much: {name} takes options only{hint}; {_see(command)}"


def _check_values(argument: Argument, values: list[str], command: Command) -> None:
    """OpnormError where a value is missing, empty, or of another kind."""
    if argument.kind is bool:
        return
    if not values:
        raise OpnormError(f"{argument.name} has no value; expected {_expected(argument)}; {_see(command)}")
    for value in values:
        wrong = not value.strip()
        try:
            argument.kind(value)
        except ValueError:
            wrong = True
        if wrong or (argument.choices and value not in argument.choices):
            hint = did_you_mean(value, argument.choices)
            raise OpnormError(
                f"{argument.name} {value!r}: expected {_expected(argument)}{hint}; {_see(command)}"
            )


def _expected(argument: Argument) -> str:
    if argument.choices:
        return f"{', '.join(argument.choices[:-1])} or {argument.choices[-1]}"
    return NUMBERS.get(argument.kind, f"{'one or more' if argument.several else 'one'}, not empty")


def _check_given(
    command: Command, taken: list[Argument], given: set[str], groups: dict[str, list[str]]
) -> None:
    """OpnormError where something that has to be given is not; with the first example of the command."""
    for argument in taken:
        if argument.required and argument.name not in given:
            greedy = [name for name, tokens in groups.items() if name and len(tokens) > 2]
            why = (
                f"; {greedy[0]} takes all values that follow it"
                if greedy and "--" not in argument.name
                else ""
            )
            lines = (getdoc(command) or "").splitlines()
            example = next(line for line in lines if line.startswith(f"opnorm {command.__name__} "))
            raise OpnormError(
                f"{argument.name} is missing{why}; expected such as: {example}; {_see(command)}"
            )
