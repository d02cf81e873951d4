"""Finished points survive: kill -9, exceptions, foreign and damaged files, several processes; bit for bit."""

import json
import os
import signal
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import landscape
from landscape import InputError, Problem
from landscape.surfaces.grid.journal import PointJournal

ROOT = Path(__file__).parent.parent

SCRIPT = """
import os, sys, time
import torch
from torch import nn
import landscape
import landscape.processes  # before any group exists

pauses = []

def build(pause=0.0):
    pauses[:] = [pause]  # a variable of the loss would be part of what the loss is
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    inputs, labels = torch.randn(30, 6), torch.randint(0, 3, (30,))
    def loss(outputs, targets):
        time.sleep(pauses[0])
        return nn.functional.cross_entropy(outputs, targets)
    return landscape.Problem(model, loss, [(inputs, labels)])

def run(path, pause=0.0):
    return landscape.surface(build(pause), "filter", grid=7, file=path, gradient_norm=True, batch_size=0)
"""


def module():
    scope = {}
    exec(SCRIPT, scope)
    return scope


def python(code, *arguments, **variables):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **variables}
    return subprocess.Popen([sys.executable, "-c", SCRIPT + code, *map(str, arguments)], env=environment)


def same(one, two):
    for name in ("x", "y", "loss", "accuracy", "done", "gradient_norm"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    assert one.cost == pytest.approx(two.cost)
    assert one.facts == two.facts


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return module()["run"](tmp_path_factory.mktemp("whole") / "s.h5")


def test_killed_at_any_moment_the_file_opens_and_the_rest_is_bitwise_the_same(tmp_path, whole):
    path = tmp_path / "s.h5"
    counts = []
    for attempt in range(3):
        # Slow enough that no stall of the machine lets it come to its end before it is killed.
        process = python("run(sys.argv[1], 0.12)", path)
        journal = tmp_path / "s.h5.surface.partial" / "points.bin"
        before = journal.stat().st_size if journal.exists() else 0
        while not (journal.exists() and journal.stat().st_size > before + 300 + 40 * attempt):
            assert process.poll() is None
            time.sleep(0.005)
        time.sleep(0.07)
        process.send_signal(signal.SIGKILL)
        process.wait()
        partial = landscape.load(path)["surface"]
        assert not partial.complete
        assert np.isnan(partial.loss[~partial.done]).all()
        counts.append(journal.stat().st_size)
    assert counts == sorted(counts)
    assert counts[0] > 0
    problem = module()["build"]()
    with problem.counting() as cost:
        resumed = landscape.surface(problem, "filter", grid=7, file=path, gradient_norm=True, batch_size=0)
    same(resumed, whole)
    same(landscape.load(path)["surface"], whole)
    assert cost["forward"] < whole.cost["forward"]
    assert not journal.parent.exists()


def test_a_torn_record_is_dropped_and_computed_again(tmp_path, whole):
    path = tmp_path / "s.h5"
    interrupted(path, after=30)
    points = tmp_path / "s.h5.surface.partial" / "points.bin"
    content = points.read_bytes()
    points.write_bytes(content[:-5])
    same(module()["run"](path), whole)
    interrupted(path, after=30, resume=False)
    flipped = bytearray(points.read_bytes())
    flipped[len(flipped) // 2] ^= 1
    points.write_bytes(bytes(flipped))
    same(module()["run"](path), whole)


def interrupted(path, after, **options):
    problem = module()["build"]()
    calls, whole_batch = 0, problem.batch_loss

    def batch_loss(outputs, batch):
        nonlocal calls
        calls += 1
        if calls > after:
            raise KeyboardInterrupt
        return whole_batch(outputs, batch)

    problem.batch_loss = batch_loss
    with pytest.raises(KeyboardInterrupt):
        landscape.surface(problem, "filter", grid=7, file=path, gradient_norm=True, batch_size=0, **options)
    partial = landscape.load(path)["surface"]
    assert not partial.complete
    assert partial.done.sum() == np.isfinite(partial.loss).sum() > 0


def test_finished_surface_is_returned_without_work(tmp_path, whole):
    path = tmp_path / "s.h5"
    module()["run"](path)
    problem = module()["build"]()
    with problem.counting() as cost:
        again = landscape.surface(problem, "filter", grid=7, file=path, gradient_norm=True, batch_size=0)
    assert cost["forward"] == 0
    same(again, whole)


def test_what_is_left_of_the_journal_of_a_finished_surface_is_removed(tmp_path, whole):
    """Of a run that was killed between its last two lines: nothing else would ever remove it."""
    surface = module()["run"](tmp_path / "a.h5")
    journal = tmp_path / "a.h5.surface.partial"
    journal.mkdir()
    (journal / "points.bin").touch()
    same(module()["run"](tmp_path / "a.h5"), surface)
    assert [p.name for p in tmp_path.iterdir()] == ["a.h5"]


@pytest.mark.parametrize("unfinished", [False, True])
def test_another_checkpoint_sample_or_argument_is_refused(tmp_path, unfinished):
    path = tmp_path / "s.h5"
    interrupted(path, after=20) if unfinished else module()["run"](path)
    content = path.read_bytes()
    options = {"directions": "filter", "grid": 7, "file": path, "gradient_norm": True, "batch_size": 0}
    other = module()["build"]()
    with torch.no_grad():
        other.model[0].weight[0, 0] += 1
    moved = Problem(
        other.model, nn.CrossEntropyLoss(), other.batches.kept and [(b.args[0], b.target) for b in other.batches]
    )
    with pytest.raises(InputError, match="another checkpoint: SHA-256 of the weights"):
        landscape.surface(moved, **options)
    problem = module()["build"]()
    fewer = problem.with_batches([b.rows(0, 20) for b in problem.batches])
    with pytest.raises(InputError, match="another sample of examples"):
        landscape.surface(fewer, **options)
    with pytest.raises(InputError, match=r"another seed \(0, now 3\)"):
        landscape.surface(problem, **{**options, "seed": 3})
    assert path.read_bytes() == content
    replaced = landscape.surface(problem, **{**options, "seed": 3}, replace_other=True)
    assert landscape.load(path)["surface"].arguments["seed"] == 3
    assert replaced.done.all()


def nets(activation):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 8), activation, nn.Linear(8, 3))


