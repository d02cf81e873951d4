"""Points of a surface shared among processes by `--shard`: bit for bit the surface of one process."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from surface_cases import mlp

import landscape
from landscape import InputError
from landscape.shards import Shard
from torture.contents import contents, differences
from trainers import train

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    directory = tmp_path_factory.mktemp("run")
    train("sgd", data="toy2d:n=200", model="mlp:hidden=8", epochs=1, out=directory)
    return directory / "ckpt.pt"


def arguments(run, out, *more):
    shared = ["--grid", "11", "--gradient-norm", "--curvature", "--samples", "100", "--quiet", "--device", "cpu"]
    return ["surface", str(run), *shared, "--out", str(out), *more]


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
def whole(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "out"
    ended(start(*arguments(run, out)))
    return out


def test_two_jobs_at_once_a_killed_one_is_taken_over(run, whole, tmp_path):
    out = tmp_path / "out"
    journal = out / "surface.h5.surface.partial"
    killed, other = start(*arguments(run, out, "--shard", "1/2")), start(*arguments(run, out, "--shard", "2/2"))
    while len(list(journal.glob("points-*.bin"))) < 2:
        assert killed.poll() is None
        assert other.poll() is None
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    ended(other)
    same(out, whole)
    ended(start(*arguments(run, out, "--shard", "1/2")))  # a job that comes late
    same(out, whole)


def test_without_shard_the_same_command_ends_what_jobs_have_left(run, whole, tmp_path):
    out = tmp_path / "out"
    job = start(*arguments(run, out, "--shard", "1/3"))
    points = out / "surface.h5.surface.partial"
    while not list(points.glob("points-*.bin")):
        assert job.poll() is None
        time.sleep(0.005)
    alone = start(*arguments(run, out, "--resume"))
    assert alone.wait(timeout=120) == 2
    assert "another process writes there" in alone.stderr.read()
    job.send_signal(signal.SIGKILL)
    job.communicate()
    kept = sum(p.stat().st_size for p in points.glob("points-*.bin"))
    assert kept > 0
    ended(start(*arguments(run, out, "--resume")))
    same(out, whole)


def shared(path, shard, **options):
    return landscape.surface(mlp(n=60), "filter", grid=5, file=path, shard=shard, **options)


def test_in_python(tmp_path):
    alone = landscape.surface(mlp(n=60), "filter", grid=5)
    first, late = (shared(tmp_path / "s.h5", Shard(i, 2)) for i in (1, 2))
    for result in (first, late, landscape.load(tmp_path / "s.h5")["surface"]):
        np.testing.assert_array_equal(result.loss, alone.loss)
        assert result.complete
        assert result.checks == alone.checks
    assert [p.name for p in tmp_path.iterdir()] == ["s.h5"]


def test_a_failing_point_ends_the_job_and_leaves_the_others_points(tmp_path, monkeypatch):
    from landscape.surfaces.grid.evaluation import GridEvaluation

    calls, evaluate = [], GridEvaluation.__call__

    def failing(self, points):
        calls.append(points)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return evaluate(self, points)

    monkeypatch.setattr(GridEvaluation, "__call__", failing)
    with pytest.raises(KeyboardInterrupt):
        shared(tmp_path / "s.h5", Shard(1, 1))
    monkeypatch.setattr(GridEvaluation, "__call__", evaluate)
    problem = mlp(n=60)
    with problem.counting() as cost:
        result = landscape.surface(problem, "filter", grid=5, file=tmp_path / "s.h5")
    np.testing.assert_array_equal(result.loss, landscape.surface(mlp(n=60), "filter", grid=5).loss)
    assert cost["forward"] < 25 + 4
    assert [p.name for p in tmp_path.iterdir()] == ["s.h5"]


@pytest.mark.parametrize("options", [{"file": None}, {"resume": False}])
def test_shards_need_a_file_that_they_go_on_with(options, tmp_path):
    with pytest.raises(InputError, match="shards share a file, and go on with what is there"):
        landscape.surface(mlp(n=60), grid=5, **{"file": tmp_path / "s.h5", "shard": Shard(1, 2), **options})


def test_a_band_has_no_points_to_share(run, tmp_path):
    refused = start(*arguments(run, tmp_path / "out", "--dimensions", "1", "--draws", "2", "--shard", "1/2"))
    out, err = refused.communicate(timeout=60)
    assert (refused.returncode, out) == (2, "")
    assert err == "landscape: --shard shares the points of a surface: a band (--draws, --subsets) has none to share\n"
    assert not (tmp_path / "out").exists()


def test_torch_is_not_imported_for_a_shard():
    code = "import sys; import landscape.shards; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=60)
