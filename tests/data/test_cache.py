import random
from pathlib import Path

import pytest
import torch
from PIL import Image

from opnorm._core.caching import cache_folder
from opnorm.data import parquet
from opnorm.errors import DataError
from tests.data.files import features, write


class TestCache:
    @pytest.fixture
    def decoded(self, monkeypatch):
        """One entry for each image that is decoded."""
        count, real = [], Image.open
        monkeypatch.setattr(Image, "open", lambda *args, **more: (count.append(1), real(*args, **more))[1])
        return count

    def equal(self, a, b):
        same = all(
            torch.equal(x, y)
            for s, t in ((a.train, b.train), (a.test, b.test))
            for x, y in zip(s, t, strict=True)
        )
        return same and a.classes == b.classes and a.name == b.name

    def test_second_time_nothing_is_decoded(self, hub, decoded, cache):
        first = parquet(str(hub[0]))
        assert len(decoded) == 16
        second = parquet(str(hub[0]))
        assert len(decoded) == 16
        assert self.equal(first, second)
        assert [p.suffix for p in cache.iterdir()] == [".safetensors"]

    def test_each_argument_has_its_own(self, hub, decoded):
        parquet(str(hub[0]))
        assert parquet(str(hub[0]), size=3).image_shape == (1, 3, 3)
        parquet(str(hub[0]), label="label")
        assert len(decoded) == 48

    def test_a_changed_file_is_read_again(self, hub, decoded, png, pictures):
        parquet(str(hub[0]))
        new = pictures(4, seed=9)
        write(hub[0] / "data/test-00000-of-00001.parquet", [png(p) for p in new], [2, 1, 0, 0], features())
        assert torch.equal(parquet(str(hub[0])).test.images[:, 0], torch.from_numpy(new))

    def test_a_renamed_part_is_read_again(self, hub):
        parquet(str(hub[0]))
        (hub[0] / "data/train-00000-of-00002.parquet").rename(hub[0] / "data/train.parquet")
        (hub[0] / "data/train-00001-of-00002.parquet").rename(hub[0] / "data/other.parquet")
        assert len(parquet(str(hub[0])).train.labels) == 6

    def test_a_renamed_link_is_read_again(self, tmp_path, png, pictures):
        for name in "xyz":  # the hub's cache is made of links
            blob = write(tmp_path / f"blobs/{name}", [png(p) for p in pictures(4)], [0, 1, 0, 1])
            (tmp_path / f"set/train-{name}.parquet").parent.mkdir(exist_ok=True)
            (tmp_path / f"set/train-{name}.parquet").symlink_to(blob)
        parquet(str(tmp_path / "set"))
        (tmp_path / "set/train-z.parquet").rename(tmp_path / "set/zz_test.parquet")
        assert len(parquet(str(tmp_path / "set")).train.labels) == 8
        assert len(parquet(str(tmp_path / "set")).test.labels) == 4

    @pytest.mark.parametrize("damage", ["truncate", "empty", "noise", "flip", "no metadata"])
    def test_a_damaged_file_is_made_again(self, hub, decoded, cache, damage):
        first = parquet(str(hub[0]))
        (file,) = cache.iterdir()
        content = file.read_bytes()
        if damage == "no metadata":
            from safetensors.torch import save_file

            save_file({"train_images": torch.zeros(1)}, file)
        else:
            flipped = content[:-30] + bytes([content[-30] ^ 1]) + content[-29:]
            damaged = {
                "truncate": content[:-40],
                "empty": b"",
                "noise": random.Random(0).randbytes(300),
                "flip": flipped,
            }
            file.write_bytes(damaged[damage])
        assert self.equal(parquet(str(hub[0])), first)
        assert len(decoded) == 32
        assert file.read_bytes() == content

    def test_changing_the_tensors_changes_no_file(self, hub):
        parquet(str(hub[0]))
        before = parquet(str(hub[0]))
        kept = before.train.images.clone()
        before.train.images.zero_()
        assert torch.equal(parquet(str(hub[0])).train.images, kept)

    def test_where_it_lies(self, hub, tmp_path, monkeypatch):
        monkeypatch.delenv("OPNORM_CACHE")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
        assert cache_folder() == tmp_path / "xdg/opnorm"
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        parquet(str(hub[0]))
        assert len(list((tmp_path / "home/.cache/opnorm").iterdir())) == 1

    def test_cannot_be_written(self, hub, tmp_path, monkeypatch):
        (tmp_path / "file").touch()
        monkeypatch.setenv("OPNORM_CACHE", str(tmp_path / "file"))
        with pytest.warns(RuntimeWarning, match=r"could not be cached in .*OPNORM_CACHE") as caught:
            assert len(parquet(str(hub[0])).train.labels) == 12
        assert len(caught) == 1

    def test_full_disk(self, hub, cache, monkeypatch):
        import safetensors.torch

        def full(tensors, path, metadata):
            Path(path).write_bytes(b"half a file")
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(safetensors.torch, "save_file", full)
        with pytest.warns(RuntimeWarning, match="No space left on device"):
            parquet(str(hub[0]))
        assert list(cache.iterdir()) == []

    def test_an_error_is_not_cached(self, hub, cache):
        file = hub[0] / "data/test-00000-of-00001.parquet"
        content = file.read_bytes()
        file.write_bytes(content[:100])
        with pytest.raises(DataError):
            parquet(str(hub[0]))
        assert list(cache.iterdir()) == []
