"""Resuming equals never having stopped, bitwise, for every method and after a kill at any moment."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from landscape.errors import InputError
from trainers import METHODS, train
from trainers.loop.run_directory import read_history

ROOT = Path(__file__).parent.parent
# Ten classes and BatchNorm; five uneven batches an epoch; augmentation draws.
DIGITS = {"data": "digits", "model": "small-cnn:channels=4x8", "batch_size": 300, "epochs": 4, "augment": True}


def content(out):
    """The checkpoint but for what the clock decides."""
    found = torch.load(out / "ckpt.pt", weights_only=True)
    found["spent"].pop("seconds")
    return found


def history(out):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in read_history(out / "history.csv")]


def differing(a, b, place=""):
    """Places at which two trees differ, bitwise."""
    if isinstance(a, torch.Tensor):
        return [] if a.dtype == b.dtype and torch.equal(a, b) else [place]
    if isinstance(a, dict):
        return [
            p
            for k in {*a, *b}
            for p in (differing(a[k], b[k], f"{place}/{k}") if k in a and k in b else [f"{place}/{k}"])
        ]
    if isinstance(a, list):
        pairs = zip(a, b, strict=True)
        return [p for i, (x, y) in enumerate(pairs) for p in differing(x, y, f"{place}/{i}")]
    return [] if a == b else [place]


def stop_after(out, epochs, then):
    """A directory `then` as a kill after `epochs` epochs leaves it, with history rows ahead of the checkpoint."""
    then.mkdir()
    (then / "ckpt.pt").write_bytes((out / f"epoch-{epochs}.pt").read_bytes())
    (then / "config.json").write_bytes((out / "config.json").read_bytes())
    whole = (out / "history.csv").read_text()
    (then / "history.csv").write_text(whole[: len(whole) - 20])  # the last row is cut in two
    return then


@pytest.mark.parametrize("name", list(METHODS))
def test_resumed_equals_uninterrupted(name, tmp_path):
    out = tmp_path / "whole"
    train(name, out=out, keep_every=1, **DIGITS)
    half = stop_after(out, 2, tmp_path / "half")
    run = train(name, out=half, keep_every=1, resume=True, **DIGITS)
    assert run.epochs_trained == 2
    assert differing(content(out), content(half)) == []
    assert history(out) == history(half)
    assert [r["epoch"] for r in history(half)] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "settings", [{"base": "adam"}, {"precision": "float16"}, {"m": 100}, {"epochs": None, "budget_passes": 5.0}]
)
def test_resumed_equals_uninterrupted_in_other_settings(settings, tmp_path):
    out = tmp_path / "whole"
    settings = {**DIGITS, **settings}
    train("sam", out=out, keep_every=1, **settings)
    half = stop_after(out, 1, tmp_path / "half")
    train("sam", out=half, resume=True, keep_every=1, **settings)
    assert differing(content(out), content(half)) == []
    assert history(out) == history(half)


class Dropout(nn.Sequential):
    """Draws masks from the global stream."""

    def __init__(self):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(2)
            super().__init__(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 10))


def test_dropout_masks_are_resumed(tmp_path):
    out, settings = tmp_path / "whole", {"data": "digits", "batch_size": 300, "epochs": 3}
    train("sam", model=Dropout(), out=out, keep_every=1, **settings)
    half = stop_after(out, 1, tmp_path / "half")
    torch.rand(7)
    train("sam", model=Dropout(), out=half, keep_every=1, resume=True, **settings)
    assert differing(content(out), content(half)) == []


def test_a_finished_run_stays_as_it_is(tmp_path):
    train("sgd", out=tmp_path, **DIGITS)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    run = train("sgd", out=tmp_path, resume=True, **DIGITS)
    assert run.epochs_trained == 0
    assert len(run.history) == 4
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_resuming_nothing_starts(tmp_path):
    run = train("sgd", out=tmp_path / "new", resume=True, **{**DIGITS, "epochs": 1})
    assert run.epochs_trained == 1


def test_a_rarely_saved_run_drops_the_rows_after_its_checkpoint(tmp_path):
    settings = {**DIGITS, "epochs": 3}
    train("sgd", out=tmp_path / "a", save_every=2, **settings)
    assert content(tmp_path / "a")["epoch"] == 3
    (tmp_path / "a" / "ckpt.pt").unlink()  # killed before the first save: only rows and the configuration are there
    run = train("sgd", out=tmp_path / "a", save_every=2, resume=True, **settings)
    assert [r["epoch"] for r in history(tmp_path / "a")] == [1, 2, 3]
    assert run.epochs_trained == 3


def test_damage_is_refused(tmp_path):
    train("sgd", out=tmp_path / "a", **{**DIGITS, "epochs": 1})
    whole = (tmp_path / "a" / "ckpt.pt").read_bytes()
    (tmp_path / "a" / "ckpt.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="not a readable checkpoint"):
        train("sgd", out=tmp_path / "a", resume=True, **{**DIGITS, "epochs": 1})
    (tmp_path / "a" / "ckpt.pt").write_bytes(whole)
    (tmp_path / "a" / "history.csv").unlink()
    with pytest.raises(InputError, match="lacks rows"):
        train("sgd", out=tmp_path / "a", resume=True, **{**DIGITS, "epochs": 1})


@pytest.mark.parametrize(("before", "after"), [("test_loss", "test_lost"), ("e-06", "e-05"), ("\r\n1,", "\r\n2,")])
def test_a_history_that_was_changed_is_not_resumed(before, after, tmp_path):
    """Its form is right, and its numbers would come back as the run's; the seconds may be what they like."""
    settings = {**DIGITS, "epochs": 1, "schedule": "constant", "lr": 1e-6}
    train("sgd", out=tmp_path, **settings)
    path = tmp_path / "history.csv"
    text = path.read_bytes().decode()
    assert before in text
    path.write_bytes(text.replace(before, after, 1).encode())
    with pytest.raises(InputError, match=r"history\.csv (is damaged, or was changed|lacks rows)"):
        train("sgd", out=tmp_path, resume=True, **settings)
    path.write_bytes(text.encode())
    path.write_bytes(text.replace(repr(read_history(path)[0]["seconds"]), "12.5").encode())
    train("sgd", out=tmp_path, resume=True, **settings)


