"""The papers' networks, timm's, and weights in files.

A factory of a network takes these settings, and raises ModelError for a size below 1:

- ``in_shape``: of one image, (C, H, W). Convolutional networks accept other H and W unless they say otherwise.
- ``classes``: number of logits.
- ``mean``, ``std``: of the pixels, one number or one for each channel; 0 and 1 when None. The first layer is
  :class:`Normalize`, so that pixels are in [0, 1] everywhere else.

When opnorm trains a network, those of the four that the call leaves out are taken from the data; what the call states is
kept: ``cnn(mean=0, std=1)`` gets the pixels as they are. Weights follow torch's global seed.
"""

from opnorm.models.external import timm
from opnorm.models.fixed_centers import max_mahalanobis
from opnorm.models.hub_models import hf
from opnorm.models.loading import file, save
from opnorm.models.modules import Normalize
from opnorm.models.plain import cnn, cnn7, mlp, parallel_convs, vgg11, vgg16
from opnorm.models.residual import regnetx_200mf, resnet, resnet18, senet18, wrn, wrn50_2
from opnorm.models.weight_norms import measure_checkpoint

__all__ = [
    "Normalize",
    "cnn",
    "cnn7",
    "file",
    "hf",
    "max_mahalanobis",
    "measure_checkpoint",
    "mlp",
    "parallel_convs",
    "regnetx_200mf",
    "resnet",
    "resnet18",
    "save",
    "senet18",
    "timm",
    "vgg11",
    "vgg16",
    "wrn",
    "wrn50_2",
]
