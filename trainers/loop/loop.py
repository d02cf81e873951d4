"""The training loop: one for all methods; counts its work, survives a kill, resumes bitwise.

Randomness is a function of the seed and of what is drawn: order and augmentation of an epoch, draws of a method in a
step. Only dropout draws from torch's global streams, whose states are in the checkpoint; the caller's are put back. On
a GPU convolutions take kernels that always add in the same order.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from landscape.errors import InputError, unknown
from landscape.locks import locked
from landscape.problem.evaluator import require_derivatives
from landscape.processes import rank
from trainers import METHODS
from trainers.datasets import Data
from trainers.loop.averaging import Averaged
from trainers.loop.settings import Settings
from trainers.loop.trainer import Trainer
from trainers.method.method import Method


@dataclass(frozen=True)
class Run:
    """A finished training.

    Attributes:
        model: the trained network, in evaluation mode.
        method: what trained it.
        settings: with the defaults filled in.
        history: one row per epoch, as in history.csv.
        directory: where ckpt.pt, history.csv and config.json lie; None if nothing was written.
        epochs_trained: epochs that this call trained: 0 for a run that was finished before.
        passes: forward-plus-backward passes over the training set that the run cost.
        averaged: the network with averaged weights, if `average` asks for it.
    """

    model: nn.Module
    method: Method
    settings: Settings
    history: list[dict[str, Any]]
    directory: Path | None
    epochs_trained: int
    passes: float
    averaged: Averaged | None = None


def train(
    method: Method | str,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    device: torch.device | str = "cpu",
    model: nn.Module | str | None = None,
    data: Data | str | None = None,
    monitor: Sequence[str] = (),
    **settings: Any,
) -> Run:
    """Train a network.

    Args:
        method: a method or its name: `METHODS["sam"](rho=0.1)` or `"sam"`.
        out: directory for ckpt.pt, history.csv and config.json; None writes nothing.
        resume: go on with the run that `out` holds; a finished one is returned as it is.
        device: where to train.
        model: a built-in network's name with its arguments, or any nn.Module (trained in place; a checkpoint of it is
            analyzed with --model).
        data: a data set's name with its arguments, or `trainers.datasets.Data`.
        monitor: measures that a `landscape.Monitor` takes during the training, of the loss that `landscape analyze`
            states, in a twentieth of the time; into monitor.csv and monitor.h5 of `out`.
        settings: fields of `trainers.loop.settings.Settings`.

    Raises:
        InputError: wrong settings, a directory that holds another run or that another process trains into, a loss that
            is not finite (the step is named, the last good checkpoint kept).
    """
    require_derivatives("train is called")
    if isinstance(method, type) or not isinstance(method, str | Method):
        raise InputError(f"a method's name or a method such as METHODS['sam'](rho=0.05) is needed, received {method!r}")
    if model is not None and not isinstance(model, str | nn.Module):
        raise InputError(f"model must be a network's name or an nn.Module, received {type(model).__name__}")
    if data is not None and not isinstance(data, str | Data):
        raise InputError(f"data must be a data set's name or trainers.datasets.Data, received {type(data).__name__}")
    known = {f.name for f in dataclasses.fields(Settings)}
    for name in settings:
        if name not in known:
            raise unknown("setting", name, known)
    named = {
        k: v if isinstance(v, str) else f"<{type(v).__name__}>"
        for k, v in (("model", model), ("data", data))
        if v is not None
    }
    method = METHODS[method]() if isinstance(method, str) else method
    chosen = Settings(**{**settings, **named}).resolved(method.base)
    device = torch.device(device)
    # Dropout draws from the global streams: the run's own, put back afterwards.
    with (
        nullcontext() if out is None else locked(out),
        _deterministic_convolutions(),
        torch.autocast(device.type, enabled=False),  # the caller's own: the settings name the precision
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
    ):
        torch.manual_seed(chosen.seed + rank())
        network = None if isinstance(model, str) else model
        loaded = None if isinstance(data, str) else data
        trainer = Trainer(method, chosen, device, network, loaded, out, resume, monitor)
        before = trainer.now.epoch
        trainer.run()
    return Run(
        model=trainer.model,
        method=method,
        settings=chosen,
        history=trainer.history,
        directory=None if trainer.directory is None else trainer.directory.path,
        epochs_trained=trainer.now.epoch - before,
        passes=trainer.budget.spent_passes(trainer.task.passes),
        averaged=trainer.averaged,
    )


@contextmanager
def _deterministic_convolutions() -> Iterator[None]:
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        cudnn.deterministic, cudnn.benchmark = before
