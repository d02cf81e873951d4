"""What every command does alike: ranges of numbers, names, memory, the disk, interruptions; one line and a status."""

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest
from torch import nn

import cli
from commands.claimed import Claimed
from commands.ranges import Real, Whole
from landscape import checkpoint
from landscape.errors import InputError
from trainers import METHODS, train
from trainers.rebuild import subject

ROOT = Path(__file__).parent.parent
TOY = ["--data", "toy2d:n=200", "--model", "mlp:hidden=8", "--epochs", "1", "--device", "cpu", "--quiet"]


def failed(capsys, *arguments):
    """Status and the only line on stderr."""
    status = cli.run([str(a) for a in arguments])
    (line,) = capsys.readouterr().err.strip().splitlines()
    return status, line


def leaves(command):
    """The command, or what it groups."""
    if not isinstance(command, click.Group):
        return [command]
    context = click.Context(command)
    return [leaf for name in command.list_commands(context) for leaf in leaves(command.get_command(context, name))]


def test_every_number_that_a_command_takes_has_a_range():
    numbers = [p for command in leaves(cli.program) for p in command.params if p.type.name in ("integer", "float")]
    assert len(numbers) > 100
    assert not [p.name for p in numbers if not isinstance(p.type, Whole | Real)]


@pytest.mark.parametrize(
    ("kind", "text", "needed"),
    [
        (Real(0, above=True), "inf", "positive and finite, received inf"),
        (Real(0, above=True), "0", "positive and finite, received 0.0"),
        (Real(0, 1), "1.5", "at least 0 and at most 1, received 1.5"),
        (Real(0, 1), "nan", "at least 0 and at most 1, received nan"),
        (Real(), "-inf", "finite, received -inf"),
        (Whole(), "0", "at least 1, received 0"),
        (Whole(0, 1000), "1001", "at most 1,000, received 1001"),
    ],
)
def test_a_number_out_of_its_range_says_the_range(kind, text, needed):
    with pytest.raises(InputError, match=f"the number must be {needed}"):
        kind.convert(text, None, None)


def test_a_number_within_its_range_comes_as_it_is():
    assert Real(1, infinite=True).convert("inf", None, None) == float("inf")
    assert Real(0, 1).convert("1", None, None) == 1.0
    assert Whole(-(2**63)).convert(str(-(2**63)), None, None) == -(2**63)


SEED = 2**70
VALUES = {
    "a radius without end": ("train sam --rho inf", "--rho must be finite, received inf"),
    "a rate without end": ("train sgd --lr inf", "--lr must be finite, received inf"),
    "a seed beyond 64 bits": (f"train sgd --seed {SEED}", f"--seed must be at most .*, received {SEED}"),
    "a negative one": (f"train sgd --seed -{SEED}", f"--seed must be at least .*, received -{SEED}"),
    "one of a surface": (f"surface none.pt --seed {SEED}", f"--seed must be at most .*, received {SEED}"),
    "a surface without end": ("surface none.pt --radius inf", "--radius must be positive and finite"),
    "a grid of 10^18 points": ("surface none.pt --grid 1000000001", "1,000,000,002,000,000,001 points: at most 10,000"),
    "a long line": ("surface none.pt --dimensions 1 --grid 1000000001", "1,000,000,001 points: at most"),
    "a grid of unequal sides": ("surface none.pt --grid 3x1000000001", "3 x 1,000,000,001 = 3,000,000,003 points"),
    "a grid of an analysis": ("analyze none.pt --grid 999999999", "999,999,998,000,000,001 points"),
    "directions that are none": ("surface none.pt --directions gausian", "did you mean 'gaussian'"),
    "a range from right to left": ("surface none.pt --range 1,-1 --range 1,2", "from a smaller to a larger number"),
    "a range too many": ("surface none.pt --dimensions 1 --range -1,1 --range -1,1", "2 ranges for 1 directions"),
    "an even grid": ("surface none.pt --grid 40", "use 41, or pass center=False"),
    "two half-widths": ("surface none.pt --radius 1 --range -1,1 --range -1,1", "radius and ranges were both given"),
    "a name with a NUL byte": ("analyze a\0b", "no name or number has a NUL byte"),
    "a name that is too long": (f"analyze {'a' * 5000}", "name too long"),
    "a device of another machine": ("train sgd --device meta", "device 'meta' was asked for"),
}


