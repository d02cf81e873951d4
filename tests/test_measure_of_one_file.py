"""A measure is one file: written into a folder, it is found everywhere without a change elsewhere."""

import json
import sys
from pathlib import Path

import pytest
import test_measure_contract as contract
import torch
from torch import nn

import cli
import landscape
import landscape.measures
from docs import build

CODE = '''
"""The gain of the loss along the weights."""

from __future__ import annotations

from dataclasses import dataclass

from landscape.measure import measure
from landscape.problem.problem import Problem
from landscape.results.result import Result


@dataclass(frozen=True, kw_only=True)
class RadialGain(Result):
    """The gain.

    Attributes:
        value: L((1 + gain) w) - L(w).
    """

    value: float


@measure(
    "radial_gain",
    label="Gain at {gain} of the length",
    meaning="Rise of the loss along the weights.",
    unit="loss",
)
def radial_gain(problem: Problem, *, gain: float = 0.1, seed: int = 0) -> RadialGain:
    """Rise of the loss when all weights grow alike.

    S = L((1 + gain) w) - L(w).

    Args:
        gain: relative growth.
        seed: draws nothing.

    Cost: 2 forward passes.
    Source: this test, 2026.

    Example:
        >>> import landscape, torch
        >>> line = torch.nn.Linear(1, 1, bias=False, dtype=torch.float64)
        >>> x, _ = torch.ones(4, 1, dtype=torch.float64), torch.nn.init.ones_(line.weight)
        >>> problem = landscape.Problem(line, torch.nn.MSELoss(), [(x, 2 * x)])
        >>> round(landscape.radial_gain(problem, gain=0.5).value, 6)
        -0.75
    """
    return RadialGain(value=float(problem.loss(problem.weights * (1 + gain)) - problem.loss()))
'''


@pytest.fixture
def folder(tmp_path):
    """The measure in a folder beside those of the package."""
    (tmp_path / "radial_gain.py").write_text(CODE)
    kept = landscape.MEASURES.entries
    landscape.measures.__path__.append(str(tmp_path))
    forget()
    yield tmp_path
    landscape.measures.__path__.remove(str(tmp_path))
    forget()
    landscape.Result.kinds.pop("RadialGain", None)
    sys.modules.pop("landscape.measures.radial_gain", None)
    assert landscape.MEASURES.entries == kept


def forget():
    vars(landscape.MEASURES).pop("entries", None)
    landscape.homes.cache_clear()


def test_it_keeps_the_contract_of_every_measure(folder, tmp_path):
    name = "radial_gain"
    contract.test_measure_is_finite_repeatable_and_leaves_the_model_alone(name, "cnn", tmp_path)
    contract.test_model_is_as_it_was_after_an_exception(name, 2)
    contract.test_value_does_not_depend_on_how_the_examples_are_batched(name)
    contract.test_measure_runs_in_float32(name)
    contract.test_documentation_states_formula_source_cost_and_every_option(name)
    contract.test_example_of_the_documentation_runs(name)
    contract.test_measure_brings_its_words(name)
    contract.test_every_option_that_differs_from_its_default_shows_in_the_setting(name)
    contract.test_signature_is_that_of_the_function_in_the_file(name)


def test_the_command_line_prints_and_keeps_it(folder, tmp_path, monkeypatch, capsys):
    (tmp_path / "theirs.py").write_text(
        "import torch\n"
        "def network(): return torch.nn.Linear(4, 3)\n"
        "def batches(): return [(torch.ones(6, 4), torch.arange(6) % 3)]\n"
    )
    monkeypatch.chdir(tmp_path)
    torch.save(nn.Linear(4, 3).state_dict(), "weights.pt")
    command = "analyze weights.pt --model theirs:network --data theirs:batches --grid 0 --out out --quiet"
    assert cli.run([*command.split(), "--measure", "radial_gain", "--measure", "radial_gain:gain=0.25"]) == 0
    printed = capsys.readouterr().out
    assert "Gain at 0.1 of the length " in printed
    assert "gain = 0.25" in printed
    measures = json.loads(Path("out/summary.json").read_text())["checkpoints"][0]["measures"]
    assert measures["radial_gain:gain=0.25"]["label"] == "Gain at 0.25 of the length"
    stored = landscape.load("out/analysis.h5")["radial_gain"]
    assert stored.value == measures["radial_gain"]["value"]
    assert "Rise of the loss along the weights." in Path("out/report.html").read_text()


def test_help_and_documentation_name_it(folder, capsys):
    assert cli.run(["list", "measures", "--options"]) == 0
    printed = capsys.readouterr().out
    assert "radial_gain" in printed
    assert "relative growth." in printed
    page = build.page("Measures", landscape.MEASURES)
    assert "## radial_gain\n\nRise of the loss when all weights grow alike" in page
    assert "*Label*: Gain at 0.1 of the length" in page
    assert "| `gain` | `0.1` | relative growth. |" in page
    assert "| `radial_gain` | Rise of the loss when all weights grow alike" in build.readme_table(landscape.MEASURES)
