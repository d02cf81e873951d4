"""Our own training loop, watched."""

from __future__ import annotations

import csv

import pytest
import torch
from monitor_cases import assert_same

import landscape
import trainers.loop.trainer
from cli import run
from landscape.errors import InputError
from trainers import train

SETTINGS = {"data": "digits", "model": "mlp:hidden=(16,)", "epochs": 2, "batch_size": 256, "seed": 3}
EVERY_STEP = {"monitor": ["lambda_max", "sharpness:rho=0.1"]}


@pytest.fixture(autouse=True)
def every_step(monkeypatch):
    """No budget, so that the rows of two runs are at the same steps."""
    made = trainers.loop.trainer.Monitor
    monkeypatch.setattr(trainers.loop.trainer, "Monitor", lambda problem, **options: made(problem, every=2, **options))


def kept(path):
    content = torch.load(path / "ckpt.pt", weights_only=True)
    return {name: content[name] for name in ("model", "optimizer", "method", "random", "epoch", "step")}


def table(path):
    with open(path / "monitor.csv", newline="") as stream:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(stream)]


def measured(rows):
    return [[row["step"], row["sharpness"]] for row in rows]


def test_a_watched_run_is_bitwise_that_of_nobody_and_ends_where_analyze_begins(tmp_path):
    train("sam", out=tmp_path / "alone", **SETTINGS)
    train("sam", out=tmp_path / "watched", **EVERY_STEP, **SETTINGS)
    assert_same(kept(tmp_path / "watched"), kept(tmp_path / "alone"))
    rows, last = table(tmp_path / "watched"), kept(tmp_path / "alone")["step"]
    assert [row["step"] for row in rows] == list(range(0, last + 1, 2))
    problem = landscape.problem_from(tmp_path / "alone" / "ckpt.pt")
    assert rows[-1]["sharpness"] == landscape.sam_sharpness(problem, rho=0.1).value
    top = landscape.top_eigenvalues(problem, k=1)
    assert rows[-1]["lambda_max"] == pytest.approx(top.values[0], rel=2e-3)
    assert not list((tmp_path / "watched").glob(".*"))


def test_a_watched_run_goes_on(tmp_path):
    train("sgd", out=tmp_path / "whole", **EVERY_STEP, **SETTINGS)

    class Killed(Exception):
        pass

    with pytest.MonkeyPatch.context() as patch:
        save = trainers.loop.trainer.Trainer._save

        def die(self, *arguments):
            if self.now.epoch == 2:
                raise Killed
            save(self, *arguments)

        patch.setattr(trainers.loop.trainer.Trainer, "_save", die)
        with pytest.raises(Killed):
            train("sgd", out=tmp_path / "killed", **EVERY_STEP, **SETTINGS)
    train("sgd", out=tmp_path / "killed", resume=True, **EVERY_STEP, **SETTINGS)
    assert measured(table(tmp_path / "killed")) == measured(table(tmp_path / "whole"))


def test_measuring_is_not_counted_as_training(tmp_path, monkeypatch):
    """A budget of seconds ends after as many steps as without a Monitor."""
    now = [0.0]
    monkeypatch.setattr(trainers.loop.trainer.time, "perf_counter", lambda: now[0])
    step, look = trainers.loop.trainer.Trainer._train_step, trainers.loop.trainer.Monitor

    def slow_step(self, *arguments):
        now[0] += 1.0
        return step(self, *arguments)

    class Slow:
        def __init__(self, problem, **options):
            self.inner = look(problem, **options)

        def step(self, step):
            now[0] += 10.0
            self.inner.step(step)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.inner.close()

    monkeypatch.setattr(trainers.loop.trainer.Trainer, "_train_step", slow_step)
    monkeypatch.setattr(trainers.loop.trainer, "Monitor", Slow)
    settings = {k: v for k, v in SETTINGS.items() if k != "epochs"} | {"budget_seconds": 8, "schedule": "constant"}
    for monitor in ((), ("gradient_norm",)):
        finished = train("sgd", monitor=monitor, **settings)
        assert finished.history[-1]["step"] == 8
        assert finished.history[-1]["seconds"] == 8.0


def test_the_command(tmp_path, capsys):
    arguments = ["train", "sgd", "--data", "digits", "--model", "mlp:hidden=(16,)", "--epochs", "1"]
    assert run([*arguments, "--monitor", "lambda_max", "--monitor", "trace", "--out", str(tmp_path / "run")]) == 0
    assert {"step", "lambda_max", "trace"} <= table(tmp_path / "run")[0].keys()
    assert run([*arguments, "--monitor", "lambda", "--out", str(tmp_path / "other")]) == 2
    assert "unknown measure 'lambda': did you mean 'lambda_max'" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
    with pytest.raises(InputError, match="unknown measure"):
        train("sgd", monitor=["lambda"], **SETTINGS)


def test_a_first_measurement_that_failed_leaves_nothing(tmp_path):
    for wrong in ("lambda_max:k=99999999", "lambda_max:k=99999998"):
        with pytest.raises(InputError, match="k"):
            train("sgd", out=tmp_path, monitor=[wrong], **SETTINGS)
        assert list(tmp_path.iterdir()) == []
    train("sgd", out=tmp_path, monitor=["gradient_norm"], **SETTINGS)
    assert "gradient_norm" in table(tmp_path)[0]
