"""What figures compute on trained networks: functions of run directories that return arrays."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from figures.study.tasks import Machine


def measures(
    run: Path, *, wanted: dict[str, dict[str, Any]], samples: int, machine: Machine, file: str = "ckpt.pt"
) -> dict[str, float]:
    """`wanted`: measure -> its arguments; returns its value, of several eigenvalues the largest; loss and accuracy."""
    from landscape import MEASURES

    problem = machine.subject(run / file, samples=samples).problem
    at = problem.evaluate()
    values = {"loss": float(at.loss), "accuracy": float(at.accuracy)}
    for name, arguments in wanted.items():
        lists = {k: tuple(v) if isinstance(v, list) else v for k, v in arguments.items()}
        result: Any = MEASURES[name](problem, **lists)
        values[name] = float(result.values[0] if hasattr(result, "values") else result.value)
    return values


def along(
    run: Path, *, epochs: list[int], wanted: dict[str, dict[str, Any]], samples: int, machine: Machine
) -> dict[str, list[float]]:
    """`measures` at kept epochs, one list per measure."""
    rows = [measures(run, wanted=wanted, samples=samples, machine=machine, file=f"epoch-{e}.pt") for e in epochs]
    return {name: [row[name] for row in rows] for name in rows[0]}


def at_loss(
    run: Path,
    *,
    epochs: list[int],
    level: float,
    radii: list[float],
    samples: int,
    test: str | None,
    machine: Machine,
) -> dict[str, Any]:
    """Flatness at the end, and at the first of the kept `epochs` whose training loss is below `level`: rows of two.

    SAM sharpness comes with its first-order part rho ||g||, of a network that has not reached a stationary point. The
    second row is nan where no epoch is below. Besides: the loss on the same training examples at every kept epoch,
    that first epoch, and loss and accuracy on all test examples of `test` (a data set; None: the run's own).
    """
    from landscape import MEASURES

    def loss(epoch: int) -> float:
        return float(machine.subject(run / f"epoch-{epoch}.pt", samples=samples).problem.evaluate().loss)

    def row(file: str) -> np.ndarray:
        problem = machine.subject(run / file, samples=samples).problem
        at, rise = problem.evaluate(), MEASURES["sam_sharpness"](problem, rho=tuple(radii))
        eigenvalue = MEASURES["hessian_top_eigenvalues"](problem, k=1, tol=0.03).values[0]
        return np.array([at.loss, at.accuracy, eigenvalue, *rise.sharpness, *rise.first_order], dtype=np.float64)

    curve = [loss(epoch) for epoch in epochs]
    below = next((epoch for epoch, value in zip(epochs, curve, strict=True) if value < level), None)
    end = row("ckpt.pt")
    both = np.stack([end, np.full_like(end, np.nan) if below is None else row(f"epoch-{below}.pt")])
    sharpness, first_order = np.split(both[:, 3:], 2, axis=1)
    tested = machine.subject(run / "ckpt.pt", split="test", data=test, samples=1 << 62).problem.evaluate()
    return {
        "loss": both[:, 0],
        "accuracy": both[:, 1],
        "eigenvalue": both[:, 2],
        "sam_sharpness": sharpness,
        "first_order": first_order,
        "test_loss": float(tested.loss),
        "test_accuracy": float(tested.accuracy),
        "curve": curve,
        "epoch": float("nan") if below is None else float(below),
    }


def losses(run: Path, *, samples: int, machine: Machine) -> dict[str, float]:
    """Cross-entropy and accuracy on the training and the test set, in evaluation mode."""
    values: dict[str, float] = {}
    for split in ("train", "test"):
        at = machine.subject(run / "ckpt.pt", split=split, samples=samples).problem.evaluate()
        values |= {f"{split}_loss": float(at.loss), f"{split}_accuracy": float(at.accuracy)}
    return values


def bought(
    run: Path,
    *,
    wanted: dict[str, dict[str, Any]],
    bits: list[int],
    forgetting: dict[str, Any],
    samples: int,
    machine: Machine,
) -> dict[str, Any]:
    """What a checkpoint loses under rounding, (bits,) with a scale for each channel, and under fine-tuning.

    Both with their quadratic predictions; besides `measures` of it.
    """
    from landscape import MEASURES

    problem = machine.subject(run / "ckpt.pt", samples=samples).problem
    rounded: Any = MEASURES["quantization_rise"](problem, bits=tuple(bits))
    tuned: Any = MEASURES["forgetting"](problem, **forgetting)
    return {
        **measures(run, wanted=wanted, samples=samples, machine=machine),
        "quantization": rounded.rise[0],
        "quantization_predicted": rounded.predicted[0],
        "forgetting": tuned.value,
        "forgetting_predicted": tuned.predicted,
        "learned": tuned.other_loss[0] - tuned.other_loss[-1],
    }


def epoch_seconds(
    *, specs: list[dict[str, Any]], settings: dict[str, Any], rounds: int, machine: Machine
) -> dict[str, Any]:
    """Seconds of one epoch of each method, interleaved: (method, round).

    Every round retrains each method and takes its fastest epoch among those in which the method acts (from
    `first`, 0 the first): a stall of the machine lengthens an epoch, nothing shortens one.
    """
    from trainers import METHODS, train

    fastest = np.zeros((len(specs), rounds))
    for j in range(rounds):
        for i, spec in enumerate(specs):
            method = METHODS[spec["method"]](**spec["arguments"])
            chosen = {**settings, **spec.get("settings", {}), "seed": j, "data_dir": machine.data_dir}
            history = train(method, device=machine.device, **chosen).history
            seconds = np.diff([0.0, *(row["seconds"] for row in history)])
            fastest[i, j] = seconds[min(spec["first"], len(seconds) - 1) :].min()
    return {"seconds": fastest, "measured_at": time.time()}
