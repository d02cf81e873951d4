"""Analyses of checkpoints: what is computed, kept, reused and refused; and the command line around it."""

import json
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import cli
import landscape
from figures.page import measuring
from figures.page.store import Store
from landscape import InputError, checkpoint
from landscape.results import digest
from trainers.datasets import load_data
from trainers.models import build_model
from trainers.rebuild import Sample, subject

ROOT = Path(__file__).parent.parent
QUICK = ["--samples", "200", "--grid", "5", "--quiet"]


def write_run(directory, seed=0):
    data = load_data("digits")
    model = build_model("small-cnn", classes=10, input_shape=(1, 8, 8), seed=seed)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for x, y in list(data.batches("train", 128)) * 2:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    content = {
        "model": {
            "name": "small-cnn",
            "arguments": {"classes": 10, "input_shape": [1, 8, 8]},
            "state": dict(model.state_dict()),
        },
        "data": {"name": "digits", "arguments": {}},
        "method": {"name": "<script>alert(1)</script>", "arguments": {}, "state": {}},
        "epoch": 2,
        "step": 24,
        "provenance": {},
    }
    directory.mkdir(parents=True)
    checkpoint.write(directory / "ckpt.pt", content)
    return model.eval()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    return root, {name: write_run(root / name, seed) for seed, name in enumerate(("a", "b"))}


