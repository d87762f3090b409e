"""All commands, in the order of ``opnorm --help``; the module of one is loaded when it is asked for."""

import importlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

__all__ = ["COMMANDS"]

MODULES = {
    "norms": "measure",
    "train": "runs",
    "attack": "attack",
    "analyze": "analyze",
    "compare": "analyze",
    "study": "study",
    "separation": "measure",
    "ls": "listing",
    "show": "show",
    "export": "exports",
    "push": "exports",
    "rm": "listing",
    "doctor": "doctor",
}


class _Commands(Mapping[str, Callable[..., Any]]):
    """The commands by name."""

    def __getitem__(self, name: str) -> Callable[..., Any]:
        command: Callable[..., Any] = getattr(importlib.import_module(f"opnorm.cli.{MODULES[name]}"), name)
        return command

    def __contains__(self, name: object) -> bool:
        return name in MODULES

    def __iter__(self) -> Iterator[str]:
        return iter(MODULES)

    def __len__(self) -> int:
        return len(MODULES)


COMMANDS = _Commands()
