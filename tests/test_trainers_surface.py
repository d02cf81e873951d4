"""The public names of `trainers`: lazy when imported, of their real types to a type checker."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import trainers

ROOT = Path(__file__).parent.parent

TYPES = {
    "trainers.METHODS": "Registry[def (*Any, **Any) -> trainers.method.method.Method]",
    'trainers.METHODS["sam"](rho=0.05)': "trainers.method.method.Method",
    "trainers.Step": "-> trainers.method.step.Step",
    "trainers.Task": "-> trainers.method.task.Task",
    "trainers.MethodOptimizer": "-> trainers.method.optimizer.MethodOptimizer",
    'trainers.train("sgd").passes': "float",
    "trainers.Context().progress": "float",
}


def test_importing_it_imports_no_torch():
    code = "import sys, trainers; list(trainers.METHODS); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT).returncode == 0


def test_every_name_comes_from_where_the_type_checker_reads_it():
    (block,) = [n for n in ast.parse(Path(trainers.__file__).read_text()).body if isinstance(n, ast.If)]
    read = {alias.name: node.module for node in block.body for alias in node.names}
    assert read == {name: f"trainers.{module}" for name, module in trainers._HOMES.items()}
    assert {*read, "METHODS"} == set(trainers.__all__)
    for name, module in read.items():
        assert getattr(trainers, name).__module__ == module
        assert getattr(importlib.import_module(module), name) is getattr(trainers, name)


def test_a_type_checker_sees_what_every_name_is(tmp_path):
    pytest.importorskip("mypy")
    snippet = tmp_path / "snippet.py"
    snippet.write_text("\n".join(["import trainers", *(f"reveal_type({expression})" for expression in TYPES)]))
    command = [sys.executable, "-m", "mypy", "--config-file", "pyproject.toml", str(snippet)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    revealed = re.findall(r'Revealed type is "(.*)"', done.stdout)
    assert len(revealed) == len(TYPES), done.stdout + done.stderr
    for expression, shown in zip(TYPES, revealed, strict=True):
        assert TYPES[expression] in shown, (expression, shown)
