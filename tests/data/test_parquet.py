import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from opnorm import spec
from opnorm.data import parquet
from opnorm.errors import DataError
from tests.data.files import CLASSES, features, write


class TestLayout:
    def test_hub_folder(self, hub):
        root, train, test = hub
        data = parquet(str(root))
        assert torch.equal(data.train.images, torch.from_numpy(train).unsqueeze(1))
        assert torch.equal(data.test.images, torch.from_numpy(test).unsqueeze(1))
        assert data.train.labels.tolist() == [0, 1, 2, 0, 1, 0, 0, 1, 2, 0, 1, 1]
        assert data.test.labels.tolist() == [2, 1, 0, 0]
        assert data.classes == CLASSES
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

    @pytest.mark.parametrize(
        ("wanted", "train", "test"),
        [
            ({"test": "validation"}, 0, 1),
            ({"test": "valid"}, 0, 1),
            ({"train": "extra"}, 3, 2),
            ({"train": "Test", "test": "train"}, 2, 0),
            ({"train": "validation", "test": "extra"}, 1, 3),
        ],
    )
    def test_parts_by_name(self, tmp_path, png, pictures, wanted, train, test):
        for i, file in enumerate(["train-0", "valid-0", "test-0", "extra-0"]):
            rows = [png(p) for p in pictures(3 + i, seed=i)]
            write(tmp_path / f"data/{file}.parquet", rows, [0, 1, 2, 0, 1, 2][: 3 + i], features())
        for _ in range(2):  # also from the cache
            data = parquet(str(tmp_path), **wanted)
            for part, i in ((data.train, train), (data.test, test)):
                assert torch.equal(part.images[:, 0], torch.from_numpy(pictures(3 + i, seed=i)))
        with pytest.raises(DataError, match=r"no part 'tset'; its files are data/extra-0\.parquet, "):
            parquet(str(tmp_path), test="tset")
        for wrong in (
            {"train": "train_smal"},
            {"test": "testt"},
            {"test": "validd"},
        ):  # no other part in its place
            with pytest.raises(
                DataError, match=rf"has no part '{next(iter(wrong.values()))}'; its files are "
            ):
                parquet(str(tmp_path), **wrong)
        with pytest.raises(DataError, match="is one file; train= and test= name parts of a folder"):
            parquet(str(tmp_path / "data/test-0.parquet"), test="test")

    def test_columns_of_one_name_and_classes_of_one_name(self, tmp_path, png, pictures):
        rows = [png(p) for p in pictures(4)]
        file = write(tmp_path / "a.parquet", rows, ["x", "y", "x", "y"], features(names=("x", "y", "x")))
        with pytest.raises(DataError, match="two classes of the metadata have the same"):
            parquet(str(file))
        table = pa.Table.from_arrays(
            [pa.array(rows), pa.array([0, 1, 0, 1]), pa.array([0, 1, 1, 1])], ["i", "l", "l"]
        )
        pq.write_table(table, file)
        for label in (None, "l"):
            with pytest.raises(DataError, match="several columns called 'l'; expected one"):
                parquet(str(file), label=label)

    @pytest.mark.parametrize(("opened", "closed"), [("[", "]"), ('{"info":', "}")])
    def test_metadata_of_great_depth_are_left_out(self, tmp_path, png, pictures, opened, closed):
        deep = {"huggingface": opened * 100_000 + "1" + closed * 100_000}
        rows = [png(p) for p in pictures(10)]
        assert parquet(str(write(tmp_path / "a.parquet", rows, [0, 1] * 5, deep))).classes == ("0", "1")

    def test_hidden_labels_of_the_test_part(self, tmp_path, png, pictures):
        for i, (file, labels) in enumerate(
            (("train", [0, 1, 2]), ("validation", [2, 1, 0]), ("test", [-1, -1, -1]))
        ):
            write(tmp_path / f"{file}-0.parquet", [png(p) for p in pictures(3, seed=i)], labels, features())
        for _ in range(2):  # also from the cache
            with pytest.warns(
                UserWarning, match=r"every label of the test part is -1 .* validation part is taken"
            ):
                data = parquet(str(tmp_path))
            assert data.test.labels.tolist() == [2, 1, 0]
        with pytest.raises(DataError, match="is -1"):
            parquet(str(tmp_path), test="test")
        write(tmp_path / "test-0.parquet", [png(p) for p in pictures(3, seed=2)], [-1, 0, -1], features())
        with pytest.raises(DataError, match="is -1"):
            parquet(str(tmp_path))

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
        assert parquet(str(file)).classes == CLASSES

    @pytest.mark.parametrize("encode", [pa.array, lambda x: pa.array(x).dictionary_encode()])
    def test_string_labels_are_sorted(self, tmp_path, png, pictures, encode):
        labels = encode(["owl", "cat", "owl", "dog", "cat", "dog"])
        data = parquet(str(write(tmp_path / "a.parquet", [png(p) for p in pictures(6)], labels)))
        assert data.classes == CLASSES
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
        with pytest.raises(DataError, match=r"label: 'fine_label', 'coarse_label'.*label=.fine_label"):
            parquet(str(file))
        assert parquet(str(file), label="fine_label").num_classes == 3
        assert parquet(str(file), label="coarse_label").classes == ("fruit", "animal")
        with pytest.raises(DataError, match=r"no column 'fine_labels'.*did you mean label='fine_label'"):
            parquet(str(file), label="fine_labels")

    def test_two_images(self, tmp_path, png, pictures):
        rows = [png(p) for p in pictures(4)]
        file = write(tmp_path / "a.parquet", rows, [1, 0, 1, 0], mask=pa.array(rows, pa.binary()))
        with pytest.raises(DataError, match=r"2 columns could be the image: 'image', 'mask'.*image=.image"):
            parquet(str(file))
        assert parquet(str(file), image="mask").num_classes == 2

    def test_none_that_fits(self, tmp_path, png, pictures):
        pq.write_table(pa.table({"pixels": [[1, 2], [3, 4]], "y": [0, 1]}), tmp_path / "a.parquet")
        with pytest.raises(DataError, match=r"no column could be the image.*'pixels' \(list<.*'y' \(int64\)"):
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
            (pa.array([1, 2, 3, 1, 2, 3]), None, "row 2: the label in 'label' is 3 .*: 0 to 2"),
            (pa.array([0, 1, 7, 7, 1, 0]), None, "row 2: the label in 'label' is 7 .*0 to 2"),
            (pa.array([0, 1, -1, 0, 1, 0]), None, "row 2: the label in 'label' is -1"),
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


