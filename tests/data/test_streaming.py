"""Images that stay encoded: the same as in memory, each once an epoch, in an order that no number of processes changes."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from opnorm.data import Dataset, folder, parquet
from opnorm.data.streaming import StreamedImages, decoding_processes
from opnorm.errors import DataError, SpecError
from tests.data.files import features, write, write_pictures


@pytest.fixture
def shards(tmp_path):
    """A folder with 3 training shards of 40 pictures in row groups of 8, and a test file of 12."""
    for i in range(3):
        write_pictures(tmp_path / f"set/train-0000{i}-of-00003.parquet", 40, seed=i)
    write_pictures(tmp_path / "set/test.parquet", 12, seed=3)
    for file in (tmp_path / "set").iterdir():
        pq.write_table(pq.read_table(file), file, row_group_size=8)
    return tmp_path / "set"


def same(a: Dataset, b: Dataset) -> bool:
    parts = ((a.train, b.train), (a.test, b.test), (a.for_training, b.for_training))
    return all(
        torch.equal(one.images[:], two.images[:]) and torch.equal(one.labels, two.labels)
        for one, two in parts
    )


class TestSameAsInMemory:
    @pytest.mark.parametrize("more", [{}, {"size": 4}, {"center_crop": 5}])
    def test_parquet(self, shards, more):
        streamed, whole = (parquet(str(shards), stream=stream, **more) for stream in (True, False))
        assert isinstance(streamed.train.images, StreamedImages)
        assert same(streamed, whole)
        assert same(streamed.limit(30), whole.limit(30))
        assert isinstance(streamed.limit(30).train.images, StreamedImages)
        assert streamed.describe() == whole.describe()
        assert (streamed.mean, streamed.std) == (whole.mean, whole.std)  # of fewer than the sample
        rows = torch.tensor([7, 100, 3, 7])
        assert torch.equal(streamed.train.images[rows], whole.train.images[rows])
        parts = zip(streamed.train.images.split(50), whole.train.images.split(50), strict=True)
        assert all(torch.equal(a, b) for a, b in parts)

    def test_one_file_with_a_fifth_held_out(self, tmp_path):
        file = str(write_pictures(tmp_path / "one.parquet", 40))
        assert same(parquet(file, stream=True), parquet(file))

    def test_class_folders_some_in_color(self, tmp_path, pictures):
        for part, n in (("train", 12), ("val", 6)):
            for i, pixels in enumerate(pictures(n, seed=n, color=part == "val")):
                file = tmp_path / f"set/{part}/{'ab'[i % 2]}/{i}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(file)
        streamed, whole = (folder(str(tmp_path / "set"), stream=stream) for stream in (True, False))
        assert streamed.image_shape == (3, 5, 7)
        assert same(streamed, whole)


class Blocks:
    """Rows in blocks that count how many are held between reading and use."""

    def __init__(self, sizes: list[int], buffer: int) -> None:
        self.starts, self.buffer, self.taken = np.concatenate([[0], np.cumsum(sizes)]), buffer, 0

    def read(self, rows):
        for row in rows.tolist():
            self.taken += 1
            yield row, ("", row)

    def images(self) -> StreamedImages:
        return StreamedImages(self, np.arange(int(self.starts[-1])), "blocks", (1, 2, 2))


class TestOrder:
    def orders(self, blocks, count=2):
        generator = torch.Generator().manual_seed(0)
        return [blocks.images().shuffled(generator) for _ in range(count)]

    @pytest.mark.parametrize("sizes", [[100] * 50, [5000], [1] * 5000, [1, 999, 3000, 500, 500]])
    def test_each_image_once_in_another_order_each_epoch(self, sizes):
        first, second = self.orders(Blocks(sizes, 500))
        assert torch.equal(first.sort().values, torch.arange(5000))
        assert torch.equal(second.sort().values, torch.arange(5000))
        assert not torch.equal(first, second)

    def test_the_order_does_not_follow_that_of_the_rows(self):
        (order,) = self.orders(Blocks([100] * 100, 1000), 1)
        rows = order.double()
        following = torch.corrcoef(torch.stack([rows[:-1], rows[1:]]))[0, 1]
        placed = torch.corrcoef(torch.stack([rows, torch.arange(len(rows)).double()]))[0, 1]
        assert abs(following) < 0.2  # 1 within a block that is not mixed
        assert abs(placed) < 0.4  # 100 blocks: of standard deviation 0.1
        mixed = [len((batch // 100).unique()) for batch in order.split(128)]
        assert sorted(mixed)[len(mixed) // 10] >= 6  # blocks in a batch; 2 without a buffer

    @pytest.mark.parametrize("sizes", [[100] * 50, [5000], [2500, 2500]])
    def test_few_images_wait(self, sizes):
        blocks = Blocks(sizes, 300)
        (order,) = self.orders(blocks, 1)
        waiting = 0
        for used, _ in enumerate(blocks.images()._encoded(order.numpy()), 1):
            waiting = max(waiting, blocks.taken - used)
        assert 0 < waiting <= 2 * blocks.buffer


class TestProcesses:
    def test_no_number_of_processes_changes_a_batch(self, shards):
        images = parquet(str(shards), stream=True).train.images
        chunks = images.shuffled(torch.Generator().manual_seed(3)).split(50)
        epochs = []
        for workers in (0, 1, 2):
            with decoding_processes(workers) as pool:
                epochs.append(list(images.batches(chunks, pool, workers)))
        for epoch in epochs:
            assert [len(batch) for batch in epoch] == [50, 50, 20]
            assert all(torch.equal(a, images[chunk]) for a, chunk in zip(epoch, chunks, strict=True))

    def test_what_is_left_of_an_epoch_is_the_same(self, shards):
        images = parquet(str(shards), stream=True).train.images
        chunks = images.shuffled(torch.Generator().manual_seed(3)).split(16)
        whole, rest = (list(images.batches(some, None, 0)) for some in (chunks, chunks[3:]))
        assert all(torch.equal(a, b) for a, b in zip(whole[3:], rest, strict=True))

    @pytest.mark.parametrize("workers", [0, 1])
    def test_an_error_names_the_row(self, tmp_path, png, pictures, workers):
        rows = [png(p) for p in pictures(90)]
        rows[80] = rows[80][:-30]
        images = parquet(
            str(write(tmp_path / "a.parquet", rows, [0, 1] * 45)), stream=True
        ).for_training.images
        with (
            decoding_processes(workers) as pool,
            pytest.raises(DataError, match=r"a\.parquet, row 80: .*truncated"),
        ):
            list(images.batches(torch.arange(len(images)).split(20), pool, workers))


def test_memory_does_not_grow_with_the_set(tmp_path, png):
    """50 MB of decoded images from a row group of 50 MB, by batches."""
    if not Path("/proc/self/status").exists():
        pytest.skip("the system does not tell the peak of memory of a process: no /proc/self/status")
    image, padding = png(np.zeros((256, 256, 3), np.uint8)), np.random.default_rng(0)
    rows = [image + padding.bytes(200_000) for _ in range(320)]
    file = write(tmp_path / "large.parquet", rows, [0, 1] * 160)
    pq.write_table(pq.read_table(file), file, write_batch_size=64)  # of pages of 64 rows
    small = write(tmp_path / "small.parquet", rows[:80], [0, 1] * 40)
    code = f"""
