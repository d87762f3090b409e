"""Networks: factories that take the image shape and the number of classes, and carry their own normalization."""

from opnorm.models._resnet import resnet, resnet18
from opnorm.models.basic import cnn, mlp
from opnorm.models.external import timm
from opnorm.models.loading import file
from opnorm.models.loading import save as save
from opnorm.models.regnet import regnetx_200mf
from opnorm.models.senet import senet18
from opnorm.models.vgg import cnn7, vgg11, vgg16
from opnorm.models.wide import wrn, wrn50_2

__all__ = [
    "cnn",
    "cnn7",
    "file",
    "mlp",
    "regnetx_200mf",
    "resnet",
    "resnet18",
    "senet18",
    "timm",
    "vgg11",
    "vgg16",
    "wrn",
    "wrn50_2",
]
