"""All commands, in the order of ``opnorm --help``."""

from collections.abc import Callable
from typing import Any

import tyro

from opnorm.cli.analyze import analyze, compare
from opnorm.cli.attack import attack
from opnorm.cli.doctor import doctor
from opnorm.cli.exports import export, push
from opnorm.cli.help import readable
from opnorm.cli.listing import ls, rm
from opnorm.cli.measure import norms, separation
from opnorm.cli.runs import train
from opnorm.cli.show import show
from opnorm.cli.study import study

__all__ = ["app"]

COMMANDS: tuple[Callable[..., Any], ...] = (
    norms, train, attack, analyze, compare, study, separation, ls, show, export, push, rm, doctor,
)  # fmt: skip

app = tyro.extras.SubcommandApp()
for command in COMMANDS:
    readable(command)
    app.command(name=command.__name__)(command)
