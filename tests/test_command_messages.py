"""What the command line says to a slip of the keyboard."""

from __future__ import annotations

import pytest
import torch

import cli


def failed(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        cli.main(list(arguments))
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_an_option_of_another_method(capsys):
    line = failed(capsys, "train", "sgd", "--rho", "0.1")
    assert line.startswith("landscape: sgd has no --rho: that is an option of ")
    assert "sam, " in line
    assert line.endswith("it has none of its own")
    assert failed(capsys, "train", "sam", "--eta", "1").endswith("its own are --rho")


def test_an_option_of_no_method_is_answered_with_near_ones(capsys):
    assert "--lr" in failed(capsys, "train", "sgd", "--lrr", "0.1")


@pytest.mark.parametrize("many", [1, 3])
def test_a_path_lies_between_two(capsys, many):
    line = failed(capsys, "path", *["a.pt", "b.pt", "c.pt"][:many])
    assert line == f"landscape: {many} checkpoint{'s' * (many > 1)}: a path lies between two"


def test_the_source_of_defaults_is_listed(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["list", "methods", "--options"])
    assert not ended.value.code
    assert "    defaults: rho 0.05: Foret 2020, arXiv 2010.01412" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("def build():\n    return {}['width']\n", "raised KeyError: 'width' (line 2 of "),
        ("size = 1 / 0\ndef build(): ...\n", "raised ZeroDivisionError: division by zero (line 1 of "),
        ("def build(:\n", "raised SyntaxError: "),
    ],
)
def test_code_of_ones_own_that_fails_is_told_with_its_line(text, told, tmp_path, capsys, monkeypatch):
    name = f"own_network_{abs(hash(text))}"
    (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    torch.save({"weight": torch.zeros(2, 2)}, tmp_path / "ckpt.pt")
    arguments = [str(tmp_path / "ckpt.pt"), "--model", f"{name}:build", "--data", "digits"]
    assert f"--model '{name}:build' {told}" in failed(capsys, "analyze", *arguments, "--out", str(tmp_path / "out"))