@pytest.mark.parametrize("case", VALUES)
def test_values_that_no_work_can_use_are_refused_before_it(case, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command, message = VALUES[case]
    status, line = failed(capsys, *command.split(" "))
    assert status == 2
    assert re.search(message, line, re.IGNORECASE), line
    assert list(tmp_path.iterdir()) == []


# -- memory, the disk --------------------------------------------------------------------------------------------------


CPU = "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to ..."


@pytest.mark.parametrize("error", [RuntimeError(CPU), MemoryError(), RuntimeError("CUDA out of memory. Tried to ...")])
@pytest.mark.parametrize(("name", "smaller"), [("train", "--batch-size or --model"), ("analyze", "fewer --samples")])
def test_memory_that_cannot_be_had_is_one_line(error, name, smaller, capsys, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(cli.program, "main", fail)
    status, line = failed(capsys, name)
    assert status == 2
    assert "out of memory: use a smaller --batch-size" in line
    assert smaller in line


def test_a_network_that_does_not_fit_is_refused_before_it_is_built(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("landscape.problem.memory.free_memory", lambda _: 14.0 * 2**30)
    status, line = failed(capsys, "train", "sgd", *TOY, "--model", "mlp:hidden=50000x50000", "--out", tmp_path / "run")
    weights = 2 * 50_000 + 50_000 + 50_000**2 + 50_000 + 2 * 50_000 + 2
    needed = f"mlp has {weights:,} weights: {3 * 4 * weights / 2**30:.3g} GiB of memory for 3 float32 copies of them"
    assert (status, line) == (2, f"landscape: {needed}, 14 GiB are free; take a smaller network")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.ENOENT, errno.EIO, errno.ENAMETOOLONG])
def test_a_disk_that_fails_is_one_line(number, capsys, monkeypatch, tmp_path):
    def fail(*_):
        raise OSError(number, os.strerror(number), "some/file")

    monkeypatch.setattr("trainers.data.files.fetch", fail)
    status, line = failed(capsys, "data", "fetch", "mnist", "--quiet")
    assert status == 2
    assert f"some/file: {os.strerror(number)}" in line


SMALL = 'mount -t tmpfs -o size={size}k tmpfs full && exec "$@"'


def on_small_disk(folder, size, *command):
    """Run a command where folder/full is a disk of `size` KB; the mount ends with the process."""
    unshare = ["unshare", "--mount", *(["--user", "--map-root-user"] if os.getuid() else [])]
    command = [*unshare, "sh", "-c", SMALL.format(size=size), "sh", *map(str, command)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def run_directory(tmp_path_factory):
    folder = tmp_path_factory.mktemp("disk")
    (folder / "full").mkdir()
    if shutil.which("unshare") is None or on_small_disk(folder, 64, "true").returncode:
        pytest.skip("needs a small file system: unshare, mount")
    assert cli.run(["train", "sgd", *TOY, "--out", str(folder / "run")]) == 0
    return folder


LOOK = ["--samples", 64, "--device", "cpu", "--quiet", "--out", "full/out"]
FULL = {
    "directions": (4, ["surface", "run/ckpt.pt", "--grid", 9]),
    "journal": (16, ["surface", "run/ckpt.pt", "--grid", 9]),
    "surface": (24, ["surface", "run/ckpt.pt", "--grid", 9]),
    "results": (16, ["analyze", "run/ckpt.pt", "--grid", 0, "--measure", "gradient_norm"]),
    "report": (40, ["analyze", "run/ckpt.pt", "--grid", 0, "--measure", "gradient_norm"]),
    "rows": (4, ["invariance", "run/ckpt.pt", "--transforms", 2, "--steps", 0, "-p", 2, "--no-eigenvalues"]),
    "path": (8, ["path", "run/ckpt.pt", "run/ckpt.pt", "--points", 3]),
    "pictures": (48, ["path", "run/ckpt.pt", "run/ckpt.pt", "--points", 3]),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL)
def test_a_full_disk_is_one_line(name, run_directory):
    size, command = FULL[name]
    ran = on_small_disk(run_directory, size, sys.executable, "-m", "cli", *command, *LOOK)
    assert ran.returncode == 2, ran.stderr
    (line,) = ran.stderr.strip().splitlines()
    assert "full/out" in line
    assert os.strerror(errno.ENOSPC) in line


# -- interruptions -----------------------------------------------------------------------------------------------------

STRIKE = """
import signal, sys

class Strike:
    def find_spec(self, name, path=None, target=None):
        if name == sys.argv[1]:
            sys.meta_path.remove(self)
            signal.raise_signal(signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)
import cli
sys.meta_path.insert(0, Strike())
cli.main(["train", "sgd", *sys.argv[2:]])
"""


@pytest.mark.parametrize("module", ["numpy._core._multiarray_umath", "torch._C", "trainers.loop.trainer"])
def test_an_interrupt_during_imports_is_one_line(module, tmp_path):
    command = [sys.executable, "-c", STRIKE, module, *TOY, "--out", str(tmp_path / "run")]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (ran.returncode, ran.stderr, ran.stdout) == (130, "landscape: interrupted\n", "")
    assert not (tmp_path / "run").exists()


def listening():
    """A job in the background of a shell inherits that SIGINT is ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_an_interrupt_in_the_first_line_of_the_program_is_one_line(tmp_path):
    (tmp_path / "click.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nimport json.decoder\n")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    options = {"env": environment, "cwd": tmp_path, "capture_output": True, "text": True, "preexec_fn": listening}
    ran = subprocess.run([sys.executable, "-m", "cli"], **options)
    assert (ran.returncode, ran.stderr) == (130, "landscape: interrupted\n")


def test_an_interrupt_while_processes_are_at_work_leaves_nothing_of_them(tmp_path):
    """Their semaphores have names; what is left of them is told by a process of the library's."""
    (tmp_path / "late.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nimport json.decoder\n")
    code = (
        "import multiprocessing, cli; cli._listen(); context = multiprocessing.get_context('spawn'); "
        "queue, lock = context.Queue(), context.Lock(); import late"
    )
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    options = {"env": environment, "cwd": tmp_path, "capture_output": True, "text": True, "preexec_fn": listening}
    ran = subprocess.run([sys.executable, "-c", code], **options)
    assert (ran.returncode, ran.stderr) == (130, "landscape: interrupted\n")


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_a_command_that_is_done_is_not_interrupted_while_its_interpreter_ends(number):
    """No handler of ours is called then: it would end in a traceback, or by the signal."""
    code = (
        f"import atexit, os, signal, cli; atexit.register(os.kill, os.getpid(), signal.{number}); "
        "cli._listen(); cli.main(['list', 'models'])"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")


def test_an_interrupted_command_does_not_wait_for_the_end_of_its_interpreter():
    """With torch imported that takes most of a second, of the two in which it must be gone."""
    code = (
        "import atexit, cli; atexit.register(print, 'late'); print('kept'); "
        "cli.run = lambda arguments: cli._fail('interrupted', 130); cli.main([])"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout, ran.stderr) == (130, "kept\n", "landscape: interrupted\n")


@pytest.mark.parametrize("epochs", [0, 1])
def test_an_interrupted_command_says_what_it_kept_and_how_to_go_on(epochs, capsys, monkeypatch, tmp_path):
    from trainers.loop.trainer import Trainer

    step, steps = Trainer._train_step, []

    def interrupted(self, batch):
        steps.append(batch)
        if self.now.epoch == epochs:
            raise KeyboardInterrupt
        return step(self, batch)

    monkeypatch.setattr(Trainer, "_train_step", interrupted)
    out = tmp_path / "run"
    status, line = failed(capsys, "train", "sgd", *TOY, "--epochs", 2, "--out", out)
    assert status == 130
    if not epochs:
        assert line == "landscape: interrupted"
        assert not out.exists()
        return
    kept = f"interrupted: what was finished is kept in {out}; go on with the same command and --resume"
    assert line == f"landscape: {kept}"
    monkeypatch.undo()
    assert cli.run(["train", "sgd", "--resume", "--quiet", "--out", str(out)]) == 0


def test_what_a_command_kept_is_what_it_wrote(tmp_path):
    (tmp_path / "old.h5").touch()
    os.utime(tmp_path / "old.h5", (1e9, 1e9))
    (tmp_path / ".lock").touch()
    claimed = Claimed(tmp_path, "go on with the same command", since=2e9)
    assert claimed.interrupted() == "interrupted"
    os.utime(tmp_path / "old.h5", (2e9, 2e9))
    assert claimed.interrupted() == f"interrupted: what was finished is kept in {tmp_path}; go on with the same command"
    assert Claimed(tmp_path, None, since=0.0).interrupted() == "interrupted"


# -- values in a training ----------------------------------------------------------------------------------------------


def test_a_second_pass_that_is_not_finite_is_named_at_its_own_step(tmp_path):
    class Fuse(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.calls = nn.Linear(2, 2), 0

        def forward(self, x):
            self.calls += self.training
            return self.linear(x) * (float("nan") if self.calls == 6 else 1.0)  # the second pass of the third step

    with pytest.raises(InputError, match=r"the loss in another pass is nan at step 3 \(epoch 1\)"):
        train(METHODS["sam"](), data="toy2d:n=200", model=Fuse(), epochs=1, batch_size=40, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(InputError, match=r"the loss in another pass is nan at step 2 \(epoch 1\)"):
        train(METHODS["sam"](), data="toy2d:n=200", model=Fuse(), epochs=1, batch_size=40, m=20)


@pytest.mark.parametrize(("name", "value"), [("running_var", "inf"), ("running_var", "-1"), ("running_mean", "nan")])
def test_running_statistics_that_no_network_has_are_refused(name, value, tmp_path):
    out = tmp_path / "run"
    train("sgd", data="toy2d:n=200", model="mlp:hidden=4,batch_norm=true", epochs=1, out=out)
    content = dict(checkpoint.read(out / "ckpt.pt"))
    state = {k: v.clone() for k, v in content["model"]["state"].items()}
    layer = next(k for k in state if k.endswith(name))
    state[layer][0] = float(value)
    checkpoint.write(out / "bad.pt", {**content, "model": {**content["model"], "state": state}})
    with pytest.raises(
        InputError, match=f"bad.pt: the running statistics of {layer.rpartition('.')[0]} are not finite"
    ):
        subject(out / "bad.pt")
    assert subject(out / "bad.pt", batch_norm="batch").problem.loss().isfinite()
