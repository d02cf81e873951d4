"""The training loop: what it counts and writes, its schedules and budgets, and how it refuses wrong input."""

from __future__ import annotations

import csv
import itertools
import json
import math
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import cli
from landscape import checkpoint
from landscape.errors import InputError
from landscape.problem.batch_passes import Passes
from trainers import METHODS, train
from trainers.datasets import load_data
from trainers.loop.base import base_optimizer, clip_gradient, decayed_parameters
from trainers.loop.budget import Budget, Schedule
from trainers.loop.run_directory import COLUMNS
from trainers.loop.settings import Settings
from trainers.models import build_model

ROOT = Path(__file__).parent.parent
TOY = {"data": "toy2d:n=200", "model": "mlp:hidden=8", "batch_size": 64, "weight_decay": 0.0}


def train_toy(method="sgd", **settings):
    return train(method, **{**TOY, "epochs": 2, **settings})


def test_sgd_is_the_loop_that_one_writes_by_hand():
    """Initialization, order, learning rate, decay groups and metrics against ten lines of plain torch."""
    settings = {"momentum": 0.9, "weight_decay": 0.01, "lr": 0.05, "epochs": 3, "warmup": 2, "label_smoothing": 0.1}
    run = train("sgd", **{**TOY, **settings}, seed=4)
    data = load_data("toy2d", n=200, seed=4)
    model = build_model("mlp", hidden=8, classes=data.classes, input_shape=data.input_shape, seed=4)
    weights = [p for p in model.parameters() if p.dim() > 1]
    biases = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": weights, "weight_decay": 0.01}, {"params": biases, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=0.05, momentum=0.9)
    from landscape.random import stream

    n, step = data.size("train"), 0
    steps = 3 * math.ceil(n / 64)
    for epoch in range(3):
        total = 0.0
        for rows in torch.randperm(n, generator=stream(4, f"epoch {epoch}")).split(64):
            lr = 0.05 * (1 + math.cos(math.pi * step / steps)) / 2 * min(1, (step + 1) / 2)
            for group in optimizer.param_groups:
                group["lr"] = lr
            loss = F.cross_entropy(model(data.x_train[rows]), data.y_train[rows], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(rows)
            step += 1
        assert run.history[epoch]["train_loss"] == pytest.approx(total / n, rel=1e-6)
    for mine, theirs in zip(run.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-7)  # float32, another order of summation
    accuracy = (model(data.x_test).argmax(1) == data.y_test).double().mean()
    assert run.history[-1]["test_accuracy"] == pytest.approx(float(accuracy))


def test_the_memory_format_of_images_changes_nothing_but_rounding():
    """Built-in networks are trained channels-last; one that the caller made keeps its layout on a CPU."""
    settings = {"data": "digits", "epochs": 1, "batch_size": 128, "lr": 0.05, "seed": 3}
    build = {"channels": (4, 8), "classes": 10, "input_shape": (1, 8, 8), "seed": 3}
    own = build_model("small-cnn", **build)
    one, other = train("sam", model="small-cnn:channels=4x8", **settings), train("sam", model=own, **settings)
    layouts = [
        [p.is_contiguous() for p in run.model.parameters() if p.dim() == 4 and p.shape[1] > 1] for run in (one, other)
    ]
    assert layouts == [[False], [True]]
    for mine, theirs in zip(one.model.parameters(), other.model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)  # float32, 12 steps of two passes


def test_a_run_directory_holds_what_the_interface_names(tmp_path):
    out = tmp_path / "run"
    run = train_toy("sam", out=out, keep_every=1, epochs=2)
    assert sorted(p.name for p in out.iterdir()) == [
        "ckpt.pt",
        "config.json",
        "epoch-1.pt",
        "epoch-2.pt",
        "history.csv",
    ]
    content = torch.load(out / "ckpt.pt", weights_only=True)
    keys = {"format", "version", "model", "data", "method", "optimizer", "scheduler", "scaler", "random"}
    assert keys | {"epoch", "step", "provenance"} <= set(content)
    assert content["format"] == "landscape-checkpoint"
    assert set(content["model"]) == set(content["method"]) == {"name", "arguments", "state"}
    assert content["method"]["name"] == "sam"
    assert content["method"]["arguments"] == {"rho": 0.05}
    assert content["data"]["name"] == "toy2d"
    assert content["data"]["arguments"]["n"] == 200
    assert torch.load(out / "epoch-1.pt", weights_only=True)["epoch"] == 1
    with open(out / "history.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == list(COLUMNS)
    assert [r["epoch"] for r in rows] == ["1", "2"]
    assert [int(r["forward_examples"]) for r in rows] == [2 * n * len(run.model[0].weight) // 8 for n in sizes(run)]
    assert float(rows[1]["test_accuracy"]) == run.history[1]["test_accuracy"]
    assert json.loads((out / "config.json").read_text())["settings"]["lr"] == 0.1


def sizes(run):
    n = load_data("toy2d", n=200).size("train")
    return [n, 2 * n]


def test_a_checkpoint_is_rebuilt_by_name(tmp_path):
    from trainers.rebuild import Sample, subject

    run = train_toy(out=tmp_path / "run", epochs=3)
    found = subject(tmp_path / "run" / "ckpt.pt", Sample(split="test", samples=10**6))
    evaluation = found.problem.evaluate()
    assert float(evaluation.accuracy) == pytest.approx(run.history[-1]["test_accuracy"])
    assert float(evaluation.loss) == pytest.approx(run.history[-1]["test_loss"], rel=1e-6)


@pytest.mark.parametrize(
    ("name", "forward", "backward"), [("sgd", 1, 1), ("adam", 1, 1), ("sam", 2, 2), ("asam", 2, 2)]
)
def test_passes_are_counted(name, forward, backward):
    run = train_toy(name, epochs=2)
    n = sizes(run)[1]
    row = run.history[-1]
    assert (row["forward_examples"], row["backward_examples"]) == (forward * n, backward * n)
    assert run.passes == pytest.approx(2 * forward)


def test_the_callers_random_stream_is_not_moved():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    train_toy()
    assert torch.equal(before, torch.get_rng_state())


def test_a_users_own_module_and_data_are_trained():
    data = load_data("toy2d", n=200)
    model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, data.classes))
    before = model[0].weight.detach().clone()
    run = train(METHODS["sam"](rho=0.1), model=model, data=data, epochs=1, batch_size=50)
    assert run.model is model
    assert not torch.equal(before, model[0].weight)


# -- precision, decay, clipping ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["sgd", "sam"])
def test_mixed_precision_trains_like_float32(precision, name):
    settings = {"data": "digits", "model": "mlp:hidden=32", "epochs": 2, "batch_size": 128, "lr": 0.05}
    plain, mixed = train(name, **settings), train(name, precision=precision, **settings)
    assert all(p.dtype == torch.float32 for p in mixed.model.parameters())
    # Eight bits of mantissa in the products of the forward pass.
    assert mixed.history[-1]["train_loss"] == pytest.approx(plain.history[-1]["train_loss"], rel=0.05)
    if precision == "float16":
        assert mixed.history[-1]["skipped_steps"] >= 0


def test_steps_that_overflow_in_half_precision_are_skipped_and_counted():
    """The scale of 65536 overflows the loss's gradient at first: skipped steps leave weights and momentum alone."""
    data = load_data("toy2d", n=200)
    model = nn.Sequential(nn.Linear(2, 4), nn.Linear(4, data.classes))
    with torch.no_grad():
        model[1].weight.mul_(60)
    run = train("sam", model=model, data=data, epochs=2, batch_size=50, precision="float16", lr=1e-4)
    assert run.history[-1]["skipped_steps"] > 0
    assert math.isfinite(run.history[-1]["train_loss"])


def test_decay_inside_the_loss_is_decay_outside_for_sgd_but_not_for_sam():
    def weights(name, inside):
        run = train(name, **{**TOY, "weight_decay": 0.1, "epochs": 1, "decay_inside": inside, "momentum": 0.0})
        return torch.cat([p.detach().flatten() for p in run.model.parameters()])

    torch.testing.assert_close(weights("sgd", True), weights("sgd", False), rtol=1e-5, atol=1e-6)
    assert (weights("sam", True) - weights("sam", False)).abs().max() > 1e-4


def test_decay_shrinks_weights_and_spares_biases_norms_and_tokens():
    model = build_model("small-cnn", classes=10, input_shape=(1, 8, 8))
    optimizer = base_optimizer(Settings(weight_decay=0.1).resolved(None), model)
    decayed, spared = optimizer.param_groups
    assert decayed["weight_decay"] == 0.1
    assert spared["weight_decay"] == 0
    assert all(p.dim() > 1 for p in decayed["params"])
    assert all(p.dim() == 1 for p in spared["params"])
    assert len(decayed_parameters(model, everything=True)) == len(list(model.parameters()))


def test_clipping_bounds_the_norm_and_keeps_short_gradients():
    p = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    for gradient, expected in (([3.0, 4.0], [0.6, 0.8]), ([0.3, 0.4], [0.3, 0.4]), ([0.0, 0.0], [0.0, 0.0])):
        p.grad = torch.tensor(gradient, dtype=torch.float64)
        clip_gradient([p], 1.0)
        torch.testing.assert_close(p.grad, torch.tensor(expected, dtype=torch.float64))


# -- schedules and budgets ---------------------------------------------------------------------------------------------


def test_schedules_start_high_end_low_and_warm_up():
    cosine = Schedule("cosine", 0.4, 0.04, warmup=4)
    assert cosine.rate(0, 0.0) == pytest.approx(0.1)
    assert cosine.rate(10, 0.5) == pytest.approx(0.22)
    assert cosine.rate(100, 1.0) == pytest.approx(0.04)
    assert [cosine.warming(s) for s in (0, 3, 4)] == [True, True, False]
    assert [cosine.warmed(s) for s in (0, 1, 3, 4)] == [0.25, 0.5, 1.0, 1.0]
    steps = Schedule("step", 1.0)
    assert [steps.rate(9, p) for p in (0.0, 0.49, 0.5, 0.75)] == pytest.approx([1, 1, 0.1, 0.01])
    assert Schedule("constant", 0.3).rate(5, 0.9) == 0.3


@pytest.mark.parametrize(("name", "steps"), [("sgd", 12), ("sam", 6)])
def test_a_budget_in_passes_is_spent_exactly_and_anneals(name, steps):
    """Three passes: three SGD epochs, one and a half SAM epochs; the learning rate follows the share spent."""
    run = train_toy(name, batch_size=40, epochs=None, budget_passes=3.0, data="toy2d:n=320")
    n = load_data("toy2d", n=320).size("train")
    assert run.passes == pytest.approx(3.0, abs=2 * 40 / n)
    assert run.passes >= 3.0 - 1e-9
    assert run.history[-1]["step"] == math.ceil(3 * n / 40 / (1 if name == "sgd" else 2))
    spent_before_last = 1 - 1 / run.history[-1]["step"]
    assert run.history[-1]["lr"] == pytest.approx(0.05 * (1 + math.cos(math.pi * spent_before_last)), rel=0.2)
    assert run.history[-1]["lr"] < 0.01


def test_budget_counts_a_forward_as_a_third():
    budget = Budget("passes", 2, steps_per_epoch=5, examples=100)
    assert budget.spent_passes(Passes(forward=100, backward=0)) == pytest.approx(1 / 3)
    assert budget.spent_passes(Passes(forward=100, backward=100)) == pytest.approx(1)
    assert budget.progress(0, Passes(forward=300, backward=150), 0.0) == pytest.approx(1.0)


def test_a_budget_in_seconds_ends_in_time(monkeypatch):
    """By a clock that goes on by a millisecond at each look: one when an epoch starts, after each step, at its end."""
    ticks = itertools.count()
    monkeypatch.setattr("trainers.loop.trainer.time", types.SimpleNamespace(perf_counter=lambda: next(ticks) * 1e-3))
    run = train_toy(epochs=None, budget_seconds=0.0475)
    # Epochs of 4 steps last 5 ms: 9 of them 45 ms, and the third step more, which begins at 47 ms, ends at 48 ms.
    seconds = [row["seconds"] for row in run.history]
    assert seconds == pytest.approx([*(0.005 * e for e in range(1, 10)), 0.049], rel=1e-9)
    assert [row["step"] for row in run.history] == [*range(4, 37, 4), 39]
    assert run.history[-1]["lr"] == pytest.approx(0.05 * (1 + math.cos(math.pi * 0.047 / 0.0475)), rel=1e-9)


# -- wrong input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1, received 0"),
        ({"lr": -1.0}, "lr must be above 0"),
        ({"momentum": 1.0}, "momentum must be in"),
        ({"label_noise": 2.0}, "label-noise must be in"),
        ({"base": "sgdd"}, "unknown base 'sgdd': did you mean 'sgd'"),
        ({"epochs": None, "budget_passes": 1.0, "budget_seconds": 1.0}, "both given and each would end the run"),
        ({"epochs": 5, "budget_passes": 3.0}, "--epochs 5 and --budget-passes 3.0 are both given"),
        ({"epochs": 5, "budget_seconds": 3.0}, "--epochs 5 and --budget-seconds 3.0 are both given"),
        ({"schedule": "step", "lr_min": 0.01}, "--lr-min is the end of the cosine, --schedule is step"),
        ({"m": 100, "batch_size": 64}, "m must not exceed the batch of 64 examples, received 100"),
        ({"sync_batch_norm": True, "m": 8}, "--sync-batch-norm and --m: examples with their own perturbation"),
        ({"sync_batch_norm": True, "per_process": True}, "--sync-batch-norm and --per-process"),
        ({"sync_batch_norm": True}, "--sync-batch-norm needs a network with BatchNorm"),
        ({"model": "mlp:hidden=4,batch_norm=true", "m": 1}, "a pass of one example through BatchNorm"),
        ({"base": "adam", "momentum": 0.5}, "--momentum belongs to sgd, the base optimizer is adam"),
        ({"base": "adamw", "nesterov": True}, "--nesterov belongs to sgd"),
        ({"base": "adam", "decay_inside": True}, "that of adam is 0: give --weight-decay"),
        ({"batch_size": 1000, "drop_last": True}, "batch size 1000 is over"),
        ({"model": "mpl"}, "unknown model 'mpl'"),
        ({"data": "toy3d"}, "unknown dataset 'toy3d'"),
        ({"epochz": 1}, "unknown setting 'epochz'"),
        ({"data": "digits", "model": "small-cnn", "batch_size": 4 * 359}, "last batch of one example"),
    ],
)
def test_wrong_settings_write_nothing(settings, message, tmp_path):
    with pytest.raises(InputError, match=message):
        train_toy(out=tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


def test_another_end_of_a_resumed_run_is_told(tmp_path, capsys):
    toy = ["--data", "toy2d:n=64", "--model", "mlp:hidden=4", "--out", str(tmp_path)]
    assert run_cli("sgd", *toy, "--epochs", "1") == 0
    for options, told in ((["--budget-passes", "3"], "budget-passes 3.0"), (["--epochs", "2"], "2")):
        capsys.readouterr()
        assert run_cli("sgd", "--out", str(tmp_path), "--resume", *options) == 2
        assert f"was trained with epochs 1, this is {told}: resume" in capsys.readouterr().err
    assert run_cli("sgd", "--out", str(tmp_path), "--resume", "--epochs", "1") == 0


@pytest.mark.parametrize("mode", ["zero", "r", "lambda"])
def test_a_penalty_that_warms_up_with_nothing_is_refused(mode, tmp_path):
    method = METHODS["gnp"](penalty_warmup=mode)
    with pytest.raises(InputError, match=f"penalty_warmup={mode} follows .* which is 0 steps: give --warmup"):
        train_toy(method, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert train_toy(method, warmup=2).epochs_trained == 2


def test_a_directory_that_holds_a_run_is_refused(tmp_path):
    train_toy(out=tmp_path)
    before = (tmp_path / "ckpt.pt").read_bytes()
    with pytest.raises(InputError, match="already holds a run"):
        train_toy(out=tmp_path)
    with pytest.raises(InputError, match=r"holds a run of sgd\(\), this is sam\(rho=0.05\)"):
        train_toy("sam", out=tmp_path, resume=True)
    with pytest.raises(InputError, match="trained with lr 0.1, this is 0.2"):
        train_toy(out=tmp_path, resume=True, lr=0.2)
    assert (tmp_path / "ckpt.pt").read_bytes() == before


def test_a_diverging_loss_names_the_step_and_keeps_the_last_good_checkpoint(tmp_path):
    with pytest.raises(InputError, match=r"loss is (inf|nan) at step \d+ \(epoch 1\).*no epoch had been saved"):
        train_toy(out=tmp_path / "first", lr=1e30)
    assert not (tmp_path / "first").exists()
    with pytest.raises(
        InputError, match=r"loss is nan at step 8 \(epoch 2\).*the last good checkpoint, .*later/ckpt.pt"
    ):
        explode_later(tmp_path / "later")
    content = checkpoint.read(tmp_path / "later" / "ckpt.pt")
    assert content["epoch"] == 1
    assert all(torch.isfinite(t).all() for t in content["model"]["state"].values())


def explode_later(out):
    """A network whose loss turns nan at its eighth training pass."""

    class Fuse(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.calls = nn.Linear(2, 2), 0

        def forward(self, x):
            self.calls += self.training
            return self.linear(x) * (float("nan") if self.calls > 7 else 1.0)

    train("sgd", data="toy2d:n=200", model=Fuse(), epochs=5, batch_size=40, out=out)


# -- the command -------------------------------------------------------------------------------------------------------


def run_cli(*arguments):
    return cli.run(["train", *arguments])


def test_the_command_trains_and_reports(tmp_path, capsys):
    toy = ["--data", "toy2d:n=200", "--model", "mlp:hidden=8", "--epochs", "1", "--out", str(tmp_path / "run")]
    assert run_cli("asam", *toy, "--rho", "0.3") == 0
    assert "ckpt.pt: test accuracy" in capsys.readouterr().out
    assert checkpoint.read(tmp_path / "run" / "ckpt.pt")["method"]["arguments"]["rho"] == 0.3
    assert run_cli("asam", *toy, "--rho", "0.3") == 2
    assert "already holds a run" in capsys.readouterr().err
    # What is not said on the command line is what the run was started with.
    assert run_cli("asam", "--out", str(tmp_path / "run"), "--resume") == 0
    assert "is finished" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["samm"], "unknown method 'samm': did you mean 'sam'"),
        (["sam", "--rho", "-1"], "rho must be >= 0, received -1.0"),
        (["sam", "--epochs", "0"], "epochs must be at least 1"),
        (["sam", "--device", "cuda:77"], "'cuda:77' was asked for"),
        (["sam", "--out", f"{__file__}/run"], "test_loop.py is a file; choose another --out"),
    ],
)
def test_the_command_refuses_with_one_line(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_cli(*arguments) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error
    assert list(tmp_path.iterdir()) == []


def test_help_shows_paper_defaults_and_their_source_without_torch():
    code = "import sys, cli; cli.run(['train', 'sam', '--help']); assert 'torch' not in sys.modules"
    out = subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, text=True).stdout
    assert "--rho FLOAT" in out
    assert "0.05" in out
    assert "2010.01412" in out
