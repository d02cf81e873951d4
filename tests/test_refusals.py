"""What is wrong with a command line is said before data are read or a network is evaluated, and nothing is written."""

import pytest
import torch
from torch.nn.modules.module import register_module_forward_pre_hook

import cli
from trainers import train
from trainers.models import MODELS, require_buildable

TOY = "--data toy2d:n=40 --model mlp"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two networks of one architecture, a third of another, and files that are no networks of ours."""
    folder = tmp_path_factory.mktemp("runs")
    for name, hidden in (("a", 4), ("b", 4), ("c", 5)):
        train("sgd", data="toy2d:n=40", model=f"mlp:hidden={hidden}", epochs=1, out=folder / name)
    (folder / "text.pt").write_text("nothing\n")
    torch.save({"weight": torch.ones(2, 3)}, folder / "foreign.pt")
    (folder / "file").write_text("x")
    return folder


CASES = {
    "path a/ckpt.pt none.pt": "none.pt: no such file",
    "path a/ckpt.pt text.pt": "text.pt is not a readable checkpoint",
    "path a/ckpt.pt foreign.pt": "foreign.pt is not a checkpoint of this toolkit",
    "path a/ckpt.pt c/ckpt.pt": "c/ckpt.pt is another architecture: 0.weight is (5, 2) there, (4, 2) here",
    "path a/ckpt.pt b/ckpt.pt --out file": "file is a file; choose another --out",
    "path a/ckpt.pt b/ckpt.pt --out file/x": "file is a file; choose another --out",
    "path a/ckpt.pt b/ckpt.pt --adapter alone": "a/ckpt.pt is no adapter of peft",
    "path a/ckpt.pt b/ckpt.pt --loss nosuch": "unknown loss 'nosuch'",
    "surface a/ckpt.pt none.pt": "none.pt: no such file",
    "surface a/ckpt.pt --out file/x": "file is a file; choose another --out",
    "analyze a/ckpt.pt text.pt": "text.pt is not a readable checkpoint",
    "analyze a/ckpt.pt --out file": "file is a file; choose another --out",
    "invariance a/ckpt.pt --out file": "file is a file; choose another --out",
    "invariance a/ckpt.pt --low 2 --high 1": "--low 2.0 --high 1.0: factors are drawn between them",
    "invariance --low 1.5": "give low < high",
    "invariance a/ckpt.pt --hint 0=foo": "hint 'foo' of '0': one of opaque, homogeneous is needed",
    "invariance --rename a=b": "--rename without a checkpoint",
    "invariance --objective mine:loss": "--objective without a checkpoint",
    f"train sgd {TOY}:hiden=8": "unknown argument of mlp 'hiden': did you mean 'hidden'?",
    f"train sgd {TOY}:hidden=abc": "hidden='abc' of 'mlp' is not of type",
    f"train sgd {TOY}:hidden=-3": "hidden=(-3,): at least one layer",
    f"train sgd {TOY}:input_shape=2": "input_shape=2: whole numbers are needed, as in classes=10 and input_shape=3x32",
    f"train sgd {TOY}:classes=abc": "classes='abc', input_shape=(5,): whole numbers are needed",
    "train sgd --model nosuch": "unknown model 'nosuch'",
    "train sgd --model resnet20:shortcut=foo": "unknown shortcut 'foo'",
    f"train sgd {TOY} --monitor nosuch": "unknown measure 'nosuch'",
    f"train sgd {TOY} --monitor lambda_max:k=abc": "k='abc' of 'hessian_top_eigenvalues' is not of type int",
    f"train sgd {TOY} --monitor relative_critical_sharpness": "needs other beside the weights of one step",
}


@pytest.mark.parametrize("line", CASES)
def test_it_is_said_before_anything_is_made(line, folder, monkeypatch, capsys):
    def refuse(*_, **__):
        raise AssertionError("too late")

    for module in ("trainers.rebuild", "trainers.loop.evaluation", "trainers.datasets"):
        monkeypatch.setattr(f"{module}.load_data", refuse)
    before = sorted(folder.rglob("*"))
    monkeypatch.chdir(folder)
    hook = register_module_forward_pre_hook(refuse)
    try:
        assert cli.run(line.split()) == 2
    finally:
        hook.remove()
    (said,) = capsys.readouterr().err.splitlines()
    assert CASES[line] in said
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("measure", ["lambda_max:k=0", "sharpness:rho=-1"])
def test_a_measure_that_cannot_be_taken_leaves_nothing_behind(measure, folder, tmp_path, capsys):
    assert cli.run(["train", "sgd", *TOY.split(), "--monitor", measure, "--out", str(tmp_path / "run")]) == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", ["classes=1", "input_shape=(5,)"])
def test_a_network_of_another_shape_than_the_data(option, tmp_path, capsys):
    assert cli.run(["train", "sgd", *f"{TOY}:{option} --out {tmp_path}/run".split()]) == 2
    assert "for data of 2 classes and inputs of shape (2,): leave classes and input_shape" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_hint_of_no_module(folder, tmp_path, capsys):
    line = [
        "invariance",
        str(folder / "a" / "ckpt.pt"),
        "--hint",
        "gate=opaque",
        "--quiet",
        "--out",
        str(tmp_path / "x"),
    ]
    assert cli.run(line) == 2
    assert "hint of 'gate': no module has this name or class; there are '0' (Linear)" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", list(MODELS))
def test_every_network_can_be_built_without_data(name):
    require_buildable(name)
    require_buildable(f"{name}:classes=3")
