"""Measures of the edge of stability of checkpoints, runs and trainings: what they take beside the network."""

import csv
import importlib
import json

import numpy as np
import pytest
import torch
from edge_cases import network
from torch import nn

import cli
import landscape
from landscape.checkpoint import read
from trainers import train
from trainers.rebuild import subject

MEASURES = (
    *("critical_sharpness", "critical_sharpness:direction=optimizer", "directional_sharpness:direction=optimizer"),
    *("relative_critical_sharpness", "preconditioned_sharpness", "batch_sharpness:batch_size=50"),
    *("generalized_sharpness", "generalized_sharpness:norm=spectral,restarts=2"),
)
KEYS = [*MEASURES[:2], "directional_sharpness", *MEASURES[3:5], "batch_sharpness", *MEASURES[6:]]
"""The first of a measure has its bare name."""
METHODS = ("sgd", "adam", "adamw")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One short training with each base optimizer, with every epoch kept."""
    root = tmp_path_factory.mktemp("runs")
    common = {"data": "toy2d:n=300", "model": "mlp:hidden=8", "epochs": 2, "batch_size": 50, "device": "cpu"}
    for name in METHODS:
        train(name, out=root / name, keep_every=1, schedule="constant", **common)
    return root


def flags(names):
    return [part for name in names for part in ("--measure", name)]


@pytest.mark.parametrize("name", METHODS)
def test_analyze_takes_the_optimizer_of_the_checkpoint_and_the_other_split(name, runs, tmp_path, capsys):
    path, options = runs / name / "ckpt.pt", ["--dtype", "float64", "--out", str(tmp_path), "--json", "--grid", "0"]
    assert cli.run(["analyze", str(path), *flags(MEASURES), *options]) == 0
    measured = json.loads(capsys.readouterr().out)["checkpoints"][0]["measures"]
    assert list(measured) == KEYS
    one = subject(path, dtype=torch.float64)
    test = subject(path, split="test", dtype=torch.float64).problem.in_network(one.model)
    optimizer = one.companions.optimizer()
    called = {"sgd": "SGD", "adam": "Adam", "adamw": "AdamW"}[name]
    assert measured["preconditioned_sharpness"]["optimizer"] == type(optimizer).__name__ == called
    expected = {
        "critical_sharpness": landscape.critical_sharpness(one.problem),
        "critical_sharpness:direction=optimizer": landscape.critical_sharpness(one.problem, direction=optimizer),
        "directional_sharpness": landscape.directional_sharpness(one.problem, direction=optimizer),
        "relative_critical_sharpness": landscape.relative_critical_sharpness(one.problem, test),
        "preconditioned_sharpness": landscape.preconditioned_sharpness(one.problem, optimizer),
    }
    for key, result in expected.items():
        np.testing.assert_allclose(measured[key]["value"], result.value, rtol=1e-6, err_msg=key)
    assert measured["critical_sharpness:direction=optimizer"]["direction"] == called
    page = (tmp_path / "report.html").read_text()
    for words in ("Critical sharpness", "Preconditioned sharpness", "Batch sharpness", "Generalized sharpness, linf"):
        assert words in page
    assert f"direction = {called}" in page
    # Kept, and not computed again.
    before = (tmp_path / "analysis.h5").stat().st_mtime_ns
    assert cli.run(["analyze", str(path), *flags(MEASURES), *options]) == 0
    assert (tmp_path / "analysis.h5").stat().st_mtime_ns == before


def test_the_optimizer_of_a_checkpoint_is_that_of_the_training(runs):
    path = runs / "adamw" / "ckpt.pt"
    one, content = subject(path), read(path)
    optimizer = one.companions.optimizer()
    held, saved = optimizer.state_dict(), content["optimizer"]
    assert [g["weight_decay"] for g in held["param_groups"]] == [g["weight_decay"] for g in saved["param_groups"]]
    for number, state in saved["state"].items():
        for key, value in state.items():
            assert torch.equal(torch.as_tensor(held["state"][int(number)][key]), torch.as_tensor(value)), (number, key)
    shapes = [p.shape for g in optimizer.param_groups for p in g["params"]]
    assert shapes == [saved["state"][i]["exp_avg"].shape for i in range(len(shapes))]
    assert {id(p) for g in optimizer.param_groups for p in g["params"]} == {id(p) for p in one.model.parameters()}


def test_other_data_is_named_on_the_command_line(runs, tmp_path, capsys):
    path, options = str(runs / "sgd" / "ckpt.pt"), ["--dtype", "float64", "--json"]
    wanted = ["analyze", path, "--measure", "relative_critical_sharpness", *options]
    values = []
    for i, other in enumerate(([], ["--other-data", "toy2d:n=300,seed=5"])):
        assert cli.run([*wanted, *other, "--out", str(tmp_path / str(i))]) == 0
        values.append(json.loads(capsys.readouterr().out)["checkpoints"][0]["measures"]["relative_critical_sharpness"])
    assert values[0]["value"] != values[1]["value"]
    # Another other sample is another number: what was kept is not taken for it.
    again = [*wanted, "--out", str(tmp_path / "0"), "--other-data", "toy2d:n=300,seed=5"]
    assert cli.run(again) == 0
    summary = json.loads(capsys.readouterr().out)["checkpoints"][0]["measures"]["relative_critical_sharpness"]
    assert summary["value"] == values[1]["value"]


def test_a_run_gives_them_over_its_steps(runs, capsys):
    names = ("critical_sharpness:direction=optimizer", "preconditioned_sharpness", "relative_critical_sharpness")
    assert cli.run(["analyze", str(runs / "adam"), *flags(names), "--dtype", "float64"]) == 0
    with open(runs / "adam" / "over-steps" / "run.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2
    for i, row in enumerate(rows, 1):
        one = subject(runs / "adam" / f"epoch-{i}.pt", dtype=torch.float64)
        value = landscape.preconditioned_sharpness(one.problem, one.companions.optimizer(), tol=1e-6).value
        np.testing.assert_allclose(float(row["preconditioned_sharpness"]), value, rtol=1e-3)
        assert float(row["critical_sharpness"]) > 0


def test_doctor_says_what_they_cost(runs, capsys):
    path = runs / "sgd" / "ckpt.pt"
    names = ("relative_critical_sharpness", "preconditioned_sharpness", "critical_sharpness")
    assert cli.run(["doctor", str(path), "--device", "cpu", *flags(names), "--grid", "0"]) == 0
    text = capsys.readouterr().out
    for name in names:
        line = next(line for line in text.splitlines() if line.startswith(f"  {name}:"))
        assert "passes, about" in line
        assert float(line.split(": ")[1].split()[0]) < 40, "passes of the sample, not of a part of it"


def test_weights_alone_have_no_optimizer(runs, tmp_path, capsys):
    path = tmp_path / "weights.pt"
    torch.save(subject(runs / "sgd" / "ckpt.pt").model.state_dict(), path)
    common = ["analyze", str(path), "--model", "mlp:hidden=8", "--data", "toy2d:n=300", "--out", str(tmp_path / "a")]
    for name in ("preconditioned_sharpness", "critical_sharpness:direction=optimizer"):
        assert cli.run([*common, "--measure", name]) == 2
        assert "the checkpoint holds no optimizer: train with this toolkit, or give" in capsys.readouterr().err


def test_a_callables_data_have_no_other_split(runs, tmp_path, capsys, monkeypatch):
    (tmp_path / "alone.py").write_text(
        "import torch\n\n\ndef batches():\n    return [(torch.ones(4, 2), torch.zeros(4, dtype=torch.long))]\n"
    )
    monkeypatch.chdir(tmp_path)
    path = str(runs / "sgd" / "ckpt.pt")
    wanted = ["analyze", path, "--data", "alone:batches", "--measure", "relative_critical_sharpness"]
    assert cli.run([*wanted, "--out", str(tmp_path / "a")]) == 2
    assert "--data alone:batches has no other split: name the other data with --other-data" in capsys.readouterr().err


# -- while training ----------------------------------------------------------------------------------------------------


def watched(measures, **beside):
    model, batches = network()
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    problem = landscape.Problem(model, nn.functional.cross_entropy, batches)
    if "other" in beside:
        beside["other"] = landscape.Problem(model, nn.functional.cross_entropy, batches[:1])
    if "optimizer" in beside:
        beside["optimizer"] = optimizer
    monitor = landscape.Monitor(problem, every=1, measures=list(measures), **beside) if measures else None
    torch.manual_seed(0)
    for step in range(4):
        x, y = batches[step % 2]
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        if monitor is not None:
            monitor.step(step)
    return monitor, model, optimizer


def test_a_monitor_takes_the_optimizer_and_the_other_loss_and_leaves_no_trace():
    _, plain, plain_optimizer = watched(())
    measures = [m.replace("batch_size=50", "batch_size=5") for m in MEASURES]
    monitor, model, optimizer = watched(measures, optimizer=True, other=True)
    for (name, a), b in zip(plain.state_dict().items(), model.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    states = zip(plain_optimizer.state_dict()["state"].values(), optimizer.state_dict()["state"].values(), strict=True)
    for a, b in states:
        assert all(torch.equal(a[key], b[key]) for key in a)
    assert [row["step"] for row in monitor.history] == [0, 1, 2, 3]
    for name in KEYS:
        assert all(np.isfinite(row[name]) for row in monitor.history), name
    last = monitor.history[-1]
    problem = monitor.problem.updated()
    np.testing.assert_allclose(
        last["critical_sharpness:direction=optimizer"],
        landscape.critical_sharpness(problem, direction=optimizer).value,
        rtol=1e-3,
    )
    np.testing.assert_allclose(
        last["preconditioned_sharpness"], landscape.preconditioned_sharpness(problem, optimizer).value, rtol=1e-3
    )


def test_the_search_of_a_monitor_starts_from_the_last_step(monkeypatch):
    starts, measure = [], landscape.MEASURES["critical_sharpness"]

    def told(problem, start=None, **options):
        starts.append(start)
        return measure(problem, start, **options)

    monkeypatch.setattr(importlib.import_module("landscape.measures.critical_sharpness"), "critical_sharpness", told)
    watched(["critical_sharpness"])
    assert starts[0] is None
    assert all(isinstance(s, float) for s in starts[1:])


@pytest.mark.parametrize(
    ("measure", "hint"),
    [
        (
            "preconditioned_sharpness",
            "needs optimizer beside the weights of one step: a Monitor takes it as optimizer=",
        ),
        ("directional_sharpness:direction=optimizer", "needs optimizer beside the weights of one step"),
        ("relative_critical_sharpness", "needs other beside the weights of one step: a Monitor takes it as other="),
    ],
)
def test_what_a_monitor_was_not_made_with_is_told(measure, hint):
    model, batches = network()
    problem = landscape.Problem(model, nn.functional.cross_entropy, batches)
    with pytest.raises(landscape.InputError, match=hint):
        landscape.Monitor(problem, measures=[measure])


def test_without_what_they_take_the_measures_refuse_in_one_line():
    model, batches = network()
    problem = landscape.Problem(model, nn.functional.cross_entropy, batches)
    with pytest.raises(landscape.InputError, match="needs the optimizer of the training"):
        landscape.preconditioned_sharpness(problem)
    with pytest.raises(landscape.InputError, match="the Problem of the other data is needed"):
        landscape.relative_critical_sharpness(problem)


def test_the_trainer_watches_its_own_optimizer(tmp_path):
    names = ["preconditioned_sharpness", "critical_sharpness:direction=optimizer"]
    options = {"data": "toy2d:n=300", "model": "mlp:hidden=8", "epochs": 1, "batch_size": 50, "device": "cpu"}
    train("sgd", out=tmp_path, monitor=names, **options)
    with open(tmp_path / "monitor.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows
    assert all(float(row["preconditioned_sharpness"]) > 0 for row in rows)
