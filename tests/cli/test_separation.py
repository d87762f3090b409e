"""``opnorm separation``: what the library says, in words and as JSON, and one clear line for wrong input."""

import json

import pytest

from opnorm.cli import main
from opnorm.data import digits
from opnorm.data.class_separation import separation


def call(capsys, *args):
    status = 0
    try:
        main(["separation", *args])
    except SystemExit as e:
        status = e.code or 0
    return status, *capsys.readouterr()


@pytest.mark.parametrize("norm", ["1", "2", "inf"])
def test_it_says_what_the_library_says(capsys, norm):
    want = separation(digits(), float(norm), "test")
    status, out, _ = call(capsys, "digits()", "--norm", norm, "--split", "test", "--json")
    assert status == 0
    found = json.loads(out)
    assert found["levels"] == want.levels
    assert tuple(found["pair"]) == want.pair
    assert found["eps"] == want.distance / 2


def test_in_words(capsys):
    status, out, _ = call(capsys)
    assert status == 0
    assert out.startswith("separation        0.435294 in ℓ∞, of ")  # 111 / 255
    assert "below ε = 0.217647" in out


@pytest.mark.parametrize(
    ("args", "words"), [(("--norm", "3"), "norm=3: expected 1, 2 or inf"), (("diggits()",), "digits")]
)
def test_wrong_input(capsys, args, words):
    status, out, err = call(capsys, *args)
    assert (status, out) == (2, "")
    assert words in err
    assert err.count("\n") == 1
