"""A slice of the torture in the suite, and that it notices what is lost, changed or said badly."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from torture.contents import differences
from torture.process import Ended, patience
from torture.verdict import FAILED, REFUSED, RIGHT, TOLD, Verdict, judged, table

ROOT = Path(__file__).parent.parent


def torture(out, *arguments):
    """As `make torture` does: processes are forked from one with a single thread."""
    command = [sys.executable, "-m", "torture", "--out", str(out), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_a_slice(tmp_path):
    """Of what needs no idle machine."""
    subjects = [part for s in ("kills", "damage", "hostile", "disk", "shards") for part in ("--subject", s)]
    ran = torture(tmp_path, *subjects, "--draws", 1)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    more = torture(tmp_path, "--subject", "hostile", "--draws", 4)
    assert "hostile: seeds from 1, 1 cases known" in more.stdout
    assert "| code in pickles | 4 |  | 4 |" in more.stdout
    other = torture(tmp_path / "other", "--subject", "kills", "--command", "path", "--draws", 1)
    assert other.returncode == 0
    assert "| train |" not in other.stdout  # which seed 0 is


@pytest.mark.slow
def test_a_larger_slice(tmp_path):
    ran = torture(tmp_path, "--draws", 60)
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.slow
def test_a_case_is_replayed(tmp_path):
    case = {"subject": "hostile", "choice": {"file": "code_in_npz", "seed": 3}}
    (tmp_path / "case.json").write_text(json.dumps(case))
    again = torture(tmp_path, "--replay", tmp_path / "case.json")
    assert again.returncode == 0
    assert json.loads(again.stdout)["outcome"] == REFUSED


def test_a_busy_machine_gets_more_time(monkeypatch):
    """Three chains of kills were stopped at 120 s beside a load of 15 to 20; all ended right when tried again."""
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    for load, seconds in ((0.3, 120), (2.0, 120), (20.0, 1200)):
        monkeypatch.setattr(os, "getloadavg", lambda load=load: (load, 1.0, 1.0))
        assert patience() == seconds


def ended(status=0, err="", seconds=1.0, after=None):
    return Ended(status, "", err, seconds, after, 0)


NOTE = "landscape: x.h5 carries no checksum (it was written by release 0.1.0)\n"
LINE = "landscape: x.h5 is damaged: use another copy\n"


@pytest.mark.parametrize(
    ("end", "differing", "outcome"),
    [
        (ended(), [], RIGHT),
        (ended(), ["/loss: 1.0 and 2.0"], FAILED),
        (ended(err=NOTE), ["/loss: 1.0 and 2.0"], TOLD),
        (ended(2, LINE), None, REFUSED),
        (ended(2, NOTE + LINE), None, REFUSED),
        (ended(2, LINE + LINE), None, FAILED),
        (ended(2, "Error: no line of ours\n"), None, FAILED),
        (ended(2, "landscape: \x1b[31mred\n"), None, FAILED),
        (ended(1, "Traceback (most recent call last):\nKeyError\n"), None, FAILED),
        (ended(-11), None, FAILED),
        (ended(None), None, FAILED),
    ],
)
def test_what_counts_as_survived(end, differing, outcome):
    assert judged("x", end, differing).outcome == outcome
    if differing:
        assert judged("x", end, differing, untold=True).outcome in (TOLD, FAILED)


def test_numbers_are_compared_bit_for_bit_and_times_are_not():
    one = {"loss": [0.1, float("nan")], "seconds": 1.0, "deep": {"a": True, "processor_seconds": 2.0}}
    assert differences(one, {**one, "seconds": 3.0, "deep": {"a": True}}) == []
    assert differences(one, {**one, "loss": [np.nextafter(0.1, 1).item(), float("nan")]}) != []
    assert differences(one, {**one, "deep": {"a": 1}}) != []
    assert differences(one, {**one, "more": 1}) == ["/more is there"]
    assert differences(one, {"loss": one["loss"]}) == ["/deep is not there"]


def test_the_table_counts_tries():
    verdicts = [Verdict("a", tries=4), Verdict("a", FAILED, 2), Verdict("b", TOLD)]
    rows = table([v.plain() for v in verdicts]).splitlines()[2:]
    assert rows == [
        "| a | 6 | 4 |  |  | 2 |",
        "| b | 1 |  |  | 1 |  |",
    ]
