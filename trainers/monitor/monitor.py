"""Monitor: measures of the loss landscape of a network while it is trained, without a trace in the training."""

from __future__ import annotations

import numbers
import operator
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from landscape import processes
from landscape.errors import InputError
from landscape.problem.attributes import attributes_kept
from landscape.problem.batches import generators_of
from landscape.problem.evaluator import require_derivatives
from landscape.problem.problem import Problem
from landscape.random import undisturbed
from landscape.results import digest
from landscape.results.result import LabelledArrays
from trainers.companions import Companions
from trainers.monitor.logs import log_of, logged
from trainers.monitor.measurements import DEFAULT_MEASURES, Measurements, named
from trainers.monitor.overhead import Overhead
from trainers.monitor.rows import MeasuredRows, as_arrays

DEFAULT_SHARE = 0.05
SECONDS = ("training_seconds", "measuring_seconds")


class Monitor:
    """Measures L(w) around the weights that a training loop has by now, step after step.

    Nothing of the training changes: weights, buffers, gradients, the optimizer, training flags, `requires_grad`, plain
    attributes of modules (see `landscape.problem.attributes`) and the random streams of Python, NumPy and torch are bit
    for bit those of a loop without it. L is that of the Problem: its
    batches, its loss, its BatchNorm policy; its parameters are those that were trainable when it was made.

    When it measures: at steps that are multiples of `every`; with a `share` at those of them where

        measuring + last <= share (training + measuring + last),

    seconds so far, `last` those of the last measurement: after each one, measuring has had at most that share of the
    run's time if it took as long as the one before. The first of a process is always made. Without both, `share`
    is 0.05 and every step is looked at.

    Args:
        problem: of the very model that is trained. torch.compile and (Distributed)DataParallel are unwrapped.
        every: steps between measurements.
        share: of the run's time that measuring may take, in (0, 1).
        measures: names of `landscape.MEASURES`, with options as on the command line ("sam_sharpness:rho=0.1"), or
            lambda_max, sharpness, trace.
        optimizer: of the training, for `preconditioned_sharpness` and for measures with direction=optimizer.
        other: the loss of other data, for `relative_critical_sharpness`.
        out: writes OUT.csv, OUT.h5 and OUT.journal; of a directory DIR/monitor.*. None keeps the rows in memory.
        resume: go on with the rows that are there. Those from the first step on that this process reports are measured
            again, since training repeats them.
        log: gets every row, too; see `trainers.monitor.logs.log_of`.

    Attributes:
        history: one row per measurement: step, training_seconds and measuring_seconds so far, then each measure under
            the name that it was asked for by, see `trainers.monitor.columns`.
        overhead: measuring's part of the run's time so far.

    Where a measure fails later on (the training has diverged), its columns are nan and a warning says why; what fails
    at the first measurement is raised. Eigenvectors and critical steps start from those of the last
    measurement. Processes: a Problem with
    distributed=True is measured by all of them, which must call `step` alike; else the first process measures alone.

    Raises:
        InputError: an unknown measure or option, one that needs more than the network's weights and what is given
            beside them, `every` < 1, `share` outside (0, 1), rows in `out` without `resume`.

    Examples:
        >>> import landscape, torch
        >>> model = torch.nn.Linear(2, 1)
        >>> x, y = torch.randn(8, 2), torch.randn(8, 1)
        >>> problem = landscape.Problem(model, torch.nn.MSELoss(), [(x, y)])
        >>> monitor = landscape.Monitor(problem, every=10, measures=["lambda_max", "gradient_norm"])
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> for step in range(21):
        ...     _ = monitor.step(step)
        ...     optimizer.zero_grad()
        ...     torch.nn.functional.mse_loss(model(x), y).backward()
        ...     optimizer.step()
        >>> [row["step"] for row in monitor.history]
        [0, 10, 20]
    """

    def __init__(
        self,
        problem: Problem,
        *,
        every: int | None = None,
        share: float | None = None,
        measures: Sequence[str] | str = DEFAULT_MEASURES,
        optimizer: torch.optim.Optimizer | None = None,
        other: Problem | None = None,
        out: str | Path | None = None,
        resume: bool = False,
        log: Any = None,
    ) -> None:
        if not isinstance(problem, Problem):
            raise InputError(
                f"a Problem is watched, received {type(problem).__name__}: give landscape.Problem(model, loss, batches)"
            )
        if every is not None and (every := _whole("every", every)) < 1:
            raise InputError(f"every must be a number of steps, at least 1, received {every}")
        if share is not None and not (isinstance(share, numbers.Real) and 0 < share < 1):
            raise InputError(f"share must be between 0 and 1, a part of the run's time, received {share!r}")
        self.problem, self.every = problem, 1 if every is None else every
        self._overhead = Overhead(DEFAULT_SHARE if every is None and share is None else share)
        companions = Companions(_always(optimizer), _always(other))
        self._measurements = Measurements(named([measures] if isinstance(measures, str) else measures), companions)
        problems = [p for p in (problem, other) if p is not None]
        self._generators = {g: None for p in problems for g in generators_of(p.batches.source)}
        self._takes_part = problem.distributed or processes.rank() == 0
        self._writes = processes.rank() == 0
        self._rows = MeasuredRows(_stem(out) if self._writes else None, resume=resume)
        self._log = log_of(log)
        self._step: int | None = None

    @property
    def history(self) -> list[dict[str, Any]]:
        """One row per measurement, in the order of the steps."""
        return self._rows.held

    @property
    def share(self) -> float | None:
        """The budget: the part of the run's time that measuring may take; None where there is none."""
        return self._overhead.share

    @property
    def overhead(self) -> float:
        """Measuring's part of the run's time so far."""
        return self._overhead.part

    def step(self, step: int) -> dict[str, Any] | None:
        """Say that `step` steps are done; measures where that is due. A step that is said again is passed over.

        Returns:
            The new row; None where nothing was measured.

        Raises:
            InputError: a step that is not a whole number, steps that run backward, a first measurement that fails, a
                model that was moved to another device or had a layer replaced after the Problem was made, a call within
                torch.inference_mode(), a disk that is full.
        """
        step = _whole("step", step)
        if not self._takes_part or step == self._step:
            return None
        self._overhead.trained()
        self._take_up(step)
        if step % self.every or not self._fits():
            return None
        self._wait_for_device()
        with self._overhead.measured(), undisturbed(*self._generators), attributes_kept(self.problem.model):
            row = self._row(step)
            self._rows.add(row)
            if self._rows.unwritten:
                self._rows.write(self.result())
            if self._writes:
                self._log(logged(row), step)
        return row

    def result(self) -> LabelledArrays:
        """The history as arrays over the axis `step`: what OUT.h5 holds and `landscape.load` returns."""
        columns = list(self.history[0]) if self.history else []
        return as_arrays(
            self.history,
            {**dict.fromkeys(SECONDS, "s"), **self._measurements.units(columns)},
            label="Measures over the steps of a training",
            arguments={"every": self.every, "share": self.share, "measures": self._measurements.described},
            seconds=self._overhead.measuring,
            provenance={**self._measurements.provenance, "overhead": self.overhead},
        )

    def close(self) -> None:
        """Write what is not written yet and let go of the files."""
        self._rows.write(self.result())
        self._rows.close()

    def lightning_callback(self) -> Any:
        """A `Callback` for Lightning's Trainer; rows go to its loggers, too."""
        from trainers.monitor.callbacks import lightning_callback

        return lightning_callback(self)

    def hugging_face_callback(self, trainer: Any = None) -> Any:
        """A `TrainerCallback` for Hugging Face's Trainer; rows go to what `trainer` reports to where it is given."""
        from trainers.monitor.callbacks import hugging_face_callback

        return hugging_face_callback(self, trainer)

    def __enter__(self) -> Monitor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        last = f" to step {self.history[-1]['step']}" if self.history else ""
        names = ", ".join(self._measurements.keys)
        return f"Monitor({names}: {len(self.history)} rows{last}, {100 * self.overhead:.1f}% of the time)"

    # -- inner ---------------------------------------------------------------------------------------------------

    def _take_up(self, step: int) -> None:
        if self._step is not None and step < self._step:
            raise InputError(f"step {step} came after step {self._step}: a Monitor watches one run, forward")
        if self._step is None:
            with undisturbed(*self._generators):  # large batches are read again
                settings = self._settings()
            if self.problem.distributed:
                processes.on_first(lambda: self._rows.open(step, settings))
                self._rows.held = processes.agree(self._rows.held)
            else:
                self._rows.open(step, settings)
            if self.history:
                self._overhead.resume(*(self.history[-1][name] for name in SECONDS))
        self._step = step

    def _settings(self) -> dict[str, Any]:
        """What the rows of one history have in common."""
        layout = [f"{s.name} {tuple(s.shape)}" for s in self.problem.parameters]
        return {
            "set of measures": self._measurements.described,
            "network": digest.of_parts(layout),
            "loss": self.problem.loss_name,
            "sample of examples": self.problem.batches.fingerprint(),
            "BatchNorm policy": self.problem.batch_norm,
        }

    def _fits(self) -> bool:
        """Whether a measurement fits the budget; the first process's clock decides for all."""
        if self.share is None or not self.problem.distributed:
            return self._overhead.fits()
        return processes.agree(self._overhead.fits())

    def _wait_for_device(self) -> None:
        """Steps that still run on the device are training."""
        if self.problem.weights.is_cuda:
            torch.cuda.synchronize(self.problem.weights.device)

    def _row(self, step: int) -> dict[str, Any]:
        require_derivatives("Monitor.step is called")
        before = [n for n in self.history[0] if n not in ("step", *SECONDS)] if self.history else None
        values = self._measurements(self.problem.updated(), columns=before)
        seconds = self._overhead.training, self._overhead.measuring + self._overhead.lap()
        return {"step": step, **dict(zip(SECONDS, seconds, strict=True)), **values}


def _whole(name: str, number: Any) -> int:
    """A number of steps: an int, or what NumPy and torch have for one."""
    try:
        if isinstance(number, bool):
            raise TypeError
        return operator.index(number)
    except TypeError as error:
        raise InputError(f"{name} must be a whole number of steps, received {number!r}") from error


def _always(value: Any) -> Callable[[], Any] | None:
    return None if value is None else lambda: value


def _stem(out: str | Path | None) -> Path | None:
    """The path of the files without their endings."""
    if out is None:
        return None
    path = Path(out)
    return path / "monitor" if path.suffix not in (".csv", ".h5") else path.with_suffix("")
