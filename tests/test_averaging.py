"""Averaged weights: the means by their formulas, BatchNorm statistics of their own, files, resuming."""

from __future__ import annotations

import pytest
import torch
from test_resume import DIGITS, content, differing, history, stop_after
from torch import nn

import cli
from landscape import checkpoint
from landscape.errors import InputError
from landscape.random import stream
from trainers import train
from trainers.datasets import load_data
from trainers.loop.averaging import WeightAverage
from trainers.loop.settings import Settings
from trainers.models import build_model

TOY = {"data": "toy2d:n=200", "model": "mlp:hidden=8", "batch_size": 40, "epochs": 4, "lr": 0.05}
KINDS = ("ema", "swa", "lawa")


def averages(kind, points, progress=None, **options):
    """Mean over a path of one weight, with a step and the end of an epoch at every point."""
    w = torch.full((2,), float(points[0]), dtype=torch.float64)
    average = WeightAverage(Settings(average=kind, **options).resolved(None), [w])
    for i, point in enumerate(points[1:], 1):
        w.fill_(point)
        average.after_step()
        average.after_epoch(i / (len(points) - 1) if progress is None else progress[i - 1])
    return average.weights()[0].unique().item(), average.count


def test_ema_forgets_at_its_decay_and_faster_in_the_first_steps():
    value, decays = 3.0, [0.1, 2 / 11, 0.2, 0.2]
    for point, decay in zip([5.0, -1.0, 4.0, 7.0], decays, strict=True):
        value = decay * value + (1 - decay) * point
    assert averages("ema", [3.0, 5.0, -1.0, 4.0, 7.0], average_decay=0.2) == (pytest.approx(value, rel=1e-12), 4)
    assert averages("ema", [3.0, 5.0], average_decay=0.0) == (5.0, 1)


def test_swa_is_the_equal_mean_from_its_start_on():
    path = [9.0, 1.0, 2.0, 6.0, 4.0]
    assert averages("swa", path, average_start=0.5) == (pytest.approx((2 + 6 + 4) / 3, rel=1e-12), 3)
    assert averages("swa", path) == (pytest.approx(5.0, rel=1e-12), 2)
    assert averages("swa", path, average_start=1.0) == (4.0, 1)


def test_lawa_is_the_mean_of_the_latest():
    path = [9.0, 1.0, 2.0, 6.0, 4.0]
    assert averages("lawa", path, average_window=3) == (pytest.approx(4.0, rel=1e-12), 4)
    assert averages("lawa", path, average_window=9) == (pytest.approx(13 / 4, rel=1e-12), 4)


def test_the_average_of_kept_epochs_is_that_of_the_run(tmp_path):
    """SWA and LAWA from the checkpoints of the epochs themselves; training goes on as without them."""
    plain = train("sam", **TOY)
    for kind, options, epochs in (("swa", {"average_start": 0.5}, (2, 3, 4)), ("lawa", {"average_window": 2}, (3, 4))):
        out = tmp_path / kind
        run = train("sam", average=kind, out=out, keep_every=1, **options, **TOY)
        kept = [torch.load(out / f"epoch-{e}.pt", weights_only=True)["model"]["state"] for e in epochs]
        for name, value in run.averaged.model.state_dict().items():
            torch.testing.assert_close(value, torch.stack([k[name] for k in kept]).mean(0), rtol=1e-5, atol=1e-6)
        for a, b in zip(plain.model.parameters(), run.model.parameters(), strict=True):
            assert torch.equal(a, b)
        assert run.averaged.count == len(epochs)


def test_batch_norm_statistics_are_those_of_the_averaged_weights():
    """By hand: the mean over the full batches of the training set in the stated order, not augmented."""
    run = train("sgd", average="ema", **{**DIGITS, "epochs": 2})
    data = load_data("digits", seed=0)
    twin = build_model("small-cnn", channels=(4, 8), classes=10, input_shape=(1, 8, 8))
    twin.load_state_dict(run.averaged.model.state_dict())
    norm = next(m for m in twin.modules() if isinstance(m, nn.BatchNorm2d))
    before = next(m for m in twin.modules() if isinstance(m, nn.Conv2d))
    order = torch.randperm(data.size("train"), generator=stream(0, "statistics of the average"))
    batches = [before(data.inputs(rows)) for rows in order.split(300) if len(rows) == 300]
    assert len(batches) == data.size("train") // 300 > 1
    means = torch.stack([b.mean((0, 2, 3)) for b in batches]).mean(0)
    variances = torch.stack([b.var((0, 2, 3)) for b in batches]).mean(0)
    torch.testing.assert_close(norm.running_mean, means, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norm.running_var, variances, rtol=1e-4, atol=1e-5)
    assert norm.momentum == 0.1
    trained = next(m for m in run.model.modules() if isinstance(m, nn.BatchNorm2d))
    assert not torch.allclose(trained.running_mean, norm.running_mean, rtol=1e-3)
    assert not run.averaged.model.training


