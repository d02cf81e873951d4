"""One run from its first step to its last: steps, epochs, the history's rows and the checkpoints."""

from __future__ import annotations

import dataclasses
import math
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import landscape
from landscape.errors import InputError
from landscape.problem.batches import Batch
from landscape.problem.problem import Problem
from landscape.processes import rank
from landscape.progress import Bar, is_shown
from trainers.datasets import Data, change_since
from trainers.loop.averaging import Averaged, averaged_network
from trainers.loop.budget import Budget, Schedule
from trainers.loop.epochs import Epochs, Share
from trainers.loop.evaluation import TrainingSet, average_buffers, evaluate, load
from trainers.loop.network import Network
from trainers.loop.run_directory import COLUMNS, RunDirectory
from trainers.loop.run_state import RunState
from trainers.loop.settings import Settings
from trainers.method.method import Context, Method, Pass, Step
from trainers.models import require_buildable
from trainers.monitor.measurements import require_watchable
from trainers.monitor.monitor import Monitor
from trainers.rebuild import Sample, batches_of
from trainers.storable import without_tuples

CHECK_STEPS = 50
"""Steps between two looks at the loss: each look waits for the device."""


class Trainer:
    """One run: builds what is trained, restores it, trains epoch by epoch.

    Args:
        method: what leaves the gradient.
        settings: resolved.
        device: where to train.
        model: the caller's network, else the one that the settings name.
        data: the caller's data, else those that the settings name.
        out: directory of the run's files; None writes nothing.
        resume: go on with the run that `out` holds.
        measures: what a Monitor watches.
    """

    def __init__(
        self,
        method: Method,
        settings: Settings,
        device: torch.device,
        model: nn.Module | None,
        data: Data | None,
        out: str | Path | None,
        resume: bool,
        measures: Sequence[str] = (),
    ) -> None:
        self.method, self.settings, self.device = method, settings, device
        self.config = {
            "method": {"name": method.name, "arguments": without_tuples(method.arguments)},
            "settings": settings.plain,
        }
        self.directory = None if out is None else RunDirectory(out, resume, self.config, writes=rank() == 0)
        # What no data make right is refused before there are any: they may take long to read, or a download.
        if model is None:
            require_buildable(settings.model)
        if measures:
            require_watchable(measures)
        self.data = (load(settings) if data is None else data).to(device)
        self.network = Network.of(settings, self.data, device, model)
        self.model = self.network.model
        self.now = RunState.fresh(self.model, settings, device)
        self.task = task = self.now.task
        self.epochs = Epochs(self.data, settings, device, task.world, task.rank, bool(task.norms))
        self.budget = Budget.of(settings, self.epochs.steps, self.data.size("train"))
        assert settings.lr is not None
        self.schedule = Schedule(settings.schedule, settings.lr, settings.lr_min, settings.warmup)
        self.now.method = method.init(self.task, self._context())
        # Rows from the checkpoint's step on are measured again: all of them in a new run.
        self.monitor = (
            Monitor(self._problem(), measures=measures, optimizer=self.now.optimizer, out=out, resume=True)
            if measures
            else None
        )
        self.averaged: Averaged | None = None
        self.history: list[dict[str, Any]] = []
        if self.directory is not None:
            if self.directory.content is not None:
                self._require_same_data(self.directory, self.directory.content)
                self.now.restore(self.directory.content)
            self._wait_for_all()  # no process may find the files of another as those of an earlier run
            # Everything that can be wrong has been looked at: only now is a file touched.
            self.history = self.directory.start()

    def _require_same_data(self, directory: RunDirectory, content: Mapping[str, Any]) -> None:
        """Raise InputError where the data are not those of the checkpoint: a file that has changed, other Data."""
        if change := change_since(content, self.data):
            raise InputError(
                f"the run in {directory.path} was trained on other data ({change}): resume with the same, or choose "
                "another --out"
            )

    # -- running ---------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Train until the budget is spent."""
        with self.monitor or nullcontext():
            try:
                self._watch()
                self._run()
            except BaseException:
                if self.directory is not None:  # what is wrong with the input may show in the first step
                    self.directory.abandon()
                raise

    def _run(self) -> None:
        self._announce()
        total = self.budget.total_steps(self.now.step, self._progress())
        with Bar(self.method.name, total, done=self.now.step) as bar:
            while self._progress() < 1:
                self._train_epoch(bar)
        self._wait_for_all()
        self.model.eval()
        if self.now.average is not None and self.averaged is None:  # a run that was finished before
            self.averaged = self._average()

    def _wait_for_all(self) -> None:
        if self.task.world > 1:
            torch.distributed.barrier()

    def _announce(self) -> None:
        text = self.method.announcement(self.task, self._context())
        if text and is_shown():
            print(text, file=sys.stderr)

    def _train_epoch(self, bar: Bar) -> None:
        self.model.train()
        start, before = time.perf_counter(), self.now.seconds
        sizes: list[int] = []
        trace = torch.zeros(3, self.epochs.steps, dtype=torch.float64, device=self.device)
        lr, first, checked = 0.0, self.now.step, 0
        for i, share in enumerate(self.epochs(self.now.epoch)):
            if self._progress() >= 1:
                break
            context = self._context()
            lr = context.lr
            step = self._step(share, context)
            result = self._train_step(step)
            trace[0, i], trace[1, i] = result.loss, result.hits()
            if self.now.scaler is None:  # else a pass may overflow: its step is skipped
                trace[2, i] = torch.stack(step.losses).sum()
            sizes.append(result.size)
            self.now.step += 1
            self._look_at_clock(before + time.perf_counter() - start)
            start += self._watch()
            if i + 1 - checked == CHECK_STEPS:
                self._require_finite(trace[:, : i + 1], first)
                checked = i + 1
            bar.advance()
        self._require_finite(trace[:, : self.now.step - first], first)
        self._look_at_clock(before + time.perf_counter() - start)
        self.now.epoch += 1
        self._finish_epoch(trace[:, : self.now.step - first], sizes, lr)
        row = self.history[-1]
        bar.note(f"{self.method.name} epoch {self.now.epoch}: test accuracy {row['test_accuracy']:.4f}")

    def _problem(self) -> Problem:
        """The loss that `landscape analyze` states of the checkpoints."""
        return Problem(self.model, nn.functional.cross_entropy, batches_of(self.data, Sample(), self.model))

    def _watch(self) -> float:
        """Let the Monitor look at the network; the seconds that it took are none of training."""
        if self.monitor is None:
            return 0.0
        start = time.perf_counter()
        self.monitor.step(self.now.step)
        return time.perf_counter() - start

    def _step(self, share: Share, context: Context) -> Step:
        inputs = share.inputs
        if self.network.channels_last:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        batch = Batch((inputs,), {}, share.targets, inputs.shape[0])
        return self.task.step(batch, context, indices=share.indices, sizes=share.sizes)

    def _train_step(self, step: Step) -> Pass:
        for group in self.now.optimizer.param_groups:
            group["lr"] = step.context.lr
        before = dict(self.now.method)
        result = self.method.gradient(step, self.now.method)
        if self.now.apply(self.settings.clip):
            self.method.after_step(step, self.now.method)
            if self.now.average is not None:
                self.now.average.after_step()
        else:
            self.now.method, self.now.skipped = before, self.now.skipped + 1
        return result

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

    def _require_finite(self, trace: Tensor, first: int) -> None:
        """Stop at a loss, in whatever pass, that is not finite; `first` steps were done before those of `trace`."""
        reported, passes = trace[0], trace[2]
        bad = ~(torch.isfinite(reported) & torch.isfinite(passes))
        if self.task.world > 1:
            bad = bad.to(torch.uint8)
            torch.distributed.all_reduce(bad, torch.distributed.ReduceOp.MAX)
        if not bool(bad.any()):
            return
        i = int(bad.to(torch.uint8).argmax())
        loss, where = float(reported[i]), "the loss"
        if math.isfinite(loss):
            loss, where = float(passes[i]), "the loss in another pass"
        self._diverged(f"{where} is {loss} at step {first + i + 1} (epoch {self.now.epoch + 1})")

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
        tensors = [*self.model.parameters(), *(b for norm in self.task.norms for b in norm.buffers())]
        if not bool(torch.stack([torch.isfinite(t).all() for t in tensors]).all()):
            self._diverged(
                f"weights or BatchNorm statistics are not finite after step {self.now.step} (epoch {self.now.epoch})"
            )
        test_loss, test_accuracy = evaluate(self.model, self.data, self.settings.precision)
        loss, hits, count = sums.tolist()
        now, passes = self.now, self.task.passes
        values = (now.epoch, now.step, loss / count, hits / count, test_loss, test_accuracy, lr, now.seconds)
        row = dict(zip(COLUMNS, (*values, int(passes.forward), int(passes.backward)), strict=True))
        row |= self.method.columns(self.now.method)
        if self.now.scaler is not None:
            row["skipped_steps"] = self.now.skipped
        self.history.append(row)
        if now.average is not None:
            now.average.after_epoch(self._progress())
        if self.directory is not None:
            self.directory.append(row)
            self._save(self.directory)

    def _save(self, directory: RunDirectory) -> None:
        keep = self.settings.keep_every > 0 and self.now.epoch % self.settings.keep_every == 0
        done = self._progress() >= 1
        if not (keep or done or self.now.epoch % self.settings.save_every == 0):
            return
        keep_as = f"epoch-{self.now.epoch}.pt" if keep else None
        packed = {**self._described(), **self.now.pack()}
        packed["model"] = {**self.network.described, "state": dict(self.model.state_dict())}
        packed["method"] = {**self.config["method"], "state": without_tuples(self.now.method)}
        if self.now.average is not None and self.now.average.count and (keep or done):
            self.averaged = self._average()
            directory.save_average({**packed, **self._of_average(self.averaged)}, keep_as)
        directory.save(packed, keep_as)

    def _described(self) -> dict[str, Any]:
        """What is the same in a checkpoint and in that of the averaged weights."""
        return {
            "data": {"name": self.data.name, "arguments": without_tuples(self.data.arguments)},
            "scheduler": {**dataclasses.asdict(self.schedule), "progress": self._progress()},
            "settings": without_tuples(self.settings.plain),
            "provenance": self._provenance(),
        }

    def _average(self) -> Averaged:
        assert self.now.average is not None
        network = averaged_network(self.model, self.now.average, self.data, self.network.channels_last)
        return Averaged(network, self.now.average.members, *evaluate(network, self.data, self.settings.precision))

    def _of_average(self, averaged: Averaged) -> dict[str, Any]:
        """What is another in the checkpoint of the averaged weights, which no optimizer and no method has moved."""
        kind = self.settings.average
        facts = {k: getattr(averaged, k) for k in ("count", "test_loss", "test_accuracy")}
        return {
            "model": {**self.network.described, "state": dict(averaged.model.state_dict())},
            "method": {**self.config["method"], "name": f"{self.method.name}+{kind}", "state": {}},
            "average": {"kind": kind, **facts},
            "optimizer": {},
        }

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
