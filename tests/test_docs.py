"""The documentation says what the code does: its Python runs as it stands, its commands are known."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import matplotlib
import pytest

import cli
from landscape import MEASURES

matplotlib.use("Agg")
ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.py"))


def name(path):
    return str(path.relative_to(ROOT))


def blocks(language, page):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def commands():
    """Lines of sh that begin with landscape, and such code in the cells of tables."""
    for page in PAGES:
        lines = [line for block in blocks("sh", page) for line in re.split(r"(?<!\\)\n| & ", block)]
        lines += re.findall(r"(?<=\| )`(landscape [^`]+)`", page.read_text())
        for line in lines:
            if line.startswith("landscape "):
                yield pytest.param(line, id=f"{name(page)}: {line}")


def test_generated_pages_are_up_to_date():
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / "build.py", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", [p for p in PAGES if blocks("python", p)], ids=name)
def test_python_of_a_page_runs(page, tmp_path, monkeypatch):
    """One block after the other, as a reader would type them."""
    monkeypatch.chdir(tmp_path)
    namespace = {}
    for code in blocks("python", page):
        exec(compile(code, name(page), "exec"), namespace)


def test_the_page_on_monitoring_shows_what_it_says(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = blocks("python", ROOT / "docs" / "monitor.md")[0]
    exec(compile(code, "monitor.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:-1]] == ["0", "20", "40", "60", "80", "100"]
    assert lines[-1].startswith("Monitor(lambda_max, sharpness: 6 rows to step 100, ")
    assert {p.name for p in (tmp_path / "run").iterdir()} == {"monitor.csv", "monitor.h5", "monitor.journal"}


@pytest.mark.parametrize("line", list(commands()))
def test_a_command_is_known(line):
    """Its options, their values and its arguments, as the command itself reads them."""
    line = line.replace("$SLURM_ARRAY_TASK_ID", "1").replace("\\\n", " ")
    words = shlex.split(line, comments=True)[1:]
    context, command = click.Context(cli.program, info_name="landscape"), cli.program
    while isinstance(command, click.Group):
        command = command.get_command(context, words[0])
        assert command is not None, words[0]
        context, words = click.Context(command, info_name=words[0], parent=context), words[1:]
    command.make_context(command.name, [w for w in words if w != "--help"], parent=context.parent)


def test_every_option_has_a_help():
    rows = [r for r in (ROOT / "docs/reference/commands.md").read_text().splitlines() if r.startswith("| `")]
    assert rows
    assert [row for row in rows if row.endswith("|  |")] == []


def test_every_measure_is_explained():
    text = (ROOT / "docs" / "concepts" / "numbers.md").read_text()
    assert [m for m in MEASURES if f"`{m}`" not in text] == []


@pytest.mark.slow
def test_the_first_commands_run(tmp_path):
    """The README's first two blocks, one line after the other."""
    lines = "".join(blocks("sh", ROOT / "README.md")[:2]).splitlines()
    assert len(lines) == 10
    for line in lines:
        arguments = shlex.split(line, comments=True)
        assert arguments.pop(0) == "landscape"
        run_python(["-m", "cli", *arguments, *([] if arguments[0] in ("list", "doctor") else ["--quiet"])], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=name)
def test_a_notebook_runs(notebook, tmp_path):
    run_python(["-W", "error::UserWarning", notebook], tmp_path)


def run_python(arguments, folder):
    environment = {**os.environ, "MPLBACKEND": "Agg", "PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
