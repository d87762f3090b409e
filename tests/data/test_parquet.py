import json
import os
import pty
import random
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import opnorm.data.cache
import opnorm.data.decode
from opnorm import spec
from opnorm.data import parquet
from opnorm.errors import DataError

NAMES = ("cat", "dog", "owl")


def features(image="image", label="label", names=NAMES):
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


class TestLayout:
    def test_hub_folder(self, hub):
        root, train, test = hub
        data = parquet(str(root))
        assert torch.equal(data.train.images, torch.from_numpy(train).unsqueeze(1))
        assert torch.equal(data.test.images, torch.from_numpy(test).unsqueeze(1))
        assert data.train.labels.tolist() == [0, 1, 2, 0, 1, 0, 0, 1, 2, 0, 1, 1]
        assert data.test.labels.tolist() == [2, 1, 0, 0]
        assert data.classes == NAMES
        assert data.name == "animals"
        assert spec.spec_of(data) == spec.parse(f"parquet(path={json.dumps(str(root))})")

    @pytest.mark.parametrize(
        ("files", "train", "test"),
        [
            (["train.parquet", "test.parquet"], 0, 1),
            (["train.parquet", "valid.parquet"], 0, 1),
            (["train-0.parquet", "validation-0.parquet", "test-0.parquet"], 0, 2),
            (["training.parquet", "val.parquet", "extra.parquet"], 0, 1),
            (["plain_text/train-00000.parquet", "plain_text/test-00000.parquet"], 0, 1),
            (["train/0000.parquet", "test/0000.parquet"], 0, 1),
            (["default/train/0000.parquet", "default/test/0000.parquet"], 0, 1),
            (["TRAIN.parquet", "my_test.parquet", ".hidden/test.parquet"], 0, 1),
            (["contest/train-0.parquet", "contest/test-0.parquet"], 0, 1),
            (["train_v2/train/0.parquet", "train_v2/test/0.parquet"], 0, 1),
        ],
    )
    def test_parts(self, tmp_path, png, pictures, files, train, test):
        for i, file in enumerate(files):
            rows = pictures(3 + i, seed=i)
            write(tmp_path / file, [png(p) for p in rows], [0, 1, 2, 0, 1, 2][: 3 + i], features())
        data = parquet(str(tmp_path))
        for part, i in ((data.train, train), (data.test, test)):
            assert torch.equal(part.images[:, 0], torch.from_numpy(pictures(3 + i, seed=i)))

    @pytest.mark.parametrize("name", ["all.parquet", "train-0.parquet", "test-0.parquet"])
    @pytest.mark.parametrize("as_file", [True, False])
    def test_no_test_part_holds_out_a_fifth(self, tmp_path, png, pictures, name, as_file):
        file = write(tmp_path / name, [png(p) for p in pictures(50)], [0, 1] * 20 + [2] * 10, features())
        if name.startswith("test") and not as_file:
            with pytest.raises(DataError, match=r"no training part but test-0.parquet"):
                parquet(str(tmp_path))
            return
        data = parquet(str(file if as_file else tmp_path))
        assert torch.bincount(data.train.labels).tolist() == [16, 16, 8]
        assert torch.bincount(data.test.labels).tolist() == [4, 4, 2]
        pixels = {p.numpy().tobytes() for part in (data.train, data.test) for p in part.images}
        assert pixels == {p.tobytes() for p in pictures(50)}

    def test_a_part_is_named_by_a_word_not_by_letters(self, tmp_path, png, pictures):
        write(tmp_path / "contest/latest.parquet", [png(p) for p in pictures(10)], [0, 1] * 5)
        assert len(parquet(str(tmp_path)).test.labels) == 2

    def test_several_data_sets_in_one_folder(self, tmp_path, png, pictures):
        for config in ("large", "small"):
            for part in ("train", "test"):
                rows = [png(p) for p in pictures(2)]
                write(tmp_path / f"{config}/{part}-0.parquet", rows, [0, 1], features())
        with pytest.raises(
            DataError, match=r"several data sets, in the folders large, small.*config='small'"
        ):
            parquet(str(tmp_path))
        assert parquet(str(tmp_path / "small")).name == "small"


