"""One file means one file: five of them, laid into a copy of the project, are all that it takes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import pytest
from guest_cases import FILES, NAMES

ROOT = Path(__file__).parent.parent
ASIDE = shutil.ignore_patterns(
    ".*", "__pycache__", "build", "dist", "*.egg-info", "runs", "demo", "figures-out", "*.png"
)


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """A copy of the project with the five files; calls run in it alone."""
    folder = tmp_path_factory.mktemp("house") / "project"
    shutil.copytree(ROOT, folder, ignore=ASIDE)
    for name, text in FILES.items():
        (folder / name).write_text(text)

    def call(*words, status=0):
        environment = os.environ | {"PYTHONPATH": str(folder)}
        done = subprocess.run(
            [sys.executable, *map(str, words)], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout

    call.folder = folder
    return call


@pytest.fixture(scope="module")
def analysis(house):
    """The guest method trains the guest model on the guest data, and the guest measure analyzes it."""
    settings = ("--data", "guest-data:n=30", "--model", "guest-model:units=4", "--epochs", 2, "--batch-size", 10)
    house("cli.py", "train", "guest-method", *settings, "--factor", 0.5, "--out", "run", "--quiet")
    house("cli.py", "analyze", "run/ckpt.pt", "--measure", "guest_length:power=2", "--grid", 3, "--quiet")
    return house.folder / "run" / "analysis"


@pytest.mark.parametrize("kind", NAMES)
def test_lists_name_it(house, kind):
    words = ["data", "list"] if kind == "data" else ["list", kind]
    assert NAMES[kind] in house("cli.py", *words)


def test_help_explains_its_options(house):
    assert "Gradients times a factor" in house("cli.py", "train", "--help")
    method = house("cli.py", "train", "guest-method", "--help")
    assert "--factor" in method
    assert "Of the gradient." in method
    assert "Passes per step: 1 forward + 1 backward." in method
    listed = house("cli.py", "list", "measures", "--options")
    assert "power=1.0" in listed
    assert "to which the length is taken." in listed


def test_the_run_says_what_trained_it(analysis):
    config = json.loads((analysis.parent / "config.json").read_text())
    assert config["method"] == {"name": "guest-method", "arguments": {"factor": 0.5}}
    text = json.dumps(config)
    assert "guest-data" in text
    assert "guest-model" in text


def test_results_and_report_hold_it(analysis):
    entry = json.loads((analysis / "summary.json").read_text())["checkpoints"][0]["measures"]["guest_length"]
    assert (entry["power"], entry["value"] > 0) == (2.0, True)
    with h5py.File(analysis / "analysis.h5") as file:
        groups = []
        file.visititems(lambda name, item: groups.append(item) if name.endswith("guest_length") else None)
        assert groups[0].attrs["value"] == entry["value"]
        assert json.loads(groups[0].attrs["arguments"])["power"] == 2.0
        assert groups[0].attrs["type"] == "GuestLength"
    page = (analysis / "report.html").read_text()
    assert "Guest length" in page
    assert "How steep the loss is, once more." in page


def test_its_file_is_read_again(house, analysis):
    code = f"import landscape; print(landscape.load({str(analysis / 'analysis.h5')!r}))"
    assert "GuestLength" in house("-c", code)


def test_the_figure_is_made_with_its_verdict(house):
    house("cli.py", "figures", "guest-figure", "--out", "figures-made", "--workers", 1, "--quiet")
    out = house.folder / "figures-made"
    assert {p.suffix for p in out.glob("guest-figure*")} == {".pdf", ".svg", ".png", ".csv", ".h5", ".md", ".json"}
    assert "Normal numbers are zero on average" in (out / "verdicts.md").read_text()


def test_pages_and_types_are_made_of_it(house):
    house("docs/build.py")
    for kind, name in NAMES.items():
        assert f"## {name}\n" in (house.folder / "docs" / "reference" / f"{kind}.md").read_text()
    readme = (house.folder / "README.md").read_text()
    assert "| `guest_length` |" in readme
    assert "| `guest-method` |" in readme
    assert '"guest_length",' in (house.folder / "landscape" / "__init__.pyi").read_text()


CONTRACTS = (
    "measure_contract",
    "method_contract",
    "method_costs",
    "method_input",
    "data_contract",
    "models",
    "figures",
)


def contracts(house, names, *, status):
    """What pytest says of the guests' tests in these files."""
    files = [f"tests/test_{name}.py" for name in names]
    return house("-m", "pytest", "-p", "no:cacheprovider", "-k", "guest", "-rA", *files, status=status)


def test_every_contract_runs_over_it(house):
    passed = contracts(house, CONTRACTS, status=0)
    for kind, name in NAMES.items():
        assert name in passed, f"no contract of {kind} ran over {name}"


@pytest.mark.slow
def test_contracts_catch_what_breaks_them(house):
    wrong = {
        "landscape/measures/guest_length.py": ("Source: brought by a test", "Brought by a test"),
        "trainers/methods/guest_method.py": ('cost="1 forward', 'cost="2 forward'),
    }
    for name, change in wrong.items():
        (house.folder / name).write_text(FILES[name].replace(*change))
    try:
        failed = contracts(house, ("measure_contract", "method_costs"), status=1)
    finally:
        for name in wrong:
            (house.folder / name).write_text(FILES[name])
    assert failed.count("FAILED tests/test_measure_contract.py") == 1
    assert failed.count("FAILED tests/test_method_costs.py") == 3
