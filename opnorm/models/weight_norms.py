"""The norms of every weight of a checkpoint without its model, and how far each moved to another checkpoint."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

from torch import Tensor

from opnorm._core.modes import in_default_modes
from opnorm._core.orders import check_interval, check_ords
from opnorm.errors import ModelError, NormError, did_you_mean
from opnorm.models.state_dicts import aligned
from opnorm.models.weight_kinds import Opened, Weight, open_all
from opnorm.norms._operator_norm import Order
from opnorm.norms.display import first_few
from opnorm.norms.matrix_norms import WeightNorms, diagonal_norms, matrix_norms
from opnorm.norms.spectral.large_matrix import PanelMatrix
from opnorm.norms.weight_table import Move, MoveTable, WeightTable

__all__ = ["measure_checkpoint"]

Report = Callable[[str, int], None]


@in_default_modes
def measure_checkpoint(
    path: str | Path,
    against: str | Path | None = None,
    ords: Sequence[Order] = (1, 2, math.inf, "rms"),
    *,
    only: str = "*",
    condition: bool = False,
    relative_width: float = 5e-3,
    failure_probability: float = 1e-9,
    progress: bool = False,
) -> WeightTable | MoveTable:
    """The norms of every weight matrix and kernel of a checkpoint, by name and without its model.

    One tensor at a time is read. A matrix (n_out, n_in) has its exact ℓ1 and ℓ∞ norm, an interval for ‖W‖_2, the norm from
    RMS to RMS sqrt(n_in / n_out) ‖W‖_2, ‖W‖_F and the stable rank ‖W‖_F² / ‖W‖_2². A kernel is measured as the matrix
    (n_out, n_in · k · k), for stride and padding are not in the file; a gain of a normalization as a diagonal map; an
    embedding as the map from one-hot vectors, the transposed matrix.

    Args:
        path: a ``.safetensors`` file, an index of shards, a folder of the hub, the folder of a LoRA adapter (whose changes
            are measured), or a state dict of ``torch.save``.
        against: a second one, or an adapter for this base: how far each weight moves, ‖W2 - W1‖ and ‖W2 - W1‖ / ‖W1‖.
        ords: which norms: 1, 2, ``math.inf``, "rms".
        only: leave out all weights but those whose name or kind matches a pattern, as in a shell.
        condition: also the condition, from all singular values: minutes for matrices of thousands of rows.
        relative_width: of ℓ2 intervals, upper / lower - 1, to aim at.
        failure_probability: with which the upper end of each may be wrong; 0 takes all singular values instead.
        progress: show a bar with the time left on standard error, if that is a terminal.

    Raises:
        ModelError: no such file, a damaged one, no weights in it, or none that both have.
        NormError: another norm, or a setting out of its range.

    Source: Kuczyński & Woźniakowski 1992 (upper ends); Large et al. 2024 (RMS); Hu et al. 2022 (LoRA).

    Example:
        >>> import tempfile, torch
        >>> path = tempfile.mkdtemp() + "/weights.pt"
        >>> torch.save({"fc.weight": torch.tensor([[3.0, 0.0], [4.0, 0.0]]), "fc.bias": torch.zeros(2)}, path)
        >>> (row,) = measure_checkpoint(path).rows
        >>> float(row.norms[1]), float(row.norms[math.inf]), row.frobenius
        (7.0, 4.0, 5.0)
    """
    _check_orders(ords)
    check_interval(relative_width, failure_probability)
    settings = tuple(ords), relative_width, failure_probability, condition
    first = open_all(path)
    if against is None:
        weights = _chosen(first.weights, only, path)
        with _bar([w.size for w in weights], progress) as report:
            rows = [_measured(w, w.open, settings, report) for w in weights]
        return WeightTable(tuple(rows), tuple(ords), first.left_out, first.remarks)
    if first.low_rank:
        raise ModelError(
            f"{path} is an adapter; expected the base first: its weights, and the adapter to compare with"
        )
    return _moves(first, open_all(against), only, (path, against), settings, progress)


def _check_orders(ords: Sequence[Order]) -> None:
    check_ords(ords)
    for p in ords:
        if isinstance(p, tuple):
            raise NormError(
                f"ord={p!r}: without the model 1, 2, math.inf and 'rms' are known; pairs need the layer"
            )


def _chosen(weights: dict[str, Weight], only: str, path: object) -> list[Weight]:
    found = [w for n, w in weights.items() if fnmatchcase(n, only) or fnmatchcase(w.row.kind, only)]
    if not weights:
        raise ModelError(f"{path} has no weight matrices, kernels or gains; is it a file of weights?")
    if not found:
        hint = did_you_mean(only, weights, f"there are {first_few(list(weights), 6)}")
        raise NormError(f"no weight matches {only!r}{hint}")
    return found


def _measured(
    weight: Weight,
    source: Callable[[], PanelMatrix | Tensor],
    settings: tuple[tuple[Order, ...], float, float, bool],
    report: Report,
) -> WeightNorms:
    """One row; a tensor that cannot be read is a row that says why, and does not hide the others."""
    report(weight.row.name, 0)
    try:
        W = source()
        if isinstance(W, PanelMatrix):
            return matrix_norms(weight.row, W, *settings)
        return diagonal_norms(weight.row, W, settings[0])
    except ModelError as e:
        return replace(weight.row, note=str(e))
    finally:
        report(weight.row.name, weight.size)


@contextmanager
def _bar(sizes: Sequence[int], shown: bool) -> Iterator[Report]:
    """A progress bar by the number of weights."""
    from opnorm._core.progress_bar import progress_bar

    if not shown:
        yield lambda name, done: None
        return
    with progress_bar() as bar:
        task = bar.add_task("weights", total=sum(sizes), note="")
        yield lambda name, done: bar.update(task, advance=done, description=name)


# ---------------------------------------------------------------- two checkpoints


def _moves(
    first: Opened,
    second: Opened,
    only: str,
    paths: tuple[object, object],
    settings: tuple[tuple[Order, ...], float, float, bool],
    progress: bool,
) -> MoveTable:
    pairs = aligned(list(first.weights), list(second.weights))
    if not pairs:
        mine, theirs = (first_few(list(opened.weights), 2) for opened in (first, second))
        raise ModelError(
            f"{paths[0]} and {paths[1]} have no weight of one name: {mine} and {theirs}; are they of one network?"
        )
    chosen = _chosen({name: first.weights[name] for name in pairs}, only, paths[0])
    rows = []
    with _bar([2 * w.size for w in chosen], progress) as report:
        for weight in chosen:
            twin, row = second.weights[pairs[weight.row.name]], weight.row
            if row.shape != twin.row.shape:
                note = f"its shape is {row.shape} in the first and {twin.row.shape} in the second"
                rows.append(Move(row.name, row.kind, row.shape, row, twin.row, note))
                report(row.name, 2 * weight.size)
                continue
            before = _measured(weight, weight.open, settings, report)
            opened = twin.open if twin.row.kind == "change" else _difference(weight, twin)
            renamed = twin._replace(row=replace(row, dtype=twin.row.dtype))
            moved = _measured(renamed, opened, settings, report)
            note = "; ".join(dict.fromkeys(n for n in (before.note, moved.note) if n))
            rows.append(Move(row.name, row.kind, row.shape, before, moved, note))
    missing = []
    for what, names in (
        ("first", [] if second.low_rank else [n for n in first.weights if n not in pairs]),
        ("second", [n for n in second.weights if n not in pairs.values()]),
    ):
        if names:
            missing.append(f"Only in the {what}: {first_few(names)}")
    untouched = len(first.weights) - len(pairs)
    if second.low_rank and untouched:
        missing.append(f"{untouched} weights of the base are not changed by the adapter")
    left_out = first.left_out | (second.left_out if second.low_rank else {})
    return MoveTable(tuple(rows), settings[0], tuple(missing), left_out)


def _difference(one: Weight, two: Weight) -> Callable[[], PanelMatrix | Tensor]:
    """W2 - W1, formed in float64 as it is read."""

    def opened() -> PanelMatrix | Tensor:
        a, b = one.open(), two.open()
        if isinstance(a, PanelMatrix) and isinstance(b, PanelMatrix):
            before, after = a.rows, b.rows
            return PanelMatrix(a.shape, lambda i, j: after(i, j).double() - before(i, j).double())
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            return b.double() - a.double()
        raise ModelError(
            f"{one.row.name} is a {one.row.kind} in the first and a {two.row.kind} in the second"
        )

    return opened
