"""Networks of a test of invariance shared among jobs: bit for bit the numbers of one process."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from invariance_cases import table_2

import cli
import landscape
from landscape import shared_rows
from landscape.errors import InputError
from landscape.invariance.measures import InvarianceOptions
from landscape.results.journal import Journal
from landscape.shards import Claims, Shard
from torture.contents import contents, differences

ROOT = Path(__file__).parent.parent
FAST = InvarianceOptions(steps=0, orders=(2.0,), eigenvalues=False, extra={})


def arguments(out, *more):
    shared = ["--transforms", "12", "--steps", "0", "-p", "2", "--no-eigenvalues", "--quiet", "--device", "cpu"]
    return ["invariance", *shared, "--out", str(out), *more]


def start(*arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "cli", *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(process):
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    return out


def same(out, whole):
    """Every number of every file but times, and no file beside."""
    assert differences(contents(whole), contents(out)) == []
    for picture in (whole / "figures").glob("*.pdf"):
        assert (out / "figures" / picture.name).read_bytes() == picture.read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "out"
    assert cli.run(arguments(out)) == 0
    return out


def test_two_jobs_at_once_a_killed_one_is_taken_over(whole, tmp_path):
    out = tmp_path / "out"
    killed, other = start(*arguments(out, "--shard", "1/2")), start(*arguments(out, "--shard", "2/2"))
    while len(list(out.glob("invariance.partial.parts/*.jsonl"))) < 3:
        assert killed.poll() is None
        assert other.poll() is None
        time.sleep(0.005)
    alone = start(*arguments(out, "--resume"))
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert alone.wait(timeout=120) == 2
    assert "another process writes there" in alone.stderr.read()
    ended(other)
    same(out, whole)


def test_a_job_that_comes_late_computes_nothing(whole, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    assert cli.run(arguments(out, "--shard", "1/2")) == 0
    first = capsys.readouterr().out

    def refuse(*_):
        raise AssertionError("nothing may be measured again")

    monkeypatch.setattr("landscape.invariance.experiment.measure", refuse)
    for more in (["--shard", "2/2"], ["--resume"]):
        assert cli.run(arguments(out, *more)) == 0
        assert capsys.readouterr().out == first
        same(out, whole)
    with pytest.raises(AssertionError, match="measured again"):
        cli.run(arguments(out, "--shard", "2/2", "--seed", "1"))


def test_without_shard_the_same_command_takes_in_what_jobs_have_left(whole, tmp_path, monkeypatch):
    out = tmp_path / "out"

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shared_rows, "_merge", interrupted)  # everything is computed, nothing is merged
        assert cli.run(arguments(out, "--shard", "2/3")) == 130
    assert not (out / "invariance.h5").exists()
    with monkeypatch.context() as patch:
        patch.setattr("landscape.invariance.experiment.measure", interrupted)
        assert cli.run(arguments(out, "--resume")) == 0
    same(out, whole)


def test_rows_that_the_last_process_has_removed_are_in_its_result(tmp_path):
    """Of two processes one ends all while the other waits: its journal is gone by then."""
    journal = Journal(tmp_path / "test.jsonl", resume=True)

    with Claims(tmp_path / "claims", Shard(1, 2)) as claims:
        shared = {"transforms": 2, "settings": FAST, "journal": journal, "claims": claims}
        first = landscape.rescaling_invariance(table_2(), **shared)
        journal.finish()
        asked = iter([None, first])
        assert landscape.rescaling_invariance(table_2(), **shared, stored=lambda: next(asked)) is first
    alone = landscape.rescaling_invariance(table_2(), transforms=2, settings=FAST)
    np.testing.assert_array_equal(first.values, alone.values)
    assert (first.cost, first.biases, first.rotations) == (alone.cost, alone.biases, alone.rotations)


def test_rows_of_another_test_are_left_alone(tmp_path):
    journal = Journal(tmp_path / "test.jsonl", resume=True)
    with Claims(tmp_path / "claims", Shard(1, 2)) as claims:
        for seed in (0, 1):
            alone = landscape.rescaling_invariance(table_2(seed), transforms=2, settings=FAST)
            shared = {"journal": journal, "claims": claims, "settings": FAST}
            found = landscape.rescaling_invariance(table_2(seed), transforms=2, **shared)
            np.testing.assert_array_equal(found.values, alone.values)


def test_shares_need_a_file(tmp_path):
    with Claims(tmp_path, Shard(1, 2)) as claims, pytest.raises(InputError, match="need a journal in a file"):
        landscape.rescaling_invariance(table_2(), transforms=2, settings=FAST, claims=claims)
