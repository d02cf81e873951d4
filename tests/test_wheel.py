"""The distribution: a wheel that is built, installed into an empty environment and used from elsewhere."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

import landscape

ROOT = Path(__file__).parent.parent
UNPACKAGED = shutil.ignore_patterns(".*", "*.egg-info", "__pycache__", "build", "dist", "runs", "demo", "tests", "docs")


def call(*command, cwd, **environment):
    """Run without the checkout on any path."""
    inherited = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [str(c) for c in command], cwd=cwd, env=inherited | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, folder / "source", ignore=UNPACKAGED)  # a build leaves its marks beside the sources
    options = ("--no-build-isolation", "--no-deps", "--no-index", "--quiet", "--wheel-dir", folder)
    call(sys.executable, "-m", "pip", "wheel", *options, folder / "source", cwd=folder)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """An environment that holds the wheel and sees the dependencies of this one, but not its packages' `.pth` files."""
    folder = tmp_path_factory.mktemp("environment")
    call(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    paths = {"base": str(folder), "platbase": str(folder)}
    site = Path(sysconfig.get_path("purelib", "venv", vars=paths))
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python = folder / "bin" / "python"
    options = ("--no-deps", "--no-index", "--quiet", "--ignore-installed")
    call(sys.executable, "-m", "pip", "--python", python, "install", *options, wheel, cwd=folder)
    return python.parent, site


@pytest.mark.slow
def test_the_wheel_holds_the_floors_and_nothing_else(wheel):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    name = project["name"].replace("-", "_")
    assert wheel.name == f"{name}-{landscape.__version__}-py3-none-any.whl"
    names = zipfile.ZipFile(wheel).namelist()
    metadata = f"{name}-{landscape.__version__}.dist-info"
    assert {n.split("/")[0] for n in names} == {"landscape", "trainers", "figures", "commands", "cli.py", metadata}
    data = {
        p.relative_to(ROOT).as_posix()
        for floor in ("landscape", "trainers", "figures")
        for p in (ROOT / floor).rglob("*.*")
    }
    assert {n for n in data if not n.endswith(".pyc")} <= set(names)


@pytest.mark.slow
def test_it_trains_and_analyzes_from_another_directory(environment, tmp_path):
    folder, site = environment
    where = call(
        folder / "python", "-c", "import landscape, cli; print(landscape.__file__, cli.__file__)", cwd=tmp_path
    )
    assert where.split() == [str(site / "landscape" / "__init__.py"), str(site / "cli.py")]
    assert call(folder / "landscape", "--version", cwd=tmp_path).split()[-1] == landscape.__version__
    run = ("--data", "digits", "--model", "mlp", "--epochs", 1, "--out", "run", "--quiet")
    call(folder / "landscape", "train", "sam", *run, cwd=tmp_path)
    options = ("--samples", 64, "--grid", 3, "--json", "--quiet")
    text = call(folder / "landscape", "analyze", "run/ckpt.pt", *options, cwd=tmp_path)
    assert json.loads(text)["checkpoints"][0]["measures"]["sam_sharpness"]["value"] > 0
    report = (tmp_path / "run" / "analysis" / "report.html").read_text()
    assert f"Made by landscape {landscape.__version__}" in report
    assert list((tmp_path / "run" / "analysis" / "figures").glob("*.png"))
