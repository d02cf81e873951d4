"""The public names of `trainers`: imported when they are used, from where a type checker reads them."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import trainers

ROOT = Path(__file__).parent.parent


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