class TestColumns:
    @pytest.mark.parametrize("struct", [True, False])
    def test_by_type_without_metadata(self, tmp_path, png, pictures, struct):
        rows = [png(p) for p in pictures(4)]
        file = write(
            tmp_path / "a.parquet",
            rows,
            [1, 0, 1, 0],
            image="img",
            label="y",
            struct=struct,
            note=list("abcd"),
        )
        data = parquet(str(file))
        assert data.classes == ("0", "1")

    @pytest.mark.parametrize(
        "metadata", [{"huggingface": "{not json"}, {"huggingface": "[1]"}, {"other": "1"}]
    )
    def test_damaged_metadata_is_passed_over(self, tmp_path, png, pictures, metadata):
        file = write(tmp_path / "a.parquet", [png(p) for p in pictures(4)], [1, 0, 1, 0], metadata)
        assert parquet(str(file)).classes == ("0", "1")

    def test_metadata_goes_before_types(self, tmp_path, png, pictures):
        more = {"id": [7, 8, 9, 10], "thumbnail": pa.array([b"x"] * 4, pa.binary())}
        file = write(tmp_path / "a.parquet", [png(p) for p in pictures(4)], [1, 0, 1, 0], features(), **more)
        assert parquet(str(file)).classes == NAMES

    @pytest.mark.parametrize("encode", [pa.array, lambda x: pa.array(x).dictionary_encode()])
    def test_string_labels_are_sorted(self, tmp_path, png, pictures, encode):
        labels = encode(["owl", "cat", "owl", "dog", "cat", "dog"])
        data = parquet(str(write(tmp_path / "a.parquet", [png(p) for p in pictures(6)], labels)))
        assert data.classes == NAMES
        by_picture = {
            p.numpy().tobytes(): int(k) for s in (data.train, data.test) for p, k in zip(*s, strict=True)
        }
        assert [by_picture[p.tobytes()] for p in pictures(6)] == [2, 0, 2, 1, 0, 1]

    @pytest.mark.parametrize("kind", [pa.uint8(), pa.int32(), pa.float32(), pa.bool_()])
    def test_other_numbers(self, tmp_path, png, pictures, kind):
        labels = pa.array([0, 1, 1, 0]).cast(kind)
        data = parquet(str(write(tmp_path / "a.parquet", [png(p) for p in pictures(4)], labels)))
        assert data.classes == ("0", "1")

    def test_cifar100_has_two_labels(self, tmp_path, png, pictures):
        described = {
            "img": {"_type": "Image"},
            "fine_label": {"_type": "ClassLabel", "names": ["apple", "aquarium_fish", "baby"]},
            "coarse_label": {"_type": "ClassLabel", "names": ["fruit", "animal"]},
        }
        rows = [png(p) for p in pictures(4)]
        metadata = {"huggingface": json.dumps({"info": {"features": described}})}
        more = {"coarse_label": [0, 1, 1, 1]}
        file = write(tmp_path / "a.parquet", rows, [0, 1, 2, 2], metadata, "img", "fine_label", **more)
        with pytest.raises(DataError, match=r'label: fine_label, coarse_label.*label="fine_label"'):
            parquet(str(file))
        assert parquet(str(file), label="fine_label").num_classes == 3
        assert parquet(str(file), label="coarse_label").classes == ("fruit", "animal")
        with pytest.raises(DataError, match=r"no column 'fine_labels'.*did you mean label='fine_label'"):
            parquet(str(file), label="fine_labels")

    def test_two_images(self, tmp_path, png, pictures):
        rows = [png(p) for p in pictures(4)]
        file = write(tmp_path / "a.parquet", rows, [1, 0, 1, 0], mask=pa.array(rows, pa.binary()))
        with pytest.raises(DataError, match=r'2 columns could be the image: image, mask.*image="image"'):
            parquet(str(file))
        assert parquet(str(file), image="mask").num_classes == 2

    def test_none_that_fits(self, tmp_path, png, pictures):
        pq.write_table(pa.table({"pixels": [[1, 2], [3, 4]], "y": [0, 1]}), tmp_path / "a.parquet")
        with pytest.raises(DataError, match=r"no column could be the image.*pixels \(list<.*y \(int64\)"):
            parquet(str(tmp_path))
        with pytest.raises(DataError, match=r"image column 'y' is int64; expected encoded images"):
            parquet(str(tmp_path), image="y")
        file = tmp_path / "b" / "b.parquet"
        write(file, [png(p) for p in pictures(2)], pa.array([[0], [1]]), label="tags")
        with pytest.raises(DataError, match="no column could be the label"):
            parquet(str(file))
        with pytest.raises(DataError, match=r"labels are list<.*expected integers or strings"):
            parquet(str(file), label="tags")

    def test_shards_that_differ(self, hub, png, pictures):
        root, *_ = hub
        rows, last = [png(p) for p in pictures(3)], root / "data/train-00002.parquet"
        write(last, rows, [0, 1, 2], label="other")
        with pytest.raises(DataError, match=r"train-00002.parquet has no column 'label'"):
            parquet(str(root))
        write(last, rows, ["cat", "dog", "owl"])
        with pytest.raises(DataError, match=r"train-00002.parquet: the labels are strings, but numbers"):
            parquet(str(root))
        write(last, rows, [0, 1, 2], features(names=("dog", "cat", "owl")))
        with pytest.raises(DataError, match=r"train-00002.parquet names the classes .*expected the same"):
            parquet(str(root))


