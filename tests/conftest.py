"""For every test: shapes in signatures are checked, one thread a process, the same examples in every run."""

import os
import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from jaxtyping import install_import_hook

import tests.shapes  # noqa: F401 - the hook looks it up by name

install_import_hook("opnorm", "tests.shapes.check")  # before anything imports opnorm

import torch  # noqa: E402

settings.register_profile(
    "ci",
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=100,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.register_profile("search", settings.get_profile("ci"), derandomize=False, max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):  # a script's background job: what it starts would ignore Ctrl-C, too
    signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start: two tests run at a time


@pytest.fixture(scope="session")
def data_folder():
    """The folder with mnist/, cifar10/ and tiny-imagenet/."""
    if "OPNORM_DATA" not in os.environ:
        pytest.skip("OPNORM_DATA is not set: it names the folder with mnist/, cifar10/ and tiny-imagenet/")
    return Path(os.environ["OPNORM_DATA"])
