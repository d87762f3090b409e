"""Networks of the timm library."""

import importlib
from typing import Any

from torch import nn

from opnorm._core.network_sizes import CHW, check_sizes
from opnorm._core.settings import check_count
from opnorm.errors import ModelError, did_you_mean
from opnorm.models.modules import Normalize
from opnorm.models.stages import named
from opnorm.spec import factory

__all__ = ["timm"]


@factory("model")
def timm(
    name: str, pretrained: bool = False, in_shape: CHW = (3, 224, 224), classes: int | None = None
) -> nn.Module:
    """A network of timm after the normalization that it was trained with: ``timm("resnet18.a1_in1k")``.

    Needs the extra ``opnorm[timm]``. Pixels are in [0, 1]; the mean and standard deviation of the data are not used. Without
    three channels, timm's numbers are averaged over the channels.

    Args:
        name: as in ``timm.list_models()``.
        pretrained: download timm's weights (from the Hugging Face hub, once); otherwise they are random.
        in_shape: of one image, (C, H, W). Networks for a fixed size, such as vision transformers, are built for this one.
        classes: number of logits, of a new last layer unless it is timm's own number; None for timm's own.

    Raises:
        ModelError: timm is not installed or cannot be imported, it has no such network, the network cannot be built with
            these sizes, or its weights cannot be downloaded.
    """
    check_sizes(in_shape=in_shape)
    check_count("classes", classes, optional=True, error=ModelError)
    library = _library(name)
    if not library.is_model(name):
        hint = did_you_mean(name, library.list_models(), "expected one of timm.list_models()")
        raise ModelError(f"timm has no network {name!r}{hint}")
    options: dict[str, Any] = {} if classes is None else {"num_classes": classes}
    settings = library.get_pretrained_cfg(name)
    if settings is not None and settings.fixed_input_size:
        options["img_size"] = in_shape[1:]
    try:
        model = library.create_model(name, pretrained=pretrained, in_chans=in_shape[0], **options)
    except Exception as e:
        cause = (
            "no network, or no weights under this name; pretrained=False needs neither"
            if pretrained
            else f"images of {in_shape[1]} x {in_shape[2]} pixels or {in_shape[0]} channels do not fit it"
        )
        reason = f"{type(e).__name__}: {e}".splitlines()[0]
        raise ModelError(f"timm({name!r}) cannot be built ({reason:.200}). Likely cause: {cause}") from e
    mean, std = (tuple(model.pretrained_cfg[key]) for key in ("mean", "std"))
    if len(mean) != in_shape[0]:
        mean, std = (sum(numbers) / len(numbers) for numbers in (mean, std))
    return named(normalize=Normalize(in_shape[0], mean, std), network=model)


def _library(name: str) -> Any:
    try:
        return importlib.import_module("timm")
    except (ImportError, RuntimeError) as e:  # torchvision built for another torch raises the latter
        raise ModelError(
            f"timm({name!r}) needs the packages timm and torchvision ({e}): pip install 'opnorm[timm]', with the "
            "torchvision that belongs to your torch"
        ) from e
