"""The three pictures of an invariance test: outputs flat, SAM's loss wild, ASAM's constant."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from figures.drawing import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from landscape.invariance.result import Invariance

_MOST_LINES = 10
_MARKERS = "os^"
_SAM = (
    ("sam_sharpness", "one step"),
    ("worst_case_sharpness", "worst case"),
    ("lambda_max", r"$\lambda_{\max}(H)$"),
)
_ASAM = (
    ("adaptive_sharpness", "one step"),
    ("worst_case_adaptive_sharpness", "worst case"),
    ("lambda_max_adaptive", r"$\lambda_{\max}(THT)$"),
)


def draw(result: Invariance, directory: str | Path, *, title: str = "") -> list[Path]:
    """Write outputs, sam and asam as PDF and PNG; nothing where the network has no symmetry.

    Args:
        result: of `landscape.rescaling_invariance`.
        directory: where the files go.
        title: of the network, for the files' metadata.

    Returns:
        The paths written.
    """
    if not result.names:
        return []
    directory, paths = Path(directory), []
    for name, make in (("outputs", outputs), ("sam", sam), ("asam", asam)):
        with style.use():
            figure = make(result)
        paths += style.save(figure, directory / name, facts(result), title=f"{title} {name}".strip())
    return paths


def facts(result: Invariance) -> dict[str, Any]:
    """What a caption has to say of the test."""
    keys = ("transforms", "low", "high", "seed", "rho", "adaptive_rho", "steps")
    return {k: result.arguments[k] for k in keys} | {k: result.provenance.get(k) for k in ("examples", "dtype")}


def outputs(result: Invariance) -> Any:
    """Outputs for a few inputs at every transform: flat lines."""
    figure, axes = _figure(1)
    ax = axes[0]
    inputs, classes = result.logits.shape[1:]
    shown = max(1, min(inputs, _MOST_LINES // min(classes, 2)))
    for i in range(shown):
        for c in range(min(classes, 2)):
            ax.plot(_transforms(result), result.logits[:, i, c], color=style.color(i), ls="-" if c == 0 else "--")
    ax.plot([], [], color="0.4", ls="-", label="output 1")
    if classes > 1:
        ax.plot([], [], color="0.4", ls="--", label="output 2")
    low, high = result.logits[:, :shown, :2].min(), result.logits[:, :shown, :2].max()
    ax.set_ylim(low - 0.05 * (high - low), high + 0.22 * (high - low))
    ax.legend(loc="upper right", ncols=2)
    ax.set_ylabel(f"output at {shown} inputs (one color each)")
    ax.set_title("Outputs at rescalings of one function")
    change = result.output_changes.max()
    _note(figure, ax, result, f"largest relative change {change:.0e}, {result.provenance.get('examples'):,} examples")
    return figure


def sam(result: Invariance) -> Any:
    """SAM's loss and sharpness at every transform."""
    radius = f"{result.arguments['rho']:g}"
    return _losses(result, "sam_loss", _SAM, "SAM", rf"$L(w+\epsilon)$, $\|\epsilon\|_2={radius}$", radius)


def asam(result: Invariance) -> Any:
    """The loss and sharpness of ASAM with the element-wise T, biases scaled, on the axes of `sam`."""
    radius = f"{result.arguments['adaptive_rho']:g}"
    label = rf"$L(w+\epsilon)$, $\|T^{{-1}}\epsilon\|_2={radius}$"
    return _losses(result, "asam_loss", _ASAM, "ASAM", label, radius + ", biases scaled")


def _losses(
    result: Invariance, loss: str, measures: Sequence[tuple[str, str]], title: str, axis: str, radius: str
) -> Any:
    figure, (top, bottom) = _figure(2)
    x = _transforms(result)
    top.plot(x, result.of(loss), "o-", color=style.color(0), lw=0.6, ms=2.2, label="perturbed loss")
    top.plot(x, result.of("loss"), color=style.color(6), ls="--", lw=0.9, label="$L(w)$")
    _same_span(top, result, ("sam_loss", "asam_loss"), loss)
    top.set_ylabel(axis)
    top.legend(loc="upper right", ncols=2)
    top.set_title(f"{title} at rescalings of one function")
    present = [(n, t) for n, t in measures if n in result.names]
    for i, (name, text) in enumerate(present):
        values = result.of(name)
        label = f"{text}: spread {result.spread(name):.2g}"
        look = {"color": style.color(i), "lw": 0.6, "ms": 2.2, "label": label}
        bottom.plot(x, values / np.median(values), _MARKERS[i] + "-", **look)
    # Both pictures on one scale: that of what varies.
    wild = [result.of(n) / np.median(result.of(n)) for n, _ in _SAM if n in result.names]
    low, high = min(v.min() for v in wild), max(v.max() for v in wild)
    bottom.set_ylim(low - 0.05 * (high - low), high + 0.6 * (high - low))
    bottom.set_ylabel("measure / its median")
    bottom.legend(loc="upper left")
    _note(figure, bottom, result, rf"$\rho=${radius}")
    return figure


def _same_span(ax: Axes, result: Invariance, names: Sequence[str], drawn: str) -> None:
    """Axes of one height, in units of the loss, for both pictures, around each one's values."""
    height = max(np.ptp(np.concatenate([result.of(n), result.of("loss")])) for n in names)
    values = np.concatenate([result.of(drawn), result.of("loss")])
    low = values.min() - 0.5 * (height - np.ptp(values)) - 0.08 * height
    ax.set_ylim(low, low + 1.5 * height)


def _figure(panels: int) -> tuple[Any, Any]:
    import matplotlib.pyplot as plt

    size = (style.COLUMN, 2.3 if panels == 1 else 3.6)
    figure, axes = plt.subplots(panels, 1, figsize=size, sharex=True, squeeze=False, layout="constrained")
    return figure, axes[:, 0]


def _transforms(result: Invariance) -> np.ndarray:
    return np.arange(1, result.values.shape[1] + 1)


def _note(figure: Any, ax: Axes, result: Invariance, text: str) -> None:
    """The x axis and, below it, what was done."""
    a = result.arguments
    line = rf"{a['transforms']} transforms, $\tau\in$[{a['low']:g}, {a['high']:g}), seed {a['seed']}"
    ax.set_xlabel(f"transform\n{line}\n{text}, {result.provenance.get('dtype')}")
