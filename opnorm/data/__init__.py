"""Image sets in memory: uint8 tensors with labels.

``digits()`` comes with the package; ``parquet(path)`` reads the Hugging Face hub's files, ``hf(repo)`` downloads them first,
``folder(path)`` reads class folders of image files. Each returns a :class:`Dataset`.
"""

from opnorm.data._digits import digits
from opnorm.data._folder import folder
from opnorm.data._hub import hf
from opnorm.data._parquet import parquet
from opnorm.data.dataset import Dataset, Split

__all__ = ["Dataset", "Split", "digits", "folder", "hf", "parquet"]
