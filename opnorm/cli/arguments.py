"""The arguments of a command: what is missing, misspelled or of the wrong kind is said in one line before anything is read.

What a command takes is read from its signature, as tyro does, which shows the help.
"""

import functools
import re
import shlex
import types
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import fields, is_dataclass
from inspect import Parameter, getdoc, signature
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from opnorm.cli.marks import POSITIONAL
from opnorm.errors import OpnormError, did_you_mean

__all__ = ["named", "plain_type", "read"]

Command = Callable[..., Any]

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


def read(args: list[str], commands: Mapping[str, Command]) -> Callable[[], None]:
    """The command that is asked for, with its arguments.

    Args:
        args: the words of the command line, at least one.
        commands: by name.

    Raises:
        OpnormError: no such command or option; a value is missing, too many, empty or of the wrong kind.
    """
    command = named(args[0], commands)
    given = _given(args, command, commands)
    values: dict[str, Any] = {}
    for name, kind in _parameters(command):
        if is_dataclass(kind):
            assert isinstance(kind, type)
            own = {field.name: f"--{field.name}" for field in fields(kind)}
            values[name] = kind(**_values(own, given))
        else:
            values |= _values({name: name.upper()}, given) | _values({name: f"--{name}"}, given)
    return functools.partial(command, **values)


def named(name: str, commands: Mapping[str, Command]) -> Command:
    """The command of a name; OpnormError where there is none, with what may be meant."""
    if name in commands:
        return commands[name]
    norms = f"did you mean opnorm norms {shlex.quote(name)}?" if set("(./") & set(name) else ""
    raise OpnormError(
        f"unknown {'option' if name.startswith('-') else 'command'} {name!r}"
        f"{did_you_mean(name, commands, norms)}; expected first one of {', '.join(commands)}; "
        "opnorm --help says what each does"
    )


def _values(names: Mapping[str, str], given: Mapping[str, Any]) -> dict[str, Any]:
    """The values that are given, by parameter, of ``names``: parameter -> name of the argument."""
    found = {parameter: name.replace("_", "-") for parameter, name in names.items()}
    return {parameter: given[name] for parameter, name in found.items() if name in given}


def _given(args: list[str], command: Command, commands: Mapping[str, Command]) -> dict[str, Any]:
    """The values of the arguments that are given, by name."""
    taken = [*_taken(command)]
    options = {argument.name: argument for argument in taken if argument.name.startswith("--")}
    alone = [argument for argument in taken if argument.name not in options]
    groups: dict[str, list[str]] = {}  # by option: its values
    values: list[str] = []  # of no option
    switches: dict[str, bool] = {}
    option = None
    for token in args[1:]:
        if re.match(r"--|-[^\d.]", token) and not re.match(r"-(inf|nan)\b", token):
            word, equals, value = token.partition("=")
            option = _option(word, command, options, commands)
            if option.name in groups and not option.several:
                raise OpnormError(f"{word} is given twice; expected one value")
            if equals and option.kind is bool:
                raise OpnormError(f"{token}: {word} takes no value; {_see(command)}")
            switches[option.name] = word.replace("_", "-") == option.name
            groups.setdefault(option.name, []).extend([value] * bool(equals))
        elif option is not None and option.kind is not bool and (option.several or not groups[option.name]):
            groups[option.name].append(token)
        else:
            if not alone or (values and not alone[0].several):
                raise OpnormError(_too_many(token, command, option, alone, options))
            values.append(token)
    found = {
        name: switches[name] if options[name].kind is bool else _read(options[name], tokens, command)
        for name, tokens in groups.items()
    }
    for argument in alone:
        if values or argument.several:  # several may be none, of which the command speaks
            found[argument.name] = _read(argument, values, command) if values else ()
    _check_given(command, taken, found, groups)
    return found


def _taken(command: Command) -> Iterable[Argument]:
    """What a command takes: its parameters, and the fields of a class of options."""
    hints, parameters = get_type_hints(command, include_extras=True), signature(command).parameters
    for name, kind in _parameters(command):
        _, marks = plain_type(hints[name])
        if is_dataclass(kind):
            of_fields = get_type_hints(kind, include_extras=True)
            for field in fields(kind):
                yield _argument(f"--{field.name}", of_fields[field.name], False)
        else:
            shown = name.upper() if POSITIONAL in marks else f"--{name}"
            yield _argument(shown, hints[name], parameters[name].default is Parameter.empty)


def _parameters(command: Command) -> Iterable[tuple[str, Any]]:
    """The names and the plain types of a command's parameters."""
    for name, hint in get_type_hints(command, include_extras=True).items():
        if name != "return":
            yield name, plain_type(hint)[0]


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


def _read(argument: Argument, values: list[str], command: Command) -> Any:
    """The values of an argument, or its only one; OpnormError where it is missing, empty, or of another kind."""
    if not values:
        raise OpnormError(f"{argument.name} has no value; expected {_expected(argument)}; {_see(command)}")
    found = []
    for value in values:
        wrong = not value.strip() or (argument.choices and value not in argument.choices)
        try:
            found.append(argument.kind(value))
        except ValueError:
            wrong = True
        if wrong:
            hint = did_you_mean(value, argument.choices)
            raise OpnormError(
                f"{argument.name} {value!r}: expected {_expected(argument)}{hint}; {_see(command)}"
            )
    return tuple(found) if argument.several else found[0]


def _expected(argument: Argument) -> str:
    if argument.choices:
        return f"{', '.join(argument.choices[:-1])} or {argument.choices[-1]}"
    return NUMBERS.get(argument.kind, f"{'one or more' if argument.several else 'one'}, not empty")


def _check_given(
    command: Command, taken: list[Argument], given: Collection[str], groups: Mapping[str, list[str]]
) -> None:
    """OpnormError where something that has to be given is not; with the first example of the command."""
    for argument in taken:
        if argument.required and argument.name not in given:
            greedy = [name for name, tokens in groups.items() if len(tokens) > 1]
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