def run(capsys, *arguments):
    status = cli.run([str(a) for a in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_summary_against_plain_torch(runs, tmp_path, capsys):
    root, models = runs
    exact = ["--dtype", "float64", "--split", "test", "--grid", 5, "--quiet"]
    status, out, _ = run(capsys, "analyze", root / "a" / "ckpt.pt", "--json", "--out", tmp_path / "out", *exact)
    assert status == 0
    (entry,) = json.loads(out)["checkpoints"]
    data, model = load_data("digits"), models["a"].double()
    x, y = data.x_test.double(), data.y_test
    loss = nn.functional.cross_entropy(model(x), y)
    gradient = torch.autograd.grad(loss, list(model.parameters()))
    norm = torch.sqrt(sum(g.square().sum() for g in gradient))
    loss = loss.detach()
    with torch.no_grad():
        for p, g in zip(model.parameters(), gradient, strict=True):
            p += 0.05 * g / norm
        raised = nn.functional.cross_entropy(model(x), y)
        for p, g in zip(model.parameters(), gradient, strict=True):
            p -= 0.05 * g / norm
    model.float()
    assert entry["loss"] == pytest.approx(float(loss), rel=1e-10)
    assert entry["samples"] == len(y)
    assert entry["parameters"] == sum(p.numel() for p in model.parameters())
    assert entry["measures"]["sam_sharpness"]["value"] == pytest.approx(float(raised - loss), rel=1e-8)
    assert entry["measures"]["sam_sharpness"]["rho"] == 0.05
    eigen = entry["measures"]["hessian_top_eigenvalues"]
    assert len(eigen["values"]) == 5
    assert all(b <= 1e-3 * v for v, b in zip(eigen["values"], eigen["error_bounds"], strict=True))
    assert entry["surface"]["center_loss"] == pytest.approx(float(loss), rel=1e-10)
    assert entry["surface"]["radius"] == 0.07
    assert entry["sha256"] == digest.of_file(root / "a" / "ckpt.pt")
    for name in ("analysis.h5", "summary.json", "report.html"):
        assert (tmp_path / "out" / name).stat().st_size
    assert list((tmp_path / "out" / "figures").glob("*.png"))
    assert list((tmp_path / "out" / "figures").glob("*.pdf"))
    assert "<script>alert(1)" not in (tmp_path / "out" / "report.html").read_text()


def test_accuracy_is_of_the_examples_whose_class_counts(runs, tmp_path):
    """Its share, its number of examples, and the hits that differences are taken of, where a class is ignored."""
    root, models = runs
    data = load_data("digits")
    x, y = data.x_test[:100], data.y_test[:100]
    says = models["a"](x).argmax(1)
    ignored = int(says[says == y].mode().values)
    loss = nn.CrossEntropyLoss(ignore_index=ignored)
    owner = types.SimpleNamespace(
        problem=landscape.Problem(models["a"], loss, [(x[:60], y[:60]), (x[60:], y[60:])]),
        path=root / "a" / "ckpt.pt",
        sha256="0",
        seed=0,
        split="",
        metadata={},
    )
    measured = measuring.analyze(measuring.Measured(owner), "a", Store(tmp_path / "a.h5", {"a": "0"}), [])
    hits = (says == y)[y != ignored].double().numpy()
    assert (measured.samples, measured.classified) == (100, len(hits))
    assert len(hits) < 100
    assert np.array_equal(measured.examples["accuracy"], hits)
    assert measured.accuracy == pytest.approx(hits.mean())
    # A loss of your own that knows no single examples: hits are known all the same, and differences stay paired.
    batches = [(x[:60], y[:60]), (x[60:], y[60:])]
    owner.problem = landscape.Problem(models["a"], lambda o, t: loss(o, t).square(), batches)
    measured = measuring.analyze(measuring.Measured(owner), "a", Store(tmp_path / "b.h5", {"b": "0"}), [])
    assert set(measured.examples) == {"accuracy"}
    assert np.array_equal(measured.examples["accuracy"], (says == y).double().numpy())


def test_results_are_reused_and_completed(runs, tmp_path, capsys, monkeypatch):
    root, _ = runs
    call = ["analyze", root / "a" / "ckpt.pt", "--out", tmp_path / "o", "--json", *QUICK]
    first = json.loads(run(capsys, *call)[1])
    monkeypatch.setattr("landscape.curvature.krylov.lanczos", None, raising=False)
    monkeypatch.setattr("landscape.measures.sam_sharpness.one_step_curve", None, raising=False)
    assert json.loads(run(capsys, *call)[1]) == first
    more = json.loads(run(capsys, *call, "--measure", "gradient_norm")[1])
    assert "value" in more["checkpoints"][0]["measures"]["gradient_norm"]
    held = landscape.load(tmp_path / "o" / "analysis.h5")
    assert {"sam_sharpness", "gradient_norm", "surface"} <= set(held)


def test_changed_settings_are_computed_anew(runs, tmp_path, capsys):
    root, _ = runs
    call = ["analyze", root / "a" / "ckpt.pt", "--out", tmp_path / "o", "--json", "--measure", "sam_sharpness", *QUICK]
    values = [json.loads(run(capsys, *call, *extra)[1])["checkpoints"][0]["measures"]["sam_sharpness"] for extra in (
        [], ["--rho", "0.1"], ["--rho", "0.1", "--batch-norm", "batch"], ["--rho", "0.1", "--seed", "1"])]  # fmt: skip
    assert len({v["value"] for v in values}) == 4
    assert [v["rho"] for v in values] == [0.05, 0.1, 0.1, 0.1]


def smoothed(outputs, targets):
    return nn.functional.cross_entropy(outputs, targets, label_smoothing=0.5)


def test_another_loss_is_computed_anew(runs, tmp_path, capsys, monkeypatch):
    root, _ = runs
    module = types.ModuleType("some_losses")
    module.smoothed = smoothed
    monkeypatch.setitem(sys.modules, "some_losses", module)
    call = ["analyze", root / "a" / "ckpt.pt", "--out", tmp_path, "--measure", "sam_sharpness", "--json", *QUICK]
    assert run(capsys, *call)[0] == 0
    _, out, _ = run(capsys, *call, "--loss", "some_losses:smoothed")
    (entry,) = json.loads(out)["checkpoints"]
    assert entry["measures"]["sam_sharpness"]["loss"] == pytest.approx(entry["loss"], rel=1e-6)
    assert entry["surface"]["center_loss"] == pytest.approx(entry["loss"], rel=1e-5)


def test_another_division_is_computed_anew_with_batch_statistics(runs, tmp_path, capsys):
    root, _ = runs
    call = ["analyze", root / "a" / "ckpt.pt", "--out", tmp_path, "--measure", "sam_sharpness", "--json", *QUICK]
    call += ["--grid", 0, "--batch-norm", "batch"]
    found = []
    for size in (200, 20):
        _, out, _ = run(capsys, *call, "--batch-size", size)
        (entry,) = json.loads(out)["checkpoints"]
        found.append((entry["loss"], entry["measures"]["sam_sharpness"]["loss"]))
    assert found[0][0] != found[1][0]
    assert found[1][1] == pytest.approx(found[1][0], rel=1e-6)


def test_a_directory_of_another_checkpoint_is_refused(runs, tmp_path, capsys):
    root, _ = runs
    out = tmp_path / "o"
    assert run(capsys, "analyze", root / "a" / "ckpt.pt", "--out", out, "--measure", "sam_sharpness", *QUICK)[0] == 0
    before = (out / "analysis.h5").read_bytes()
    status, _, error = run(capsys, "analyze", root / "b" / "ckpt.pt", "--out", out, *QUICK)
    assert status == 2
    assert "holds results of another checkpoint" in error
    assert (out / "analysis.h5").read_bytes() == before


def test_several_checkpoints_share_their_sample_and_directions(runs, tmp_path, capsys):
    root, _ = runs
    call = ["analyze", root / "a" / "ckpt.pt", root / "b" / "ckpt.pt", "--out", tmp_path / "c", "--json", *QUICK]
    status, out, _ = run(capsys, *call)
    assert status == 0
    one, two = json.loads(out)["checkpoints"]
    assert [one["label"], two["label"]] == ["a", "b"]
    assert one["provenance"]["sample_sha256"] == two["provenance"]["sample_sha256"]
    held = landscape.load(tmp_path / "c" / "analysis.h5")
    assert {"a/surface", "b/surface", "a/sam_sharpness"} <= set(held)
    np.testing.assert_array_equal(held["a/surface"].x, held["b/surface"].x)


@pytest.mark.parametrize(
    ("parents", "expected"),
    [
        (["sgd", "sam"], ["sgd", "sam"]),
        (["x/a", "y/a"], ["a-1", "a-2"]),
        (["x/a", "x/a/average", "x/b/average"], ["a", "a-average", "b-average"]),
        (["x/a", "y/a", "a-1"], ["a-2", "a-3", "a-1"]),
    ],
)
def test_labels_are_unique(parents, expected):
    from figures.page.analysis import labels

    assert labels([Path(p) / "ckpt.pt" for p in parents]) == expected


def test_a_foreign_checkpoint(runs, tmp_path, capsys, monkeypatch):
    _, models = runs
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"module." + k: v for k, v in models["a"].state_dict().items()}}, "theirs.pth")
    Path("mine.py").write_text(
        "from trainers.models import build_model\n"
        "from trainers.datasets import load_data\n"
        "def net():\n    return build_model('small-cnn', classes=10, input_shape=(1, 8, 8))\n"
        "def data():\n    return list(load_data('digits').batches('train', 50))\n"
    )
    call = [
        "analyze",
        "theirs.pth",
        "--model",
        "mine:net",
        "--data",
        "mine:data",
        "--json",
        "--measure",
        "sam_sharpness",
        *QUICK,
    ]
    status, out, error = run(capsys, *call)
    assert status == 0, error
    assert json.loads(out)["checkpoints"][0]["samples"] == 200
    assert Path("analysis/report.html").exists()
    sys.modules.pop("mine", None)


