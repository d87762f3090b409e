"""The command line. Nothing here imports torch before a command is chosen, so that ``--help`` answers at once."""

import os
import sys
from contextlib import nullcontext

from opnorm import __version__
from opnorm._core.plain_text import printable
from opnorm.cli.terminal import (
    ends_with_its_readers,
    flush,
    help_without_colors,
    warnings_without_code,
    write_what_the_terminal_shows,
)
from opnorm.cli.welcome import WELCOME
from opnorm.errors import OpnormError

__all__ = ["main"]

RESUMING = ("analyze", "attack", "compare", "study", "train")
"""Commands that keep what they have done, and go on from there."""
HELP = ("-h", "--help")
SHELLS = ("bash", "zsh")
"""Those that tyro writes completions for."""


def main(args: list[str] | None = None) -> None:
    """Entry point of ``opnorm``: 0 when all went well, 2 for what the user can mend, 130 after Ctrl-C, 1 for the rest.

    1 is also the status of a network that ``--fail-under`` or ``--fail-over`` refuses, and 141 that where the reader of
    the output has ended, as in ``opnorm ls | head``.
    """
    args = sys.argv[1:] if args is None else args
    _wait_briefly()
    write_what_the_terminal_shows()
    with ends_with_its_readers(), nullcontext() if "--debug" in args else warnings_without_code():
        _run(args)


def _run(args: list[str]) -> None:
    debug = "--debug" in args
    args = [a for a in args if a != "--debug"]
    try:
        if not args:
            return print(WELCOME)
        if args == ["--version"]:
            return print(f"opnorm {__version__}")
        from opnorm.cli.arguments import read  # here, so that Ctrl-C while it is loaded is handled below
        from opnorm.cli.commands import COMMANDS

        completion = _completion(args)
        with flush():
            if completion or {*HELP} & {*args}:
                return _show(completion or args)
            read(args, COMMANDS)()
    except KeyboardInterrupt:
        kept = "; what was done is kept, and the same command goes on from there" * (args[0] in RESUMING)
        print(f"stopped{kept}", file=sys.stderr)
        sys.exit(130)
    except Exception as e:
        if debug:
            raise
        from opnorm.spec import place_of

        foreseen = isinstance(e, OpnormError | OSError)
        text = _reason(e, args) if foreseen else f"{type(e).__name__}: {e}{place_of(e)}; --debug shows where"
        if not (foreseen and int(os.environ.get("RANK", "0"))):  # torchrun's first process says it for all
            print("opnorm:", printable(" ".join(text.split())), file=sys.stderr)
        sys.exit(2 if foreseen else 1)


def _show(args: list[str]) -> None:
    """Print a help, or what completes arguments in a shell."""
    from opnorm.cli.arguments import named
    from opnorm.cli.commands import COMMANDS
    from opnorm.cli.help import overview, shown_by_tyro

    with help_without_colors():
        if args[0] in HELP:
            return print(overview(COMMANDS.values()))
        if {*HELP} & {*args}:
            named(args[0], COMMANDS)
        return shown_by_tyro(args, COMMANDS.values())


def _completion(args: list[str]) -> list[str]:
    """The arguments of tyro for ``--print-completion SHELL``; none where something else is asked for."""
    if args[0].partition("=")[0] != "--print-completion":
        return []
    shell = " ".join(args)[len("--print-completion") + 1 :]
    if shell not in SHELLS:
        raise OpnormError(f"--print-completion {shell!r}: expected {' or '.join(SHELLS)}")
    return ["--tyro-print-completion", shell]


def _reason(error: Exception, args: list[str]) -> str:
    """What went wrong, beginning with the file where it is about one, ending with the right command where that is known."""
    from opnorm.cli.subjects import MisnamedError

    if isinstance(error, MisnamedError):
        return f"{error}: {error.corrected(args)}"
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    return str(error)


def _wait_briefly() -> None:
    """Let OpenMP's threads sleep after 10,000 turns of waiting, not 300,000, unless the user says how long they wait.

    Where another program uses the cores, threads that spin for those that have none take half of the time and more.
    OpenMP reads it once, when torch is loaded.
    """
    if "torch" not in sys.modules and "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
