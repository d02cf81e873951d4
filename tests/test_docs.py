"""The documentation says what the code does."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import cli

ROOT = Path(__file__).parent.parent


def blocks(language, page="README.md"):
    text = (ROOT / page).read_text()
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_generated_pages_are_up_to_date():
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / "build.py", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_python_of_the_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    batches = [(torch.randn(20, 4), torch.randint(0, 3, (20,)))]
    assert blocks("python")
    for code in blocks("python"):
        exec(compile(code, "README.md", "exec"), {"model": model, "batches": batches, "nn": nn, "torch": torch})


def test_python_of_the_page_on_monitoring_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("python", "docs/monitor.md")
    exec(compile(code, "monitor.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:-1]] == ["0", "20", "40", "60", "80", "100"]
    assert lines[-1].startswith("Monitor(lambda_max, sharpness: 6 rows to step 100, ")
    assert {p.name for p in (tmp_path / "run").iterdir()} == {"monitor.csv", "monitor.h5", "monitor.journal"}


@pytest.mark.parametrize("line", [c for b in blocks("sh") for c in b.splitlines() if c.startswith("landscape ")])
def test_commands_of_the_readme_are_known(line, capsys):
    words = line.split("#")[0].split()[1:]
    known = [w for w in words if w.startswith("--")]
    path = words[:2] if words[0] in ("train", "data", "list") else words[:1]
    status = cli.run([*path, "--help"])
    text = capsys.readouterr().out
    assert status == 0
    assert all(option.split("=")[0] in text for option in known), (known, text)
