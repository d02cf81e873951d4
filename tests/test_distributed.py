"""Several processes: two of them equal one on the same global batch; gloo on the CPU, as torchrun starts them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from trainers import METHODS, MethodOptimizer, Task, train
from trainers.loop.run_directory import read_history

ROOT = Path(__file__).parent.parent
# Two processes cannot share the last batch, of 237 examples, evenly.
SETTINGS = {"data": "digits", "batch_size": 240, "epochs": 2, "lr": 0.05}
# What acts within two epochs.
ARGUMENTS = {"saf": {"lag": 1, "start": 0.0}, "mesa": {"start": 0.0}, "looksam": {"k": 2}}
WORKER = """
import sys, json, time, torch
from pathlib import Path
from landscape.processes import process_group
from trainers import METHODS, train
from tests.test_distributed import adapted, network, normalized, threads
with process_group() as rank:
    for synchronized in (True, False):
        found = adapted(rank, synchronized)
        if rank == 0:
            torch.save(found, sys.argv[2] + f"/adapted-{synchronized}.pt")
    for name, arguments, out, settings in json.loads(sys.argv[1]):
        method = METHODS[name](**arguments)
        make = normalized if settings.get("sync_batch_norm") else network
        # Other weights on the second process: it must take those of the first.
        run = train(method, model=make(8 + rank), out=out, **settings)
        assert train(method, model=make(8 + rank), out=out, resume=True, **settings).epochs_trained == 0
        flat = torch.cat([p.detach().flatten() for p in run.model.parameters()])
        everywhere = [torch.empty_like(flat) for _ in range(2)]
        torch.distributed.all_gather(everywhere, flat)
        assert torch.equal(*everywhere), name
    Path(sys.argv[2], f"within-{rank}.json").write_text(json.dumps(threads()))
for _ in range(300):  # a thread that has ended is listed for a moment longer
    if not any("gloo" in name for name in threads()):
        break
    time.sleep(0.1)
Path(sys.argv[2], f"after-{rank}.json").write_text(json.dumps(threads()))
"""


def threads():
    """Names of this process's threads, without those that end while they are read."""
    names = []
    for path in Path("/proc/self/task").glob("*/comm"):
        with contextlib.suppress(OSError):
            names.append(path.read_text().strip())
    return names


def network(seed=8):
    """LayerNorm, not BatchNorm, whose statistics are those of each process."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 10))


class Double(nn.Module):
    """Float64 from here on: rounding errors, which BatchNorm and Adam magnify, stay small."""

    def forward(self, x):
        return x.double()


def normalized(seed=8):
    """BatchNorm over features and over images; its statistics are to be those of the global batch."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # A bias before BatchNorm has no gradient but rounding errors, which Adam would make steps of.
        body = [nn.Conv2d(1, 4, 3, 2, bias=False), nn.BatchNorm2d(4), nn.Softplus(), nn.Flatten()]
        body.append(nn.Linear(36, 12, bias=False))
        body += [nn.BatchNorm1d(12, momentum=None), nn.Softplus(), nn.Linear(12, 10)]
        return nn.Sequential(Double(), *body).double()


def adapted(rank=None, synchronized=True, group_size=None):
    """Weights after three steps of SAM in a loop of your own; with a rank on its half, under DDP and the optimizer."""
    model, generator = network(), torch.Generator().manual_seed(4)
    base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    method = METHODS["sam"](rho=0.2)
    wrapped = model if rank is None else nn.parallel.DistributedDataParallel(model)
    optimizer = MethodOptimizer(base, method, wrapped, synchronized=synchronized)
    task = Task(model, nn.CrossEntropyLoss(reduction="none"), group_size=group_size)
    for _ in range(3):
        inputs = torch.randn(24, 1, 8, 8, generator=generator)
        targets = torch.randint(10, (24,), generator=generator)
        if rank is None:
            method.gradient(task.step((inputs, targets)), {})
            base.step()
            continue
        inputs, targets = inputs.chunk(2)[rank], targets.chunk(2)[rank]

        def closure(inputs=inputs, targets=targets):
            optimizer.zero_grad()
            loss = F.cross_entropy(wrapped(inputs), targets)
            loss.backward()
            return loss

        optimizer.step(closure)
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def torchrun(*arguments, processes=2):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [*launcher, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command,
        env=environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=480)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # the workers too, which would wait for each other for ever
        out, err = process.communicate()
    assert process.returncode == 0, err[-3000:]
    return out


def synchronized_settings(name):
    """One epoch; two for SAF, whose term compares with the epoch before."""
    return {**SETTINGS, "epochs": 2 if name == "saf" else 1, "sync_batch_norm": True}