def test_another_loss_or_model_is_refused(tmp_path):
    data = (torch.randn(30, 6), torch.randint(0, 3, (30,)))

    def walk(activation, loss):
        return landscape.surface(Problem(nets(activation), loss, [data]), grid=3, file=tmp_path / "s.h5")

    walk(nn.Tanh(), nn.CrossEntropyLoss())
    with pytest.raises(InputError, match="another loss"):
        walk(nn.Tanh(), nn.CrossEntropyLoss(label_smoothing=0.1))
    with pytest.raises(InputError, match="another model"):
        walk(nn.ReLU(), nn.CrossEntropyLoss())


def test_other_groups_of_the_file_stay(tmp_path, whole):
    path = tmp_path / "s.h5"
    whole.save(path, "older")
    module()["run"](path)
    both = landscape.load(path)
    assert set(both) == {"older", "surface"}
    same(both["older"], both["surface"])


def test_damaged_files_are_named(tmp_path):
    path = tmp_path / "s.h5"
    path.write_bytes(b"not HDF5 at all")
    with pytest.raises(InputError, match="not a readable HDF5"):
        module()["run"](path)
    path.unlink()
    interrupted(path, after=20)
    header = tmp_path / "s.h5.surface.partial" / "header.json"
    header.write_text(json.dumps({"axes": []}))
    with pytest.raises(InputError, match="header.json is damaged"):
        module()["run"](path)
    interrupted(path, after=20, resume=False)
    (header.parent / "directions.pt").write_bytes(b"PK")
    with pytest.raises(InputError, match="directions.pt is damaged"):
        module()["run"](path)


