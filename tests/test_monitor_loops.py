"""Monitor in loops of others: Lightning, Hugging Face, Accelerate, and their loggers."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monitor_cases import CHEAP, assert_same, dropped, plain, problem_of, snapshot
from own_loop_cases import batches, lightning_fit, network, sgd

import landscape
from landscape.errors import InputError
from trainers import METHODS, MethodOptimizer

NAMES = {f"landscape/{name}" for name in ("training_seconds", "measuring_seconds", *CHEAP)}


def seeded():
    torch.manual_seed(3)
    random.seed(4)
    np.random.seed(5)  # noqa: NPY002


# -- Lightning ---------------------------------------------------------------------------------------------------------


def lit(lightning, manual):
    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = not manual
            self.model = dropped()

        def configure_optimizers(self):
            optimizer = sgd(self.model)
            return MethodOptimizer(optimizer, METHODS["sam"](rho=0.2), self.model) if manual else optimizer

        def training_step(self, batch, batch_index):
            inputs, targets = batch
            if not manual:
                return F.cross_entropy(self.model(inputs), targets)
            optimizer = self.optimizers()

            def closure():
                optimizer.zero_grad()
                loss = F.cross_entropy(self.model(inputs), targets)
                self.manual_backward(loss)
                return loss

            return optimizer.step(closure=closure)

    return Module()


@pytest.mark.parametrize(("manual", "accumulated"), [(False, 1), (False, 2), (True, 1)])
def test_lightning(tmp_path, manual, accumulated):
    lightning = pytest.importorskip("lightning.pytorch", reason="Lightning is not installed")

    class Kept(lightning.loggers.logger.DummyLogger):
        def __init__(self):
            super().__init__()
            self.rows = []

        def log_metrics(self, metrics, step=None):
            self.rows.append((step, metrics))

    def trained(monitor_of):
        module, logger = lit(lightning, manual), Kept()
        seeded()
        monitor = monitor_of(module)
        callbacks = [] if monitor is None else [monitor.lightning_callback()]
        options = {"max_epochs": 2, "logger": [logger], "accumulate_grad_batches": accumulated}
        lightning_fit(lightning, module, batches(), tmp_path, callbacks=callbacks, **options)
        return snapshot(module.model, module.optimizers()), monitor, logger.rows

    def watching(module):
        return landscape.Monitor(problem_of(module.model), every=3, measures=CHEAP, out=tmp_path / "run")

    alone, _, logged = trained(lambda module: None)
    watched, monitor, rows = trained(watching)
    assert_same(watched, alone)
    assert [row["step"] for row in monitor.history] == list(range(0, 12 // accumulated + 1, 3))
    ours = [(step, metrics) for step, metrics in rows if metrics.keys() >= NAMES]
    assert [step for step, _ in ours] == [row["step"] for row in monitor.history]
    assert [m["landscape/sharpness"] for _, m in ours] == [row["sharpness"] for row in monitor.history]
    assert len(rows) == len(logged) + len(ours)
    assert not list((tmp_path / "run").glob(".*")), "closed when training ended"


# -- Hugging Face ------------------------------------------------------------------------------------------------------


def test_hugging_face_calls():
    """The calls that Transformers' Trainer makes, in their order, where it is not installed."""
    control = types.SimpleNamespace(should_log=True)
    logs = []

    class Trainer:
        def log(self, values):
            control.should_log = False  # as its CallbackHandler.on_log does
            logs.append(values)

    fake = types.ModuleType("transformers")
    fake.TrainerCallback = type("TrainerCallback", (), {})
    model = network()
    monitor = landscape.Monitor(problem_of(model), every=2, measures=CHEAP)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "transformers", fake)
        callback = monitor.hugging_face_callback(Trainer())
    assert isinstance(callback, fake.TrainerCallback)
    state = types.SimpleNamespace(global_step=0)
    callback.on_train_begin(None, state, control, model=model)
    for state.global_step in range(1, 5):
        callback.on_step_end(None, state, control, model=model)
        assert control.should_log
    callback.on_train_end(None, state, control, model=model)
    assert [row["step"] for row in monitor.history] == [0, 2, 4]
    assert [v["landscape/gradient_norm"] for v in logs] == [row["gradient_norm"] for row in monitor.history]


def test_hugging_face_trainer(tmp_path):
    transformers = pytest.importorskip("transformers", reason="Transformers is not installed")

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = dropped(torch.float32)

        def forward(self, x, labels):
            logits = self.net(x)
            return {"loss": F.cross_entropy(logits, labels), "logits": logits}

    x, y = (torch.cat(part) for part in zip(*batches(dtype=torch.float32), strict=True))
    examples = [{"x": a, "labels": b} for a, b in zip(x, y, strict=True)]

    def trained(watch):
        seeded()
        model = Model()
        options = {"output_dir": str(tmp_path), "max_steps": 6, "per_device_train_batch_size": 12, "logging_steps": 2}
        arguments = transformers.TrainingArguments(**options, report_to=[], use_cpu=True, save_strategy="no")
        trainer = transformers.Trainer(model, arguments, train_dataset=examples)
        monitor = None
        if watch:
            problem = landscape.Problem(model, None, [{"x": x[:24], "labels": y[:24]}])
            monitor = landscape.Monitor(problem, every=3, measures=CHEAP)
            trainer.add_callback(monitor.hugging_face_callback(trainer))
        trainer.train()
        return snapshot(model, trainer.optimizer), monitor, trainer.state.log_history

    alone, _, logged = trained(watch=False)
    watched, monitor, rows = trained(watch=True)
    assert_same(watched, alone)
    assert [row["step"] for row in monitor.history] == [0, 3, 6]
    assert [row["step"] for row in rows if row.keys() >= NAMES] == [0, 3, 6]
    losses = [[row["loss"] for row in history if "loss" in row] for history in (logged, rows)]
    assert losses[0] == losses[1]


