"""The moving picture of a training run shows what the results file holds, a frame per checkpoint."""

import itertools
import os
import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from matplotlib import pyplot as plt
from PIL import Image

import landscape
from commands.surface import command
from figures.drawing import animation
from landscape.errors import InputError
from trainers import METHODS, train


@pytest.fixture(scope="module")
def trajectory(tmp_path_factory):
    """A short run with its epochs kept, and the command's output directory."""
    root = tmp_path_factory.mktemp("trajectory")
    train(
        METHODS["sgd"](), data="digits", model="mlp:hidden=8", epochs=4, lr=0.1, batch_size=256, keep_every=1,
        out=root / "run",
    )  # fmt: skip
    epochs = [str(root / "run" / f"epoch-{e}.pt") for e in range(1, 5)]
    common = ["--directions", "trajectory", "--grid", "5", "--samples", "64", "--quiet"]
    done = CliRunner().invoke(command, [*epochs, *common, "--gif", "--out", str(root / "out")], standalone_mode=False)
    assert done.exception is None, done.exception
    return epochs, common, root / "out"


def test_a_frame_a_checkpoint(trajectory):
    _, _, out = trajectory
    surface = landscape.load(out / "surface.h5")["surface"]
    with Image.open(out / "figures" / "trajectory.gif") as gif:
        assert gif.n_frames == len(surface.marks) == 4
        frames, lengths = [], []
        for i in range(gif.n_frames):
            gif.seek(i)
            frames.append(np.asarray(gif.convert("RGB")))
            lengths.append(gif.info["duration"])
    assert lengths == [400, 400, 400, 1600]
    assert len({f.shape for f in frames}) == 1
    for a, b in itertools.pairwise(frames):
        assert (a != b).any(axis=-1).mean() < 0.2, "only the path moves"
        assert (a != b).any()


def test_what_is_drawn_is_what_is_stored(trajectory):
    _, _, out = trajectory
    surface = landscape.load(out / "surface.h5")["surface"]
    assert surface.residuals[-1] == 0, "the plane goes through the last checkpoint"
    assert surface.residuals.max() > 0
    figure, show = animation.film(surface, ["a", "b", "c", "d"])
    plane, off = figure.axes[:2]
    path, here = plane.lines[-2:]
    everything, past, now = off.lines
    for i in range(4):
        show(i)
        np.testing.assert_array_equal(path.get_xydata(), surface.marks[: i + 1])
        np.testing.assert_array_equal(here.get_xydata(), surface.marks[[i]])
        np.testing.assert_array_equal(past.get_ydata(), surface.residuals[: i + 1])
        np.testing.assert_array_equal(now.get_ydata(), surface.residuals[[i]])
        assert plane.get_title("left") == f"checkpoint {i + 1} of 4: {'abcd'[i]}"
    np.testing.assert_array_equal(everything.get_ydata(), surface.residuals)
    assert (everything.get_ydata() <= off.get_ylim()[1]).all()
    corners = np.array([plane.get_xlim(), plane.get_ylim()])
    assert (surface.marks >= corners[:, 0]).all()
    assert (surface.marks <= corners[:, 1]).all()
    plt.close(figure)


def test_it_appears_on_request_alone(trajectory, tmp_path):
    epochs, common, _ = trajectory
    done = CliRunner().invoke(command, [*epochs, *common, "--out", str(tmp_path)], standalone_mode=False)
    assert done.exception is None
    assert (tmp_path / "figures" / "surface-contours.png").exists()
    assert not (tmp_path / "figures" / "trajectory.gif").exists()


def test_mp4_is_what_ffmpeg_gets(trajectory, tmp_path, monkeypatch):
    """Every frame reaches ffmpeg, the last one four times; without ffmpeg the command refuses before it starts."""
    epochs, common, _ = trajectory
    tool = tmp_path / "bin" / "ffmpeg"
    tool.parent.mkdir()
    tool.write_text('#!/bin/sh\nfor last; do :; done\necho "$@" > "$0.arguments"\nexec cat > "$last"\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")
    done = CliRunner().invoke(command, [*epochs, *common, "--mp4", "--out", str(tmp_path)], standalone_mode=False)
    assert done.exception is None, done.exception
    width, height = (int(n) for n in re.search(r"-s (\d+)x(\d+)", Path(f"{tool}.arguments").read_text()).groups())
    assert width % 2 == height % 2 == 0, "H.264 takes even numbers of pixels alone"
    content = (tmp_path / "figures" / "trajectory.mp4").read_bytes()
    frames = np.frombuffer(content, dtype=np.uint8).reshape(7, 2, height, width, 4)
    assert [bool((a != b).any()) for a, b in itertools.pairwise(frames[:, 0])] == [True] * 3 + [False] * 3
    assert (frames[:, 0] == frames[:, 1]).all()
    monkeypatch.setenv("PATH", str(tmp_path))
    done = CliRunner().invoke(command, [*epochs, "--directions", "trajectory", "--mp4"], standalone_mode=False)
    assert isinstance(done.exception, InputError)
    assert "ffmpeg" in str(done.exception)


def test_without_a_trajectory_it_is_refused(trajectory, tmp_path):
    epochs, _, _ = trajectory
    for wrong in (["--gif"], ["--gif", "--directions", "trajectory", "--dimensions", "1"]):
        done = CliRunner().invoke(command, [*epochs, *wrong, "--out", str(tmp_path / "new")], standalone_mode=False)
        assert isinstance(done.exception, InputError)
        assert "--directions trajectory" in str(done.exception)
    assert not (tmp_path / "new").exists()
