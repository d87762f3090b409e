"""Parquet files as the Hugging Face hub has them, for tests."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

CLASSES = ("cat", "dog", "owl")


def features(image="image", label="label", names=CLASSES):
    described = {image: {"_type": "Image"}, label: {"_type": "ClassLabel", "names": list(names)}}
    return {"huggingface": json.dumps({"info": {"features": described}})}


def write(path, images, labels, metadata=None, image="image", label="label", struct=True, **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    if struct:
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        column = pa.array([None if b is None else {"bytes": b, "path": None} for b in images], kind)
    else:
        column = pa.array(images, pa.binary())
    labels = labels if isinstance(labels, pa.Array) else pa.array(labels)
    table = pa.table({image: column, label: labels, **more})
    pq.write_table(table.replace_schema_metadata(metadata), path)
    return path


def write_pictures(path, n, seed=0):
    """``n`` random gray pictures as PNG, with labels in turn."""
    pictures = np.random.default_rng(seed).integers(0, 256, (n, 8, 8), dtype=np.uint8)
    encoded = []
    for picture in pictures:
        Image.fromarray(picture).save(file := io.BytesIO(), "PNG")
        encoded.append(file.getvalue())
    return write(path, encoded, [i % len(CLASSES) for i in range(n)], features())
