import io

import numpy as np
import pytest
from PIL import Image

from tests.data.files import features, write


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """A cache of its own for every test."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("OPNORM_CACHE", str(folder))
    return folder


@pytest.fixture
def png():
    """Encode an array (H, W) or (H, W, 3), or a Pillow image, as bytes."""

    def encode(pixels, form="PNG", **options):
        image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
        file = io.BytesIO()
        image.save(file, form, **options)
        return file.getvalue()

    return encode


@pytest.fixture
def pictures():
    """Random uint8 pictures, (n, h, w) or (n, h, w, 3)."""

    def make(n, h=5, w=7, color=False, seed=0):
        shape = (n, h, w, 3) if color else (n, h, w)
        return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)

    return make


@pytest.fixture
def hub(tmp_path, png, pictures):
    """A folder like one of the hub: 2 training shards of 6 rows, 1 test shard of 4; and its pictures."""
    train, test = pictures(12), pictures(4, seed=1)
    root = tmp_path / "animals"
    for shard in (0, 1):
        rows = [png(p) for p in train[6 * shard : 6 * shard + 6]]
        write(root / f"data/train-0000{shard}-of-00002.parquet", rows, [0, 1, 2, 0, 1, shard], features())
    write(root / "data/test-00000-of-00001.parquet", [png(p) for p in test], [2, 1, 0, 0], features())
    return root, train, test