# ---------------------------------------------------------------- real data


REAL = {
    "mnist": (60000, 10000, (1, 28, 28), tuple("0123456789")),
    "cifar10": (50000, 10000, (3, 32, 32), ("airplane", "automobile", "bird")),
    "tiny-imagenet": (20000, 4000, (3, 64, 64), ("n01443537", "n01629819", "n01641577")),
}


@pytest.mark.data
def test_real_images(data_folder):
    """The 10,000 test images of MNIST."""
    (file,) = (data_folder / "mnist").rglob("test-*.parquet")
    data = parquet(str(file))
    parts = (data.train, data.test)
    images, labels = (torch.cat([getattr(part, name) for part in parts]) for name in ("images", "labels"))
    assert [len(part.labels) for part in parts] == [8000, 2000]
    assert images.shape == (10_000, 1, 28, 28)
    assert data.classes == tuple("0123456789")
    assert labels.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert float(images.double().mean() / 255) == pytest.approx(0.1325, abs=5e-5)
    again = parquet(str(file))
    assert all(torch.equal(a.images, b.images) for a, b in zip(parts, (again.train, again.test), strict=True))


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize("name", REAL)
def test_real(data_folder, name):
    train, test, shape, first = REAL[name]

    data = parquet(str(data_folder / name))

    again = parquet(str(data_folder / name))
    assert (len(data.train.labels), len(data.test.labels), data.image_shape) == (train, test, shape)
    assert data.classes[: len(first)] == first
    assert data.num_classes == (200 if name == "tiny-imagenet" else 10)
    assert len(torch.unique(data.train.labels)) == len(torch.unique(data.test.labels)) == data.num_classes
    assert torch.equal(data.test.images, again.test.images)
    if name == "mnist":
        assert data.mean == pytest.approx([0.1307], abs=5e-5)  # the numbers that every tutorial has
        assert data.std == pytest.approx([0.3081], abs=5e-5)
