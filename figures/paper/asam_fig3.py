"""The SAM loss of a network over positive rescalings."""

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


@register("asam-fig3", source="ASAM report, Figure 3")
class SamLoss(Figure):
    """SAM loss over the same 50 rescalings: it varies, although the network's function does not."""

    title = "SAM loss under positive rescaling"

    def plan(self, study: Study) -> list[Computation]:
        """The rescalings, shared with asam-fig2 and asam-fig4."""
        return list(rescaled.computations(study).values())

    def collect(self, study: Study) -> FigureData:
        """Loss, SAM loss and SAM sharpness of every network."""
        return rescaled.numbers(study, ("loss", "sam_loss", "sam_sharpness"))[0]

    def draw(self, numbers: FigureData) -> Any:
        """One line per network: SAM loss solid, loss dashed."""
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots(figsize=(style.COLUMN, 2.4), layout="constrained")
        x = numbers["transform"] + 1
        shades = plt.get_cmap("viridis")(np.linspace(0, 0.92, len(numbers["network"])))
        for ink, network in zip(shades, numbers["network"], strict=True):
            axes.plot(x, numbers.at("sam_loss", network=network), color=ink, linewidth=1)
            axes.plot(x, numbers.at("loss", network=network), color=ink, linewidth=0.8, linestyle="--")
        axes.set_xlim(x[0], x[-1])
        axes.set(xlabel="rescaling, $\\tau$ uniform in [0.5, 1.5]", ylabel="SAM loss; dashed: loss (nats)")
        axes.set_title(f"{len(numbers['network'])} random networks, $\\rho$ = {numbers.facts['rho']:g}")
        return figure

    def judge(self, numbers: FigureData) -> list[Claim]:
        """It varies dramatically."""
        note = "The report gives no number: above 10% is taken for 'dramatic'. Spread: (max - min) / median."
        return [
            Claim(
                text=f"{text} varies dramatically",
                quantity=f"relative spread of the {name.replace('_', ' ')}, geometric mean over networks",
                published="dramatic",
                ours=statistics.geometric_mean(rescaled.spread(numbers[name])),
                above=0.1,
                note=note,
            )
            for text, name in (
                ("The SAM loss", "sam_loss"),
                ("SAM sharpness, the part that SAM adds,", "sam_sharpness"),
            )
        ]
