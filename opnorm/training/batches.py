"""The batches of an epoch: of images in memory, or decoded by processes as the training reaches them."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from opnorm.data.dataset import Split
from opnorm.data.streaming import StreamedImages, decoding_processes, workers_for

__all__ = ["Batches", "open_batches"]


class Batches:
    """A training part by batches, on a device; made by :func:`open_batches`."""

    def __init__(self, split: Split, device: torch.device, pool: Executor | None, workers: int) -> None:
        self.device, self.pool, self.workers = device, pool, workers
        images: Any = split.images
        self.streamed = images if isinstance(images, StreamedImages) else None
        self.images = None if self.streamed else images.to(device)
        self.labels = split.labels.to(device)

    def order(self, generator: torch.Generator) -> Tensor:
        """The places of all points in a random order; of streamed images one in which few files are read at a time."""
        if self.streamed:
            return self.streamed.shuffled(generator)
        return torch.randperm(len(self.labels), generator=generator)

    def load(self, chunks: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Uint8 images and labels of the points at the places that each chunk names."""
        if self.streamed:
            decoded = self.streamed.batches(chunks, self.pool, self.workers)
            for images, chosen in zip(decoded, chunks, strict=True):
                yield images.to(self.device), self.labels[chosen.to(self.device)]
            return
        assert self.images is not None, "they are in memory"
        for chosen in chunks:
            rows = chosen.to(self.device)
            yield self.images[rows], self.labels[rows]


@contextmanager
def open_batches(split: Split, device: torch.device) -> Iterator[Batches]:
    """The batches of a part; those of streamed images with processes that end with the block."""
    workers = workers_for(torch.get_num_threads()) if isinstance(split.images, StreamedImages) else 0
    with decoding_processes(workers) as pool:
        yield Batches(split, device, pool, workers)
