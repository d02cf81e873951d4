"""The training loop: one for all methods; counts its work, survives a kill, resumes bitwise.

Randomness is a function of the seed and of what is drawn: order and augmentation of an epoch, draws of a method in a
step. Only dropout draws from torch's global streams, whose states are in the checkpoint; the caller's are put back.
"""

from __future__ import annotations

import dataclasses
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import landscape
from landscape.errors import InputError, unknown
from landscape.problem.batches import Batch
from landscape.processes import rank
from landscape.progress import Bar, is_shown
from trainers import METHODS
from trainers.data.datasets import Data
from trainers.loop.base import base_optimizer, clip_gradient, inner_decay
from trainers.loop.budget import Budget, Schedule
from trainers.loop.epochs import Epochs, Share
from trainers.loop.evaluation import TrainingSet, average_buffers, evaluate, load
from trainers.loop.run_directory import COLUMNS, RunDirectory, plain
from trainers.loop.run_state import RunState
from trainers.loop.settings import Settings
from trainers.method.batch_norm import synchronize_batch_norm
from trainers.method.method import Context, Method, Pass, Task
from trainers.method.network import equal_on_all_processes
from trainers.models import build_model
from trainers.names import parse_name

CHECK_STEPS = 50
"""Steps between two looks at the loss: each look waits for the device."""


@dataclass(frozen=True)
class Run:
    """A finished training.

    Attributes:
        model: the trained network, in evaluation mode.
        method: what trained it.
        settings: with the defaults filled in.
        history: one row an epoch, as in history.csv.
        directory: where ckpt.pt, history.csv and config.json lie; None if nothing was written.
        epochs_trained: epochs that this call trained: 0 for a run that was finished before.
        passes: forward-plus-backward passes over the training set that the run cost.
    """

    model: nn.Module
    method: Method
    settings: Settings
    history: list[dict[str, Any]]
    directory: Path | None
    epochs_trained: int
    passes: float


def train(
    method: Method | str,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    device: torch.device | str = "cpu",
    model: nn.Module | str | None = None,
    data: Data | str | None = None,
    **settings: Any,
) -> Run:
    """Train a network.

    Args:
        method: a method or its name: METHODS["sam"](rho=0.1) or "sam".
        out: directory for ckpt.pt, history.csv and config.json; None writes nothing.
        resume: go on with the run that `out` holds; a finished one is returned as it is.
        device: where to train.
        model: a built-in network's name with its arguments, or any nn.Module (trained in place; a checkpoint of it is
            analyzed with --model).
        data: a data set's name with its arguments, or `trainers.data.datasets.Data`.
        settings: fields of `trainers.loop.settings.Settings`.

    Raises:
        InputError: wrong settings, a directory that holds another run, a loss that is not finite (the step is named,
            the last good checkpoint kept).
    """
    known = {f.name for f in dataclasses.fields(Settings)}
    for name in settings:
        if name not in known:
            raise unknown("setting", name, known)
    named = {k: v for k, v in (("model", model), ("data", data)) if isinstance(v, str)}
    named |= {
        k: f"<{type(v).__name__}>" for k, v in (("model", model), ("data", data)) if v is not None and k not in named
    }
    method = METHODS[method]() if isinstance(method, str) else method
    chosen = Settings(**{**settings, **named}).resolved(method.base)
    # Dropout draws from the global streams: the run's own, put back afterwards.
    with torch.random.fork_rng(devices=_cuda_devices(device)):
        torch.manual_seed(chosen.seed + rank())
        trainer = _Trainer(method, chosen, torch.device(device), model, data, out, resume)
        return trainer.run()


