"""Loss surfaces of SGD, SAM, SAF and MESA side by side on one scale."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from figures.drawing import bands, style
from figures.drawing.contours import draw_contours, draw_surface
from figures.page.grids import Grid, views
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


def _planes(numbers: FigureData) -> list[Grid]:
    """The first seed's surfaces."""
    axes, names = (numbers["x"], numbers["y"]), ("direction 1 (× ‖w‖)", "direction 2 (× ‖w‖)")
    middle = len(numbers["x"]) // 2
    return [
        Grid(bands.label(str(m)), axes, loss, names, "‖w‖", float(loss[middle, middle]), "")
        for m, loss in zip(numbers["method"], numbers["loss"][:, 0], strict=True)
    ]


@register("saf-fig4", source="SAF/MESA poster, Figure 4")
class Surfaces(Figure):
    """Cross-entropy surfaces under Gaussian perturbation, 0.07 of the weights' norm: SGD, SAM, SAF, MESA, one scale.

    The surfaces are those of one seed; below them stands each method's profile over all seeds, with its interval.
    """

    title = "Rise of the loss around four minima"

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
        """A column per method. Rise of the loss above the center, seed 0: in 3-D and as contours, on one scale.

        Below, all seeds: the profile of the rise and of the loss itself, each with its band before the other methods'.
        """
        import matplotlib.pyplot as plt

        planes, methods = _planes(numbers), len(numbers["method"])
        view = views(planes)[0]
        figure = plt.figure(figsize=(style.PAGE, 6.3), layout="constrained")
        widths, heights = (*[1] * methods, 0.06), (1.3, 1, 0.75, 0.75)
        cells = figure.add_gridspec(4, methods + 1, width_ratios=widths, height_ratios=heights)
        flat: list[Any] = []
        for i, one in enumerate(view.drawn):
            solid = figure.add_subplot(cells[0, i], projection="3d", label="solid")
            draw_surface(solid, one, view.scale)
            solid.set_title(one.label, loc="center", y=1.0)
            # There is little room, and the axes are those of the contours below.
            solid.set(xlabel="direction 1", ylabel="direction 2", xticklabels=[], yticklabels=[])
            solid.xaxis.labelpad = solid.yaxis.labelpad = -14
            if i < methods - 1:
                solid.set_zticklabels([])
                solid.texts[0].set_visible(False)
            solid.set_box_aspect((1, 1, 0.9), zoom=1.08)
            solid.set_anchor("N")
            solid.set_in_layout(False)  # its names may reach into the gaps around it
            axes = figure.add_subplot(cells[1, i], label="flat", sharey=flat[0] if flat else None)
            shown = draw_contours(axes, one, view.scale)
            axes.tick_params(labelleft=not flat)
            axes.set_xlabel(one.names[0])
            flat.append(axes)
        flat[0].set_ylabel(view.drawn[0].names[1])
        values, words = view.scale.ticks(False)
        bar = figure.colorbar(shown, cax=figure.add_subplot(cells[1, methods], label="<colorbar>"), label="rise (nats)")
        bar.set_ticks(values, labels=words)
        bar.outline.set_visible(False)
        self._profiles(figure, cells, numbers)
        seeds = len(numbers["seed"])
        figure.suptitle(
            f"Above: rise of the loss from its value at the center (dot), seed {numbers['seed'][0]} of {seeds}, on one "
            f"scale. Below: profiles of all {seeds} seeds,\nmean of the cuts along both directions, bands 95% over "
            "seeds; gray: the other methods.",
            x=0.01,
            ha="left",
            fontsize=6.5,
            fontweight="normal",
        )
        return figure

    def _profiles(self, figure: Any, cells: Any, numbers: FigureData) -> None:
        """A panel per method, as bands of four methods in one would hide each other: the rise, and the loss itself."""
        x, loss, seeds = numbers["x"], numbers["profile"], len(numbers["seed"])
        rise = loss - loss[..., len(x) // 2, None]
        above: list[Any] = []
        for row, (values, name) in enumerate(((rise, "rise"), (loss, "loss")), 2):
            log, panels = name == "loss", list[Any]()
            mean = np.exp(np.log(values).mean(axis=1)) if log else values.mean(axis=1)
            for i, method in enumerate(map(str, numbers["method"])):
                axes = figure.add_subplot(
                    cells[row, i],
                    label=f"profile of the {name}",
                    sharex=above[i] if above else None,
                    sharey=panels[0] if panels else None,
                )
                for j in range(len(values)):
                    if j != i:
                        axes.plot(x, mean[j], color="#b0b5bb", linewidth=0.7)
                bands.band(axes, x, values[i], bands.color(method), log=log)
                axes.set(xlim=(x[0], x[-1]), yscale="log" if log else "linear")
                axes.locator_params(axis="x", nbins=4, steps=[1, 2, 5, 10])
                axes.tick_params(labelleft=not panels, labelbottom=log, which="both")
                if log:
                    axes.set_xlabel("distance (× ‖w‖)")
                panels.append(axes)
            above = panels
            panels[0].set_ylabel(f"{name} (nats),\n{seeds} seeds")
            if log:
                style.few_log_ticks(panels[0], "y")

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
