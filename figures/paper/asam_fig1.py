"""Why flat minima generalize: slices through a sharp and a flat minimum; a network whose minima are a curve."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from figures.drawing import bands, style
from figures.study import recipes
from figures.study.figure import Figure
from figures.study.figure_data import FigureData
from figures.study.study import Study
from figures.study.tasks import Computation, Training
from figures.study.verdict import Claim
from landscape import statistics
from landscape.registry import register

if TYPE_CHECKING:
    from figures.study.tasks import Machine

MINIMA = {"sharp": "sgd", "flat": "sam"}
RADIUS = 0.3
GRID = 41


def slices(run: Path, *, radius: float, grid: int, samples: int, machine: Machine) -> dict[str, Any]:
    """Train and test loss along the top Hessian eigenvector, which is as long as the weights; and its eigenvalue."""
    import landscape

    problems = {s: machine.subject(run / "ckpt.pt", split=s, samples=samples).problem for s in ("train", "test")}
    w = problems["train"].weights
    top = landscape.top_eigenvalues(problems["train"], k=1, tol=1e-3)
    assert top.vectors is not None
    direction = top.vectors[0] * w.double().norm().to(w.dtype)
    ends = [float(problems["train"].loss(w + end * direction)) for end in (-radius, radius)]
    # An eigenvector has no sign: the steeper side goes to the right, so that seeds can be averaged.
    direction = direction if ends[1] >= ends[0] else -direction
    x = np.linspace(-radius, radius, grid)
    losses = {name: [float(p.loss(w + float(a) * direction)) for a in x] for name, p in problems.items()}
    return {"x": x, **losses, "lambda_max": float(top.values[0])}


def hyperbola(*, grid: int, points: int) -> dict[str, Any]:
    """The report's 1-1-1 network, w2 relu(w1 x) fitted to x: its loss, and curvature along the minima w1 w2 = 1."""
    import torch
    from torch import nn

    import landscape

    x = torch.linspace(-1, 1, 101, dtype=torch.float64)[:, None]
    network = nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False)).double()
    problem = landscape.Problem(network, nn.functional.mse_loss, [(x, x.clamp(min=0))])
    w1 = np.geomspace(0.4, 2.5, points)
    along = torch.tensor(np.stack([w1, 1 / w1], axis=1))
    axis = np.linspace(0.2, 3.0, grid)
    surface = [[float(problem.loss(torch.tensor([a, b], dtype=torch.float64))) for b in axis] for a in axis]
    curvature = [float(landscape.top_eigenvalues(problem, w, k=1, tol=1e-8).values[0]) for w in along]
    return {
        "w": axis,
        "surface": surface,
        "w1": w1,
        "lambda_max": curvature,
        "loss": [float(problem.loss(w)) for w in along],
    }


