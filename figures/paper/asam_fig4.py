"""The ASAM loss of a network over positive rescalings, and what the treatment of the biases does to it."""

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

MEASURES = (
    "sam_sharpness",
    "asam_official",
    "adaptive_sharpness",
    "adaptive_sharpness_fixed_biases",
    "lambda_max",
    "lambda_max_adaptive",
)
NAMES = {
    "sam_sharpness": "SAM",
    "asam_official": "ASAM, authors' code",
    "adaptive_sharpness": "adaptive, biases scaled",
    "adaptive_sharpness_fixed_biases": "adaptive, biases fixed",
    "lambda_max": "$\\lambda_{max}$ of H",
    "lambda_max_adaptive": "$\\lambda_{max}$ of T H T",
}
ROUNDING = 1e-9
"""Relative spread below which a measure stays as it is: many orders above rounding, many below what varies."""
ZERO = "weights only, biases 0"
TREATED = {
    "scaled": "biases scaled",
    "unscaled": "T = 1 on biases",
    "fixed": "biases fixed",
    "asam-official": "official",
}


@register("asam-fig4", source="ASAM report, Figure 4 and its open question")
class AsamLoss(Figure):
    """ASAM loss over the same rescalings; weights alone or biases too, T of the authors, scaled or fixed biases."""

    title = "Adaptive sharpness under positive rescaling"

    def plan(self, study: Study) -> list[Computation]:
        """The rescalings, shared with asam-fig2 and asam-fig3."""
        return list(rescaled.computations(study).values())

    def collect(self, study: Study) -> FigureData:
        """Measures over the rescalings, spreads by what is rescaled and how T treats biases."""
        numbers, results = rescaled.numbers(study, ("loss", *MEASURES))
        numbers.axis("transformed", rescaled.TRANSFORMED)
        numbers.axis("biases", rescaled.BIASES)
        axes = ("network", "transformed", "biases")
        numbers.add("relative_spread", axes, [r["bias_spread"] for r in results.values()])
        numbers.add("function_residual", ("network", "transformed"), [r["function_residual"] for r in results.values()])
        numbers.add("rotation_spread", ("network",), [float(r["rotation_spread"]) for r in results.values()])
        return numbers

    def draw(self, numbers: FigureData) -> Any:
        """Each measure relative to its median on the left, a row per measure; spreads by treatment on the right."""
        import matplotlib.pyplot as plt

        figure = plt.figure(figsize=(style.PAGE, 3.3), layout="constrained")
        halves = figure.add_gridspec(1, 2, width_ratios=(1.25, 1))
        cells = halves[0].subgridspec(len(MEASURES), 1)
        first = figure.add_subplot(cells[0])
        rows = [first, *(figure.add_subplot(cells[i], sharex=first, sharey=first) for i in range(1, len(MEASURES)))]
        self._relative(rows, numbers)
        self._spreads(figure.add_subplot(halves[1]), numbers)
        return figure

    def _relative(self, rows: list[Any], numbers: FigureData) -> None:
        """A measure a row, all on one scale: lines that coincide at 1 would look like one, or like none."""
        x = numbers["transform"] + 1
        spread = {name: float(rescaled.spread(numbers[name][:1])[0]) for name in MEASURES}
        # Python's sort keeps the order within those that vary and within those that stay.
        for axes, name in zip(rows, sorted(MEASURES, key=lambda name: spread[name] < ROUNDING), strict=True):
            stays, values = spread[name] < ROUNDING, numbers[name][0]
            axes.plot(x, values / np.median(values), color=style.color(0 if stays else 1), linewidth=1)
            said = f"stays, to {spread[name]:.0e}" if spread[name] else "stays exactly"
            axes.text(
                1.02, 0.5, f"{NAMES[name]}\n{said if stays else f'varies by {spread[name]:.0%}'}",
                transform=axes.transAxes, va="center", fontsize=6.5, color=style.color(0 if stays else 1),
            )  # fmt: skip
            axes.axhline(1, color="#bbbbbb", linewidth=0.5, zorder=0)
            axes.set(xlim=(x[0], x[-1]), yticks=[0.8, 1, 1.2])
            axes.tick_params(bottom=axes is rows[-1], labelbottom=axes is rows[-1], labelsize=6)
        rows[0].set_title(f"one random network, $\\rho$ = {numbers.facts['rho']:g}")
        rows[-1].set_xlabel("rescaling, $\\tau$ uniform in [0.5, 1.5]")
        rows[len(rows) // 2].set_ylabel("measure / its median", y=1.1)

    def _spreads(self, axes: Any, numbers: FigureData) -> None:
        """The spread of adaptive sharpness in every network, by what is rescaled and by T of the biases."""
        inks = {"weights only": "#D55E00", "weights and biases": "#0072B2", ZERO: "#E69F00"}
        for j, transformed in enumerate(numbers["transformed"]):
            values = np.maximum(numbers.at("relative_spread", transformed=transformed), 1e-17)
            kept = "changes" if numbers.at("function_residual", transformed=transformed).max() > ROUNDING else "keeps"
            for b in range(len(numbers["biases"])):
                at = np.full(len(values), b + 0.2 * (j - 1))
                text = f"{transformed}: {kept} the function" if b == 0 else None
                look = {"color": inks[str(transformed)], "markersize": 3, "alpha": 0.7, "label": text}
                axes.plot(at, values[:, b], "so^"[j], clip_on=False, **look)
        treated = [TREATED[str(b)].replace(" on", "\non").replace("s ", "s\n") for b in numbers["biases"]]
        axes.set_xticks(range(len(treated)), treated)
        axes.set(yscale="log", xlim=(-0.5, len(treated) - 0.5), ylim=(1e-17, 1e3))
        axes.set_yticks([1e-17, *(10.0**e for e in range(-15, 4, 3))])
        axes.set_yticklabels(["0", *(f"$10^{{{e}}}$" for e in range(-15, 4, 3))])
        axes.minorticks_off()
        axes.axhspan(1e-17, ROUNDING, color="#eef1f4", zorder=0)
        axes.text(0.99, ROUNDING, "rounding ", transform=axes.get_yaxis_transform(), ha="right", va="top", fontsize=6.5)
        axes.set(xlabel="T of the biases in adaptive sharpness", ylabel="spread: (max - min) / median")
        axes.legend(
            loc="lower left", bbox_to_anchor=(0, 1), title=f"{len(numbers['network'])} random networks; rescaled:",
            title_fontproperties={"weight": "bold", "size": 7.5}, alignment="left", handletextpad=0.1,
            labelspacing=0.3,
        )  # fmt: skip

    def judge(self, numbers: FigureData) -> list[Claim]:
        """What is constant, what is not."""
        official = rescaled.spread(numbers["loss"] + numbers["asam_official"])
        alone, zero = (
            numbers.at("relative_spread", transformed=t, biases="asam-official") for t in ("weights only", ZERO)
        )

        def rounding(text: str, published: str, name: str) -> Claim:
            return Claim(
                text=text,
                quantity="relative spread, largest over networks",
                published=published,
                ours=statistics.exact(float(rescaled.spread(numbers[name]).max())),
                below=ROUNDING,
            )

        return [
            Claim(
                text="The ASAM loss is practically constant (the authors' code; weights and biases rescaled)",
                quantity="relative spread of L(w + epsilon), geometric mean over networks",
                published="practically constant (weights rescaled); 'varied dramatically' (biases too)",
                ours=statistics.geometric_mean(official),
                below=0.01,
                note="The report rescaled weights alone for its figure, which changes the function of a network with "
                "biases; rescaling biases too, the only symmetry, made it vary there as here.",
            ),
            Claim(
                text="The authors' adaptive sharpness is constant when weights alone are rescaled",
                quantity="relative spread, geometric mean over networks",
                published="practically constant",
                ours=statistics.geometric_mean(alone),
                below=0.01,
            ),
            Claim(
                text="It is constant at least where all biases are 0, a symmetry of the function",
                quantity="relative spread, geometric mean over networks",
                published="-",
                ours=statistics.geometric_mean(zero),
                below=0.01,
                note="Biases at 0 are perturbed all the same, with T = 1.",
            ),
            rounding(
                "With T = |w| on weights and biases adaptive sharpness is invariant (the report's future work)",
                "asked for",
                "adaptive_sharpness",
            ),
            rounding(
                "With biases left unperturbed it is invariant too", "asked for", "adaptive_sharpness_fixed_biases"
            ),
            rounding("The largest eigenvalue of T H T is invariant", "-", "lambda_max_adaptive"),
            Claim(
                text="Element-wise measures are invariant under rotations between layers without activation too",
                quantity="relative spread of adaptive sharpness, geometric mean over networks",
                published="not claimed",
                ours=statistics.geometric_mean(numbers["rotation_spread"]),
                below=1e-9,
                note="Two linear layers follow each other here: the invariance is to rescaling, not to rotation.",
            ),
        ]
