"""Every method against SGD as Markdown: `python -m docs.method_table out/matched-loss.h5 out/all-methods.h5`.

For the documentation: the numbers behind `matched-loss` and `all-methods`, each with its 95% interval over seeds.
Ratios and differences are paired by seed; ratios are geometric means. Bold: the interval leaves out SGD's value. The
share rho ||g|| / S says how much of a sharpness is only the slope of a loss that was not descended to the end.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from figures.drawing import bands
from figures.paper.matched_loss import of_the_same_loss
from figures.study.figure_data import FigureData
from landscape import statistics
from landscape.statistics import Estimate


def matched_loss(numbers: FigureData) -> str:
    """One row per method: accuracy, training loss, flatness against SGD runs of the same length and the same loss."""
    radius = numbers["radius"][0]
    columns = ["training loss", "test accuracy (%)", "minus SGD's", f"S({radius:g}) / SGD's"]
    columns += [f"{radius:g} ‖g‖ / S({radius:g})", "λmax / SGD's"]
    columns += [f"at the same loss: S({radius:g}) / SGD's", "λmax / SGD's"]
    rows = []
    for method in numbers["method"]:
        loss = numbers.at("train_loss", method=method, when="end")
        accuracy, sgd = (100 * numbers.at("test_accuracy", method=m) for m in (method, "sgd"))
        ends, equal = [], []
        for name, at in (("sam_sharpness", {"radius": radius}), ("hessian_top_eigenvalue", {})):
            one, other = (numbers.at(name, method=m, when="end", **at) for m in (method, "sgd"))
            ends.append(ratio(one, other))
            equal.append(ratio(one, of_the_same_loss(numbers, name, method, **at)))
        slope, sharpness = (
            numbers.at(n, method=method, when="end", radius=radius) for n in ("first_order", "sam_sharpness")
        )
        cells = [f"{loss.mean():.3f}", interval(statistics.mean(accuracy), 1), difference(accuracy, sgd)]
        cells += [ends[0], f"{(slope / sharpness).mean():.2f}", ends[1], *equal]
        if method == "sgd":
            cells = [cell if i in (0, 1, 4) else "" for i, cell in enumerate(cells)]
        rows.append([bands.label(str(method)), *cells])
    return table(["method", *columns], rows)


def label_noise(numbers: FigureData, noise: float) -> str:
    """One row per method at one label noise: accuracy, training loss, sharpness and the largest eigenvalue."""
    columns = ["training loss", "test accuracy (%)", "minus SGD's", "S(0.05) / SGD's", "λmax / SGD's"]
    rows = []
    for method in numbers["method"]:
        accuracy, sgd = (100 * numbers.at("test_accuracy", method=m, noise=noise) for m in (method, "sgd"))
        loss = numbers.at("train_loss", method=method, noise=noise)
        cells = [f"{loss.mean():.3f}", interval(statistics.mean(accuracy), 1), difference(accuracy, sgd)]
        for name in ("sam_sharpness", "hessian_top_eigenvalues"):
            cells.append(ratio(*(numbers.at(name, method=m, noise=noise) for m in (method, "sgd"))))
        rows.append([bands.label(str(method)), *(cells if method != "sgd" else [*cells[:2], "", "", ""])])
    return table(["method", *columns], rows)


def interval(e: Estimate, digits: int) -> str:
    """Value [low, high]."""
    if not np.isfinite(e.value):
        return "-"
    if not np.isfinite(e.low):
        return f"{e.value:.{digits}f}"
    return f"{e.value:.{digits}f} [{e.low:.{digits}f}, {e.high:.{digits}f}]"


def _bold(e: Estimate, neutral: float, digits: int) -> str:
    text = interval(e, digits)
    return f"**{text}**" if e.low > neutral or e.high < neutral else text


def difference(a: np.ndarray, b: np.ndarray) -> str:
    """Mean of a - b, bold where the interval leaves out 0."""
    return _bold(statistics.paired(a, b), 0.0, 1)


def ratio(a: np.ndarray, b: np.ndarray) -> str:
    """Geometric mean of a / b, bold where the interval leaves out 1."""
    both = np.isfinite(a) & np.isfinite(b)
    if not both.all():
        return f"{both.sum()} of {len(both)} seeds" if both.any() else "not reached"
    if (a <= 0).any() or (b <= 0).any():
        return "not positive"
    return _bold(statistics.geometric_mean(a / b), 1.0, 2)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main(paths: Sequence[str]) -> None:
    """Print the tables of each file."""
    for path in map(Path, paths):
        numbers = FigureData.load(path)
        if "noise" in numbers.values:
            for noise in numbers["noise"]:
                print(f"{noise:.0%} label noise:\n\n{label_noise(numbers, float(noise))}\n")
        else:
            print(f"{matched_loss(numbers)}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
