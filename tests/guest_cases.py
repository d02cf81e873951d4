"""One file each of a measure, a method, a model, a data set and a figure, as somebody who brings one would write it."""

MEASURE = '''"""A length of the gradient."""

from __future__ import annotations

from dataclasses import dataclass

from landscape.measure import measure
from landscape.problem.problem import Problem
from landscape.results.result import Result


@dataclass(frozen=True, kw_only=True)
class GuestLength(Result):
    """Length of the gradient.

    Attributes:
        value: ||g||^power.
    """

    value: float


@measure("guest_length", label="Guest length", meaning="How steep the loss is, once more.", unit="loss / weight")
def guest_length(problem: Problem, *, power: float = 1.0, seed: int = 0) -> GuestLength:
    """Length of the gradient: ||g||^power.

    Args:
        power: to which the length is taken.
        seed: draws nothing.

    Returns:
        GuestLength with `value`.

    Cost: 1 forward + 1 backward pass.
    Source: brought by a test, 2026.

    Example:
        >>> import landscape, torch
        >>> line = torch.nn.Linear(1, 1, bias=False, dtype=torch.float64)
        >>> x, _ = torch.ones(4, 1, dtype=torch.float64), torch.nn.init.ones_(line.weight)
        >>> problem = landscape.Problem(line, torch.nn.MSELoss(), [(x, 2 * x)])  # L(w) = (w - 2)^2 at w = 1
        >>> landscape.guest_length(problem).value
        2.0
    """
    return GuestLength(value=float(problem.gradient().double().norm()) ** power)
'''

METHOD = '''"""Gradients of a chosen length.

Paper: none. Official implementation: none. Deviations: none.
"""

from __future__ import annotations

from dataclasses import dataclass

from landscape.registry import register
from trainers.method.method import Method, Pass, State, Step, require


@register("guest-method", source="a test", cost="1 forward + 1 backward", statistics="the only pass")
@dataclass(frozen=True)
class GuestMethod(Method):
    """Gradients times a factor: g <- factor g.

    Args:
        factor: of the gradient.
    """

    factor: float = 0.5

    def __post_init__(self) -> None:
        require(self.factor > 0, f"factor must be > 0, received {self.factor}")

    def compute(self, step: Step, state: State) -> Pass:
        """One pass at w."""
        clean = step.backward()
        for parameter in step.task.parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(self.factor)
        return clean
'''

MODEL = '''"""A network with one hidden layer."""

from __future__ import annotations

from math import prod

from torch import nn

from landscape.registry import register


@register("guest-model", small={"input_shape": (5,), "units": 3})
def guest_model(classes: int, input_shape: tuple[int, ...], *, units: int = 8) -> nn.Sequential:
    """One hidden layer of ReLUs.

    Args:
        units: of the hidden layer.
    """
    return nn.Sequential(nn.Flatten(), nn.Linear(prod(input_shape), units), nn.ReLU(), nn.Linear(units, classes))
'''

DATA = '''"""Two Gaussian blobs."""

from __future__ import annotations

import torch

from landscape.random import stream
from landscape.registry import register
from trainers.data import Arrays, Source


@register("guest-data", small={"n": 40})
def guest_data(source: Source, *, n: int = 100) -> Arrays:
    """Two blobs on a line.

    Args:
        n: points of each part.
    """
    parts = []
    for part in ("train", "test"):
        generator = stream(source.seed, f"guest-{part}")
        y = torch.arange(n) % 2
        parts += [torch.randn(n, 3, generator=generator) + 2 * y[:, None], y]
    return Arrays(*parts, classes=2)
'''

FIGURE = '''"""Means of normal draws."""

from __future__ import annotations

from typing import Any

from figures.study.figure import Figure
from figures.study.figure_data import FigureData
from figures.study.study import Computation, Study
from figures.study.verdict import Claim
from landscape import statistics
from landscape.registry import register

MEANS = 20


def draw_means(*, seed: int, n: int) -> dict[str, Any]:
    """Means of n normal numbers each."""
    import torch

    from landscape.random import stream

    return {"mean": torch.randn(MEANS, n, generator=stream(seed, "guest-figure")).mean(dim=1).numpy()}


@register("guest-figure", source="a test")
class GuestFigure(Figure):
    """Means of normal draws, by seed."""

    title = "Means"

    def plan(self, study: Study) -> list[Computation]:
        """One computation a seed."""
        return [Computation(f"{__name__}:draw_means", arguments={"seed": s, "n": 500_000}) for s in study.seeds(3, 3)]

    def collect(self, study: Study) -> FigureData:
        """Every mean."""
        numbers = FigureData(facts={"seeds": len(study.seeds(3, 3))})
        numbers.axis("seed", study.seeds(3, 3))
        numbers.axis("draw", range(MEANS))
        numbers.add("mean", ("seed", "draw"), [study.result(c)["mean"] for c in self.plan(study)])
        return numbers

    def draw(self, numbers: FigureData) -> Any:
        """A line per seed."""
        import matplotlib.pyplot as plt

        from figures.drawing import style

        figure, axes = plt.subplots(figsize=(style.COLUMN, 2.4), layout="constrained")
        axes.plot(numbers["draw"], numbers["mean"].T)
        axes.set(xlabel="draw", ylabel="mean")
        return figure

    def judge(self, numbers: FigureData) -> list[Claim]:
        """They are zero on average."""
        ours = statistics.mean(numbers["mean"].mean(axis=1))
        text = "Normal numbers are zero on average"
        return [Claim(text=text, quantity="mean", published="-", ours=ours, above=-0.1, below=0.1)]
'''

FILES = {
    "landscape/measures/guest_length.py": MEASURE,
    "trainers/methods/guest_method.py": METHOD,
    "trainers/models/guest_model.py": MODEL,
    "trainers/data/guest_data.py": DATA,
    "figures/paper/guest_figure.py": FIGURE,
}
NAMES = {
    "measures": "guest_length",
    "methods": "guest-method",
    "models": "guest-model",
    "data": "guest-data",
    "figures": "guest-figure",
}
