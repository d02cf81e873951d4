"""One process at a time writes to a directory: a second one is refused, what a killed one left is taken over."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import cli
import landscape
from landscape import InputError, Problem, files
from landscape.files import atomic
from landscape.locks import locked
from trainers import train

ROOT = Path(__file__).parent.parent
HOLD = (
    "import sys, time; from landscape.locks import locked\nwith locked(sys.argv[1]): print(flush=True); time.sleep(60)"
)


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock of tmp_path / "out"."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "out")], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    process.stdout.readline()
    yield process
    process.kill()
    process.wait()


def test_a_second_process_is_told_who_writes_there_and_a_killed_one_holds_nothing(holder, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(InputError, match=f"process {holder.pid} on {socket.gethostname()}, .*choose another --out"):
        train("sgd", data="toy2d:n=200", model="mlp:hidden=8", epochs=1, out=out)
    assert [p.name for p in out.iterdir()] == [".lock"]
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (out / ".lock").exists()
    train("sgd", data="toy2d:n=200", model="mlp:hidden=8", epochs=1, out=out)
    assert sorted(p.name for p in out.iterdir()) == ["ckpt.pt", "config.json", "history.csv"]


def test_a_lock_excludes_its_own_process_too_and_leaves_nothing(tmp_path):
    refused = pytest.raises(InputError, match="another process writes there")
    with locked(tmp_path / "a" / "b"), refused, locked(tmp_path / "a" / "b"):
        pass
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path / "a"):
        (tmp_path / "a" / "kept").touch()
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["kept"]


def test_what_a_killed_process_left_unfinished_is_removed_but_not_what_another_holds(tmp_path):
    (tmp_path / "figures").mkdir()
    for name in ("result.h5", "figures/picture.png", "held.h5"):
        with atomic(tmp_path / name) as temporary:
            temporary.with_name(temporary.name.replace(".unfinished", "-killed.unfinished")).touch()
    for folder in (tmp_path, tmp_path / "figures"):
        (folder / ".result.h5.lock").touch()  # of the process that was killed
    (tmp_path / ".hidden").touch()
    with locked(tmp_path / "held.h5", file=True), locked(tmp_path):
        assert [p.name[:8] for p in tmp_path.rglob(".*.unfinished")] == [".held.h5"]
        assert [p.name for p in tmp_path.rglob(".*.lock")] == [".held.h5.lock"]
    assert (tmp_path / ".hidden").exists()


def test_the_last_of_those_that_share_a_directory_removes_what_killed_ones_left(tmp_path):
    leftover = tmp_path / ".results.h5.killed.unfinished"
    leftover.touch()
    with locked(tmp_path, shared=True):
        with locked(tmp_path, shared=True):
            pass
        assert leftover.exists()  # it may be the other's, who is writing it
    assert list(tmp_path.iterdir()) == []


def test_a_removed_lock_is_none(tmp_path, monkeypatch):
    """Between opening and locking the holder may end, and remove the file that was opened."""
    opened, calls = os.open, []

    def late(path, *arguments):
        handle = opened(path, *arguments)
        if not calls:
            os.unlink(path)
        calls.append(path)
        return handle

    monkeypatch.setattr(os, "open", late)
    with locked(tmp_path):
        assert len(calls) == 2
        with pytest.raises(InputError), locked(tmp_path):
            pass


def test_a_lock_that_leads_elsewhere_is_refused(tmp_path):
    """In a folder that came from somebody, say: the file behind the link would be overwritten."""
    (tmp_path / "precious").write_text("kept")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".lock").symlink_to(tmp_path / "precious")
    with pytest.raises(InputError, match="cannot write to .*out: .*symbolic links"), locked(tmp_path / "out"):
        pass
    assert (tmp_path / "precious").read_text() == "kept"


def test_a_surface_locks_its_file_and_a_finished_one_is_read_where_nothing_can_be_written(tmp_path):
    torch.manual_seed(0)
    batch = torch.randn(8, 4), torch.randint(3, (8,))
    problem = Problem(nn.Linear(4, 3), nn.CrossEntropyLoss(), [batch])
    arguments = {"radius": 0.05, "grid": 3, "file": tmp_path / "s.h5"}
    with locked(tmp_path / "s.h5", file=True), pytest.raises(InputError, match=r"s.h5: another process writes there"):
        landscape.surface(problem, **arguments)
    made = landscape.surface(problem, **arguments)
    assert [p.name for p in tmp_path.iterdir()] == ["s.h5"]
    tmp_path.chmod(0o500)
    again = landscape.surface(problem, **arguments)
    tmp_path.chmod(0o700)
    assert (again.loss == made.loss).all()


@pytest.mark.parametrize("command", ["figures asam-fig1", "invariance", "train sgd --data toy2d:n=200 --epochs 1"])
def test_a_command_is_refused_where_another_process_writes(command, tmp_path, capsys):
    with locked(tmp_path / "out"):
        assert cli.run([*command.split(), "--quiet", "--out", str(tmp_path / "out")]) == 2
        assert [p.name for p in (tmp_path / "out").iterdir()] == [".lock"]
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert f"out: another process writes there (process {os.getpid()} on" in line


def test_the_next_writer_of_a_file_removes_what_a_killed_one_left_of_it_but_not_what_one_writes_now(tmp_path):
    leftover, other = tmp_path / ".table.csv.a1.unfinished", tmp_path / ".table.csv2.b2.unfinished"
    leftover.touch()
    other.touch()
    with atomic(tmp_path / "table.csv") as mine:
        assert not leftover.exists()
        mine.write_text("mine")
        with atomic(tmp_path / "table.csv") as another:
            another.write_text("another")
        assert mine.exists()
    assert (tmp_path / "table.csv").read_text() == "mine"
    assert [p.name for p in tmp_path.glob(".*.unfinished")] == [other.name]


def test_a_system_without_locks_holds_no_file_open_and_removes_no_others(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "fcntl", None)
    leftover = tmp_path / ".table.csv.a1.unfinished"
    leftover.touch()
    handle, temporary = files._temporary(tmp_path / "table.csv")
    assert handle is None
    temporary.unlink()
    with atomic(tmp_path / "table.csv") as temporary:
        temporary.write_text("1")
    assert (tmp_path / "table.csv").read_text() == "1"
    assert leftover.exists()
