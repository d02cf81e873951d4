"""Logits of a network over positive rescalings."""

from __future__ import annotations

from typing import Any

import numpy as np

from figures.drawing import style
from figures.study import rescaled
from figures.study.figure import Figure
from figures.study.figure_data import FigureData
from figures.study.study import Study
from figures.study.tasks import Computation
from figures.study.verdict import Claim
from landscape import statistics
from landscape.registry import register


@register("asam-fig2", source="ASAM report, Figure 2")
class FlatLogits(Figure):
    """Logits of a few inputs over 50 positive rescalings of a random Table II network: flat lines."""

    title = "Logits under positive rescaling"

    def plan(self, study: Study) -> list[Computation]:
        """The rescalings, shared with asam-fig3 and asam-fig4."""
        return list(rescaled.computations(study).values())

    def collect(self, study: Study) -> FigureData:
        """Logits of the first network, largest change of the outputs of every network."""
        numbers, results = rescaled.numbers(study, ())
        logits = results[0]["logits"]
        numbers.facts["shown"] = "network 0"
        numbers.axis("input", range(logits.shape[1]))
        numbers.axis("output", range(logits.shape[2]))
        numbers.add("logits", ("transform", "input", "output"), logits)
        numbers.add("largest_output_change", ("network",), [float(r["output_change"]) for r in results.values()])
        residual = [r["function_residual"] for r in results.values()]
        numbers.axis("transformed", rescaled.TRANSFORMED)
        numbers.add("function_residual", ("network", "transformed"), residual)
        return numbers

    def draw(self, numbers: FigureData) -> Any:
        """A line a logit; both outputs of an input in one color."""
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots(figsize=(style.COLUMN, 2.4), layout="constrained")
        x, ends = numbers["transform"] + 1, {}
        for i in numbers["input"]:
            for j, dash in zip(numbers["output"], ("-", "--"), strict=False):
                values = numbers["logits"][:, i, j]
                axes.plot(x, values, color=style.color(int(i)), linestyle=dash, linewidth=1)
            ends[f"input {i + 1}"] = (float(x[-1]), float(numbers["logits"][-1, i, 0]), style.color(int(i)))
        change = float(np.max(numbers["largest_output_change"]))
        axes.set_xlim(x[0], x[-1])
        axes.margins(y=0.2)
        axes.set(xlabel="rescaling, $\\tau$ uniform in [0.5, 1.5]", ylabel="logit (solid: class 0, dashed: class 1)")
        axes.set_title(f"largest relative change, all networks: {change:.0e}")
        style.label_lines(axes, ends)
        return figure

    def judge(self, numbers: FigureData) -> list[Claim]:
        """The logits do not change; they do where the weights alone are scaled."""
        residual = numbers["function_residual"]
        return [
            Claim(
                text="Positive rescalings leave the logits as they are",
                quantity="largest relative change of the outputs (weights and biases rescaled)",
                published="no effect",
                ours=statistics.exact(numbers["largest_output_change"].max()),
                below=1e-12,
            ),
            Claim(
                text="So does scaling incoming and outgoing weights without the biases, as the report defines it",
                quantity="relative change of the outputs, weights alone rescaled, geometric mean",
                published="no effect",
                ours=statistics.geometric_mean(residual[:, rescaled.TRANSFORMED.index("weights only")]),
                below=1e-12,
                note="With biases other than zero the report's definition does not keep the function.",
            ),
        ]