import torch
from opnorm.data import parquet
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
small = parquet({str(small)!r}, stream=True).for_training.images
list(small.batches([torch.arange(64)], None, 0))
before = peak()
images = parquet({str(file)!r}, stream=True).for_training.images
total = sum(batch.numel() for batch in images.batches(torch.arange(len(images)).split(64), None, 0))
print(total, 1024 * (peak() - before))
"""
    environment = {**os.environ, "OPNORM_CACHE": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    decoded, grown = map(int, run.stdout.split())
    assert decoded > 45e6
    assert grown < 45e6


# ---------------------------------------------------------------- bad input


class TestBadImages:
    @pytest.fixture
    def damaged(self, tmp_path, png, pictures):
        rows = [png(p) for p in pictures(20)]
        rows[3], rows[11] = rows[3][:-30], None
        return str(write(tmp_path / "a.parquet", rows, [0, 1] * 10, features()))

    def test_in_memory_and_streamed_skip_the_same(self, damaged, pictures):
        found = []
        for stream in (True, False, True):  # the last two find what was bad in the cache
            with pytest.warns(
                UserWarning,
                match=r"2 of 20 images cannot be decoded and are skipped:(.|\n)*row 3(.|\n)*row 11",
            ):
                found.append(parquet(damaged, stream=stream, skip_bad=True))
        assert same(found[0], found[1])
        assert same(found[1], found[2])
        seen = torch.cat([found[0].train.images[:], found[0].test.images[:]]).flatten(1)
        good = torch.from_numpy(np.delete(pictures(20), [3, 11], axis=0)).flatten(1)
        assert sorted(seen.tolist()) == sorted(good.tolist())

    def test_without_skip_bad_the_first_is_an_error_with_its_row(self, damaged):
        for stream in (True, False):
            with pytest.raises(DataError, match=r"a\.parquet, row 3: .* skip_bad=True"):
                parquet(damaged, stream=stream)

    def test_nothing_but_bad_images(self, tmp_path):
        file = write(tmp_path / "a.parquet", [b"no image"] * 4, [0, 1, 0, 1])
        with pytest.raises(DataError, match="none of the 4 images can be decoded"):
            parquet(str(file), skip_bad=True)

    def test_class_folders(self, tmp_path, pictures):
        for i, pixels in enumerate(pictures(20)):
            file = tmp_path / f"set/{'ab'[i % 2]}/{i:02}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(file)
        (tmp_path / "set/a/04.png").write_bytes(b"no image")
        for stream in (True, False):
            with pytest.raises(DataError, match=r"a/04\.png: the file cannot be decoded"):
                folder(str(tmp_path / "set"), stream=stream)
            with pytest.warns(UserWarning, match=r"1 of 20 images cannot be decoded(.|\n)*a/04\.png"):
                data = folder(str(tmp_path / "set"), stream=stream, skip_bad=True)
            assert len(data.train.labels) + len(data.test.labels) == 19

    def test_other_sizes_and_colors(self, tmp_path, png, pictures):
        for name, odd, message in (
            (
                "size",
                png(pictures(1, h=9)[0]),
                "row 70: an image of 7 x 9 pixels, but the first one has 7 x 5",
            ),
            ("color", png(pictures(1, color=True)[0]), "row 70: an image in color; expected a gray one"),
        ):
            rows = [png(p) for p in pictures(70)] + [odd]
            images = parquet(str(write(tmp_path / f"{name}.parquet", rows, [0, 1] * 35 + [1])), stream=True)
            with pytest.raises(DataError, match=message):
                [part.images[:] for part in (images.train, images.test)]

    @pytest.mark.parametrize("name", ["stream", "skip_bad"])
    def test_settings(self, damaged, name):
        with pytest.raises(SpecError, match=f"{name}='yes': expected True or False"):
            parquet(damaged, **{name: "yes"})


class TestShards:
    def test_a_missing_one(self, shards):
        (shards / "train-00001-of-00003.parquet").unlink()
        for stream in (True, False):
            with pytest.raises(DataError, match=r"lacks 1 of the 3 files .*'train-00001-of-00003\.parquet'"):
                parquet(str(shards), stream=stream)

    def test_a_half_written_one(self, shards):
        file = shards / "train-00001-of-00003.parquet"
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        with pytest.raises(
            DataError, match=r"train-00001-of-00003\.parquet \(\d+ bytes\) cannot be read as parquet"
        ):
            parquet(str(shards), stream=True)

    def test_one_that_goes_away_or_shrinks_while_it_is_read(self, shards):
        images = parquet(str(shards), stream=True).train.images
        file = shards / "train-00002-of-00003.parquet"
        pq.write_table(pq.read_table(file)[:35], file, row_group_size=8)
        with pytest.raises(DataError, match=r"train-00002-of-00003\.parquet ends at row 35, but row 39"):
            images[-1:]
        file.unlink()
        with pytest.raises(
            DataError, match=r"train-00002-of-00003\.parquet \(no longer there\) cannot be read"
        ):
            images[-1:]


def test_a_wrong_number_of_processes(shards, monkeypatch):
    from opnorm.data.streaming import workers_for

    monkeypatch.setenv("OPNORM_WORKERS", "two")
    with pytest.raises(DataError, match="OPNORM_WORKERS='two': expected a number of processes"):
        workers_for(2)
