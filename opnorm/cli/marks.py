"""What the signature of a command says of an argument beside its type."""

from typing import Annotated, NamedTuple, TypeVar

__all__ = ["POSITIONAL", "Help", "Positional"]

T = TypeVar("T")
POSITIONAL = "positional"
Positional = Annotated[T, POSITIONAL]
"""Of an argument that stands alone, without the name of an option."""


class Help(NamedTuple):
    """What ``--help`` says of an argument; that of an option in a class may stand in a comment there.

    Attributes:
        text: the sentence.
        family: the family of names (a key of ``spec.FAMILIES``) that the argument takes, which the help lists; or empty.
    """

    text: str
    family: str = ""
