"""What pip installs: a wheel and the sources, which run elsewhere; one version; types that a user's checker reads."""

import os
import re
import site
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import opnorm

ROOT = Path(__file__).parents[1]
FILES = (
    "py.typed", "data/digits.npz", "data/digits.LICENSE.md", "report/page.css", "report/page.js", "report/page.html.jinja",
    "studies/_shared/printed.json", "studies/_shared/minutes.json",
)  # fmt: skip


def run(*command: object, cwd: Path) -> str:
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=env, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, f"{command}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout


def test_one_version():
    assert 'dynamic = ["version"]' in (ROOT / "pyproject.toml").read_text()
    assert f"\nversion: {opnorm.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert newest
    assert newest[1] == opnorm.__version__


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """The sources, and the wheel that is built from them."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, cwd=ROOT)
    return folder


@pytest.fixture(scope="module")
def python(made, tmp_path_factory) -> Path:
    """The interpreter of a fresh environment with the wheel, which finds other packages where this one does."""
    folder = tmp_path_factory.mktemp("fresh")
    venv.create(folder, with_pip=False, symlinks=True)
    found = folder / "bin/python"
    packages = run(found, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip()
    (Path(packages) / "shared.pth").write_text("\n".join(site.getsitepackages()))
    wheel = next(made.glob("*.whl"))
    pip = (sys.executable, "-m", "pip", "--python", found, "install", "--quiet", "--no-deps", "--no-index")
    run(*pip, "--force-reinstall", "--target", packages, wheel, cwd=folder)
    return found


@pytest.mark.slow
def test_the_wheel_has_all_files_and_licenses(made):
    names = zipfile.ZipFile(next(made.glob("*.whl"))).namelist()
    assert {f"opnorm/{name}" for name in FILES} <= set(names)
    info = f"opnorm-{opnorm.__version__}.dist-info"
    assert {f"{info}/licenses/LICENSE", f"{info}/licenses/opnorm/data/digits.LICENSE.md"} <= set(names)
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "opnorm").rglob("*.py")}
    assert modules == {name for name in names if name.endswith(".py")}


@pytest.mark.slow
def test_the_wheel_runs_in_a_fresh_environment(python, tmp_path):
    where = run(python, "-c", "import opnorm; print(opnorm.__file__)", cwd=tmp_path).strip()
    assert Path(where).is_relative_to(python.parents[1])
    assert run(python, "-m", "opnorm", "--version", cwd=tmp_path) == f"opnorm {opnorm.__version__}\n"
    assert "Linear" in run(python, "-m", "opnorm", "norms", "mlp(width=8)", cwd=tmp_path)
    small = ["train", "--model", "mlp(width=8)", "--epochs", "1", "--limit", "50", "--analyses", "accuracy"]
    assert "accuracy" in run(python, "-m", "opnorm", *small, cwd=tmp_path)


@pytest.mark.slow
def test_the_sources_run_their_tests(made, tmp_path):
    with tarfile.open(next(made.glob("*.tar.gz"))) as archive:
        archive.extractall(tmp_path, filter="data")
    sources = tmp_path / f"opnorm-{opnorm.__version__}"
    found = run(
        sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests/cli/test_gates.py", cwd=sources
    )
    assert "passed" in found or "[100%]" in found


USER = """
import torch
from torch import Tensor, nn

import opnorm
from opnorm.attacks import pgd
from opnorm.models import cnn
from opnorm.regularizers import norm_decay
from opnorm.training import TrainingSettings, train

model: nn.Module = cnn(width=4)
x, y = torch.rand(2, 1, 28, 28), torch.tensor([1, 2])
norm: opnorm.Norm = opnorm.operator_norm(nn.Linear(3, 2), 2, in_shape=(3,))
upper: Tensor = norm.upper
markdown: str = opnorm.measure(model, x, (1, 2)).to_markdown()
value: float | None = opnorm.lipschitz_bound(model, x, 2).value
moved: Tensor = pgd(norm=float("inf"), eps=8 / 255)(model, x, y)
attacked: Tensor = opnorm.AutoAttack(eps=0.1)(model, x, y)
penalty = norm_decay(p=1, beta=1e-3)(model, x).penalty
local: Tensor = opnorm.jacobian_norm(model, x, p=2, q=2).upper
data: opnorm.Dataset = opnorm.data.digits()
trained = train(model, data, TrainingSettings(epochs=1))
rows = opnorm.run_training(opnorm.Run(model="mlp()", data="digits()"), opnorm.Store("runs")).rows
"""


@pytest.mark.slow
def test_a_users_strict_type_checker_reads_the_public_names(tmp_path):
    """And finds a wrong argument, so that nothing of it is Any."""
    (tmp_path / "user.py").write_text(f'{USER}opnorm.measure("text", x)\n')
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--config-file",
        "",
        "--cache-dir",
        tmp_path / "cache",
    ]
    env = os.environ | {"MYPYPATH": str(ROOT)}
    done = subprocess.run(
        [*command, "user.py"], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=900
    )
    errors = [line for line in done.stdout.splitlines() if line.startswith("user.py")]
    assert len(errors) == 1, done.stdout + done.stderr
    assert "arg-type" in errors[0]