def test_journal_keeps_every_whole_record(tmp_path):
    journal = PointJournal(tmp_path / "j", {"a": 1})
    from landscape.surfaces.directions.directions import Directions

    journal.begin({"axes": [[0.0]]}, Directions("own", (torch.ones(3),), torch.ones(3), "||w||"))
    for i in range(5):
        journal.append(0, i, np.array([i, np.nan, np.inf]))
    journal.close()
    content = (tmp_path / "j" / "points.bin").read_bytes()
    for cut in range(len(content) + 1):
        (tmp_path / "j" / "points.bin").write_bytes(content[:cut])
        records = PointJournal(tmp_path / "j", {"a": 1}).records
        assert len(records) == cut * 5 // len(content)
        for (_, i), values in records.items():
            np.testing.assert_array_equal(values, [i, np.nan, np.inf])


DISTRIBUTED = """
import torch.distributed as dist
dist.init_process_group("gloo", init_method=os.environ["MEETING"], rank=int(os.environ["RANK"]), world_size=2)
if os.environ["SHARE"] == "points":
    found = run(sys.argv[1])
else:
    problem = build()
    whole = problem.batches.kept[0]
    part = whole.rows(0, 12) if dist.get_rank() == 0 else whole.rows(12, 30)
    batches = [(part.args[0], part.target)]
    shared = landscape.Problem(problem.model, torch.nn.CrossEntropyLoss(), batches, distributed=True)
    found = landscape.surface(shared, "filter", grid=7, file=sys.argv[1], gradient_norm=True, batch_size=0)
assert found.complete
found.save(f"{sys.argv[1]}.{dist.get_rank()}")
dist.destroy_process_group()
"""


@pytest.mark.parametrize("share", ["points", "examples"])
def test_two_processes_share_the_work_and_one_writes(tmp_path, whole, share):
    path = tmp_path / "s.h5"
    # A file to meet at: a free port could be taken by another test before it is used.
    common = {"MEETING": f"file://{tmp_path / 'meeting'}", "SHARE": share}
    workers = [python(DISTRIBUTED, path, RANK=str(rank), **common) for rank in range(2)]
    assert [w.wait(timeout=300) for w in workers] == [0, 0]
    found = [landscape.load(path)["surface"], *(landscape.load(f"{path}.{rank}") for rank in range(2))]
    for one in found:
        if share == "points":
            same(one, whole)
        else:
            np.testing.assert_allclose(one.loss, whole.loss, rtol=1e-5)
            np.testing.assert_allclose(one.gradient_norm, whole.gradient_norm, rtol=1e-4)
    # Torch removes the file to meet at, but not always: two processes that leave at once both take the other for there.
    assert {p.name for p in tmp_path.iterdir()} - {"meeting"} == {"s.h5", "s.h5.0", "s.h5.1"}


def test_a_journal_of_the_first_release_goes_on(tmp_path, whole):
    """The layout of 0.1.0, written by hand; a marked value shows that its points are believed."""
    from landscape.surfaces.directions.directions import directions

    journal = tmp_path / "s.h5.surface.partial"
    journal.mkdir()
    header = {"identity": whole.identity, "axes": [a.tolist() for a in whole.axes], "choice": whole.choice}
    (journal / "header.json").write_text(json.dumps(header))
    plane = directions("filter", module()["build"]())
    content = {"name": "filter", "unit": plane.unit, "facts": plane.facts, "marks": None, "residuals": None}
    torch.save({**content, "vectors": list(plane.vectors), "ranges": None}, journal / "directions.pt")
    loss, accuracy, forward, backward, products, seconds = 123.0, 0.5, 2.0, 0.0, 0.0, 0.25
    body = struct.pack("<IIq6d", 0, 6, 0, loss, accuracy, forward, backward, products, seconds)
    (journal / "points.bin").write_bytes(body + struct.pack("<I", zlib.crc32(body)))
    resumed = module()["run"](tmp_path / "s.h5")
    assert (resumed.loss[0, 0], resumed.accuracy[0, 0]) == (123.0, 0.5)
    np.testing.assert_array_equal(resumed.loss.flat[1:], whole.loss.flat[1:])
    assert resumed.cost["forward"] == pytest.approx(whole.cost["forward"] + 1)
    (tmp_path / "t.h5.surface.partial").mkdir()
    (tmp_path / "t.h5.surface.partial" / "header.json").write_text(
        json.dumps({**header, "identity": {"loss": "other"}})
    )
    with pytest.raises(InputError, match="another checkpoint"):
        module()["run"](tmp_path / "t.h5")
