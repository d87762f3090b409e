"""Networks: factories that take the image shape and the number of classes, and carry their own normalization."""

from opnorm.models.basic import cnn, mlp
from opnorm.models.files import file
from opnorm.models.files import save as save
from opnorm.models.resnet import resnet

__all__ = ["cnn", "file", "mlp", "resnet"]
