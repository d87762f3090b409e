"""State dicts as files have them: nested in checkpoints, named by wrappers, matched against the names of a network."""

import re
import warnings
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from opnorm._core.layers import missing_values
from opnorm.errors import ModelError

__all__ = ["AVERAGES", "aligned", "fill", "plain_state_dict", "state_dicts_in"]

State = Mapping[str, Tensor]

WRAPPER_NAMES = ({"_orig_mod", "module"}, {"_orig_mod"}, set[str]())
"""Parts of names that ``torch.compile``, ``DataParallel`` and averages add: the first of these sets without which all names
of a state dict still differ is left out of them. A network may have a layer called "module" itself."""

SPELLINGS = (
    ("parametrizations.{}.original0", "{}_g"),
    ("parametrizations.{}.original1", "{}_v"),
    ("parametrizations.{}.original", "{}_orig"),
    ("parametrizations.{}.0._u", "{}_u"),
    ("parametrizations.{}.0._v", "{}_v"),
)
"""The names of one number in torch's two styles of weight and spectral normalization, of the weight {}."""

AVERAGES = {"ema", "average", "averaged", "swa"}
"""Words in the place of averaged weights."""


class _Match(NamedTuple):
    """The state dict at a place of a file, compared with a network; ``pairs``: its names -> those of the file."""

    place: str
    state: State
    pairs: dict[str, str]
    missing: list[str]
    unexpected: list[str]
    wrong: list[str]

    @property
    def fits(self) -> bool:
        return not (self.missing or self.unexpected or self.wrong)


def plain_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """A state dict without what wrappers (also of parts) add to the names: torch.compile, DataParallel and its kind."""
    inside = set()
    for name, module in model.named_modules(remove_duplicate=False):
        if "_orig_mod" in module._modules:
            inside.add(f"{name}._orig_mod".removeprefix("."))
        elif isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inside.add(f"{name}.module".removeprefix("."))
    state = {}
    for name, tensor in model.state_dict().items():
        parts = name.split(".")
        state[".".join(p for i, p in enumerate(parts) if ".".join(parts[: i + 1]) not in inside)] = tensor
    return state


def state_dicts_in(value: Any, place: str = "", depth: int = 3) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """The dicts of named tensors in a checkpoint with their places, such as "ema.model"; "" is the checkpoint itself."""
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        return
    if tensors := {name: member for name, member in value.items() if isinstance(member, Tensor)}:
        yield place, tensors
    for name, member in value.items() if depth else ():
        yield from state_dicts_in(member, f"{place}.{name}".removeprefix("."), depth - 1)


def fill(
    network: nn.Module, found: Mapping[str, State], path: object, key: str | None = None, strict: bool = True
) -> None:
    """Load the state dict that has the network's names, under any prefix, into the network.

    Args:
        network: unchanged when an error is raised.
        found: the state dicts of a file by their places.
        path: of the file, for messages.
        key: the place of the one to take, with the prefix of its names, if any; None for the only one that fits, or the
            only one that is no average, of which a warning tells.
        strict: False takes what there is, and warns of names that are missing or left over.

    Raises:
        ModelError: none fits, or several do.
    """
    own = {name: value for name, value in network.state_dict().items() if isinstance(value, Tensor)}
    tied = _tied(own)
    matches = [match for place, state in found.items() for match in _matches(own, tied, state, place)]
    if key is not None:
        matches = [match for match in matches if match.place == key]
    fitting = {match.place: match for match in matches if match.fits}
    plain = [place for place in fitting if AVERAGES.isdisjoint(re.split(r"[._]", place.lower()))]
    if len(fitting) > 1 and len(plain) != 1:
        raise ModelError(
            f"{path} has several state dicts for this network, at {_some(fitting)}; expected one. Name it: "
            f"key={next(iter(fitting))!r}"
        )
    if fitting:
        place = plain[0] if plain else next(iter(fitting))
        if others := [other for other in fitting if other != place]:
            warnings.warn(
                f"{path}: the weights at {place or 'the top'} are taken, and not the average at {others[0]}; "
                f"key={others[0]!r} takes that",
                stacklevel=3,
            )
        chosen = fitting[place]
    else:
        if not matches:
            places = _some([place or "the top" for place in found])
            raise ModelError(
                f"{path} has no weights of this network at {key!r}; its state dicts are at {places}"
            )
        chosen = max(matches, key=lambda match: (len(match.pairs), -len(match.unexpected)))
        lacking = [f"missing {_some(chosen.missing)}"] * bool(chosen.missing)
        lacking += [f"unexpected {_some(chosen.unexpected)}"] * bool(chosen.unexpected)
        if re.search(r"-\d+-of-\d+\.", str(path)):
            lacking.append("the file is one of several shards")
        if strict or chosen.wrong or not chosen.pairs:
            raise ModelError(
                f"{path} has the weights of another network than arch: {'; '.join(lacking + chosen.wrong[:3])}"
            )
        warnings.warn(f"{path} was loaded in part: {'; '.join(lacking)}", stacklevel=3)
    network.load_state_dict(
        {name: chosen.state[theirs] for name, theirs in chosen.pairs.items()}, strict=False
    )