@register("asam-fig1", source="ASAM report, Figure 1 and section A")
class FlatAndSharp(Figure):
    """Train and test loss around a sharp and a flat minimum on real slices; a tiny network's hyperbola of minima."""

    title = "Sharp and flat minima"

    def _seeds(self, study: Study) -> list[int]:
        return study.seeds(recipes.SEEDS)

    def _runs(self, study: Study) -> dict[tuple[str, int], Training]:
        return {
            (kind, s): recipes.features(study, m, s, label_noise=0.2, arguments={"rho": 0.2} if m == "sam" else None)
            for kind, m in MINIMA.items()
            for s in self._seeds(study)
        }

    def _slices(self, study: Study) -> dict[tuple[str, int], Computation]:
        arguments = {"radius": RADIUS, "grid": GRID, "samples": study.samples(2048)}
        return {key: Computation(f"{__name__}:slices", (t,), arguments) for key, t in self._runs(study).items()}

    def _hyperbola(self) -> Computation:
        return Computation(f"{__name__}:hyperbola", (), {"grid": 29, "points": 41})

    def plan(self, study: Study) -> list[Computation]:
        """SGD (sharp) and SAM of a large radius (flat); slices through both; the tiny network."""
        return [*self._slices(study).values(), self._hyperbola()]

    def collect(self, study: Study) -> FigureData:
        """Slices and the hyperbola."""
        results = {key: study.result(c) for key, c in self._slices(study).items()}
        tiny = study.result(self._hyperbola())
        seeds = self._seeds(study)
        numbers = FigureData(facts={**recipes.describe(*self._runs(study).values()), "seeds": len(seeds)})
        numbers.facts.update({"samples": study.samples(2048), "direction": "top Hessian eigenvector", "SAM rho": 0.2})
        numbers.axis("minimum", MINIMA)
        numbers.axis("seed", seeds)
        numbers.axis("split", ["train", "test"])
        numbers.axis("x", results["sharp", seeds[0]]["x"], "||w||")
        loss = [[[results[k, s][split] for split in ("train", "test")] for s in seeds] for k in MINIMA]
        numbers.add("loss", ("minimum", "seed", "split", "x"), loss, "nats")
        top = [[float(results[k, s]["lambda_max"]) for s in seeds] for k in MINIMA]
        numbers.add("lambda_max", ("minimum", "seed"), top, "nats")
        for name in ("w", "w1"):
            numbers.axis(name, tiny[name])
        numbers.axis("w2", tiny["w"])
        numbers.add("tiny_loss", ("w", "w2"), tiny["surface"], "squared error")
        numbers.add("tiny_lambda_max", ("w1",), tiny["lambda_max"], "squared error")
        numbers.add("tiny_loss_on_hyperbola", ("w1",), tiny["loss"], "squared error")
        return numbers

    def draw(self, numbers: FigureData) -> Any:
        """Two slices on one scale, and the hyperbola."""
        import matplotlib.pyplot as plt

        figure, panels = plt.subplots(1, 3, figsize=(style.PAGE, 2.5), layout="constrained")
        panels[1].sharey(panels[0])
        for axes, kind in zip(panels, numbers["minimum"], strict=False):
            method = MINIMA[str(kind)]
            for split, dash in (("train", "-"), ("test", "--")):
                values = numbers.at("loss", minimum=kind, split=split)
                bands.band(
                    axes, numbers["x"], values, bands.color(method), linestyle=dash, log=True, label=f"{split} loss"
                )
            top = numbers.at("lambda_max", minimum=kind).mean()
            axes.set_title(f"{kind}: {bands.label(method)}, $\\lambda_{{max}}$ = {top:.3g}")
            axes.set(xlabel="along the top eigenvector (× ‖w‖)", yscale="log")
            axes.legend(loc="upper center")
        panels[0].set_ylabel("loss (nats)")
        axes = panels[2]
        levels = [0.001, 0.01, 0.03, 0.1, 0.3, 1, 3]
        surface = np.maximum(numbers["tiny_loss"], 1e-9)
        lines = axes.contour(numbers["w"], numbers["w2"], surface.T, levels=levels, colors="#999999", linewidths=0.5)
        axes.clabel(lines, levels[3:], fontsize=5.5, inline_spacing=2)
        w1 = numbers["w1"]
        shown = axes.scatter(w1, 1 / w1, c=numbers["tiny_lambda_max"], cmap="viridis", s=9, zorder=3, lw=0)
        figure.colorbar(shown, ax=axes, label="$\\lambda_{max}$ (squared error)", shrink=0.85)
        axes.set(xlabel="$w_1$", ylabel="$w_2$", aspect="equal")
        axes.set_title("1-1-1 network, $w_2$ relu($w_1 x$)")
        return figure

    def judge(self, numbers: FigureData) -> list[Claim]:
        """Is the flat one flatter, does it generalize better, and is sharpness a property of the function?"""
        center = numbers["loss"].shape[-1] // 2
        gap = numbers["loss"][:, :, 1, center] - numbers["loss"][:, :, 0, center]
        top = np.log(numbers["lambda_max"])
        tiny = numbers["tiny_lambda_max"]
        return [
            Claim(
                text="The minimum that SAM finds is flatter",
                quantity="ln(lambda_max of SGD / of SAM)",
                published="drawn",
                ours=statistics.paired(top[0], top[1]),
                above=0.0,
            ),
            Claim(
                text="The flatter minimum has the smaller gap between test and training loss",
                quantity="gap of the sharp minus gap of the flat minimum",
                published="drawn (schematic)",
                ours=statistics.paired(gap[0], gap[1]),
                above=0.0,
                unit="nats",
                note="20% of the training labels are wrong: the test loss, on right labels, can be below the training "
                "loss.",
            ),
            Claim(
                text="All minima of the 1-1-1 network on the hyperbola compute the same function",
                quantity="largest loss on w1 w2 = 1",
                published="identity",
                ours=statistics.exact(numbers["tiny_loss_on_hyperbola"].max()),
                below=1e-12,
                unit="squared error",
            ),
            Claim(
                text="Their sharpness differs all the same",
                quantity="largest / smallest lambda_max on the hyperbola, w1 from 0.4 to 2.5",
                published="can vary arbitrarily",
                ours=statistics.exact(tiny.max() / tiny.min()),
                above=1.5,
            ),
        ]
