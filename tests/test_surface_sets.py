"""Bands over directions and data, checkpoints on one grid, the surface command and its pictures."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import landscape
from commands.surface import command
from landscape import InputError, Problem
from landscape.surfaces.comparison import check_same_architecture


def problem_of(seed=0, width=6, dtype=torch.float64):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, width), nn.Tanh(), nn.Linear(width, 3)).to(dtype)
    torch.manual_seed(99)
    inputs, labels = torch.randn(31, 5, dtype=dtype), torch.randint(0, 3, (31,))
    return Problem(model, nn.CrossEntropyLoss(), [(inputs[i : i + 8], labels[i : i + 8]) for i in range(0, 31, 8)])


def test_band_is_the_spread_of_its_profiles():
    problem = problem_of()
    found = landscape.profiles(problem, "filter", grid=5, draws=3, subsets=2)
    assert found.losses.shape == (3, 2, 5)
    assert sum(found.facts["examples_a_subset"]) == 31
    # Parts of the data weigh as their examples: together they are the whole profile.
    weights = np.array(found.facts["examples_a_subset"]) / 31
    for i in range(3):
        whole = landscape.surface(problem, "filter", grid=5, seed=i, dimensions=1).loss
        np.testing.assert_allclose(np.tensordot(weights, found.losses[i], 1), whole, rtol=1e-10)
    np.testing.assert_allclose(found.loss, found.losses.mean((0, 1)))
    np.testing.assert_allclose(found.direction_deviation, found.losses.mean(1).std(0, ddof=1), atol=1e-15)
    np.testing.assert_allclose(found.subset_deviation, found.losses.mean(0).std(0, ddof=1), atol=1e-15)
    assert found.direction_deviation[2] == pytest.approx(0, abs=1e-15)
    assert found.subset_deviation[2] > 0
    assert (found.low <= found.loss).all()
    assert (found.loss <= found.high).all()
    assert found.center_loss == found.loss[2]
    assert found.checks[0]["value"] == pytest.approx(np.ptp(found.loss) / (found.high - found.low).max())
    assert found.checks[0]["ok"] == (found.checks[0]["value"] >= 1)


def test_checkpoints_on_one_grid():
    problems = {"a": problem_of(0), "b": problem_of(1)}
    found = landscape.compare_surfaces(problems, grid=5, radius=0.5)
    np.testing.assert_array_equal(found["a"].x, found["b"].x)
    for name, problem in problems.items():
        np.testing.assert_array_equal(found[name].loss, landscape.surface(problem, grid=5, radius=0.5).loss)
    moved = landscape.compare_surfaces(problems, grid=5, radius=0.5, absolute=True)
    np.testing.assert_array_equal(moved["a"].loss, found["a"].loss)
    first = landscape.surfaces.directions.directions("gaussian", problems["a"]).vectors
    expected = problems["b"].loss(problems["b"].weights + 0.5 * first[0] - 0.25 * first[1])
    assert moved["b"].loss[4, 1] == pytest.approx(float(expected), rel=1e-12)


def test_another_architecture_is_named_by_its_first_tensor():
    with pytest.raises(InputError, match=r"late.pt is another architecture: 0.weight is \(7, 5\) there, \(6, 5\) here"):
        check_same_architecture(problem_of(), problem_of(width=7), "late.pt")
    for options in ({"draws": 0}, {"subsets": 0}, {"subsets": 32}):
        with pytest.raises(InputError):
            landscape.profiles(problem_of(), grid=3, **options)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    from commands.train import command as train_command

    folder = tmp_path_factory.mktemp("runs")
    paths = []
    for seed in (0, 1):
        out = folder / str(seed)
        arguments = ["sgd", "--data", "digits", "--model", "mlp", "--epochs", "1", "--lr", "0.05", "--seed", seed]
        result = CliRunner().invoke(train_command, [*map(str, arguments), "--out", str(out)], standalone_mode=False)
        assert result.exception is None, result.exception
        paths.append(out / "ckpt.pt")
    return paths


def run(*arguments):
    result = CliRunner().invoke(command, [str(a) for a in arguments], standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return result.output


def test_command_writes_file_summary_and_pictures(checkpoints, tmp_path):
    arguments = [checkpoints[0], "--grid", "5x3", "--samples", 200, "--both-splits", "--out", tmp_path, "--json"]
    content = json.loads(run(*arguments))
    entry = content["surfaces"]["surface"]
    assert [len(a) for a in entry["axes"]] == [5, 3]
    assert entry["radius"] == 0.07
    assert entry["center_loss"] <= entry["max_loss"]
    stored = landscape.load(tmp_path / "surface.h5")["surface"]
    assert stored.others == ["test"]
    assert stored.loss.shape == (5, 3)
    for name in ("surface-contours", "surface-3d"):
        assert (tmp_path / "figures" / f"{name}.png").stat().st_size > 10_000
        assert (tmp_path / "figures" / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    # Resumed it is there already; another seed is refused and leaves the file as it was.
    before = (tmp_path / "surface.h5").read_bytes()
    assert json.loads(run(*arguments, "--resume"))["surfaces"]["surface"]["seconds"] == entry["seconds"]
    with pytest.raises(InputError, match=r"another radius \(None, now 0.1\)"):
        run(*arguments, "--resume", "--radius", 0.1)
    with pytest.raises(InputError, match="another checkpoint"):
        run(checkpoints[1], *arguments[1:])
    assert (tmp_path / "surface.h5").read_bytes() == before


def test_command_compares_and_draws_lines_and_bands(checkpoints, tmp_path):
    run(*checkpoints, "--grid", 3, "--samples", 100, "--out", tmp_path / "two")
    two = landscape.load(tmp_path / "two" / "surface.h5")
    assert set(two) == {"0", "1"}
    through = ["--directions", "checkpoints", "--dimensions", 1, "--range=-0.5,1.5", "--grid", 5, "--samples", 100]
    run(*checkpoints, *through, "--out", tmp_path / "line")
    line = landscape.load(tmp_path / "line" / "surface.h5")["surface"]
    np.testing.assert_allclose(line.x, [-0.5, 0, 0.5, 1, 1.5])
    np.testing.assert_allclose(line.loss[[1, 3]], [two[k].center_loss for k in "01"], rtol=1e-5)
    run(checkpoints[0], "--dimensions", 1, "--draws", 2, "--grid", 3, "--samples", 100, "--out", tmp_path / "band")
    assert (tmp_path / "band" / "figures" / "profile.png").exists()
    for wrong in (["--draws", 2], ["--grid", "3x"], ["--range", "1"], ["--directions", "trajectory"]):
        with pytest.raises(InputError):
            run(checkpoints[0], *wrong, "--samples", 50, "--out", tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()


def test_command_moves_along_the_optimizers_momentum(checkpoints, tmp_path):
    from landscape import checkpoint
    from trainers.loop.base import base_optimizer
    from trainers.loop.settings import Settings
    from trainers.rebuild import Sample, subject

    run(checkpoints[0], "--directions", "optimizer", "--grid", 3, "--samples", 100, "--out", tmp_path)
    loss = landscape.load(tmp_path / "surface.h5")["surface"].loss
    # What torch itself makes of the state: each parameter with its own momentum.
    it = subject(checkpoints[0], Sample(samples=100))
    optimizer = base_optimizer(Settings(lr=0.05, weight_decay=0.0), it.model)
    optimizer.load_state_dict(checkpoint.read(checkpoints[0])["optimizer"])
    moved = torch.cat([optimizer.state[p]["momentum_buffer"].flatten() for p in it.model.parameters()])
    w = it.problem.weights
    step = 0.07 * w.norm() / moved.norm() * moved
    expected = [float(it.problem.loss(w + sign * step)) for sign in (-1, 1)]
    np.testing.assert_allclose([loss[0, 1], loss[2, 1]], expected, rtol=1e-5)


@pytest.mark.parametrize("count", [3, 4, 7])
def test_parts_are_as_many_as_asked_for_and_of_equal_size(count):
    from landscape.surfaces.profiles import _parts

    data = torch.arange(20.0).view(10, 2), torch.arange(10) % 2
    parts = _parts(landscape.Problem(torch.nn.Linear(2, 2), torch.nn.functional.cross_entropy, [data]), count, 0)
    sizes = [p.examples for p in parts]
    assert len(sizes) == count
    assert sum(sizes) == 10
    assert max(sizes) - min(sizes) <= 1


def test_command_under_torchrun(checkpoints, tmp_path):
    import os
    import subprocess
    import sys
    from pathlib import Path

    arguments = ["surface", checkpoints[0], "--grid", 5, "--samples", 100, "--quiet", "--out"]
    run(*arguments[1:], tmp_path / "alone")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "cli"]
    root = Path(__file__).parent.parent
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    together = [str(a) for a in [*launch, *arguments, tmp_path / "together"]]
    finished = subprocess.run(together, env=environment, cwd=root, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count("written to") == 1
    one, two = (landscape.load(tmp_path / name / "surface.h5")["surface"] for name in ("alone", "together"))
    np.testing.assert_array_equal(one.loss, two.loss)
    np.testing.assert_array_equal(one.accuracy, two.accuracy)
    assert not list((tmp_path / "together").glob("*.partial"))
