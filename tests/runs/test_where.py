"""Conditions on rows: what they find, and one message for what cannot be meant."""

import pytest

from opnorm.errors import OpnormError
from opnorm.runs.where import condition, sort_rows

ROWS = [
    {"n": 1, "share": 0.5, "model": "ResNet(depth=20)", "fast": True, "key": "012345"},
    {"n": 2, "share": None, "model": "cnn(width=4)", "fast": False, "key": "12"},
    {"n": 3, "share": 0.25, "model": None, "fast": None, "key": "a b"},
]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("n > 1", [2, 3]), ("n>=2 and n<3", [2]), ("n = 1 or n == 3", [1, 3]), ("n != 2", [1, 3]),
        ("share > 0.3", [1]), ("share <= 128/255", [1, 3]), ("not share > 0.3", [2, 3]), ("share = none", [2]),
        ("share != NONE", [1, 3]), ("model ~ resnet", [1]), ("model !~ resnet", [2]), ('model ~ "CNN("', [2]),
        ("model = 'cnn(width=4)'", [2]), ("fast = true", [1]), ("fast != true", [2]), ("key = 012345", [1]),
        ("key = 'a b'", [3]), ("model > d", []), ("'n' = 3", [3]),
        ("n = 1 or n = 2 and fast = true", [1]), ("(n = 1 or n = 2) and fast = false", [2]),
        ("not (n = 1 or n = 2)", [3]), ("not not n = 1", [1]), ("NOT n = 1 AND n < 3", [2]), ("empty > 3", []),
    ],
)  # fmt: skip
def test_what_a_condition_finds(text, found):
    meets = condition(text, ROWS, ["empty"])
    assert [row["n"] for row in ROWS if meets(row)] == found


def test_the_columns_that_it_names():
    assert condition("n > 1 and (share > 0 or n < 3)", ROWS).columns == ("n", "share")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("shares > 1", "no column 'shares'; did you mean 'share'?"), ("x > 1", "there are n, share, model"),
        ("n > many", "n is a number, such as 1, and many is not one"), ("n = true", "n is a number"),
        ("n = '1'", "n is a number"), ("model > 0.5", "model is text, such as ResNet(depth=20), and 0.5"),
        ("n ~ 1", "~ looks into texts, and n is a number"), ("fast < true", "fast is true or false"),
        ("fast = 1", "fast is true or false"), ("n", "after n comes nothing"), ("n >", "after n > a value is missing"),
        ("n > and", "n is a number"), ("> 1", "has no column before it"), ("", "a column is missing"),
        ("n > 1 and", "a column is missing"), ("(n > 1", "a ) is missing"), ("n > 1)", "')' is not expected"),
        ("n > 1 n < 3", "'n' is not expected here"), ("n > '1", "\"'1\" cannot be read"), ("n ! 1", "cannot be read"),
        ("not", "a column is missing"), ("n > = 1", "a value is missing"), ("share > 1/0", "share is a number"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant(text, message):
    with pytest.raises(OpnormError) as caught:
        condition(text, ROWS)
    assert message in str(caught.value)


def test_order():
    assert [row["n"] for row in sort_rows("share", ROWS)[0]] == [3, 1, 2]
    assert [row["n"] for row in sort_rows("share desc", ROWS)[0]] == [1, 3, 2]
    assert [row["n"] for row in sort_rows("model asc", ROWS)[0]] == [1, 2, 3]
    assert sort_rows("empty", ROWS, ["empty"]) == (ROWS, "empty")
    for text in ("shar", "", "share down", "share desc asc"):
        with pytest.raises(OpnormError, match="--sort"):
            sort_rows(text, ROWS)
