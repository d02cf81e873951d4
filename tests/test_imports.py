"""Imports point down only: landscape <- trainers <- figures <- cli."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = ["landscape", "trainers", "figures", "commands", "cli"]


def files(floor):
    return [ROOT / "cli.py"] if floor == "cli" else sorted((ROOT / floor).rglob("*.py"))


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("floor", FLOORS)
def test_imports_point_down(floor):
    above = set(FLOORS[FLOORS.index(floor) + 1 :]) | {"tests"}
    for path in files(floor):
        assert not above & set(imported(path)), f"{path.relative_to(ROOT)} imports {above & set(imported(path))}"


def test_landscape_does_not_plot_or_know_datasets():
    for path in files("landscape"):
        assert not {"matplotlib", "plotly", "sklearn", "click"} & set(imported(path)), path


def test_help_does_not_import_torch():
    code = "import sys, landscape; list(landscape.MEASURES.entries); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


ROOMS = ["page", "drawing", "study", "paper"]


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_of_figures_import_down(room):
    above = tuple(f"figures.{r}" for r in ROOMS[ROOMS.index(room) + 1 :])
    for path in sorted((ROOT / "figures" / room).glob("*.py")):
        modules = [n.module or "" for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ImportFrom)]
        assert not [m for m in modules if above and m.startswith(above)], path


def test_results_know_no_other_room():
    for path in sorted((ROOT / "landscape" / "results").glob("*.py")):
        modules = [n.module or "" for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ImportFrom)]
        known = tuple(f"landscape.{name}" for name in ("results", "errors", "files", "formatting", "statistics"))
        assert not [m for m in modules if m.startswith("landscape") and not m.startswith(known)], path
