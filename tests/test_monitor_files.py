"""Files of a Monitor: every row is kept as it comes, a killed run goes on without a lost or a repeated one."""

from __future__ import annotations

import csv
import gc
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from monitor_cases import plain, problem_of
from own_loop_cases import network

import landscape
from landscape.errors import InputError

ROOT = Path(__file__).parent.parent
MEASURES = ["gradient_norm", "sharpness"]
MEASURED = ("step", *MEASURES)


def watched(out, steps=range(6), model=None, every=1, measures=MEASURES, **options):
    """Rows of a run that is told these steps and moves its weights in between."""
    model = network() if model is None else model
    with landscape.Monitor(problem_of(model), every=every, measures=measures, out=out, **options) as monitor:
        for step in steps:
            monitor.step(step)
            with torch.no_grad():
                model[0].weight.mul_(1.05)
    return monitor


def table(path):
    with open(path, newline="") as stream:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(stream)]


def values(rows):
    return [[row[name] for name in MEASURED] for row in rows]


def test_tables_hold_the_history(tmp_path):
    monitor = watched(tmp_path / "run")
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["monitor.csv", "monitor.h5", "monitor.journal"]
    assert table(tmp_path / "run/monitor.csv") == monitor.history
    loaded = landscape.load(tmp_path / "run/monitor.h5")
    np.testing.assert_array_equal(loaded["step"], range(6))
    np.testing.assert_array_equal(loaded["sharpness"], [row["sharpness"] for row in monitor.history])
    assert loaded.axes["sharpness"] == ("step",)
    assert (loaded.units["gradient_norm"], loaded.units["training_seconds"]) == ("loss / weight", "s")
    assert loaded.arguments["measures"]["sharpness"]["measure"] == "sam_sharpness"
    assert loaded.arguments["every"] == 1
    assert loaded.provenance["sample_sha256"] == monitor.problem.provenance()["sample_sha256"]
    assert 0 < loaded.provenance["overhead"] < 1


@pytest.mark.parametrize("name", ["a.h5", "a.csv"])
def test_a_file_may_be_named(tmp_path, name):
    watched(tmp_path / name)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.csv", "a.h5", "a.journal"]


def test_rows_are_on_disk_before_anything_is_closed(tmp_path):
    monitor = landscape.Monitor(problem_of(network()), every=1, measures=MEASURES, out=tmp_path)
    monitor.step(0)
    assert table(tmp_path / "monitor.csv") == monitor.history
    assert landscape.load(tmp_path / "monitor.h5")["step"].tolist() == [0]


def test_long_tables_are_written_in_hundredths_and_at_the_end(tmp_path):
    model = network()
    monitor = landscape.Monitor(problem_of(model), every=1, measures=["gradient_norm"], out=tmp_path)
    lengths = []
    for step in range(304):
        monitor.step(step)
        lengths.append(len(table(tmp_path / "monitor.csv")) if step > 195 else step + 1)
    assert lengths[:200] == list(range(1, 201))
    assert [step + 1 - n for step, n in enumerate(lengths)][200:] == [1, 0] * 50 + [1, 2, 0, 1]
    monitor.close()
    assert len(table(tmp_path / "monitor.csv")) == 304


def test_a_run_that_goes_on_measures_again_what_training_repeats(tmp_path):
    whole = watched(None, range(9))
    watched(tmp_path, range(6))
    model = network()
    with torch.no_grad():
        for _ in range(4):
            model[0].weight.mul_(1.05)
    resumed = watched(tmp_path, range(4, 9), model, resume=True)
    assert values(resumed.history) == values(whole.history)
    assert values(table(tmp_path / "monitor.csv")) == values(whole.history)
    seconds = [row["measuring_seconds"] for row in resumed.history]
    assert seconds == sorted(seconds)
    assert resumed.history[4]["measuring_seconds"] > resumed.history[3]["measuring_seconds"] > 0


def test_rows_of_steps_that_training_left_behind_are_gone(tmp_path):
    """The checkpoint was older than the last rows, and the run goes on along other steps."""
    watched(tmp_path, range(0, 12, 3), every=3)
    resumed = watched(tmp_path, [5, 6, 7], every=2, resume=True)
    assert [row["step"] for row in resumed.history] == [0, 3, 6]
    assert landscape.load(tmp_path / "monitor.h5")["step"].tolist() == [0, 3, 6]


def test_resuming_what_is_not_there_begins(tmp_path):
    assert len(watched(tmp_path, resume=True).history) == 6


def test_rows_of_something_else_are_refused(tmp_path):
    watched(tmp_path)
    with pytest.raises(InputError, match=r"monitor\.journal holds rows of an earlier run: go on with resume=True"):
        watched(tmp_path)
    with pytest.raises(InputError, match="holds rows of another set of measures: resume with the same, or choose"):
        watched(tmp_path, measures=["gradient_norm"], resume=True)
    with pytest.raises(InputError, match="holds rows of another network"):
        watched(tmp_path, model=network(dropout=0.1).append(torch.nn.Linear(3, 3).double()), resume=True)
    assert len(table(tmp_path / "monitor.csv")) == 6