@pytest.mark.parametrize(
    ("name", "key", "value", "words"),
    [
        ("looksam", "age", "1", r"method\.state\.age of the checkpoint is '1' where this run needs 0"),
        ("looksam", "age", None, r"method\.state of the checkpoint is a mapping of \['direction'\] where"),
        ("ssam", "mask", torch.ones(3, dtype=torch.bool), r"state\.mask .* is a tensor of bool and shape \(3,\) where"),
        ("ssam", "mask", "float", r"state\.mask .* is a tensor of float32 and shape"),
        ("mesa", "average", [], r"state\.average .* is a list of 0 where this run needs a mapping of \["),
        ("mesa", "average", {}, r"state\.average .* is a mapping of \[\] where"),
    ],
)
def test_a_state_that_is_not_the_methods_is_refused(name, key, value, words, tmp_path):
    """Its numbers may be whole: another program, or the file's sender, wrote them."""
    settings = {**DIGITS, "epochs": 1}
    train(name, out=tmp_path / "a", **settings)
    path = tmp_path / "a" / "ckpt.pt"
    stored = torch.load(path, weights_only=True)
    state = stored["method"]["state"]
    state[key] = state[key].float() if value == "float" else value
    if value is None:
        del state[key]
    torch.save(stored, path)
    with pytest.raises(InputError, match=words) as refused:
        train(name, out=tmp_path / "a", resume=True, **settings)
    assert "\n" not in str(refused.value)


def test_a_full_disk_stops_with_what_is_saved_and_resumes(tmp_path, monkeypatch):
    out = tmp_path / "whole"
    train("sgd", out=out, **DIGITS)
    full = tmp_path / "full"
    calls, sync = 0, os.fsync

    def fsync(descriptor):
        nonlocal calls
        calls += 1
        if calls == 5:  # config.json, then a row and a checkpoint an epoch: within the second epoch's
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(InputError, match="No space left on device"):
        train("sgd", out=full, **DIGITS)
    monkeypatch.undo()
    assert content(full)["epoch"] == 1
    train("sgd", out=full, resume=True, **DIGITS)
    assert differing(content(out), content(full)) == []
    assert history(out) == history(full)


def test_killed_at_any_moment_and_resumed(tmp_path):
    """SIGKILL a few times at unforeseen moments; the end is the uninterrupted run's, bitwise."""
    settings = {
        **DIGITS,
        "epochs": 80,
        "augment": False,
        "data": "toy2d:n=600",
        "model": "mlp:hidden=8,batch_norm=true",
    }
    train("sam", out=tmp_path / "whole", **settings)
    out = tmp_path / "killed"
    code = f"from trainers import train; train('sam', out={str(out)!r}, resume=True, **{settings!r})"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    kills = 0
    for wait in (0.02, 0.11, 0.23):
        process = subprocess.Popen([sys.executable, "-c", code], env=environment, cwd=ROOT)
        before = time.monotonic()
        while process.poll() is None and not _moved_on(out, kills):
            assert time.monotonic() - before < 120
            time.sleep(0.005)
        time.sleep(wait)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
    assert kills >= 1, "every run was over before it could be killed: it needs more epochs"
    subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, check=True)
    assert differing(content(tmp_path / "whole"), content(out)) == []
    assert history(tmp_path / "whole") == history(out)
    assert json.loads((out / "config.json").read_text()) == json.loads((tmp_path / "whole" / "config.json").read_text())
    assert not list(out.glob(".ckpt.pt.*"))


def _moved_on(out, kills):
    """Whether the run has finished an epoch since it was started for the `kills`-th time."""
    rows = read_history(out / "history.csv") if out.exists() else []
    return len(rows) > 3 * kills
