"""`result.plot()`: one result in one panel. Reads the result and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from figures.drawing import contours, loss_path, panels, persistence, style, surface
from figures.page.curves import curve
from figures.page.grids import grid, shared_scale
from landscape import statistics
from landscape.curvature.exact.diagonals import Diagonal
from landscape.errors import InputError
from landscape.invariance.result import Invariance
from landscape.meaning import MATRICES
from landscape.measures.forgetting import Forgetting
from landscape.measures.hessian_top_eigenvalues import TopEigenvalues
from landscape.measures.hessian_trace import Trace
from landscape.measures.keskar_sharpness import KeskarSharpness
from landscape.measures.layer_eigenvalues import LayerEigenvalues
from landscape.measures.local_learning_coefficient import LocalLearningCoefficient
from landscape.measures.negative_curvature import Extremes
from landscape.measures.quantization_rise import QuantizationRise
from landscape.measures.spectral_density import SpectralDensity
from landscape.results.cells import cell_of, finite
from landscape.results.result import LabelledArrays, Result, as_numpy
from landscape.sharpness.sharpness import Sharpness
from landscape.surfaces.paths import LossPath
from landscape.surfaces.persistence import Persistence
from landscape.surfaces.profiles import Profiles
from landscape.surfaces.result import Surface

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw(result: Result, axes: Axes | None = None) -> Axes:
    """Draw a result into the axes, or into those of a new figure; returns them.

    The backend is left as it is: a notebook shows the picture, a script calls `matplotlib.pyplot.show()`.
    """
    drawing = next((d for kind, d in _DRAWINGS.items() if isinstance(result, kind)), _numbers)
    with style.sheet():
        own = _new(_height(result)) if axes is None else None
        axes = own or axes
        assert axes is not None
        try:
            drawing(result, axes)
        except InputError:
            _close(own)  # a notebook would show it empty
            raise
        if result.label and not axes.get_title("left") and not isinstance(result, Surface | Profiles | LossPath):
            axes.set_title(result.label, loc="left")
    return axes


def _new(height: float) -> Axes:
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(style.COLUMN, height), layout="constrained")[1]


def _close(axes: Axes | None) -> None:
    import matplotlib.pyplot as plt
    from matplotlib.figure import Figure

    if axes is not None and isinstance(axes.figure, Figure):
        plt.close(axes.figure)


def _height(result: Result) -> float:
    """Inches: a line for each of many names."""
    names = getattr(result, "layers", None) or getattr(result, "names", None) or ()
    return max(2.4, 0.6 + 0.11 * min(len(names), 40))


def _sharpness(result: Sharpness, axes: Axes) -> None:
    panels.rise(axes, curve(result.summary()))
    unit = "percent of 1 + loss" if isinstance(result, KeskarSharpness) else "rise of the loss"
    axes.set(xlabel="radius ρ", ylabel=unit)


def _eigenvalues(result: TopEigenvalues, axes: Axes) -> None:
    panels.spectrum(axes, as_numpy(result.values), as_numpy(result.error_bounds))
    panels.ranks(axes, len(result.values))


def _layers(result: LayerEigenvalues, axes: Axes) -> None:
    panels.bars(axes, result.layers, result.values[:, 0], np.nan_to_num(result.error_bounds[:, 0]))
    axes.set_xlabel("eigenvalue λ")


def _ends(result: Extremes, axes: Axes) -> None:
    panels.bars(
        axes, ["smallest", "largest"], [result.lambda_min, result.lambda_max], [result.bound_min, result.bound_max]
    )
    axes.set_xlabel("eigenvalue λ")


def _trace(result: Trace, axes: Axes) -> None:
    errors = None if result.exact else statistics.Z * result.layer_stderr
    panels.bars(axes, result.layers, result.layer_values, errors)
    axes.set_xlabel(f"part of the trace, which is {cell_of(result.summary()).text}")


def _density(result: SpectralDensity, axes: Axes) -> None:
    panels.densities(axes, [(0, None, result)])


def _quantization(result: QuantizationRise, axes: Axes) -> None:
    for i, name in enumerate(result.granularities):
        axes.plot(result.bits, result.rise[i], ("o-", "s-")[i], color=style.color(i), label=f"per {name}")
        axes.plot(result.bits, result.predicted[i], ":", color=style.color(i))
    axes.plot([], [], ":", color="#333333", label="g'e + e'He/2")
    axes.set(xlabel="bits", ylabel="rise of the loss", xticks=result.bits)
    if len(result.bits) > 1 and min(result.rise.min(), result.predicted.min()) > 0:
        axes.set_yscale("log")
    axes.invert_xaxis()
    axes.legend()


def _chains(result: LocalLearningCoefficient, axes: Axes) -> None:
    """Running means of the chains: where they agree they meet."""
    steps = np.arange(1, result.energies.shape[1] + 1)
    for i, energies in enumerate(result.energies):
        axes.plot(steps, np.cumsum(energies) / steps, color=style.color(i), linestyle=style.line(i))
    axes.set(xlabel="draws", ylabel="mean of βn (L − L*)")


def _forgetting(result: Forgetting, axes: Axes) -> None:
    axes.plot(result.step, result.loss, "o-", color=style.color(0), label="learned first")
    axes.plot(result.step, result.other_loss, "s--", color=style.color(1), label="fine-tuned")
    axes.set(xlabel="step", ylabel="loss")
    axes.legend()


def _diagonal(result: Diagonal, axes: Axes) -> None:
    axes.hist(as_numpy(result.values).astype(float), bins=60, color=style.color(0), log=True)
    axes.set(xlabel=f"diagonal entry of the {MATRICES[result.matrix][0]} matrix", ylabel="weights")


def _surface(result: Surface, axes: Any) -> None:
    if result.y is None:
        return _profiles(result, axes)
    plane = grid(result)
    scale = shared_scale([plane])
    if axes.name == "3d":
        return contours.draw_surface(axes, plane, scale, log=scale.wide_range)
    shown = contours.draw_contours(axes, plane, scale, log=scale.wide_range)
    surface.mark_checkpoints(axes, result)
    axes.set(xlabel=plane.names[0], ylabel=plane.names[1])
    return contours.color_bar(axes.figure, shown, np.array([axes]), scale, log=scale.wide_range)


def _profiles(result: Surface | Profiles, axes: Axes) -> None:
    surface.draw_line(axes, result)


def _invariance(result: Invariance, axes: Axes) -> None:
    spreads = [result.spread(name) for name in result.names]
    if not spreads:
        raise InputError("no rescaling symmetry was found, so there is nothing to draw")
    rounding = min(float(np.nanmin(result.tolerance)), *(s for s in spreads if s > 0), 1.0)
    places = np.arange(len(spreads))
    inks = [style.color(1 if s > t else 2) for s, t in zip(spreads, result.tolerance, strict=True)]
    axes.scatter([max(s, rounding / 10) for s in spreads], places, c=inks, s=10, clip_on=False)
    axes.set_yticks(places, [n.replace("_", " ") for n in result.names])
    axes.tick_params(axis="y", labelsize=5)
    axes.set(xscale="log", xlabel="relative spread\n(green: rounding)", ylim=(len(spreads) - 0.5, -0.5))


_BESIDE = (".stderr", ".error_bound", ".low", ".high", ".hvps", "_seconds")
"""Ends of names of what says how sure a quantity is, or what it cost."""


def _history(result: LabelledArrays, axes: Axes) -> None:
    """Quantities over the steps of a run, a line each; nothing is drawn of arrays over several axes."""
    over = {a for names in result.axes.values() for a in names}
    along = over.pop() if len(over) == 1 else ""
    numeric = [n for n, v in result.values.items() if v.dtype.kind in "if" and n != along and not n.endswith(_BESIDE)]
    if not numeric or along not in result.values or result[along].dtype.kind not in "if":
        raise InputError("LabelledArrays has no one number or curve to draw: use to_dataframe()")
    for i, name in enumerate(numeric):
        axes.plot(result[along], result[name], marker="o", markersize=2.2, color=style.color(i), label=name)
    known = np.concatenate([result[name][np.isfinite(result[name])] for name in numeric])
    units = {result.unit(name) for name in numeric}
    if known.size and known.min() > 0 and known.max() > 30 * known.min():
        axes.set_yscale("log")
    axes.set(xlabel=along, ylabel=units.pop() if len(units) == 1 else "")
    if len(numeric) > 1:
        axes.legend()


def _numbers(result: Result, axes: Axes) -> None:
    """Of any other result: its values by layer, else its value with its error, else its numbers as bars."""
    summary = result.summary()
    layers, main = summary.get("layers"), cell_of(summary)
    if isinstance(layers, dict) and layers and all(isinstance(v, float | int) for v in layers.values()):
        panels.bars(axes, list(layers), list(layers.values()))
        axes.set_xlabel("by layer" if main.value is None else f"by layer; of all {main.text}")
    elif main.value is not None:
        axes.errorbar([main.value], [0], xerr=main.error or None, fmt="o", color=style.color(0))
        axes.set(yticks=[], xlabel=main.text)
    else:
        _bars_of({k: v for k, v in summary.items() if finite(v) is not None}, result, axes)


def _bars_of(numbers: dict[str, float], result: Result, axes: Axes) -> None:
    names = [n for n in numbers if n not in ("seconds", "hvps", *result.arguments)]
    if not names:
        raise InputError(f"{type(result).__name__} has no one number or curve to draw: use to_dataframe()")
    panels.bars(axes, [n.replace("_", " ") for n in names], [numbers[n] for n in names])


_DRAWINGS: dict[type[Result], Callable[[Any, Any], None]] = {
    Sharpness: _sharpness,
    TopEigenvalues: _eigenvalues,
    LayerEigenvalues: _layers,
    Extremes: _ends,
    Trace: _trace,
    SpectralDensity: _density,
    QuantizationRise: _quantization,
    LocalLearningCoefficient: _chains,
    Forgetting: _forgetting,
    Diagonal: _diagonal,
    Surface: _surface,
    Profiles: _profiles,
    LossPath: loss_path.draw_losses,
    Persistence: persistence.draw_tree,
    Invariance: _invariance,
    LabelledArrays: _history,
}
"""Kind of result -> what draws it."""