def test_a_damaged_journal_is_told_and_a_cut_line_is_measured_again(tmp_path):
    watched(tmp_path)
    journal = tmp_path / "monitor.journal"
    content = journal.read_bytes()
    journal.write_bytes(content[:-9])
    assert [row["step"] for row in watched(tmp_path, [6], resume=True).history] == [0, 1, 2, 3, 4, 6]
    tables = [(tmp_path / f"monitor.{ending}").read_bytes() for ending in ("csv", "h5")]
    lines = content.splitlines(keepends=True)
    for i in (0, 1, 4, 7):  # the key, the settings, rows
        damaged = b"".join([*lines[:i], b"x" + lines[i], *lines[i + 1 :]])
        journal.write_bytes(damaged)
        for resume in (True, False):
            with pytest.raises(InputError, match=rf"monitor\.journal is damaged at line {i + 1}: restore it or remove"):
                watched(tmp_path, resume=resume)
        assert journal.read_bytes() == damaged
        assert [(tmp_path / f"monitor.{ending}").read_bytes() for ending in ("csv", "h5")] == tables
    journal.write_bytes(b"".join([lines[0], *lines[2:]]))
    with pytest.raises(InputError, match=r"monitor\.journal is damaged, or no journal of a Monitor: restore it"):
        watched(tmp_path, resume=True)


def test_a_first_measurement_that_failed_leaves_nothing(tmp_path):
    with pytest.raises(InputError, match="k"):
        watched(tmp_path, measures=["hessian_top_eigenvalues:k=99999999"])
    assert list(tmp_path.iterdir()) == []


def test_a_first_measurement_that_was_killed_leaves_room_for_another(tmp_path):
    watched(tmp_path)
    settings = (tmp_path / "monitor.journal").read_bytes().splitlines(keepends=True)[:2]
    for resume in (True, False):
        folder = tmp_path / str(resume)
        folder.mkdir()
        (folder / "monitor.journal").write_bytes(b"".join(settings))
        assert len(watched(folder, resume=resume).history) == 6
        assert len(watched(folder, [6], resume=True).history) == 7


def test_two_monitors_do_not_write_one_history(tmp_path):
    model = network()
    first = landscape.Monitor(problem_of(model), every=1, measures=MEASURES, out=tmp_path)
    first.step(0)
    second = landscape.Monitor(problem_of(model), every=1, measures=MEASURES, out=tmp_path, resume=True)
    with pytest.raises(InputError, match="another process writes there"):
        second.step(1)
    del first
    gc.collect()
    second.step(1)
    assert [row["step"] for row in second.history] == [0, 1]


KILLED = """
import os, signal, sys, torch
from monitor_cases import plain, problem_of
from own_loop_cases import network
import landscape
torch.set_num_threads(1)
model, out, stop = network(), sys.argv[1], int(sys.argv[2])
monitor = landscape.Monitor(problem_of(model), every=2, measures=["gradient_norm", "sharpness"], out=out, resume=True)

def watch(step):
    if step == stop:
        os.kill(os.getpid(), signal.SIGKILL)
    monitor.step(step)

plain(model, 12, watch=watch)
monitor.close()
"""


def test_a_killed_training_goes_on(tmp_path):
    """Killed twice, started over each time as without checkpoints: in the end the rows are those of one run."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    for stop, rows in ((5, [0, 2, 4]), (9, [0, 2, 4, 6, 8]), (-1, [0, 2, 4, 6, 8, 10])):
        command = [sys.executable, "-c", KILLED, str(tmp_path), str(stop)]
        done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
        assert done.returncode == (0 if stop < 0 else -signal.SIGKILL), done.stderr
        assert [row["step"] for row in table(tmp_path / "monitor.csv")] == rows
    model = network()
    whole = landscape.Monitor(problem_of(model), every=2, measures=MEASURES)
    plain(model, 12, watch=whole.step)
    assert values(table(tmp_path / "monitor.csv")) == values(whole.history)
    assert not list(tmp_path.glob(".*")), "nothing is left behind"


def test_each_process_measures_its_first_step_and_the_seconds_go_on(tmp_path):
    """Else the row of the checkpoint's step, which is measured again, would be lost to the budget."""
    first = watched(tmp_path, range(5), every=None, share=1e-6)
    assert [row["step"] for row in first.history] == [0]
    resumed = watched(tmp_path, range(4, 9), every=None, share=1e-6, resume=True)
    assert [row["step"] for row in resumed.history] == [0, 4]
    assert resumed.history[1]["measuring_seconds"] > resumed.history[0]["measuring_seconds"]
    again = watched(tmp_path, range(4, 9), every=None, share=1e-6, resume=True)
    assert [row["step"] for row in again.history] == [0, 4]
    assert again.history[0] == resumed.history[0]
