"""The invariance test on the command line, and its pictures."""

import json
import sys
import types

import numpy as np
import pytest
import torch
from invariance_cases import table_2
from torch import nn

import cli
import landscape
from figures.drawing import invariance as pictures
from landscape.invariance.measures import InvarianceOptions


@pytest.fixture(scope="module")
def result():
    return landscape.rescaling_invariance(table_2(), transforms=5, settings=InvarianceOptions(rho=0.5), seed=4)


# -- pictures ------------------------------------------------------------------------------------------------------


def test_pictures_show_the_values(result, tmp_path):
    drawn = pictures.sam(result)
    top, bottom = drawn.axes
    np.testing.assert_array_equal(top.lines[0].get_ydata(), result.of("sam_loss"))
    median = np.median(result.of("sam_sharpness"))
    np.testing.assert_allclose(bottom.lines[0].get_ydata(), result.of("sam_sharpness") / median)
    constant = pictures.asam(result)
    assert constant.axes[1].get_ylim() == bottom.get_ylim()
    assert np.ptp(constant.axes[0].get_ylim()) == pytest.approx(np.ptp(top.get_ylim()))
    for figure in (drawn, constant):
        text = figure.axes[1].get_xlabel()
        assert "5 transforms" in text
        assert "seed 4" in text
        assert "=$0.5" in text
    written = pictures.draw(result, tmp_path)
    assert sorted(p.name for p in written) == [f"{n}.{s}" for n in ("asam", "outputs", "sam") for s in ("pdf", "png")]
    assert all(p.stat().st_size > 1000 for p in written)


# -- command -------------------------------------------------------------------------------------------------------


def run(*arguments):
    return cli.run(["invariance", *map(str, arguments)])


FAST = ("--transforms", 2, "--steps", 0, "--samples", 20, "-p", 2)


def test_command_without_a_checkpoint(tmp_path, capsys):
    assert run(*FAST, "--out", tmp_path / "a", "--json", "--quiet") == 0
    content = json.loads(capsys.readouterr().out)
    assert content["outputs"]["max_relative_change"] < 1e-12
    assert content["measures"]["adaptive_sharpness"]["relative_spread"] <= 1e-9
    assert content["measures"]["adaptive_sharpness"]["verdict"] == "invariant (to rounding)"
    assert len(content["measures"]["sam_sharpness"]["values"]) == 2
    assert content["rho"] == content["measures"]["sam_sharpness"]["rho"] == 0.5
    assert content["groups"]["dimension"] == 40
    assert content["provenance"]["dtype"] == "float64"
    stored = json.loads((tmp_path / "a" / "invariance.json").read_text())
    assert {k: v for k, v in stored.items() if k != "checksum"} == content
    assert {p.name for p in (tmp_path / "a" / "figures").iterdir()} >= {"outputs.png", "sam.pdf", "asam.png"}
    assert landscape.load(tmp_path / "a" / "invariance.h5")["invariance"].groups["dimension"] == 40


MODULE = """
import torch
from torch import nn

def model():
    return nn.Sequential(nn.Linear(2, 4), nn.{activation}(), nn.Linear(4, 2))

class Branch(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else 2 * x

def branching():
    return nn.Sequential(nn.Linear(2, 4), Branch(), nn.Linear(4, 2))

def data():
    x = torch.randn(10, 2, generator=torch.Generator().manual_seed(0))
    return [(x, (x[:, 0] > 0).long())]
"""


@pytest.mark.parametrize("activation", ["ReLU", "Tanh"])
def test_command_with_a_foreign_checkpoint(tmp_path, capsys, monkeypatch, activation):
    name = f"foreign_{activation.lower()}"
    (tmp_path / f"{name}.py").write_text(MODULE.replace("{activation}", activation))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    torch.save(nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2)).state_dict(), "state.pt")
    given = ("state.pt", "--data", f"{name}:data", *FAST)
    assert run(*given, "--model", f"{name}:model", "--no-eigenvalues") == 0
    out = capsys.readouterr().out
    if activation == "Tanh":
        assert "no rescaling symmetry was found" in out
    else:
        assert "4 free factors" in out
        assert "lambda_max" not in out
        assert (tmp_path / "invariance" / "invariance.h5").exists()
        return
    assert run(*given, "--model", f"{name}:branching") == 2
    error = capsys.readouterr().err
    assert "module '1' (Branch)" in error
    assert "--hint" in error
    assert run(*given, "--model", f"{name}:branching", "--hint", "1=homogeneous") == 0
    assert "4 free factors" in capsys.readouterr().out


def test_command_takes_an_architecture_of_torchvision(tmp_path, capsys, monkeypatch):
    (tmp_path / "foreign_data.py").write_text(MODULE.replace("{activation}", "ReLU"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    models = types.SimpleNamespace(
        list_models=lambda: ["small"],
        get_model=lambda name, weights: nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2)),
    )
    monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.models", models)
    torch.save(models.get_model("small", None).state_dict(), "state.pt")
    call = ("state.pt", "--data", "foreign_data:data", "--model", "torchvision:small", "--no-eigenvalues", *FAST)
    assert run(*call) == 0
    assert "4 free factors" in capsys.readouterr().out


def test_command_refuses_wrong_input(tmp_path, capsys):
    for arguments, text in {
        ("--rho", -1): "--rho must be positive",
        ("-p", 3): "p=3",
        ("--transforms", 1): "--transforms must be at least 2",
        ("--low", 0): "--low must be positive",
        ("--hint", "x"): "MODULE=KIND",
        ("--model", "a:b"): "without a checkpoint",
        (tmp_path / "none.pt",): "none.pt",
    }.items():
        assert run(*arguments, "--out", tmp_path / "out") == 2, arguments
        captured = capsys.readouterr()
        assert text in captured.err
        assert not captured.out
    assert not (tmp_path / "out").exists()