class TestPixels:
    def read(self, tmp_path, rows, **arguments):
        labels = [i % 2 for i in range(len(rows))]
        for part in ("train", "test"):
            write(tmp_path / f"{part}.parquet", rows, labels, features(names=("a", "b")))
        return parquet(str(tmp_path), **arguments).train.images

    def test_color_and_order(self, tmp_path, png, pictures):
        rows = pictures(700, color=True)  # more than one chunk
        images = self.read(tmp_path, [png(p) for p in rows])
        assert torch.equal(images, torch.from_numpy(rows).permute(0, 3, 1, 2))

    @pytest.mark.parametrize("colored", [0, 1, 299, 300])
    def test_one_color_image_makes_all_rgb(self, tmp_path, png, pictures, colored):
        grey, color = pictures(301), pictures(301, color=True)
        rows = [png(color[i] if i == colored else grey[i]) for i in range(301)]
        images = self.read(tmp_path, rows)
        assert images.shape == (301, 3, 5, 7)
        expected = np.repeat(grey[:, None], 3, 1)
        expected[colored] = color[colored].transpose(2, 0, 1)
        assert torch.equal(images, torch.from_numpy(expected))

    def test_color_in_one_part_only(self, tmp_path, png, pictures):
        write(tmp_path / "train.parquet", [png(p) for p in pictures(4)], [0, 1, 0, 1])
        write(tmp_path / "test.parquet", [png(p) for p in pictures(4, color=True)], [0, 1, 0, 1])
        data = parquet(str(tmp_path))
        assert data.image_shape == (3, 5, 7)
        assert torch.equal(data.train.images[:, 2], torch.from_numpy(pictures(4)))

    def test_16_bit_grey(self, tmp_path, png):
        levels = np.array([[0, 128, 129, 257, 32896, 65535]], np.uint16)
        images = self.read(tmp_path, [png(levels), png(levels)])
        assert images[0].tolist() == [[[0, 0, 1, 1, 128, 255]]]

    def test_1_bit(self, tmp_path, png):
        row = png(Image.fromarray(np.array([[0, 255, 255, 0]], np.uint8)).convert("1"))
        assert self.read(tmp_path, [row, row])[0].tolist() == [[[0, 255, 255, 0]]]

    @pytest.mark.parametrize("transparent", [False, True])
    def test_palette(self, tmp_path, png, transparent):
        image = Image.fromarray(np.array([[0, 1, 2, 1]], np.uint8), "L").convert("P")
        image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
        row = png(image, transparency=bytes([0, 255, 128])) if transparent else png(image)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            images = self.read(tmp_path, [row, row])
        assert images[0].flatten(1).T.tolist() == [[10, 20, 30], [40, 50, 60], [70, 80, 90], [40, 50, 60]]

    def test_grey_palette_is_grey(self, tmp_path, png):
        image = Image.fromarray(np.array([[0, 1, 1, 0]], np.uint8), "L").convert("P")
        image.putpalette([9, 9, 9, 200, 200, 200])
        assert self.read(tmp_path, [png(image)] * 2)[0].tolist() == [[[9, 200, 200, 9]]]

    def test_transparency_is_dropped(self, tmp_path, png, pictures):
        color, grey = pictures(1, color=True)[0], pictures(1)[0]
        alpha = pictures(1, seed=5)[0]
        rgba, la = (Image.fromarray(p) for p in (color, grey))
        rgba.putalpha(Image.fromarray(alpha))
        la.putalpha(Image.fromarray(alpha))
        assert torch.equal(self.read(tmp_path, [png(rgba)] * 2)[0], torch.from_numpy(color).permute(2, 0, 1))
        (tmp_path / "grey").mkdir()
        assert torch.equal(self.read(tmp_path / "grey", [png(la)] * 2)[0, 0], torch.from_numpy(grey))

    def test_jpeg_is_what_pillow_reads(self, tmp_path, png, pictures):
        row = png(pictures(1, 16, 16, color=True)[0], "JPEG")
        import io

        expected = np.asarray(Image.open(io.BytesIO(row)))
        assert np.array_equal(self.read(tmp_path, [row, row])[0].permute(1, 2, 0).numpy(), expected)

    def test_exif_turns_a_photo_upright(self, tmp_path, png, pictures):
        exif = Image.Exif()
        exif[0x0112] = 6  # was taken with the camera on its side
        row = png(pictures(1)[0], exif=exif)
        turned = np.rot90(pictures(1)[0], -1).copy()
        assert torch.equal(self.read(tmp_path, [row, row])[0, 0], torch.from_numpy(turned))

    def test_float_pixels_are_refused(self, tmp_path, png):
        row = png(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF")
        with pytest.raises(DataError, match=r"train.parquet, row 0: float pixels"):
            self.read(tmp_path, [row, row])

    def test_wide_integers_are_refused(self, tmp_path, png):
        row = png(Image.fromarray(np.full((4, 4), 70000, np.int32)), "TIFF")
        with pytest.raises(DataError, match="row 0: grey levels from 70000 to 70000"):
            self.read(tmp_path, [row, row])


class TestSize:
    def rows(self, png, pictures, sizes):
        return [png(pictures(1, h, w, color=True)[0]) for w, h in sizes]

    def test_different_sizes_need_size(self, tmp_path, png, pictures):
        sizes = [(8, 8)] * 300 + [(6, 9)] * 2
        file = write(tmp_path / "a.parquet", self.rows(png, pictures, sizes), [0, 1] * 151)
        with pytest.raises(DataError, match=r"8x8 \(300 times\), 6x9 \(2 times\).*size=64"):
            parquet(str(file))
        assert parquet(str(file), size=4).image_shape == (3, 4, 4)

    def test_sizes_that_differ_from_chunk_to_chunk(self, tmp_path, png, pictures):
        rows = self.rows(png, pictures, [(8, 8)] * opnorm.data.decode.CHUNK + [(6, 9)] * 2)
        with pytest.raises(DataError, match=r"8x8 \(256 times\), 6x9 \(2 times\)"):
            parquet(str(write(tmp_path / "a.parquet", rows, [0, 1] * 129)))

    def test_more_than_five_sizes(self, tmp_path, png, pictures):
        rows = self.rows(png, pictures, [(i, 3) for i in range(1, 9)])
        with pytest.raises(DataError, match="and 3 others"):
            parquet(str(write(tmp_path / "a.parquet", rows, [0, 1] * 4)))

    @pytest.mark.parametrize(("h", "w"), [(8, 8), (8, 13), (20, 8)])
    def test_the_right_short_side_is_only_cropped(self, tmp_path, png, pictures, h, w):
        picture = pictures(1, h, w)[0]
        images = self.read(tmp_path, png(picture), 8)
        top, left = (h - 8) // 2, (w - 8) // 2
        assert torch.equal(images[0, 0], torch.from_numpy(picture[top : top + 8, left : left + 8]))

    def test_halving_a_ramp(self, tmp_path, png):
        ramp = np.tile(np.arange(0, 64, 2, dtype=np.uint8), (16, 1))  # 16 x 32: crop to columns 8 to 24
        images = self.read(tmp_path, png(ramp), 8)
        assert images.shape[1:] == (1, 8, 8)
        assert (images[0, 0].long() - torch.arange(17, 49, 4)).abs().max() <= 1

    def test_a_very_long_image_costs_little_memory(self, tmp_path, png):
        image = Image.new("L", (60000, 1), 7)
        assert self.read(tmp_path, png(image), 64).unique().tolist() == [7]

    @pytest.mark.parametrize("size", [0, -3, True])
    def test_refused(self, size):
        with pytest.raises(DataError, match=f"size={size}"):
            parquet("anywhere", size=size)

    def read(self, tmp_path, row, size):
        return parquet(str(write(tmp_path / "a.parquet", [row] * 4, [0, 1] * 2)), size=size).train.images


class TestBadInput:
    def test_missing_path(self, tmp_path):
        (tmp_path / "cifar10").mkdir()
        with pytest.raises(
            DataError, match=r"there is no .*expected a .parquet file.*did you mean .*cifar10'"
        ):
            parquet(str(tmp_path / "cifar100"))
        with pytest.raises(DataError, match=r"there is no '.*nowhere'; "):
            parquet(str(tmp_path / "nowhere" / "deeper"))

    @pytest.mark.parametrize("path", ["", "  ", "~nobody-has-this-name/x", "x" * 5000])
    def test_no_path(self, path):
        with pytest.raises(DataError, match="expected"):
            parquet(path)

    def test_folder_without_parquet(self, tmp_path):
        with pytest.raises(DataError, match=r"holds no .parquet files but nothing"):
            parquet(str(tmp_path))
        (tmp_path / "cat.png").touch()
        with pytest.raises(DataError, match=r"holds no .parquet files but cat.png; expected"):
            parquet(str(tmp_path))

    @pytest.mark.parametrize(
        "content",
        [b"", b"PAR1", b"version https://git-lfs.github.com/spec/v1\n", random.Random(0).randbytes(99)],
    )
    def test_no_parquet(self, tmp_path, content):
        (tmp_path / "train.parquet").write_bytes(content)
        with pytest.raises(
            DataError, match=rf"train.parquet \({len(content)} bytes\) cannot be read as parquet"
        ):
            parquet(str(tmp_path))

    def test_truncated_file(self, hub):
        root, *_ = hub
        file = root / "data/test-00000-of-00001.parquet"
        file.write_bytes(file.read_bytes()[:-200])
        with pytest.raises(DataError, match=r"test-00000-of-00001.parquet .*cannot be read.*truncated"):
            parquet(str(root))

    def test_damaged_pages(self, hub):
        root, *_ = hub
        file = root / "data/train-00001-of-00002.parquet"
        content = bytearray(file.read_bytes())
        content[4:900] = bytes(896)  # the footer is whole, the pages are not
        file.write_bytes(content)
        with pytest.raises(DataError, match=r"train-00001-of-00002.parquet"):
            parquet(str(root))

    @pytest.mark.parametrize("damage", ["null", "null bytes", "empty", "half", "noise", "text"])
    def test_damaged_image(self, hub, png, pictures, damage):
        root, *_ = hub
        rows = [png(p) for p in pictures(6, 40, 40)]
        good = png(pictures(1, 40, 40)[0])
        bad = {
            "empty": b"",
            "half": good[: len(good) // 2],
            "noise": random.Random(0).randbytes(500),
            "text": b"<svg/>",
        }
        rows[3] = None if damage.startswith("null") else bad[damage]
        file = root / "data/train-00001-of-00002.parquet"
        write(file, rows, [0, 1, 2, 0, 1, 1], features(), struct=damage != "null bytes")
        write(root / "data/train-00000-of-00002.parquet", rows[:1], [0], features())
        expected = "the image is null" if rows[3] is None else "cannot be decoded"
        with pytest.raises(DataError, match=rf"train-00001-of-00002.parquet, row 3: .*{expected}"):
            parquet(str(root))

    def test_the_first_damaged_row_is_named(self, tmp_path, png, pictures):
        rows = [png(pictures(1)[0])] * 2000
        rows[1500] = rows[700] = b"x"
        with pytest.raises(DataError, match="row 700: 1 bytes cannot be decoded"):
            parquet(str(write(tmp_path / "a.parquet", rows, [0, 1] * 1000)))

    def test_decompression_bomb(self, tmp_path, png, monkeypatch):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
        row = png(Image.new("L", (50, 50)))
        with pytest.raises(DataError, match=r"row 0: Image size \(2500 pixels\) exceeds"):
            parquet(str(write(tmp_path / "a.parquet", [row] * 4, [0, 1] * 2)))

    def test_other_programs_formats_are_not_opened(self, tmp_path, png):
        row = png(Image.new("L", (8, 8)), "EPS")
        with pytest.raises(DataError, match="UnidentifiedImageError"):
            parquet(str(write(tmp_path / "a.parquet", [row] * 4, [0, 1] * 2)))

    @pytest.mark.parametrize(
        ("labels", "metadata", "message"),
        [
            (pa.array([0, 1, None, 1, 2, None]), features(), r"row 2: the label is null \(so are 2 rows\)"),
            (pa.array([0.0, 1.0, 2.0, float("nan"), 1.0, 1.0]), None, "row 3: the label is nan"),
            (pa.array([0.0, 1.0, 2.0, 1.0, float("inf"), 1.0]), None, "row 4: the label is inf"),
            (pa.array([0.0, 1.5, 2.0, 1.0, 1.0, 1.0]), None, "row 1: the label is 1.5"),
            (
                pa.array([0, 1, 2, 3, 1, 0]),
                features(),
                r"row 3: the label in 'label' is 3 .*one of the 3 classes",
            ),
            (
                pa.array([0, 1, -1, 2, -1, 0]),
                features(),
                r"row 2: the label in 'label' is -1 \(2 such rows\)",
            ),
            (pa.array([0, 1, 2, 2, 1, 2**63], pa.uint64()), None, "row 5: the label is 9223372036854775808"),
            (pa.array([1, 2, 3, 1, 2, 3]), None, "row 2: the label is 3, but there are 3 different labels"),
            (pa.array([0, 1, 7, 7, 1, 0]), None, "row 2: the label is 7, but .*0 to 2"),
            (pa.array([0, 1, -1, 0, 1, 0]), None, "row 2: the label is -1"),
            (
                pa.array(["cat", "dog", "cow", "owl", "cat", "dog"]),
                features(),
                "row 2: .* is cow .*cat, dog, owl",
            ),
            (pa.array(["cat"] * 6), None, r"1 class\(es\)"),
            (pa.array([], pa.int64()), features(), "a.parquet: 0 rows"),
        ],
    )
    def test_labels(self, tmp_path, png, pictures, labels, metadata, message):
        rows = [png(p) for p in pictures(len(labels))]
        with pytest.raises(DataError, match=message):
            parquet(str(write(tmp_path / "a.parquet", rows, labels, metadata)))

    def test_a_wrong_label_in_the_second_file(self, hub, png, pictures):
        root, *_ = hub
        file = root / "data/train-00001-of-00002.parquet"
        write(file, [png(p) for p in pictures(3)], [0, 9, 1], features())
        with pytest.raises(DataError, match=r"train-00001-of-00002.parquet, row 1: .* is 9"):
            parquet(str(root))

    def test_a_class_that_only_the_test_part_has(self, tmp_path, png, pictures):
        rows = [png(p) for p in pictures(2)]
        write(tmp_path / "train.parquet", rows, ["cat", "dog"])
        write(tmp_path / "test.parquet", rows, ["cat", "Dog"])
        with pytest.raises(DataError, match=r"test.parquet, row 1: .* is Dog .*training part has: cat, dog"):
            parquet(str(tmp_path))


class TestCache:
    @pytest.fixture
    def decoded(self, monkeypatch):
        """Count the images that are decoded."""
        count, real = [], opnorm.data.decode._decode
        monkeypatch.setattr(opnorm.data.decode, "_decode", lambda *a: (count.append(1), real(*a))[1])
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
        assert opnorm.data.cache.cache_folder() == tmp_path / "xdg/opnorm"
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        parquet(str(hub[0]))
        assert len(list((tmp_path / "home/.cache/opnorm").iterdir())) == 1

    def test_cannot_be_written(self, hub, tmp_path, monkeypatch):
        (tmp_path / "file").touch()
        monkeypatch.setenv("OPNORM_CACHE", str(tmp_path / "file"))
        with pytest.warns(RuntimeWarning, match=r"could not be kept in .*OPNORM_CACHE") as caught:
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


def test_progress_bar_only_on_a_terminal(hub):
    code = (
        f"from opnorm.data import parquet; parquet({str(hub[0])!r}, size=2); parquet({str(hub[0])!r}, size=3)"
    )
    script = [sys.executable, "-c", code]
    assert subprocess.run(script, capture_output=True, check=True).stderr == b""
    terminal, its_end = pty.openpty()
    environment = {**os.environ, "OPNORM_CACHE": str(hub[0] / "cache"), "TERM": "xterm", "COLUMNS": "120"}
    child = subprocess.run(script, stderr=its_end, stdout=subprocess.PIPE, env=environment, check=True)
    os.close(its_end)
    shown = os.read(terminal, 100_000).decode()
    os.close(terminal)
    assert "decoding animals, train" in shown
    assert child.stdout == b""


# ---------------------------------------------------------------- real data


@pytest.fixture
def real():
    root = os.environ.get("OPNORM_DATA")
    if not root:
        pytest.skip("OPNORM_DATA is not set; it names the folder with mnist, cifar10 and tiny-imagenet")
    return Path(root)


REAL = {
    "mnist": (60000, 10000, (1, 28, 28), tuple("0123456789")),
    "cifar10": (50000, 10000, (3, 32, 32), ("airplane", "automobile", "bird")),
    "tiny-imagenet": (20000, 4000, (3, 64, 64), ("n01443537", "n01629819", "n01641577")),
}


@pytest.mark.data
@pytest.mark.parametrize("name", REAL)
def test_real(real, name):
    train, test, shape, first = REAL[name]
    start = time.perf_counter()
    data = parquet(str(real / name))
    uncached = time.perf_counter() - start
    start = time.perf_counter()
    again = parquet(str(real / name))
    cached = time.perf_counter() - start
    assert (len(data.train.labels), len(data.test.labels), data.image_shape) == (train, test, shape)
    assert data.classes[: len(first)] == first
    assert data.num_classes == (200 if name == "tiny-imagenet" else 10)
    assert len(torch.unique(data.train.labels)) == len(torch.unique(data.test.labels)) == data.num_classes
    assert torch.equal(data.test.images, again.test.images)
    assert uncached < 40  # seconds; 6 to 10 where nothing else runs
    assert cached < 1


@pytest.mark.data
def test_real_moments(real):
    data = parquet(str(real / "mnist"))
    assert data.mean == pytest.approx([0.1307], abs=5e-5)  # the numbers that every tutorial has
    assert data.std == pytest.approx([0.3081], abs=5e-5)
