"""Measures of checkpoints, and the checkpoints of a run, shared among jobs: the numbers of one process."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import cli
from figures.page import measuring
from landscape import shared_rows
from torture.contents import contents, differences
from trainers import train

ROOT = Path(__file__).parent.parent
MEASURES = ("sam_sharpness", "hessian_top_eigenvalues", "surface")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    directory = tmp_path_factory.mktemp("run")
    train("sgd", data="toy2d:n=200", model="mlp:hidden=8", epochs=9, keep_every=1, out=directory)
    return directory


@pytest.fixture(scope="module")
def two(run, tmp_path_factory):
    """Two checkpoints that are no run."""
    folders = [tmp_path_factory.mktemp(name) for name in ("first", "second")]
    for folder, epoch in zip(folders, (2, 5), strict=True):
        shutil.copyfile(run / f"epoch-{epoch}.pt", folder / "ckpt.pt")
    return [str(folder / "ckpt.pt") for folder in folders]


def arguments(checkpoints, out, *more):
    measures = [m for name in MEASURES for m in ("--measure", name)]
    shared = ["--grid", "5", "--samples", "100", "--subsets", "0", "--quiet", "--device", "cpu"]
    if len(checkpoints) == 1:
        measures, shared = measures[:4], shared[2:]
    return ["analyze", *map(str, checkpoints), *measures, *shared, "--out", str(out), *more]


def start(*arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "cli", *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(process):
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    return out


def same(out, whole):
    """Every number of every file but times, and no file beside; the order of rows in a journal counts for nothing."""
    assert differences(contents(whole), contents(out)) == []


@pytest.mark.parametrize("kind", ["run", "two"])
def test_two_jobs_at_once_a_killed_one_is_taken_over(kind, run, two, tmp_path):
    checkpoints = [run] if kind == "run" else two
    whole, out = tmp_path / "whole", tmp_path / "out"
    table = ended(start(*arguments(checkpoints, whole)))
    killed, other = (start(*arguments(checkpoints, out, "--shard", f"{i}/2")) for i in (1, 2))
    parts = out / ("run.parts" if kind == "run" else "analysis.parts")
    while not parts.exists() or not any(p.name[0] != "." for p in parts.iterdir()):
        assert killed.poll() is None
        assert other.poll() is None
        time.sleep(0.002)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert ended(other).replace(str(out), str(whole)) == table
    same(out, whole)
    ended(start(*arguments(checkpoints, out, "--shard", "1/2")))  # a job that comes late
    same(out, whole)


@pytest.mark.parametrize("kind", ["run", "two"])
def test_the_same_command_alone_takes_in_what_jobs_have_left(kind, run, two, tmp_path, monkeypatch):
    checkpoints = [run] if kind == "run" else two
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert cli.run(arguments(checkpoints, whole)) == 0
    module, name = (shared_rows, "_merge") if kind == "run" else (measuring.Store, "remove_parts")

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, name, interrupted)  # everything is computed, nothing is merged
        assert cli.run(arguments(checkpoints, out, "--shard", "2/3")) == 130
    assert not (out / "summary.json").exists()

    def refuse(*_):
        raise AssertionError("nothing may be measured again")

    with monkeypatch.context() as patch:
        patch.setattr(measuring, "_compute", refuse)
        patch.setattr("figures.page.run._row", refuse)
        assert cli.run(arguments(checkpoints, out)) == 0
    same(out, whole)


def test_an_interrupted_run_gets_the_numbers_of_an_uninterrupted_one(run, tmp_path, monkeypatch):
    from figures.page import run as running

    whole, out = tmp_path / "whole", tmp_path / "out"
    assert cli.run(arguments([run], whole)) == 0
    original, calls = running._row, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(running, "_row", interrupted)
    assert cli.run(arguments([run], out)) == 130
    assert cli.run(arguments([run], out)) == 0
    assert len(calls) == 7 + 5  # of nine: four are kept, two of the next chain belong to it
    same(out, whole)


def test_the_command_in_the_report_names_no_shard(two, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["landscape", *arguments(two[:1], tmp_path), "--shard", "1/2", "--shard=1/2"])
    assert cli.run(arguments(two[:1], tmp_path, "--shard", "1/1")) == 0
    page = (tmp_path / "report.html").read_text()
    assert "landscape analyze" in page
    assert "--shard" not in page