def normalized_arguments(name):
    """In half precision the last bit of an output would decide the last bit of 11 in SAF's store."""
    return {**ARGUMENTS.get(name, {}), **({"store": "full"} if name == "saf" else {})}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Every method trained by two processes and by one: name -> (directory of two, directory of one)."""
    base = tmp_path_factory.mktemp("distributed")
    (base / "worker.py").write_text(WORKER)
    jobs = [(name, ARGUMENTS.get(name, {}), str(base / f"two-{name}"), SETTINGS) for name in METHODS]
    jobs.append(("sam", {}, str(base / "two-per-process"), {**SETTINGS, "per_process": True, "epochs": 1}))
    for name in METHODS:
        jobs.append((name, normalized_arguments(name), str(base / f"norm-two-{name}"), synchronized_settings(name)))
    # The gradient of four examples: one of the processes may have none of them and must make the pass all the same.
    few = {**synchronized_settings("k-sam"), "batch_size": 60}
    jobs.append(("k-sam", {"k": 4}, str(base / "norm-two-few"), few))
    averaged = {**synchronized_settings("sgd"), "average": "ema"}
    jobs.append(("sgd", {}, str(base / "norm-two-averaged"), averaged))
    torchrun(str(base / "worker.py"), json.dumps(jobs), str(base))
    for name in METHODS:
        train(METHODS[name](**ARGUMENTS.get(name, {})), model=network(), out=base / f"one-{name}", **SETTINGS)
        method = METHODS[name](**normalized_arguments(name))
        one = {**synchronized_settings(name), "sync_batch_norm": False}
        train(method, model=normalized(), out=base / f"norm-one-{name}", **one)
    train(METHODS["k-sam"](k=4), model=normalized(), out=base / "norm-one-few", **{**few, "sync_batch_norm": False})
    train("sgd", model=normalized(), out=base / "norm-one-averaged", **{**averaged, "sync_batch_norm": False})
    return base


def weights(out):
    content = torch.load(out / "ckpt.pt", weights_only=True)
    return torch.cat([t.flatten() for t in content["model"]["state"].values()])


@pytest.mark.parametrize("name", list(METHODS))
def test_two_processes_equal_one(name, pairs):
    one, two = weights(pairs / f"one-{name}"), weights(pairs / f"two-{name}")
    # Float32 sums in another order, over 12 steps.
    torch.testing.assert_close(two, one, rtol=0, atol=1e-6)
    for a, b in zip(*(read_history(pairs / f"{n}-{name}" / "history.csv") for n in ("one", "two")), strict=True):
        assert a.keys() == b.keys()
        for key in ("step", "forward_examples", "backward_examples", "lr"):
            assert a[key] == b[key], key
        assert b["train_loss"] == pytest.approx(a["train_loss"], rel=1e-5)
        assert b["test_accuracy"] == pytest.approx(a["test_accuracy"], abs=1 / 360)


@pytest.mark.parametrize("name", [*METHODS, "few"])
def test_two_processes_equal_one_with_synchronized_batch_norm(name, pairs):
    one, two = weights(pairs / f"norm-one-{name}"), weights(pairs / f"norm-two-{name}")  # running statistics included
    torch.testing.assert_close(two, one, rtol=1e-8, atol=1e-8)


def test_averaged_weights_have_the_statistics_of_whole_batches(pairs):
    """Each process passes its part of a batch through the averaged network."""
    one, two = (weights(pairs / f"norm-{n}-averaged" / "average") for n in ("one", "two"))
    torch.testing.assert_close(two, one, rtol=1e-8, atol=1e-8)
    assert not torch.allclose(two, weights(pairs / "norm-two-averaged"), atol=1e-4)


def test_saf_has_its_term_with_synchronized_batch_norm(pairs):
    """It compares with the outputs of an epoch ago: in a run of one epoch it would be SGD."""
    run = train("sgd", model=normalized(), **{**synchronized_settings("saf"), "sync_batch_norm": False})
    plain = torch.cat([t.flatten() for t in run.model.state_dict().values()])
    assert (weights(pairs / "norm-two-saf") - plain).abs().max() > 1e-4


def test_one_perturbation_a_process_is_two_groups(pairs):
    """Each process perturbs by its half of the batch: m-groups of 120 in one process, up to the order of examples."""
    settings = {**SETTINGS, "epochs": 1, "m": 120}
    run = train("sam", model=network(), **settings)
    one = torch.cat([p.detach().flatten() for p in run.model.parameters()])
    two = weights(pairs / "two-per-process")
    # The last batch of 237 is divided 118 + 118 here and 120 + 117 there.
    torch.testing.assert_close(two, one, rtol=0, atol=2e-4)
    plain = torch.cat(
        [p.detach().flatten() for p in train("sam", model=network(), **{**SETTINGS, "epochs": 1}).model.parameters()]
    )
    assert (two - plain).abs().max() > 10 * (two - one).abs().max()


def test_the_optimizer_interface_under_ddp(pairs):
    """One perturbation for all equals one process; one each equals m-groups of half the batch."""
    for synchronized, group_size in ((True, None), (False, 12)):
        found, expected = torch.load(pairs / f"adapted-{synchronized}.pt"), adapted(group_size=group_size)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert (adapted() - adapted(group_size=12)).abs().max() > 1e-4


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are listed in /proc on Linux alone")
def test_no_thread_outlives_the_group(pairs):
    """One that does aborts the process, now and then, when it drops a tensor while the interpreter ends."""
    for rank in range(2):
        within, after = (json.loads((pairs / f"{when}-{rank}.json").read_text()) for when in ("within", "after"))
        assert any("gloo" in name for name in within)  # the threads are found by this name
        assert not any("gloo" in name for name in after)


def test_the_command_under_torchrun_trains_and_reports_once(tmp_path):
    out = tmp_path / "run"
    options = ["--data", "toy2d:n=200", "--model", "mlp:hidden=8", "--epochs", "2", "--out", str(out)]
    printed = torchrun("-m", "cli", "train", "sam", *options)
    assert printed.count("test accuracy") == 1
    assert torch.load(out / "ckpt.pt", weights_only=True)["provenance"]["processes"] == 2