class _Trainer:
    """One run: builds what is trained, restores it, trains epoch by epoch."""

    def __init__(
        self,
        method: Method,
        settings: Settings,
        device: torch.device,
        model: nn.Module | str | None,
        data: Data | str | None,
        out: str | Path | None,
        resume: bool,
    ) -> None:
        self.method, self.settings, self.device = method, settings, device
        self.config = {
            "method": {"name": method.name, "arguments": plain(method.arguments)},
            "settings": settings.plain,
        }
        self.directory = None if out is None else RunDirectory(out, resume, self.config, writes=rank() == 0)
        self.data = (data if isinstance(data, Data) else load(settings)).to(device)
        self._build_model(model)
        self._build_task()
        task = self.task
        self.epochs = Epochs(self.data, settings, device, task.world, task.rank, bool(task.norms))
        self.budget = Budget.of(settings, self.epochs.steps, self.data.size("train"))
        assert settings.lr is not None
        self.schedule = Schedule(settings.schedule, settings.lr, settings.lr_min, settings.warmup)
        self.now.method = method.init(self.task, self._context())
        self.history: list[dict[str, Any]] = []
        if self.directory is not None:
            if self.directory.content is not None:
                self.now.restore(self.directory.content)
            self._wait_for_all()  # no process may find the files of another as those of an earlier run
            # Everything that can be wrong has been looked at: only now is a file touched.
            self.history = self.directory.start()

    # -- building --------------------------------------------------------------------------------------------------

    def _build_model(self, model: nn.Module | str | None) -> None:
        if isinstance(model, nn.Module):
            self.model, self.model_named = model, {"name": "", "arguments": {}}
        else:
            name, arguments = parse_name(self.settings.model)
            arguments = {"classes": self.data.classes, "input_shape": self.data.input_shape, **arguments}
            self.model = build_model(name, seed=self.settings.seed, **arguments)
            self.model_named = {"name": name, "arguments": plain(arguments)}
        self.model.to(self.device)
        # Convolutions are 1.2 to 1.5 times faster so, on a CPU too; there a caller's own network is left as it is.
        left_alone = isinstance(model, nn.Module) and self.device.type == "cpu"
        self.channels_last = len(self.data.input_shape) == 3 and not left_alone
        if self.channels_last:
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it
        if isinstance(model, nn.Module):
            equal_on_all_processes(self.model)
        if self.settings.sync_batch_norm:
            self.model = synchronize_batch_norm(self.model)

    def _build_task(self) -> None:
        s = self.settings

        def loss(outputs: Tensor, targets: Tensor) -> Tensor:
            return F.cross_entropy(outputs, targets, reduction="none", label_smoothing=s.label_smoothing)

        optimizer = base_optimizer(s, self.model)
        scaler = torch.amp.GradScaler(self.device.type) if s.precision == "float16" else None
        self.task = Task(
            self.model,
            loss,
            optimizer=optimizer,
            precision=s.precision,
            scaler=scaler,
            decay=inner_decay(s, self.model),
            group_size=s.m,
            synchronized=not s.per_process,
        )
        self.now = RunState(self.model, optimizer, scaler, self.task)

    # -- running ---------------------------------------------------------------------------------------------------

    def run(self) -> Run:
        """Train until the budget is spent."""
        started = self.now.epoch
        self._announce()
        total = self.budget.total_steps(self.now.step, self._progress())
        with Bar(self.method.name, total, done=self.now.step) as bar:
            while self._progress() < 1:
                try:
                    self._train_epoch(bar)
                except InputError:
                    if self.directory is not None:  # what is wrong with the input may show in the first step
                        self.directory.abandon()
                    raise
        self._wait_for_all()
        self.model.eval()
        directory = None if self.directory is None else self.directory.path
        spent = self.budget.spent_passes(self.task.passes)
        return Run(self.model, self.method, self.settings, self.history, directory, self.now.epoch - started, spent)

    def _wait_for_all(self) -> None:
        if self.task.world > 1:
            torch.distributed.barrier()

    def _announce(self) -> None:
        text = self.method.announcement(self.task, self._context())
        if text and is_shown():
            import sys

            print(text, file=sys.stderr)

    def _train_epoch(self, bar: Bar) -> None:
        self.model.train()
        start, before = time.perf_counter(), self.now.seconds
        sizes: list[int] = []
        trace = torch.zeros(2, self.epochs.steps, dtype=torch.float64, device=self.device)
        lr, first, checked = 0.0, self.now.step, 0
        for i, share in enumerate(self.epochs(self.now.epoch)):
            if self._progress() >= 1:
                break
            context = self._context()
            lr = context.lr
            made = self._train_step(share, context)
            trace[0, i], trace[1, i] = made.loss, made.hits()
            sizes.append(made.size)
            self.now.step += 1
            self._look_at_clock(before + time.perf_counter() - start)
            if i + 1 - checked == CHECK_STEPS:
                self._require_finite(trace[0, : i + 1], first)
                checked = i + 1
            bar.advance()
        self._require_finite(trace[0, : self.now.step - first], first)
        self._look_at_clock(before + time.perf_counter() - start)
        self.now.epoch += 1
        self._finish_epoch(trace[:, : self.now.step - first], sizes, lr)
        row = self.history[-1]
        bar.note(f"{self.method.name} epoch {self.now.epoch}: test accuracy {row['test_accuracy']:.4f}")

    def _train_step(self, share: Share, context: Context) -> Pass:
        inputs = share.inputs
        if self.channels_last:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        for group in self.now.optimizer.param_groups:
            group["lr"] = context.lr
        batch = Batch((inputs,), {}, share.targets, inputs.shape[0])
        step = self.task.step(batch, context, indices=share.indices, sizes=share.sizes)
        before = dict(self.now.method)
        made = self.method.gradient(step, self.now.method)
        if self._apply():
            self.method.after_step(step, self.now.method)
        else:
            self.now.method, self.now.skipped = before, self.now.skipped + 1
        return made

    def _apply(self) -> bool:
        """Clip and take the optimizer's step; False if fp16 overflowed and it was skipped."""
        scaler = self.now.scaler
        if scaler is not None:
            scaler.unscale_(self.now.optimizer)
        if self.settings.clip is not None:
            clip_gradient(self.task.parameters, self.settings.clip)
        if scaler is None:
            self.now.optimizer.step()
            return True
        before = scaler.get_scale()
        scaler.step(self.now.optimizer)
        scaler.update()
        return scaler.get_scale() >= before

    def _progress(self) -> float:
        return self.budget.progress(self.now.step, self.task.passes, self.now.seconds)

    def _context(self) -> Context:
        progress = self._progress()
        return Context(
            epoch=self.now.epoch,
            step=self.now.step,
            total_steps=self.budget.total_steps(self.now.step, progress),
            steps_per_epoch=self.epochs.steps,
            batch_size=self.settings.batch_size,
            progress=progress,
            lr=self.schedule.rate(self.now.step, progress),
            lr_min=self.schedule.final,
            lr_max=self.schedule.highest,
            warming=self.schedule.warming(self.now.step),
            warmed=self.schedule.warmed(self.now.step),
            warmup_steps=self.settings.warmup,
            seed=self.settings.seed,
            training_set=TrainingSet(self.data),
        )

    # -- the end of an epoch ---------------------------------------------------------------------------------------

    def _require_finite(self, losses: Tensor, first: int) -> None:
        """Stop at a loss that is not finite; `first` steps were done before the first of `losses`."""
        bad = ~torch.isfinite(losses)
        if self.task.world > 1:
            bad = bad.to(torch.uint8)
            torch.distributed.all_reduce(bad, torch.distributed.ReduceOp.MAX)
        if not bool(bad.any()):
            return
        i = int(bad.to(torch.uint8).argmax())
        self._diverged(f"the loss is {float(losses[i])} at step {first + i + 1} (epoch {self.now.epoch + 1})")

    def _diverged(self, what: str) -> None:
        kept = "nothing was saved"
        if self.directory is not None:
            path = self.directory.path / "ckpt.pt"
            kept = f"the last good checkpoint, {path}, is kept" if path.exists() else "no epoch had been saved yet"
            self.directory.abandon()
        advice = "try a lower --lr, a longer --warmup or --clip"
        raise InputError(f"{what}: {advice}; {kept}")

    def _finish_epoch(self, trace: Tensor, sizes: list[int], lr: float) -> None:
        """Average over processes, evaluate, write the history's row and the checkpoint."""
        weights = torch.tensor(sizes, dtype=torch.float64, device=self.device)
        sums = torch.stack([(trace[0] * weights).sum(), trace[1].sum(), weights.sum()])
        if self.task.world > 1:
            torch.distributed.all_reduce(sums)
            average_buffers(self.model, self.task.world)
        finite = torch.stack([torch.isfinite(p).all() for p in self.model.parameters()]).all()
        if not bool(finite):
            self._diverged(f"weights are not finite after step {self.now.step} (epoch {self.now.epoch})")
        test_loss, test_accuracy = evaluate(self.model, self.data, self.settings.precision)
        loss, hits, count = sums.tolist()
        now, passes = self.now, self.task.passes
        values = (now.epoch, now.step, loss / count, hits / count, test_loss, test_accuracy, lr, now.seconds)
        row = dict(zip(COLUMNS, (*values, int(passes.forward), int(passes.backward)), strict=True))
        row |= self.method.columns(self.now.method)
        if self.now.scaler is not None:
            row["skipped_steps"] = self.now.skipped
        self.history.append(row)
        if self.directory is not None:
            self.directory.append(row)
            self._save()

    def _save(self) -> None:
        s, directory = self.settings, self.directory
        assert directory is not None
        keep = s.keep_every > 0 and self.now.epoch % s.keep_every == 0
        done = self._progress() >= 1
        if not (keep or done or self.now.epoch % s.save_every == 0):
            return
        directory.save(
            {
                "model": {**self.model_named, "state": dict(self.model.state_dict())},
                "data": {"name": self.data.name, "arguments": plain(self.data.arguments)},
                "method": {**self.config["method"], "state": plain(self.now.method)},
                "scheduler": {**dataclasses.asdict(self.schedule), "progress": self._progress()},
                "settings": plain(s.plain),
                "provenance": self._provenance(),
                **self.now.pack(),
            },
            keep_as=f"epoch-{self.now.epoch}.pt" if keep else None,
        )

    def _provenance(self) -> dict[str, Any]:
        return {
            "landscape": landscape.__version__,
            "torch": str(torch.__version__),
            "python": platform.python_version(),
            "device": str(self.device),
            "processes": self.task.world,
            "data_sha256": self.data.sha256,
        }

    def _look_at_clock(self, seconds: float) -> None:
        self.now.seconds = seconds
        if self.budget.kind == "seconds" and self.task.world > 1:  # all processes stop at the same step
            clock = torch.tensor(seconds, dtype=torch.float64, device=self.device)
            torch.distributed.broadcast(clock, 0)
            self.now.seconds = float(clock)


def _cuda_devices(device: torch.device | str) -> list[torch.device]:
    device = torch.device(device)
    return [device] if device.type == "cuda" else []
