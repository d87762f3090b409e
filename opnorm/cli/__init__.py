"""The command line. Nothing here imports torch before a command is chosen, so that ``--help`` answers at once."""

import os
import sys

from opnorm import __version__
from opnorm._core.plain_text import printable
from opnorm.cli.terminal import ends_with_its_readers, flush, write_what_the_terminal_shows
from opnorm.cli.welcome import WELCOME
from opnorm.errors import OpnormError

__all__ = ["main"]

RESUMING = ("analyze", "attack", "compare", "study", "train")
"""Commands that keep what they have done, and go on from there."""

SEVERAL = ("--analyses", "--augment", "--eps", "--fail-over", "--regularizers", "--track", "--what")
"""Options that take several values, which may also be given one by one."""


def main(args: list[str] | None = None) -> None:
    """Entry point of ``opnorm``: 0 when all went well, 2 for what the user can mend, 130 after Ctrl-C, 1 for the rest.

    1 is also the status of a network that ``--fail-under`` or ``--fail-over`` refuses, and 141 that where the reader of
    the output has ended, as in ``opnorm ls | head``.
    """
    args = sys.argv[1:] if args is None else args
    _wait_briefly()
    write_what_the_terminal_shows()
    with ends_with_its_readers():
        _run(args)


def _run(args: list[str]) -> None:
    debug = "--debug" in args
    args = [a for a in args if a != "--debug"]
    try:
        if not args:
            return print(WELCOME)
        if args == ["--version"]:
            return print(f"opnorm {__version__}")
        from opnorm.cli.commands import app  # here, so that Ctrl-C while it is loaded is handled below

        args = _each_option_once(args)
        with flush():
            app.cli(
                prog="opnorm",
                description="Operator norms of neural networks: measure them, train with them kept small, see what they "
                "did. Add --debug to any command for a traceback.",
                args=args,
            )
    except KeyboardInterrupt:
        kept = "; what was done is kept, and the same command goes on from there" * (args[0] in RESUMING)
        print(f"stopped{kept}", file=sys.stderr)
        sys.exit(130)
    except Exception as e:
        if debug:
            raise
        foreseen = isinstance(e, OpnormError | OSError)
        text = str(e) if foreseen else f"{type(e).__name__}: {e}; --debug shows where"
        if not (foreseen and int(os.environ.get("RANK", "0"))):  # torchrun's first process says it for all
            print("opnorm:", printable(" ".join(text.split())), file=sys.stderr)
        sys.exit(2 if foreseen else 1)


def _each_option_once(args: list[str]) -> list[str]:
    """The values of a repeated option together where it takes several; OpnormError where it takes one."""
    groups: dict[str, list[str]] = {"": []}  # by option: its tokens
    name = ""
    for token in args:
        option, equals, value = token.partition("=")
        if not option.startswith("--"):
            groups[name].append(token)
            continue
        name = option.replace("_", "-")
        if name not in groups:
            groups[name] = [option, value] if equals else [option]
        elif name in SEVERAL:
            groups[name] += [value] if equals else []
        else:
            raise OpnormError(f"{option} is given twice; expected one value")
    return [token for group in groups.values() for token in group]


def _wait_briefly() -> None:
    """Let OpenMP's threads sleep after 10,000 turns of waiting, not 300,000, unless the user says how long they wait.

    Where another program uses the cores, threads that spin for those that have none take half of the time and more.
    OpenMP reads it once, when torch is loaded.
    """
    if "torch" not in sys.modules and "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
