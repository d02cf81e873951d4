"""The same command makes the same numbers, bit for bit: by a clock that runs unevenly, and after an interruption."""

import random
import time

import numpy as np
import pytest

import cli
import landscape
from figures.study.figure import make
from figures.study.figure_data import load_arrays
from figures.study.study import Study
from landscape.results.journal import Journal

COMMANDS = {
    "surface": "surface {0} --grid 11 --gradient-norm --samples 300 --directions filter",
    "path": "path {0} {1} --curve bezier --epochs 1 --points 5 --samples 100",
    "invariance": "invariance {0} --transforms 3 --steps 0 --samples 20 -p 2 --no-eigenvalues",
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    for seed in "01":
        command = f"train sgd --model small-cnn --epochs 1 --quiet --device cpu --seed {seed} --out {root / seed}"
        assert cli.run(command.split()) == 0
    return [root / seed / "ckpt.pt" for seed in "01"]


@pytest.fixture
def uneven(monkeypatch):
    """Clocks as on a machine whose load changes."""
    draw, now = random.Random(0), [time.time()]

    def clock():
        now[0] += draw.expovariate(1000)
        return now[0]

    for name in ("perf_counter", "monotonic", "process_time"):
        monkeypatch.setattr(time, name, clock)


def computed(name, checkpoints, out, *options):
    command = f"{COMMANDS[name].format(*checkpoints)} --quiet --device cpu --out {out}"
    status = cli.run([*command.split(), *options])
    return status, landscape.load(out / f"{name}.h5")[name] if status == 0 else None


def equal(one, other):
    mine, theirs = one.named_arrays().values, other.named_arrays().values
    assert mine.keys() == theirs.keys()
    for name in mine:
        np.testing.assert_array_equal(mine[name], theirs[name], err_msg=name)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_repeats_its_numbers(name, checkpoints, uneven, tmp_path):
    (_, one), (_, other) = (computed(name, checkpoints, tmp_path / turn) for turn in "ab")
    equal(one, other)
    assert getattr(one, "choice", None) == getattr(other, "choice", None)


def test_a_resumed_test_of_invariance_repeats_its_numbers(checkpoints, monkeypatch, tmp_path):
    row, rows = Journal.row, []

    def stopping(self, name, compute):
        rows.append(name)
        if len(rows) == 3:
            raise KeyboardInterrupt
        return row(self, name, compute)

    _, whole = computed("invariance", checkpoints, tmp_path / "whole")
    monkeypatch.setattr(Journal, "row", stopping)
    assert computed("invariance", checkpoints, tmp_path / "out")[0] == 130
    monkeypatch.undo()
    _, resumed = computed("invariance", checkpoints, tmp_path / "out", "--resume")
    equal(whole, resumed)
    assert resumed.cost == whole.cost  # of both parts


def test_a_figure_repeats_its_numbers(uneven, tmp_path):
    for turn in "ab":
        make(["asam-fig1"], Study(tmp_path / turn / "study", "smoke"), tmp_path / turn)
    one, other = (load_arrays(tmp_path / turn / "asam-fig1.h5") for turn in "ab")
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)
