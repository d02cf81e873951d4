"""Part a: the tests that are marked `gpu`, run by pytest in a process of its own."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from gpu_parts.sizes import Sizes

ROOT = Path(__file__).resolve().parents[2]


def run_tests(sizes: Sizes, limit: float) -> dict[str, Any]:
    """What pytest says: its last line, and the tests that failed.

    Only files that hold such a test are collected: nothing that only others need has to be installed.
    """
    if importlib.util.find_spec("pytest") is None:
        raise ModuleNotFoundError(f"pytest is missing: {sys.executable} -m pip install pytest")
    files = [path for path in sorted((ROOT / "tests").glob("test_*.py")) if "mark.gpu" in path.read_text()]
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", "-rfE", "--tb=short"]
    command += [*sizes.pytest, *map(str, files)]
    try:
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=limit - 2)
    except subprocess.TimeoutExpired as error:
        raise TimeoutError(f"pytest was stopped after {limit - 2:.0f} s") from error
    said = ended.stdout.strip().splitlines()
    print("\n".join(said[-60:]), flush=True)
    failed = [line for line in said if re.match(r"(FAILED|ERROR) ", line)]
    entry: dict[str, Any] = {"summary": said[-1] if said else ended.stderr[-500:], "failed": failed}
    if ended.returncode:
        entry |= {"error": f"pytest ended with status {ended.returncode}: {entry['summary']}"}
        entry |= {"traceback": ended.stdout[-6000:] + ended.stderr[-1000:]}
    return entry
