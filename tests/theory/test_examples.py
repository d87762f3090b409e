"""The examples of the docstrings are run."""

import doctest
import importlib

import pytest


@pytest.mark.parametrize("name", ["separation", "theory.liang"])
def test_examples(name):
    failed, tried = doctest.testmod(importlib.import_module(f"opnorm.{name}"))
    assert tried
    assert not failed