def _matches(own: State, tied: Mapping[str, str], state: State, place: str) -> Iterator[_Match]:
    """A comparison for each prefix under which some of the network's names stand in a state dict."""
    mine, theirs = next(
        (mine, theirs)
        for mine, theirs in ((_shortened(own, parts), _shortened(state, parts)) for parts in WRAPPER_NAMES)
        if len(mine) == len(own) and len(theirs) == len(state)
    )
    spellings = {spelling: name for name in mine for spelling in _spellings(name)} | {
        name: name for name in mine
    }
    prefixes: Counter[str] = Counter({"": 0})
    for name in theirs:
        parts = name.split(".")
        prefixes.update(".".join(parts[:i]) for i in range(len(parts)) if ".".join(parts[i:]) in spellings)
    for prefix, count in prefixes.items():
        if count < max(prefixes.values()):
            continue
        start = f"{prefix}." if prefix else ""
        under = {name.removeprefix(start): theirs[name] for name in theirs if name.startswith(start)}
        used = {name: next((s for s in (name, *_spellings(name)) if s in under), None) for name in mine}
        pairs = {mine[name]: under[spelling] for name, spelling in used.items() if spelling is not None}
        present = {tied[name] for name in pairs}
        yield _Match(
            f"{place}.{prefix}".strip("."),
            state,
            pairs,
            missing=sorted(name for name in own if tied[name] not in present),
            unexpected=sorted(set(under.values()) - set(pairs.values()) - {under.get("n_averaged", "")}),
            wrong=list(_wrong(own, tied, state, pairs)),
        )


def _wrong(own: State, tied: Mapping[str, str], state: State, pairs: Mapping[str, str]) -> Iterator[str]:
    """Values that are not those of the network, in words."""
    firsts: dict[str, str] = {}
    for name, other in pairs.items():
        mine, theirs = own[name], state[other]
        first = firsts.setdefault(tied[name], other)
        if theirs.shape != mine.shape:
            yield f"{name} is {tuple(theirs.shape)}, expected {tuple(mine.shape)}"
        elif theirs.is_complex() and not mine.is_complex():
            yield f"{name} is {theirs.dtype}, expected real numbers"
        elif mine.is_floating_point() and not theirs.is_floating_point() and not theirs.is_complex():
            yield f"{name} is {theirs.dtype}, expected floating point; quantized?"
        elif first != other and not torch.equal(theirs, state[first]):
            yield f"{first} and {other} differ, but are one weight in arch"


def _tied(own: State) -> dict[str, str]:
    """Each name -> the first of the names of the same numbers in memory."""
    firsts: dict[tuple[object, ...], str] = {}
    tied = {}
    for name, t in own.items():
        unknown = missing_values(t) or not t.numel()
        key = (name,) if unknown else (t.device, t.data_ptr(), t.dtype, t.shape, t.stride())
        tied[name] = firsts.setdefault(key, name)
    return tied


def _spellings(name: str) -> Iterator[str]:
    """The names of the same number in the other style of normalization."""
    for styles in SPELLINGS:
        for here, there in (styles, styles[::-1]):
            pattern = re.escape(here).replace(r"\{\}", r"(\w+)")
            if found := re.fullmatch(rf"(|.*\.){pattern}", name):
                yield found[1] + there.format(found[2])


def aligned(mine: Collection[str], theirs: Collection[str]) -> dict[str, str]:
    """The names of mine that theirs have too -> how these write them: without the parts and the prefix that wrappers add."""
    short = [_shortened(names, parts) for names in (mine, theirs) for parts in WRAPPER_NAMES]
    one, other = (
        next(found for found in some if len(found) == len(names))
        for some, names in ((short[: len(WRAPPER_NAMES)], mine), (short[len(WRAPPER_NAMES) :], theirs))
    )
    shifts: Counter[tuple[str, str]] = Counter({("", ""): sum(name in other for name in one)})
    for names, others, mark in ((one, other, 0), (other, one, 1)):
        for name in names:
            parts = name.split(".")
            for i in range(1, len(parts)):
                if ".".join(parts[i:]) in others:
                    start = ".".join(parts[:i]) + "."
                    shifts[("", start) if mark else (start, "")] += 1
    (drop, add), _ = shifts.most_common(1)[0]
    pairs = {name: add + name.removeprefix(drop) for name in one if name.startswith(drop)}
    return {one[name]: other[twin] for name, twin in pairs.items() if twin in other}


def _shortened(names: Collection[str], dropped: set[str]) -> dict[str, str]:
    """Names without some of their parts -> names."""
    return {".".join(part for part in name.split(".") if part not in dropped): name for name in names}


def _some(names: Collection[str]) -> str:
    names = list(names)
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
