"""Loss surfaces of SGD, SAM, SAF and MESA side by side on one scale."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from figures.drawing import bands, style
from figures.paper.saf_fig3 import METHODS, runs
from figures.study import recipes
from figures.study.figure import Figure
from figures.study.figure_data import FigureData
from figures.study.study import Study
from figures.study.tasks import Computation
from figures.study.verdict import Claim
from landscape import statistics
from landscape.registry import register

if TYPE_CHECKING:
    from figures.study.tasks import Machine

RADIUS = 0.07
SAMPLES = 512


def gaussian_surface(
    run: Path, *, radius: float, grid: int, samples: int, seed: int, machine: Machine
) -> dict[str, Any]:
    """Training loss on a plane of two Gaussian directions, each as long as `radius` times the weights."""
    import landscape

    problem = machine.subject(run / "ckpt.pt", samples=samples).problem
    surface = landscape.surface(problem, "gaussian", radius, grid, seed)
    return {"x": surface.x, "y": surface.y, "loss": surface.loss, "norm": float(problem.weights.double().norm())}


def profiles(loss: np.ndarray) -> np.ndarray:
    """(..., x, y) -> (..., x): the mean of the cuts through the center along both directions."""
    middle = loss.shape[-1] // 2
    return (loss[..., :, middle] + loss[..., middle, :]) / 2


@register("saf-fig4", source="SAF/MESA poster, Figure 4")
class Surfaces(Figure):
    """Cross-entropy surfaces under Gaussian perturbation, 0.07 of the weights' norm: SGD, SAM, SAF, MESA, one scale.

    The surfaces are those of one seed; below them stands each method's profile over all seeds, with its interval.
    """

    title = "Loss surfaces on shared color and height"

    def _surfaces(self, study: Study) -> dict[tuple[str, int], Computation]:
        arguments = {"radius": RADIUS, "grid": study.choose(13, 41, gpu=41), "samples": study.samples(SAMPLES)}
        if study.preset.epochs is not None:
            arguments["grid"] = 3
        return {
            (m, s): Computation(f"{__name__}:gaussian_surface", (t,), {**arguments, "seed": s})
            for (m, s), t in runs(study).items()
        }

    def plan(self, study: Study) -> list[Computation]:
        """The runs of saf-fig3 and a surface of each; the directions' seed is the run's."""
        return list(self._surfaces(study).values())

    def collect(self, study: Study) -> FigureData:
        """Surfaces by method and seed."""
        results = {key: study.result(c) for key, c in self._surfaces(study).items()}
        seeds = study.seeds(recipes.SEEDS)
        trainings = runs(study).values()
        numbers = FigureData(facts={**recipes.describe(*trainings), "seeds": len(seeds), "radius": RADIUS})
        numbers.facts.update(
            {
                "directions": "gaussian, seeded by the run",
                "shown": "surfaces of seed 0, profiles of all",
                "samples": study.samples(SAMPLES),
                "BatchNorm": "frozen running statistics",
            }
        )
        first = results["sgd", seeds[0]]
        numbers.axis("method", METHODS)
        numbers.axis("seed", seeds)
        numbers.axis("x", first["x"], "||w||")
        numbers.axis("y", first["y"], "||w||")
        loss = [[results[m, s]["loss"] for s in seeds] for m in METHODS]
        numbers.add("loss", ("method", "seed", "x", "y"), loss, "nats")
        numbers.facts["profiles"] = "mean of the cuts along both directions; band: 95% interval over the seeds"
        numbers.add("profile", ("method", "seed", "x"), profiles(np.array(loss)), "nats")
        numbers.add("weight_norm", ("method", "seed"), [[float(results[m, s]["norm"]) for s in seeds] for m in METHODS])
        return numbers

    def draw(self, numbers: FigureData) -> Any:
        """Seed 0: surfaces in 3-D, contours of the logarithm, on one scale; below, all seeds: profiles with bands."""
        import matplotlib.pyplot as plt
        from matplotlib.colors import LogNorm, Normalize

        figure = plt.figure(figsize=(style.PAGE, 5.2), layout="constrained")
        # Nested: the labels beside the profiles leave the columns above as they are.
        halves = figure.add_gridspec(2, 1, height_ratios=(2, 1.05))
        upper = halves[0].subgridspec(2, 4)
        loss = numbers["loss"][:, 0]
        low, high = float(loss.min()), float(loss.max())
        linear, log = Normalize(low, high), LogNorm(max(low, 1e-25), high)
        levels = np.geomspace(max(low, 1e-25), high, 25)
        x, y = numbers["x"], numbers["y"]
        grid = np.meshgrid(x, y, indexing="ij")
        flat: list[Any] = []
        for i, method in enumerate(numbers["method"]):
            solid = figure.add_subplot(upper[0, i], projection="3d", label="solid")
            solid.plot_surface(
                *grid, loss[i], cmap="viridis", norm=linear, linewidth=0, antialiased=True, rcount=41, ccount=41
            )
            solid.set(zlim=(low, high), xlabel="$d_1$ (||w||)", ylabel="$d_2$ (||w||)")
            solid.set_zlabel("loss (nats)" if i == 3 else "", labelpad=-9)
            solid.set_title(bands.label(method), y=1.04)
            solid.tick_params(pad=-4, labelsize=5)
            solid.xaxis.labelpad = solid.yaxis.labelpad = -10
            solid.set(xticks=[-RADIUS, 0], yticks=[0, RADIUS])  # those of the corner would lie on each other
            solid.locator_params(axis="z", nbins=4)
            solid.set_box_aspect((1, 1, 0.8), zoom=1.2)
            axes = figure.add_subplot(upper[1, i], sharey=flat[0] if flat else None)
            axes.tick_params(labelleft=not flat)
            shown = axes.contourf(x, y, loss[i].T, levels=levels, cmap="viridis", norm=log)
            axes.contour(x, y, loss[i].T, levels=levels, colors="white", linewidths=0.3)
            axes.plot(0, 0, "+", color="black", markersize=5)
            axes.set(xlabel="$d_1$ (||w||)", aspect="equal")
            axes.set_title(f"center {loss[i][len(x) // 2, len(y) // 2]:.3g} nats", fontweight="normal", fontsize=6.5)
            flat.append(axes)
        flat[0].set_ylabel("$d_2$ (||w||)")
        bar = figure.colorbar(
            shown, ax=flat, location="right", label="loss (nats, log)", ticks=levels[::6], format="%.3g"
        )
        bar.minorticks_off()
        seeds = len(numbers["seed"])
        figure.suptitle(
            f"Surfaces: seed {numbers['seed'][0]} of {seeds}, on one scale. Profiles: all {seeds} seeds, mean of the "
            "cuts along both directions, bands 95% over seeds.",
            x=0.01,
            ha="left",
            fontsize=7,
            fontweight="normal",
        )
        lower = halves[1].subgridspec(1, 2)
        self._profiles([figure.add_subplot(lower[i], label="profile") for i in range(2)], numbers)
        return figure

    def _profiles(self, panels: list[Any], numbers: FigureData) -> None:
        """On one axis for all methods: how far the loss rises, and the loss itself on a logarithmic scale."""
        x, loss = numbers["x"], numbers["profile"]
        rise = loss - loss[..., len(x) // 2, None]
        rows = ((rise, "rise of the loss (nats)", False), (loss, "loss (nats, log)", True))
        for axes, (values, text, log) in zip(panels, rows, strict=True):
            ends, inks = {}, {}
            for i, method in enumerate(numbers["method"]):
                name, ink = bands.label(str(method)), bands.color(str(method))
                ends[name] = bands.band(axes, x, values[i], ink, log=log, linestyle=("-", "--", "-.", ":")[i])
                inks[name] = ink
            axes.set(xlabel="distance along a random direction (||w||)", ylabel=text, xlim=(x[0], x[-1]))
            axes.locator_params(axis="x", nbins=5)
            if log:
                axes.set_yscale("log")
            bands.name_lines(axes, ends, inks)

    def judge(self, numbers: FigureData) -> list[Claim]:
        """SAF and MESA find minima as flat as SAM's: the rise of the loss at the edge of the picture."""
        loss = numbers["loss"]
        middle = loss.shape[-1] // 2
        border = np.concatenate(
            [loss[..., 0, :], loss[..., -1, :], loss[..., 1:-1, 0], loss[..., 1:-1, -1]], axis=-1
        ).mean(axis=-1)
        rise = border - loss[..., middle, middle]
        rise = np.where(rise > 0, rise, np.nan)
        claims = []
        for method, other, text, below in (
            ("sam", "sgd", "SAM's minimum is flatter than SGD's", 0.0),
            ("saf", "sam", "SAF's minimum is as flat as SAM's", 0.1),
            ("mesa", "sam", "MESA's minimum is as flat as SAM's", 0.1),
        ):
            a, b = (rise[METHODS.index(m)] for m in (method, other))
            claims.append(
                Claim(
                    text=text,
                    quantity=f"ln(rise of {bands.label(method)} / of {bands.label(other)}), mean over the border",
                    published="shown as a picture",
                    ours=statistics.mean(np.log(a / b), "paired t"),
                    below=below,
                    note="'As flat' holds if the rise is at most about 10% larger. Gaussian directions of a length "
                    "relative to ||w||: not invariant under rescaling.",
                )
            )
        return claims
