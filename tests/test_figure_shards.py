"""Figures whose trainings and measurements are shared among jobs: each run once, the pictures those of one process."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import cli
from figures.study import figure as entry
from figures.study import tasks as task_module
from figures.study.study import Study
from figures.study.tasks import Computation
from landscape.errors import InputError
from landscape.shards import Claims, Shard
from torture.contents import contents, differences

ROOT = Path(__file__).parent.parent
NAMES = ("asam-fig1", "rst-schedules")
JOB = """
import sys
from pathlib import Path
from figures.study import figure, tasks
from figures.study.study import Study
from landscape.locks import locked
from landscape.shards import Claims, Shard, directory_of

out, shard = Path(sys.argv[1]), Shard.parsed(sys.argv[2])
run = tasks.run_task

def told(task, *rest):
    with open(f"{out}.ran", "a") as log:
        log.write(f"{task.name} {shard}\\n")
    return run(task, *rest)

tasks.run_task = told
with locked(out, shared=True), Claims(directory_of(out), shard) as claims:
    pictures = figure.make(sys.argv[3:], Study(out / "study", "smoke", claims=claims), out)
    print(*sorted(p.name for p in pictures))
"""


def start(out, shard):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", JOB, str(out), shard, *NAMES], env=environment, stdout=subprocess.PIPE, text=True
    )


def ended(process):
    out, _ = process.communicate(timeout=240)
    assert process.returncode == 0
    return out


def ran(out):
    log = Path(f"{out}.ran")
    return [line.split() for line in log.read_text().splitlines()] if log.exists() else []


def same(out, whole):
    """Every number of every file but times, and no file beside."""
    assert differences(contents(whole), contents(out)) == []


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    entry.make(NAMES, Study(out / "study", "smoke"), out)
    return out


def test_two_jobs_at_once_a_killed_one_is_taken_over(whole, tmp_path):
    killed, other = start(tmp_path, "1/2"), start(tmp_path, "2/2")
    while len({shard for _, shard in ran(tmp_path)}) < 2:
        assert killed.poll() is None
        assert other.poll() is None
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    before = {name for name, shard in ran(tmp_path) if shard == "1/2"}
    assert ended(other) == "asam-fig1.png rst-schedules.png\n"
    same(tmp_path, whole)
    twice = [name for name, _ in ran(tmp_path) if [n for n, _ in ran(tmp_path)].count(name) > 1]
    assert len(set(twice)) <= 1, "only what the killed one was at"
    assert set(twice) <= before


def test_a_late_job_runs_nothing_and_the_same_call_alone_neither(whole, tmp_path):
    assert ended(start(tmp_path, "1/2"))
    tasks = ran(tmp_path)
    assert len({name for name, _ in tasks}) == len(tasks)
    assert ended(start(tmp_path, "2/2"))
    assert ran(tmp_path) == tasks
    study = Study(tmp_path / "study", "smoke")
    assert all(not study.missing(entry.FIGURES[name]().plan(study)) for name in NAMES)
    same(tmp_path, whole)


def test_what_fails_is_not_tried_again_and_what_measures_time_comes_last(tmp_path, monkeypatch):
    order, real = [], task_module.Training.run

    def run(self, path, machine):
        order.append(self.method)
        if self.method == "sam":
            raise InputError("diverged")
        real(self, path, machine)

    monkeypatch.setattr(task_module.Training, "run", run)
    with Claims(tmp_path / ".shards", Shard(1, 2)) as claims:
        study = Study(tmp_path / "study", "smoke", claims=claims)
        toy = {"data": "toy2d:n=64,n_test=32", "model": "table2-mlp", "epochs": 2, "batch_size": 32}
        bad, timed, good = (study.training(m, 0, **toy) for m in ("sam", "asam", "sgd"))
        timed = study.training("asam", 0, **toy, budget_seconds=0.05)
        reads = Computation("figures.study.computations:losses", (bad,), {"samples": 10})
        outcomes = {}
        assert study.run([timed, reads, good], lambda t, e: outcomes.__setitem__(t.name, e and str(e))) == 4
    assert outcomes == {bad.name: "diverged", reads.name: "diverged", good.name: None, timed.name: None}
    assert order[-1] == "asam"
    assert order.count("sam") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shard", "3/2"], "--shard 3/2: I/N with 1 <= I <= N is needed, for example 1/8 to 8/8"),
        (["--shard", "x"], "--shard 'x': I/N is needed, for example 1/8 to 8/8"),
        (
            ["--shard", "1/2", "--workers", "2"],
            "--workers 2 with --shard 1/2: a shard is one process, start more of them instead",
        ),
    ],
)
def test_shards_that_are_refused(options, message, tmp_path, capsys):
    assert cli.run(["figures", "asam-fig1", *options, "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == f"landscape: {message}\n"
    assert not (tmp_path / "out").exists()