@pytest.mark.parametrize("kind", KINDS)
def test_resumed_equals_uninterrupted(kind, tmp_path):
    settings = {**DIGITS, "average": kind, "keep_every": 1}
    if kind == "swa":
        settings["average_start"] = 0.5
    out = tmp_path / "whole"
    train("sgd", out=out, **settings)
    half = stop_after(out, 2, tmp_path / "half")
    (half / "average").mkdir()
    for leftover in (".ckpt.pt.a1.unfinished", "average/.ckpt.pt.b2.unfinished", "average/.epoch-1.pt.c3.unfinished"):
        (half / leftover).touch()  # of a kill in the middle of a save
    run = train("sgd", out=half, resume=True, **settings)
    assert not list(half.rglob("*.unfinished"))
    assert run.epochs_trained == 2
    assert differing(content(out), content(half)) == []
    assert differing(content(out / "average"), content(half / "average")) == []
    assert history(out) == history(half)
    again = train("sgd", out=half, resume=True, **settings)
    assert again.epochs_trained == 0
    assert differing(dict(again.averaged.model.state_dict()), dict(run.averaged.model.state_dict())) == []


def test_a_skipped_step_is_not_averaged():
    data = load_data("toy2d", n=200)
    model = nn.Sequential(nn.Linear(2, 4), nn.Linear(4, data.classes))
    with torch.no_grad():
        model[1].weight.mul_(60)
    settings = {"epochs": 2, "batch_size": 50, "precision": "float16", "lr": 1e-4}
    run = train("sgd", model=model, data=data, average="ema", **settings)
    row = run.history[-1]
    assert row["skipped_steps"] > 0
    assert run.averaged.count == row["step"] - row["skipped_steps"]


def test_the_file_is_analyzed_as_any_other(tmp_path, capsys):
    out = tmp_path / "run"
    common = ["--data", "toy2d:n=200", "--model", "mlp:hidden=8,batch_norm=true", "--epochs", "2", "--batch-size", "40"]
    assert cli.run(["train", "sgd", *common, "--average", "lawa", "--keep-every", "1", "--out", str(out)]) == 0
    assert f"{out}/average/ckpt.pt: test accuracy" in capsys.readouterr().out
    assert sorted(p.name for p in (out / "average").iterdir()) == ["ckpt.pt", "epoch-1.pt", "epoch-2.pt"]
    held = checkpoint.read(out / "average" / "ckpt.pt")
    assert held["average"]["kind"] == "lawa"
    assert held["average"]["count"] == 2
    assert held["method"] == {"name": "sgd+lawa", "arguments": {}, "state": {}}
    measure = ["--measure", "sam_sharpness", "--out", str(tmp_path / "analysis")]
    assert cli.run(["analyze", str(out / "average" / "ckpt.pt"), *measure, "--quiet"]) == 0
    report = (tmp_path / "analysis" / "report.html").read_text()
    assert "trained with sgd+lawa" in report
    assert "run-average" in report
    assert cli.run(["analyze", str(out), *measure[:2], "--out", str(tmp_path / "epochs"), "--quiet"]) == 0


def test_an_average_does_not_go_on_from_a_run_without_one(tmp_path):
    train("sgd", out=tmp_path, **TOY)
    with pytest.raises(InputError, match="was trained with average None, this is ema"):
        train("sgd", out=tmp_path, resume=True, average="ema", **TOY)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"average": "emma"}, "unknown average 'emma': did you mean 'ema'"),
        ({"average": "ema", "average_decay": 1.0}, r"average-decay must be in \[0, 1\)"),
        ({"average": "swa", "average_start": 1.5}, r"average-start must be in \[0, 1\]"),
        ({"average": "lawa", "average_window": 0}, "average-window must be at least 1"),
        ({"average_decay": 0.9}, "--average-decay belongs to --average ema, and no average is asked for"),
        ({"average": "ema", "average_window": 3}, "--average-window belongs to --average lawa, and --average is ema"),
    ],
)
def test_wrong_options_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        train("sgd", **TOY, **settings)
