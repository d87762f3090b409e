"""Low-rank changes of weights (LoRA), in the folders that peft writes: ΔW = scale · B A, which is never formed."""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opnorm._core.files import read_json
from opnorm._core.weight_paths import ADAPTER
from opnorm.errors import ModelError, RunError
from opnorm.models.weight_files import StoredTensor, WeightFiles, open_weights
from opnorm.norms.spectral.large_matrix import PanelMatrix

__all__ = ["Adapter", "Change", "is_adapter", "open_adapter"]

WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
PREFIX = "base_model.model."
FACTOR = re.compile(r"^(.*)\.lora_(embedding_)?([AB])(?:\.weight)?$")


@dataclass(frozen=True)
class Change:
    """The change scale · B A of one weight.

    Attributes:
        A: (r, n_in), of a convolution (r, n_in, k, k).
        B: (n_out, r).
        scale: alpha / r, with rank-stabilized LoRA alpha / sqrt(r).
        transposed: whether the weight is stored the other way round, as that of an embedding.
    """

    A: StoredTensor
    B: StoredTensor
    scale: float
    transposed: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight that it is added to."""
        shape = (self.B.shape[0], *self.A.shape[1:])
        return shape[::-1] if self.transposed else shape

    def matrix(self) -> PanelMatrix:
        """The change as a matrix, in float64."""
        A, B = self.A.read().double().flatten(1), self.B.read().double().flatten(1)
        B = B * self.scale
        return PanelMatrix.product(A.T.contiguous(), B.T) if self.transposed else PanelMatrix.product(B, A)


@dataclass(frozen=True)
class Adapter:
    """What an adapter changes.

    Attributes:
        path: its folder.
        changes: by the name of the weight in the base model.
        replaced: weights that it replaces as a whole.
        left_out: by name, why a change is not known.
    """

    path: Path
    changes: dict[str, Change]
    replaced: dict[str, StoredTensor]
    left_out: dict[str, str]


def is_adapter(path: str | Path) -> bool:
    """Whether a path is the folder of an adapter."""
    return (Path(path) / ADAPTER).is_file()


def open_adapter(path: str | Path) -> Adapter:
    """The low-rank changes of a folder with ``adapter_config.json`` and ``adapter_model.safetensors``, as peft writes it.

    Raises:
        ModelError: no weights, a configuration without rank and alpha, of another method than LoRA, or factors whose shapes
            do not fit.

    Source: Hu et al. 2022 (LoRA); Kalajdzievski 2023 (rank-stabilized).
    """
    folder = Path(path)
    try:
        config = read_json(folder / ADAPTER)
    except RunError as e:
        raise ModelError(str(e)) from e
    if str(config.get("peft_type", "LORA")).upper() != "LORA":
        raise ModelError(
            f"{folder} is an adapter of type {config['peft_type']}; expected LORA, B A of a low rank"
        )
    file = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if file is None:
        raise ModelError(f"{folder} has {ADAPTER} but no {WEIGHTS[0]}; was the folder downloaded in part?")
    return _adapter(open_weights(file), config, folder)


def _adapter(weights: WeightFiles, config: dict[str, Any], folder: Path) -> Adapter:
    factors: dict[str, dict[str, StoredTensor]] = {}
    embeddings, replaced, left_out = set(), {}, {}
    for name, tensor in weights.tensors.items():
        found = FACTOR.match(name)
        short = (found[1] if found else name).removeprefix(PREFIX)
        if found:
            factors.setdefault(short, {})[found[3]] = tensor
            if found[2]:
                embeddings.add(short)
        elif "lora_" in name:
            left_out[short] = "a part of a variant of LoRA that is not known"
        else:
            replaced[short.replace(".modules_to_save", "").replace(".base_layer", "")] = tensor
    changes = {}
    for module, pair in factors.items():
        if (
            f"{module}.lora_magnitude_vector" in left_out
            or f"{module}.lora_magnitude_vector.weight" in left_out
        ):
            left_out[f"{module}.weight"] = "DoRA, whose change also depends on the base's column norms"
            continue
        if set(pair) != {"A", "B"} or pair["A"].shape[:1] != pair["B"].shape[1:2]:
            shapes = {side: tensor.shape for side, tensor in pair.items()}
            raise ModelError(
                f"{weights.path}: {module} has the factors {shapes}; expected A (r, in) and B (out, r)"
            )
        transposed = module in embeddings or bool(config.get("fan_in_fan_out"))
        changes[f"{module}.weight"] = Change(
            pair["A"], pair["B"], _scale(config, module, pair["A"].shape[0], folder), transposed
        )
    return Adapter(folder, changes, replaced, left_out)


def _scale(config: dict[str, Any], module: str, rank: int, folder: Path) -> float:
    """Alpha over r, by the rank of the factors and the first pattern that the module's name ends in."""

    def setting(name: str, patterns: str, otherwise: Any) -> Any:
        for pattern, value in (config.get(patterns) or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", module):
                return value
        return config.get(name, otherwise)

    alpha, configured = setting("lora_alpha", "alpha_pattern", None), setting("r", "rank_pattern", rank)
    if not isinstance(alpha, int | float) or configured != rank:
        raise ModelError(
            f"{folder / ADAPTER}: lora_alpha={alpha!r}, r={configured!r} for {module}, whose factors have rank {rank}; "
            "expected its alpha and that rank. Of another adapter?"
        )
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
