"""A method, a model and a data set of one file each: found by the command line, the documentation and the contracts."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

METHOD = '''"""Extra-gradient.

Paper: Korpelevich 1976. Official implementation: none. Deviations: none.
"""

from __future__ import annotations

from dataclasses import dataclass

from landscape.registry import register
from trainers.method.method import Method, Pass, State, Step


@register("extra-gradient", source="rate 0.1: ours", cost="2 forward + 2 backward", statistics="the first pass")
@dataclass(frozen=True)
class ExtraGradient(Method):
    """The gradient at the end of a plain step of length rate.

    Args:
        rate: length of the step.
    """

    rate: float = 0.1

    def compute(self, step: Step, state: State) -> Pass:
        """The gradient at w, then that at w - rate g."""
        clean = step.backward()
        with step.perturbed([-self.rate * g for g in step.gradients()]):
            step.backward()
        return clean
'''

MODEL = '''"""Linear classifiers."""

from __future__ import annotations

from math import prod

from torch import nn

from landscape.registry import register


@register("linear-probe", small={"input_shape": (3,)})
def linear_probe(classes: int, input_shape: tuple[int, ...]) -> nn.Sequential:
    """One linear layer."""
    return nn.Sequential(nn.Flatten(), nn.Linear(prod(input_shape), classes))
'''

DATA = '''"""The exclusive or."""

from __future__ import annotations

import torch

from landscape.random import stream
from landscape.registry import register
from trainers.data import Arrays, Source


@register("xor", small={"n": 100})
def xor(source: Source, *, n: int = 1000) -> Arrays:
    """Points of the plane whose class is the sign of the product of their coordinates.

    Args:
        n: number of training points.
    """
    x = torch.randn(n + 50, 2, generator=stream(source.seed, "xor"))
    y = (x.prod(1) > 0).long()
    return Arrays(x[:n], y[:n], x[n:], y[n:], classes=2)
'''


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """A copy of the house with three more files."""
    root = tmp_path_factory.mktemp("house")
    ignored = shutil.ignore_patterns("__pycache__", "*.png")
    for folder in ("landscape", "trainers", "figures", "commands", "tests", "docs"):
        shutil.copytree(ROOT / folder, root / folder, ignore=ignored)
    for file in ("cli.py", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / file, root)
    (root / "trainers/methods/extra_gradient.py").write_text(METHOD)
    (root / "trainers/models/linear_probe.py").write_text(MODEL)
    (root / "trainers/data/xor.py").write_text(DATA)
    return root


def run(house, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(house)}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=house, env=environment)


CONTRACTS = ("test_method_contract", "test_method_costs", "test_models", "test_data_contract")


def contracts(house, *names, files=CONTRACTS):
    """Numbers of (passed, failed) tests of these names in the files of the contracts, and what pytest said."""
    chosen = ("-k", " or ".join(names), "-p", "no:cacheprovider", "-p", "no:xdist")
    done = run(house, "-m", "pytest", *chosen, *(f"tests/{file}.py" for file in files))
    counts = {kind: int(n) for n, kind in re.findall(r"(\d+) (passed|failed)", done.stdout)}
    return counts.get("passed", 0), counts.get("failed", 0), done.stdout


def test_the_contracts_run_over_them_and_catch_what_breaks_them(house):
    passed, failed, output = contracts(house, "extra-gradient", "linear-probe", "xor")
    assert (passed >= 25, failed) == (True, 0), output
    file = house / "trainers/methods/extra_gradient.py"
    file.write_text(METHOD.replace("2 forward + 2", "3 forward + 2"))
    _, failed, output = contracts(house, "extra-gradient", files=("test_method_costs",))
    file.write_text(METHOD)
    assert failed == 3, output


def test_the_command_line_trains_with_them_and_explains_them(house):
    names = ["extra-gradient", "--data", "xor:n=64", "--model", "linear-probe"]
    done = run(house, "-m", "cli", "train", *names, "--rate", 0.2, "--epochs", 1, "--out", house / "run")
    assert done.returncode == 0, done.stderr
    assert (house / "run" / "ckpt.pt").exists()
    text = run(house, "-m", "cli", "train", "extra-gradient", "--help").stdout
    assert "Length of the step." in text
    assert "Passes per step: 2 forward + 2 backward." in text


def test_the_documentation_lists_them(house):
    done = run(house, "docs/build.py")
    assert done.returncode == 0, done.stderr
    for page, name in (("methods", "extra-gradient"), ("models", "linear-probe"), ("data", "xor")):
        assert f"\n## {name}\n" in (house / f"docs/reference/{page}.md").read_text()
    assert "| `extra-gradient` |" in (house / "README.md").read_text()
