"""The study runs each thing once and goes on where it was."""

import importlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from figures.study import tasks as task_module
from figures.study.study import Study
from figures.study.tasks import Computation, Training
from landscape.errors import InputError
from trainers import METHODS
from trainers.data import DATA

TOY = {"data": "toy2d:n=64,n_test=32", "model": "table2-mlp", "epochs": 2, "batch_size": 32}


def weight_norm(run, *, power, machine):
    """A computation: a number of one trained network."""
    from landscape import checkpoint

    state = checkpoint.read(run / "ckpt.pt")["model"]["state"]
    return {"norm": sum(float((w.double() ** power).sum()) for w in state.values()), "device": machine.device == "cpu"}


def refuse(*_):
    raise AssertionError("nothing may be run again")


def norm_of(training, power=2):
    return Computation("test_study:weight_norm", (training,), {"power": power})


@pytest.fixture
def small(tmp_path):
    return Study(tmp_path / "study", "smoke")


def test_a_second_call_runs_nothing(small, monkeypatch):
    training = small.training("sgd", 0, **TOY)
    tasks = [norm_of(training), training, norm_of(training)]
    assert small.run(tasks) == 2
    first = small.result(tasks[0])["norm"]
    monkeypatch.setattr(task_module, "run_task", refuse)
    again = Study(small.directory, "smoke")
    assert again.run(tasks) == 0
    assert again.result(tasks[0])["norm"] == first > 0


def test_a_method_that_changed_is_trained_again(monkeypatch):
    before = Training("sgd", {}, {**TOY, "seed": 0}).key
    monkeypatch.setitem(METHODS.entry("sgd").facts, "revision", 7)
    assert Training("sgd", {}, {**TOY, "seed": 0}).key != before


def test_defaults_are_part_of_the_configuration():
    """Of the method, the settings, the base optimizer, the data and the network: written out or not, it is one run."""
    short = Training("sam", {}, {**TOY, "seed": 0})
    data, model = "toy2d:n=64,n_test=32,variance=5.0", "table2-mlp"
    settings = {**TOY, "data": data, "model": model, "seed": 0, "momentum": 0.9, "lr": 0.1, "weight_decay": 5e-4}
    assert Training("sam", {"rho": 0.05}, settings).key == short.key
    for changed in ({"data": f"{data},seed=3"}, {"momentum": 0.8}, {"weight_decay": 0.0}):
        assert Training("sam", {"rho": 0.05}, {**settings, **changed}).key != short.key
    assert Training("sam", {"rho": 0.06}, settings).key != short.key


def test_a_changed_default_is_another_configuration(monkeypatch):
    """Nothing but the default changes: of a field of a method, of an option of the data."""
    import dataclasses

    def keys():
        return Training("sam", {}, {**TOY, "seed": 0}).key, Training("sam", {"rho": 0.05}, {**TOY, "seed": 0}).key

    before = keys()
    real = METHODS["sam"]
    changed = dataclasses.make_dataclass("sam", [("rho", float, 0.07)], bases=(real,), frozen=True)
    monkeypatch.setattr(f"{real.__module__}.{real.__name__}", changed)
    after = keys()
    assert after[0] != before[0]
    assert after[1] == before[1] == before[0]
    entry = DATA.entry("toy2d")
    options = [dataclasses.replace(o, default=3.0) if o.name == "variance" else o for o in entry.options]
    monkeypatch.setitem(DATA.entries, "toy2d", dataclasses.replace(entry, options=tuple(options)))
    assert keys()[1] != after[1]


def test_defaults_of_measures_are_part_of_a_computation(monkeypatch):
    def key(**arguments):
        return Computation("figures.study.computations:measures", (), {"wanted": {"hessian_trace": arguments}}).key

    from landscape import MEASURES

    seed = MEASURES.entry("hessian_trace").option("seed")
    assert key() == key(seed=seed.default) != key(seed=seed.default + 1)


def test_a_time_belongs_to_its_kind_of_device(tmp_path):
    here, there = Study(tmp_path, "smoke"), Study(tmp_path, "smoke", device="cuda:1")
    timed = Computation("test_study:weight_norm", (), {}, timed=True)
    budgeted = here.training("sgd", 0, **TOY, budget_seconds=1.0)
    for task in (timed, budgeted):
        assert here.path(task) != there.path(task) == Study(tmp_path, "smoke", device="cuda:0").path(task)
    plain = here.training("sgd", 0, **TOY)
    assert here.path(plain) == there.path(plain)


