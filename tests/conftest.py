"""For every test: shapes in signatures are checked, one thread a process, the same examples in every run."""

import gc
import os
import signal
from collections import Counter, defaultdict
from collections.abc import Generator
from itertools import combinations
from pathlib import Path

import pytest

from tests import property_tests, shapes

shapes.install()  # before anything imports opnorm
THREADS = os.environ.get("OPNORM_TEST_THREADS", "1")  # of each process; two tests run at a time
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = (
    THREADS  # also of the processes that tests start
)

import torch  # noqa: E402

torch.set_num_threads(int(THREADS))

property_tests.load_profile()

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # a script's background job: the processes that tests start would ignore Ctrl-C, too
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="where the kernels are tested: cpu, cuda or cuda:1")
    parser.addoption("--dtype", default="float64", choices=["float32", "float64"], help="in which precision")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """The garbage collector need not go through the million objects of the collection, which stay to the end.

    Each time takes 0.75 s, in each process.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(tryfirst=True)  # before the markers choose
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of a test marked ``each_value`` or ``each_pair``, the combinations that show no new value, or pair, are slow.

    So are property tests with all their examples, which `make test-slow` runs.
    """
    for item in items:
        function = getattr(item, "function", None)
        if property_tests.PROFILE == "thorough" and getattr(function, "is_hypothesis_test", False):
            item.add_marker("slow")
    for marker, size in (("each_value", 1), ("each_pair", 2)):
        combined = defaultdict(list)
        for item in items:
            if item.get_closest_marker(marker):
                combined[item.function].append(item)
        for of_one in combined.values():
            for item in _with_nothing_new(of_one, size):
                item.add_marker("slow")


def _with_nothing_new(items: list[pytest.Item], size: int) -> list[pytest.Item]:
    """The items that are left when each ``size`` values that meet in one of them are in one that is run.

    First come those with most that is new, then those of the rarest values.
    """
    values, left = {item: set(combinations(_values(item), size)) for item in items}, list(items)
    uses: Counter[tuple] = Counter()

    def worth(item: pytest.Item) -> tuple[int, int]:
        return sum(not uses[v] for v in values[item]), -sum(uses[v] for v in values[item])

    while left and worth(best := max(left, key=worth))[0]:
        uses.update(values[best])
        left.remove(best)
    return left


def _values(item: pytest.Item) -> list[tuple]:
    """The values of its parameters and of its fixtures', those of one ``parametrize`` together."""
    names = [marker.args[0] for marker in item.iter_markers("parametrize")]
    groups = [n.replace(" ", "").split(",") if isinstance(n, str) else n for n in names]
    of_fixtures = [[name] for name in item.callspec.params if not any(name in group for group in groups)]
    return [
        (*group, *(id(item.callspec.params[name]) for name in group)) for group in (*groups, *of_fixtures)
    ]


def pytest_configure(config: pytest.Config) -> None:
    device = torch.device(config.getoption("--device"))
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise pytest.UsageError(
            f"--device {device}: torch finds {torch.cuda.device_count()} CUDA devices on this machine; "
            "expected an installed one, or --device cpu"
        )


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    """Where the kernels are tested: ``pytest --device cuda``."""
    return torch.device(request.config.getoption("--device"))


@pytest.fixture(scope="session")
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """The precision in which the kernels are tested: ``pytest --dtype float32``."""
    return getattr(torch, request.config.getoption("--dtype"))


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder with mnist/, cifar10/ and tiny-imagenet/."""
    if "OPNORM_DATA" not in os.environ:
        pytest.skip("OPNORM_DATA is not set: it names the folder with mnist/, cifar10/ and tiny-imagenet/")
    return Path(os.environ["OPNORM_DATA"])


@pytest.fixture
def few_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where what Square finds is not the matter: its 300 queries are half of an evaluation, and most of its time."""
    monkeypatch.setattr("opnorm.attacks._masking_points.QUERIES", 20)


@pytest.fixture
def main(capsys, monkeypatch, tmp_path):
    """``main(*args)`` in this process and the test's folder: (exit status, stdout, stderr)."""
    from opnorm.cli import main as run

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")  # the width of the terminal

    def call(*args):
        status, threads = 0, torch.get_num_threads()
        try:
            run(list(args))
        except SystemExit as e:
            status = e.code or 0
        torch.set_num_threads(threads)
        return status, *capsys.readouterr()

    return call
