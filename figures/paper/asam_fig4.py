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
        """Each measure relative to its median on the left; spreads by treatment on the right."""
        import matplotlib.pyplot as plt

        figure, (left, right) = plt.subplots(
            1, 2, figsize=(style.PAGE, 2.7), layout="constrained", width_ratios=(1.2, 1)
        )
        x, ends = numbers["transform"] + 1, {}
        for i, name in enumerate(MEASURES):
            values = numbers[name][0]
            relative = values / np.median(values)
            # Four of the lines are one line: the invariant ones are drawn dashed over each other.
            dash = "-" if rescaled.spread(values) > 1e-6 else (i, (2, 6))
            left.plot(x, relative, color=style.color(i), linewidth=1, linestyle=dash)
            ends[NAMES[name]] = (float(x[-1]), float(relative[-1]), style.color(i))
        left.set_xlim(x[0], x[-1])
        left.set(xlabel="rescaling, $\\tau$ uniform in [0.5, 1.5]", ylabel="measure / its median")
        left.set_title(f"one random network, $\\rho$ = {numbers.facts['rho']:g}")
        style.label_lines(left, ends)
        inks = {"weights only": "#D55E00", "weights and biases": "#0072B2", ZERO: "#E69F00"}
        for j, transformed in enumerate(numbers["transformed"]):
            values = np.maximum(numbers.at("relative_spread", transformed=transformed), 1e-17)
            kept = "changes" if numbers.at("function_residual", transformed=transformed).max() > 1e-9 else "keeps"
            for b in range(len(numbers["biases"])):
                at = np.full(len(values), b + 0.2 * (j - 1))
                text = f"{transformed}: {kept} the function" if b == 0 else None
                right.plot(
                    at, values[:, b], "so^"[j], color=inks[str(transformed)], markersize=3, alpha=0.7, label=text
                )
        right.set_xticks(
            range(len(numbers["biases"])),
            [TREATED[str(b)].replace(" on", "\non").replace("s ", "s\n") for b in numbers["biases"]],
        )
        right.axhline(1e-9, color="#bbbbbb", linewidth=0.7, zorder=0)
        right.set(
            yscale="log",
            xlabel="T of the biases in adaptive sharpness",
            ylabel="(max - min) / median",
            ylim=(3e-18, 1e9),
        )
        right.legend(loc="upper left", title="rescaled", title_fontsize=6, fontsize=6, handletextpad=0.1)
        right.set_title(f"dots: {len(numbers['network'])} random networks")
        return figure

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
                below=1e-9,
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