def test_what_determines_the_outcome_is_in_the_key():
    base = Training("sgd", {}, {**TOY, "seed": 0})
    other = [
        Training("sam", {}, {**TOY, "seed": 0}),
        Training("sam", {"rho": 0.1}, {**TOY, "seed": 0}),
        Training("sgd", {}, {**TOY, "seed": 1}),
        Training("sgd", {}, {**TOY, "seed": 0, "lr": 0.2}),
        Training("sgd", {}, {**TOY, "seed": 0, "keep_every": 1}),
    ]
    assert len({t.key for t in (base, *other)}) == 6
    assert Training("sgd", {}, {"seed": 0, **TOY, "save_every": 50}).key == base.key
    assert norm_of(base).key != norm_of(base, 1).key
    assert norm_of(base).key != norm_of(other[0]).key


def test_a_changed_function_is_computed_again(monkeypatch):
    before = norm_of(Training("sgd", {}, TOY)).key

    def weight_norm(run):
        return {"norm": 0.0}

    monkeypatch.setattr("test_study.weight_norm", weight_norm)
    assert norm_of(Training("sgd", {}, TOY)).key != before


def test_a_changed_helper_is_a_changed_function(tmp_path, monkeypatch):
    text = "def helper(x):\n    return {}\n\ndef outer(run):\n    return [helper(i) for i in (1, 2)]\n"
    found = []
    for name, value in (("one", "x"), ("two", "x + 1"), ("three", "x")):
        (tmp_path / f"module_{name}.py").write_text(text.format(value) + "\n\ndef other():\n    return 0\n")
        monkeypatch.syspath_prepend(tmp_path)
        found.append(task_module.source(importlib.import_module(f"module_{name}").outer))
    assert found[0] == found[2] != found[1]
    assert "other" not in found[0]