def test_an_architecture_of_torchvision(runs, tmp_path, capsys, monkeypatch):
    """torchvision itself cannot be loaded beside a CPU build of torch: a module of its interface stands in."""
    root, _ = runs
    models = types.ModuleType("torchvision.models")
    models.list_models = lambda: ["resnet18", "small"]
    models.get_model = lambda name, weights: build_model("small-cnn", classes=10, input_shape=(1, 8, 8))
    monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.models", models)
    call = [
        "analyze",
        root / "a" / "ckpt.pt",
        "--data",
        "digits",
        "--out",
        tmp_path / "o",
        "--measure",
        "sam_sharpness",
    ]
    assert run(capsys, *call, "--model", "torchvision:small", *QUICK)[0] == 0
    status, _, error = run(capsys, *call, "--model", "torchvision:resnet8", *QUICK)
    assert status == 2
    assert "did you mean 'resnet18'" in error


BAD = {
    "unknown measure": (["--measure", "sam_sharpnes"], "did you mean 'sam_sharpness'"),
    "unknown argument": (["--measure", "sam_sharpness:roh=1"], "unknown argument of sam_sharpness 'roh'"),
    "negative rho": (["--rho", "-1"], "--rho must be positive"),
    "even grid": (["--grid", "4"], "grid"),
    "negative radius": (["--radius", "-0.1"], "--radius must be positive"),
    "no samples": (["--samples", "0"], "samples must be at least 1"),
    "absent device": (["--device", "cuda:77"], "CUDA devices are here: use --device cpu"),
    "unknown device": (["--device", "gpu"], "unknown device 'gpu'"),
    "unknown parameters": (
        ["--parameters", "xyz*"],
        r"no trainable parameter matches 'xyz\*': the nearest names are [^;]*$",
    ),
    "unknown data": (["--data", "digitz"], "did you mean 'digits'"),
    "unknown option": (["--nonsense"], "No such option"),
    "no eigenvalues": (["-k", "0"], "-k must be at least 1"),
    "too many eigenvalues": (["--measure", "hessian_top_eigenvalues", "-k", "1000000"], "k"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_writes_nothing(runs, tmp_path, capsys, name):
    import re

    root, _ = runs
    arguments, message = BAD[name]
    out = tmp_path / "out"
    status, _, error = run(capsys, "analyze", root / "a" / "ckpt.pt", "--out", out, "--quiet", *arguments)
    assert status == 2
    assert re.search(message, error), error
    assert len(error.strip().splitlines()) <= 2
    assert not out.exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_no_permission(runs, tmp_path, capsys):
    root, _ = runs
    tmp_path.chmod(0o500)
    status, _, error = run(capsys, "analyze", root / "a" / "ckpt.pt", "--out", tmp_path / "out", *QUICK)
    assert status == 2
    assert "no permission" in error


def test_out_below_a_file(runs, tmp_path, capsys):
    root, _ = runs
    (tmp_path / "file").write_text("")
    status, _, error = run(capsys, "analyze", root / "a" / "ckpt.pt", "--out", tmp_path / "file" / "out", *QUICK)
    assert status == 2
    assert "is a file" in error


def test_nan_weights(runs, tmp_path, capsys):
    root, _ = runs
    content = dict(checkpoint.read(root / "a" / "ckpt.pt"))
    state = {k: v.clone() for k, v in content["model"]["state"].items()}
    next(iter(state.values())).view(-1)[0] = float("nan")
    checkpoint.write(tmp_path / "nan.pt", {**content, "model": {**content["model"], "state": state}})
    status, _, error = run(capsys, "analyze", tmp_path / "nan.pt", *QUICK)
    assert status == 2
    assert "NaN or infinite weights" in error


def test_a_checkpoint_cannot_name_code(runs, tmp_path):
    root, _ = runs
    content = dict(checkpoint.read(root / "a" / "ckpt.pt"))
    checkpoint.write(tmp_path / "x.pt", {**content, "model": {**content["model"], "name": "os:system"}})
    with pytest.raises(InputError, match="unknown model 'os:system'"):
        subject(tmp_path / "x.pt")
    checkpoint.write(tmp_path / "y.pt", {**content, "data": {"name": "os:listdir", "arguments": {}}})
    with pytest.raises(InputError, match="unknown dataset 'os'"):
        subject(tmp_path / "y.pt")


def test_a_state_of_another_architecture(runs, tmp_path):
    root, _ = runs
    build = lambda: build_model("small-cnn", classes=7, input_shape=(1, 8, 8))  # noqa: E731
    with pytest.raises(InputError, match=r"is \(10, 64\), the model needs \(7, 64\)"):
        subject(root / "a" / "ckpt.pt", Sample(data="digits"), model=build)


@pytest.mark.parametrize("command", ["--help", "analyze --help", "train --help", "list measures", "--version"])
def test_the_command_line_answers_without_torch(command):
    code = (
        f"import sys, cli; status = cli.run({command.split()!r}); assert 'torch' not in sys.modules; sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_interrupted_analysis_keeps_what_is_finished(runs, tmp_path, capsys, monkeypatch):
    root, _ = runs

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("landscape.surface", stop, raising=False)
    status, _, error = run(capsys, "analyze", root / "a" / "ckpt.pt", "--out", tmp_path / "o", *QUICK)
    assert status == 130
    assert f"kept in {tmp_path / 'o'}; go on with the same command" in error
    assert "sam_sharpness" in landscape.load(tmp_path / "o" / "analysis.h5")
    monkeypatch.undo()
    assert run(capsys, "analyze", root / "a" / "ckpt.pt", "--out", tmp_path / "o", "--resume", *QUICK)[0] == 0
    shutil.rmtree(tmp_path / "o")
