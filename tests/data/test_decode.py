import io
import os
import pty
import random
import struct
import sys
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from opnorm.data import parquet
from opnorm.data.decode import CHUNK
from opnorm.errors import DataError
from tests.data.files import features, write


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
        with pytest.warns(
            UserWarning, match=r"train: 2 images have more than 8 bits a pixel, such as .*row 0; gray was"
        ):
            images = self.read(tmp_path, [png(levels), png(levels)])
        assert images[0].tolist() == [[[0, 0, 1, 1, 128, 255]]]

    def test_16_bit_color(self, tmp_path):
        """Written by hand: Pillow has no such images."""
        pixels = np.array([[[0x0102, 0x8001, 0xFFFE], [0x7FFF, 0x00FF, 0x1234]]], ">u2")
        header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)

        def chunk(kind, data):
            return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

        row = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
        row += chunk(b"IDAT", zlib.compress(b"\0" + pixels.tobytes())) + chunk(b"IEND", b"")
        with pytest.warns(UserWarning, match="of color the high byte was kept"):
            images = self.read(tmp_path, [row, row])
        assert torch.equal(images[0].permute(1, 2, 0), torch.from_numpy((pixels >> 8).astype(np.uint8)))

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
        with pytest.raises(DataError, match="row 0: gray levels from 70000 to 70000"):
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
        rows = self.rows(png, pictures, [(8, 8)] * CHUNK + [(6, 9)] * 2)
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


class TestDamage:
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
        with pytest.raises(DataError, match="no image of a known format"):
            parquet(str(write(tmp_path / "a.parquet", [row] * 4, [0, 1] * 2)))


def test_progress_bar_only_on_a_terminal(hub, capfd, monkeypatch, tmp_path):
    monkeypatch.setenv("OPNORM_CACHE", str(tmp_path / "nothing decoded yet"))
    parquet(str(hub[0]), size=2)
    assert capfd.readouterr() == ("", "")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    terminal, its_end = pty.openpty()
    with open(its_end, "w") as stderr, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stderr)
        parquet(str(hub[0]), size=3)
    shown = os.read(terminal, 100_000).decode()
    os.close(terminal)
    assert "decoding animals, train" in shown
    assert capfd.readouterr().out == ""