def test_a_file_that_is_edited_meanwhile_changes_no_key(tmp_path, monkeypatch):
    """The process goes on with the code that it has loaded; a second call of it must find what the first one kept."""
    (tmp_path / "edited.py").write_text("def outer():\n    return 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    before = Computation("edited:outer").key
    (tmp_path / "edited.py").write_text("# a line more\ndef other():\n    return 2\n\ndef outer():\n    return 3\n")
    assert Computation("edited:outer").key == before


def test_a_computation_brings_its_training(small):
    training = small.training("sgd", 0, **TOY)
    assert [type(t) for t in small.missing([norm_of(training)])] == [Training, Computation]
    small.run([norm_of(training)])
    assert small.missing([norm_of(training), training]) == []


def test_an_interrupted_study_resumes(small, monkeypatch):
    """Killed within the second run: the first is kept, the second goes on from its checkpoint, bitwise."""
    from trainers.loop.trainer import Trainer

    tasks = [small.training("sam", s, **{**TOY, "epochs": 2}) for s in (0, 1)]
    whole = Study(small.directory.parent / "whole", "smoke")
    whole.run([norm_of(t) for t in tasks])
    real, epochs = Trainer._train_epoch, []

    def killed(self, bar):
        epochs.append(self.settings.seed)
        if len(epochs) == 4:
            raise KeyboardInterrupt
        real(self, bar)

    monkeypatch.setattr(Trainer, "_train_epoch", killed)
    with pytest.raises(KeyboardInterrupt):
        small.run(tasks)
    assert [small.done(t) for t in tasks] == [True, False]
    small.run([norm_of(t) for t in tasks])
    assert epochs == [0, 0, 1, 1, 1], "only the epoch that was lost is trained again"
    for t in tasks:
        assert small.result(norm_of(t))["norm"] == whole.result(norm_of(t))["norm"]


def test_what_a_task_cost_is_kept(small):
    training = small.training("sgd", 0, **TOY)
    timed = Computation("test_study:weight_norm", (training,), {"power": 1}, timed=True)
    small.run([norm_of(training), timed])
    parts = [small.spent([t])["seconds"] for t in (training, norm_of(training), timed)]
    assert min(parts) > 0
    spent = small.spent([norm_of(training), training, timed])
    # The training counts once; times are kept to the millisecond.
    assert spent["seconds"] == pytest.approx(parts[1] + parts[2] - parts[0], abs=0.003)
    assert spent["alone_seconds"] == pytest.approx(parts[2] - parts[0], abs=0.003)
    assert spent["processor_seconds"] > 0


def broken(run):
    raise InputError("a broken computation")


def test_a_failure_stays_with_what_depends_on_it(small, monkeypatch):
    good, bad = (small.training(m, 0, **TOY) for m in ("sgd", "sam"))
    real = task_module.Training.run

    def run(self, path, machine):
        if self.method == "sam":
            raise InputError("diverged")
        real(self, path, machine)

    monkeypatch.setattr(task_module.Training, "run", run)
    tasks = [norm_of(bad), norm_of(good), Computation("test_study:broken", (good,))]
    ended = {}
    assert small.run(tasks, lambda task, error: ended.__setitem__(task.name, error and str(error))) == 5
    expected = [(bad, "diverged"), (tasks[0], "diverged"), (good, None), (tasks[1], None)]
    assert ended == {t.name: error for t, error in [*expected, (tasks[2], "a broken computation")]}
    assert [small.done(t) for t in tasks] == [False, True, False]
    with pytest.raises(InputError, match="diverged"):
        small.run(tasks)


def test_times_are_measured_behind_everything_else(small):
    training = small.training("sgd", 0, **TOY)
    timed = [Computation("test_study:weight_norm", (training,), {"power": p}, timed=True) for p in (3, 4)]
    budgeted = small.training("sam", 0, **TOY, budget_seconds=0.1)
    order = []
    small.run([timed[0], norm_of(budgeted), norm_of(training), timed[1]], lambda task, error: order.append(task))
    assert order == [training, norm_of(training), timed[0], budgeted, norm_of(budgeted), timed[1]]


@pytest.mark.slow
def test_processes_give_what_one_process_gives(small):
    tasks = [norm_of(small.training("sgd", s, **TOY)) for s in (0, 1)]
    small.run(tasks)
    # A spawned worker cannot import this test file: a figure's own computation is what is compared.
    both = Study(small.directory.parent / "both", "smoke", workers=2)
    trainings = [t.trainings[0] for t in tasks]
    assert both.run(trainings) == 2
    for t in trainings:
        np.testing.assert_array_equal(both.history(t)["train_loss"], small.history(t)["train_loss"])


def test_presets_limit_trainings(tmp_path):
    smoke, quick = Study(tmp_path, "smoke"), Study(tmp_path, "quick", seeds=7)
    assert smoke.training("sgd", 0, epochs=200).settings["epochs"] == 2
    assert quick.training("sgd", 0, epochs=200).settings["epochs"] == 200
    assert smoke.seeds(quick=5) == [0, 1]
    assert quick.seeds(quick=5) == list(range(7))
    assert Study(tmp_path, "quick").seeds(quick=5) == list(range(5))
    assert (smoke.choose(1, 2), Study(tmp_path, "paper").choose(1, 2)) == (1, 2)
    gpu = Study(tmp_path, "gpu")
    assert (gpu.choose(1, 2), gpu.choose(1, 2, gpu=3), Study(tmp_path, "middle").choose(1, 2, gpu=3)) == (1, 3, 1)
    with pytest.raises(InputError, match="quick"):
        Study(tmp_path, "quik")


def test_data_in_a_file_are_what_it_holds(tmp_path):
    """The same images in another folder are the same configuration, others under the same name are not."""

    def training(folder, values):
        (tmp_path / folder).mkdir(exist_ok=True)
        arrays = {"x_train": values, "y_train": np.arange(4), "x_test": values, "y_test": np.arange(4)}
        np.savez(tmp_path / folder / "cifar10.npz", **arrays)
        return Training("sgd", {}, {**TOY, "data": f"npz:{tmp_path / folder / 'cifar10.npz'}", "seed": 0})

    images = np.arange(4 * 8 * 8 * 3, dtype=np.uint8).reshape(4, 8, 8, 3)
    first = training("here", images).key
    assert training("there", images).key == first
    assert training("here", images + 1).key != first


def test_photographs_of_the_preset_gpu_are_those_at_hand(tmp_path):
    from figures.study import recipes

    study = Study(tmp_path, "gpu", data_dir=str(tmp_path))
    assert recipes.photographs(study, "sam", 0).settings["data"] == "fashion-mnist"
    assert "cifar10.npz is not there" in recipes.lacking(study)
    (tmp_path / "cifar10.npz").touch()
    run = recipes.photographs(study, "sam", 0, base="adam")
    assert (run.settings["data"], run.settings["epochs"], run.settings["lr"]) == (
        f"npz:{tmp_path / 'cifar10.npz'}",
        60,
        0.001,
    )
    assert recipes.describe(run, run)["data"] == "cifar10.npz"
    assert not recipes.lacking(study)


def test_the_workers_of_a_killed_process_end():
    """They would wait for work for ever, or go on writing where the next call writes."""
    code = (
        "import multiprocessing, os, time; from concurrent.futures import ProcessPoolExecutor; "
        "from figures.study.workers import _start_worker; context = multiprocessing.get_context('spawn'); "
        "pool = ProcessPoolExecutor(1, mp_context=context, initializer=_start_worker); "
        "print(pool.submit(os.getpid).result(), flush=True); time.sleep(60)"
    )
    root = Path(__file__).parent.parent
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=root, stdout=subprocess.PIPE, text=True)
    worker = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            os.kill(worker, 0)
        except ProcessLookupError:
            return
        time.sleep(0.02)
    os.kill(worker, signal.SIGKILL)
    pytest.fail("the worker is still there")
