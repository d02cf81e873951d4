"""Plain language for every measure that a table shows: its label, what it is, and what its value says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from figures.page.formatting import number

Summary = Mapping[str, Any]


@dataclass(frozen=True)
class Meaning:
    """`label` names the row, `general` explains it, `says` reads one value aloud (summary, loss at w) -> text.

    `plural` is the title where several values are drawn. A measure without a single `value` has `fields`: name in the
    summary -> (label of the row, name of its error bound or "", what it says).
    """

    label: str
    general: str
    says: Callable[[Summary, float], str] | None = None
    plural: str = ""
    fields: Mapping[str, tuple[str, str, str]] | None = None

    @property
    def several(self) -> str:
        """Title of a plot of all its values."""
        return self.plural or self.label


def _rise(lead: str) -> Callable[[Summary, float], str]:
    def says(summary: Summary, loss: float) -> str:
        value = summary.get("value")
        if not isinstance(value, int | float):
            return ""
        verb = "raises" if value >= 0 else "lowers"
        to = f", from {number(loss, 3)} to {number(loss + value, 3)}" if not summary.get("logit_normalization") else ""
        return f"{lead.format(rho=number(summary.get('rho'), 3))} {verb} the loss by {number(abs(value), 3)}{to}."

    return says


def _largest(summary: Summary, loss: float) -> str:
    values = [v for v in summary.get("values") or [] if isinstance(v, int | float)]
    if not values or values[0] <= 0:
        return ""
    return (
        f"In the sharpest direction the loss bends like ½·{number(values[0], 3)}·t²; gradient descent with steps above "
        f"2/λ = {number(2 / values[0], 3)} is unstable there."
    )


def _trace(summary: Summary, loss: float) -> str:
    value = summary.get("value")
    if not isinstance(value, int | float):
        return ""
    how = "exact" if summary.get("exact") else "estimated with random probes"
    return (
        f"The sum of all curvatures is {number(value, 3)} ({how}): small noise of scale σ in every weight raises the "
        "loss by half of it times σ²."
    )


MEANINGS: dict[str, Meaning] = {
    "loss": Meaning("Loss", "Mean loss over the sample at the trained weights."),
    "accuracy": Meaning("Accuracy", "Share of the sample that is classified correctly."),
    "sam_sharpness": Meaning(
        "SAM sharpness",
        "Rise of the loss after SAM's single step uphill, of length ρ along the gradient. Smaller is flatter.",
        _rise("One step of length {rho} straight uphill"),
    ),
    "worst_case_sharpness": Meaning(
        "Worst-case sharpness",
        "Largest rise of the loss found anywhere within distance ρ of the weights. Smaller is flatter.",
        _rise("The worst move found within distance {rho}"),
    ),
    "average_sharpness": Meaning(
        "Average sharpness",
        "Mean rise of the loss under random noise of scale ρ in every weight. Smaller is flatter.",
        _rise("Random noise of scale {rho} in every weight, on average,"),
    ),
    "adaptive_sharpness": Meaning(
        "Adaptive sharpness (ASAM)",
        "Like SAM sharpness, but every weight moves in proportion to its size; worst case: the largest rise found in "
        "that ball. Smaller is flatter.",
        _rise("One uphill step that moves every weight in proportion to its size (radius {rho})"),
    ),
    "keskar_sharpness": Meaning(
        "Keskar's ε-sharpness",
        "Largest rise of the loss in a small box around the weights, in percent of 1 + loss. Smaller is flatter.",
    ),
    "pac_bayes_sigma": Meaning(
        "PAC-Bayes σ", "Scale of random noise in the weights that raises the loss by 0.1. Larger is flatter."
    ),
    "hessian_top_eigenvalues": Meaning(
        "Largest Hessian eigenvalue λ₁",
        "Curvature of the loss in its sharpest direction. Smaller is flatter.",
        _largest,
        "Largest Hessian eigenvalues",
    ),
    "hessian_trace": Meaning(
        "Hessian trace", "Sum of the curvatures of the loss over all directions. Smaller is flatter.", _trace
    ),
    "spectral_density": Meaning(
        "Hessian spectrum",
        "How many directions have which curvature: most of them have next to none.",
        fields={
            "largest": ("Largest Ritz value of the spectrum", "", "The estimate's upper end of the spectrum."),
            "smallest": (
                "Smallest Ritz value of the spectrum",
                "",
                "Its lower end: below 0 the loss curves downward somewhere.",
            ),
            "negative_share": (
                "Share of negative curvature",
                "",
                "Directions along which the loss curves downward, of all.",
            ),
        },
    ),
    "negative_curvature": Meaning(
        "Ends of the Hessian's spectrum",
        "A 2-D picture that looks like a bowl is honest where the smallest eigenvalue is small beside the largest.",
        fields={
            "lambda_max": ("Largest eigenvalue", "bound_max", "Curvature in the sharpest direction."),
            "lambda_min": (
                "Smallest eigenvalue",
                "bound_min",
                "Curvature in the direction that bends down most, or up least.",
            ),
            "ratio": (
                "Negative against positive curvature",
                "",
                "|smallest| / |largest| where the smallest is negative: near 0, a picture of a bowl hides little.",
            ),
        },
    ),
    "layer_eigenvalues": Meaning("Largest eigenvalue of the Hessian's block", "Which layer is how sharp."),
    "adaptive_hessian": Meaning(
        "Largest scale-free eigenvalue",
        "Curvature in the sharpest direction when every weight moves in proportion to its size; unlike λ₁ it cannot be "
        "changed by rescaling the network. Smaller is flatter.",
        plural="Largest scale-free eigenvalues",
    ),
    "gradient_norm": Meaning("Gradient norm", "Length of the gradient at the weights: 0 at a true minimum."),
}


def meaning(name: str) -> Meaning:
    """The meaning of the measure `name`; one that is not in the table is described by its own docstring."""
    if name in MEANINGS:
        return MEANINGS[name]
    from landscape import MEASURES

    words = name.replace("_", " ").strip()
    general = MEASURES.entry(name).summary if name in MEASURES else ""
    return Meaning(words[:1].upper() + words[1:], f"{general}." if general else "")