def test_what_is_not_installed_is_named(monkeypatch):
    monitor = landscape.Monitor(problem_of(network()))
    for name in ("transformers", "lightning.pytorch", "pytorch_lightning"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match="transformers is not installed: pip install transformers"):
        monitor.hugging_face_callback()
    with pytest.raises(InputError, match="lightning is not installed: pip install lightning"):
        monitor.lightning_callback()


# -- Accelerate and loggers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_accelerate(precision):
    accelerate = pytest.importorskip("accelerate", reason="Accelerate is not installed")

    class Kept(accelerate.tracking.GeneralTracker):
        name, requires_logging_directory, tracker = "kept", False, None

        def __init__(self):
            super().__init__()
            self.rows = []

        def store_init_configuration(self, values):
            pass

        def log(self, values, step):
            self.rows.append((step, values))

    def trained(watch):
        accelerate.state.AcceleratorState._reset_state(True)
        tracker = Kept()
        accelerator = accelerate.Accelerator(cpu=True, mixed_precision=precision, log_with=[tracker])
        accelerator.init_trackers("run")
        model = dropped(torch.float32)
        model, optimizer = accelerator.prepare(model, sgd(model))
        seeded()
        monitor = None
        if watch:
            problem = problem_of(model, batches(2, dtype=torch.float32))
            monitor = landscape.Monitor(problem, every=2, measures=CHEAP, log=accelerator)
        for step, (inputs, targets) in enumerate(batches(dtype=torch.float32)):
            if watch:
                monitor.step(step)
            optimizer.zero_grad()
            accelerator.backward(F.cross_entropy(model(inputs), targets))
            optimizer.step()
        accelerate.state.AcceleratorState._reset_state(True)
        return snapshot(accelerator.unwrap_model(model), optimizer), tracker.rows

    watched, rows = trained(watch=True)
    assert_same(watched, trained(watch=False)[0])
    assert [step for step, _ in rows] == [0, 2, 4]
    beside = {"landscape/sharpness.error_bound"} if precision == "bf16" else set()
    assert [set(values) - beside for _, values in rows] == [NAMES] * 3
    assert all(values.keys() >= beside for _, values in rows)


def test_loggers_get_every_row():
    class Writer:  # TensorBoard's SummaryWriter
        def add_scalar(self, tag, scalar_value, global_step=None):
            seen.append((tag, scalar_value, global_step))

    class Run:  # of Weights & Biases
        def log(self, data, step=None):
            seen.extend((tag, value, step) for tag, value in data.items())

    def function(values, step):
        seen.extend((tag, value, step) for tag, value in values.items())

    for logger in (Writer(), Run(), function):
        seen, model = [], network()
        monitor = landscape.Monitor(problem_of(model), every=2, measures=CHEAP, log=logger)
        plain(model, 4, watch=monitor.step)
        expected = {
            (f"landscape/{k}", v, row["step"]) for row in monitor.history for k, v in row.items() if k != "step"
        }
        assert set(seen) == expected
        assert len(seen) == 2 * 4


def test_tensorboard_itself(tmp_path):
    tensorboard = pytest.importorskip("torch.utils.tensorboard", reason="TensorBoard is not installed")
    with tensorboard.SummaryWriter(tmp_path) as writer:
        landscape.Monitor(problem_of(network()), measures=CHEAP, log=writer).step(0)
    assert list(tmp_path.glob("events.*"))


# -- processes ---------------------------------------------------------------------------------------------------------

PROCESSES = """
import sys, torch
import torch.nn.functional as F
from landscape.processes import process_group
import landscape
from own_loop_cases import batches, lightning_fit, network, sgd
from torch.nn.parallel import DistributedDataParallel

def watched(me):
    # In a function: a DDP model that lives on holds the group, and gloo's threads abort the end of the interpreter.
    model = DistributedDataParallel(network())
    optimizer = sgd(model)
    together = sys.argv[2] == "together"
    mine = batches(4)[me::2] if together else batches(4)
    problem = landscape.Problem(model, F.cross_entropy, mine, distributed=together)
    budget = {"share": 0.5} if sys.argv[3] == "share" else {"every": 2}
    with landscape.Monitor(
        problem, measures=["gradient_norm", "lambda_max"], out=sys.argv[1], **budget
    ) as monitor:
        for step, (x, y) in enumerate(batches()):
            monitor.step(step)
            optimizer.zero_grad()
            F.cross_entropy(model(x[me::2]), y[me::2]).backward()
            optimizer.step()
    assert bool(monitor.history) == (together or me == 0)

torch.set_num_threads(1)
with process_group() as me:
    watched(me)
"""


@pytest.mark.parametrize(("who", "budget"), [("together", "every"), ("together", "share"), ("first", "every")])
def test_processes(tmp_path, who, budget):
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent.parent), str(Path(__file__).parent)]),
    }
    script = tmp_path / "script.py"
    script.write_text(PROCESSES)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run(
        [*command, str(tmp_path / "run"), who, budget], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    steps = landscape.load(tmp_path / "run/monitor.h5")["step"].tolist()
    assert steps == ([0, 2, 4] if budget == "every" else steps)
    assert steps[0] == 0
    model = network()
    first = landscape.Monitor(problem_of(model, batches(4)), every=1, measures=["gradient_norm"]).step(0)
    stored = landscape.load(tmp_path / "run/monitor.h5")["gradient_norm"][0]
    assert stored == pytest.approx(first["gradient_norm"], rel=1e-10)
