"""What figures compute on trained networks: functions of run directories that return arrays."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np


def measures(
    run: Path,
    *,
    wanted: dict[str, dict[str, Any]],
    samples: int,
    device: str,
    data_dir: str | None,
    file: str = "ckpt.pt",
) -> dict[str, Any]:
    """`wanted`: measure -> its arguments; returns its value (the largest eigenvalue of several) and standard error."""
    from landscape import MEASURES
    from trainers.rebuild import Sample, subject

    it = subject(run / file, Sample(size=samples, data_dir=data_dir), device=device)
    at = it.problem.evaluate()
    found: dict[str, Any] = {"loss": float(at.loss), "accuracy": float(at.accuracy)}
    for name, arguments in wanted.items():
        result = MEASURES[name](it.problem, **{k: _tuple(v) for k, v in arguments.items()})
        values = getattr(result, "values", None)
        found[name] = float(result.value) if values is None else float(values[0])
    return found


def along(
    run: Path,
    *,
    epochs: list[int],
    wanted: dict[str, dict[str, Any]],
    samples: int,
    device: str,
    data_dir: str | None,
) -> dict[str, Any]:
    """`measures` at kept epochs, one array a measure."""
    place = {"device": device, "data_dir": data_dir}
    rows = [measures(run, wanted=wanted, samples=samples, file=f"epoch-{e}.pt", **place) for e in epochs]
    return {name: [row[name] for row in rows] for name in rows[0]}


def at_loss(
    run: Path,
    *,
    epochs: list[int],
    level: float,
    radii: list[float],
    samples: int,
    test: str | None,
    device: str,
    data_dir: str | None,
) -> dict[str, Any]:
    """Flatness at the end, and at the first of the kept `epochs` whose training loss is below `level`: rows of two.

    SAM sharpness comes with its first-order part rho ||g||, of a network that has not reached a stationary point. The
    second row is nan where no epoch is below. Besides: the loss on the same training examples at every kept epoch,
    that first epoch, and loss and accuracy on all test examples of `test` (a data set; None: the run's own).
    """
    from landscape import MEASURES
    from trainers.rebuild import Sample, subject

    sample = Sample(size=samples, data_dir=data_dir)

    def loss(epoch: int) -> float:
        return float(subject(run / f"epoch-{epoch}.pt", sample, device=device).problem.evaluate().loss)

    def row(file: str) -> np.ndarray:
        problem = subject(run / file, sample, device=device).problem
        at, rise = problem.evaluate(), MEASURES["sam_sharpness"](problem, rho=tuple(radii))
        eigenvalue = MEASURES["hessian_top_eigenvalues"](problem, k=1, tol=0.03).values[0]
        return np.array([at.loss, at.accuracy, eigenvalue, *rise.sharpness, *rise.first_order], dtype=np.float64)

    curve = [loss(epoch) for epoch in epochs]
    below = next((epoch for epoch, value in zip(epochs, curve, strict=True) if value < level), None)
    end = row("ckpt.pt")
    both = np.stack([end, np.full_like(end, np.nan) if below is None else row(f"epoch-{below}.pt")])
    found = {"loss": both[:, 0], "accuracy": both[:, 1], "eigenvalue": both[:, 2]}
    found |= dict(zip(("sam_sharpness", "first_order"), np.split(both[:, 3:], 2, axis=1), strict=True))
    whole = replace(sample, split="test", data=test, size=1 << 62)
    tested = subject(run / "ckpt.pt", whole, device=device).problem.evaluate()
    found |= {"test_loss": float(tested.loss), "test_accuracy": float(tested.accuracy)}
    return {**found, "curve": curve, "epoch": float("nan") if below is None else float(below)}


def losses(run: Path, *, samples: int, device: str, data_dir: str | None) -> dict[str, Any]:
    """Cross-entropy and accuracy on the training and the test set, in evaluation mode."""
    from trainers.rebuild import Sample, subject

    found = {}
    for split in ("train", "test"):
        sample = Sample(split=split, size=samples, data_dir=data_dir)
        at = subject(run / "ckpt.pt", sample, device=device).problem.evaluate()
        found |= {f"{split}_loss": float(at.loss), f"{split}_accuracy": float(at.accuracy)}
    return found


def epoch_seconds(
    *,
    specs: list[dict[str, Any]],
    settings: dict[str, Any],
    rounds: int,
    device: str,
    data_dir: str | None,
) -> dict[str, Any]:
    """Seconds of one epoch of each method, interleaved: (method, round).

    Every round trains each method anew and takes its fastest epoch among those in which the method acts (from
    `first`, 0 the first): a stall of the machine lengthens an epoch, nothing shortens one.
    """
    from trainers import METHODS, train

    found = np.zeros((len(specs), rounds))
    for j in range(rounds):
        for i, spec in enumerate(specs):
            method = METHODS[spec["method"]](**spec["arguments"])
            own = {**settings, **spec.get("settings", {}), "seed": j, "data_dir": data_dir}
            history = train(method, device=device, **own).history
            seconds = np.diff([0.0, *(row["seconds"] for row in history)])
            found[i, j] = seconds[min(spec["first"], len(seconds) - 1) :].min()
    return {"seconds": found, "measured_at": time.time()}


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
