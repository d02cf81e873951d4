"""Five optimizers, each with the curvature that it keeps at a line of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from figures.drawing import bands, style
from figures.paper.edge_of_stability import tanh_problem
from figures.study.figure import Figure
from figures.study.figure_data import FigureData
from figures.study.study import Study
from figures.study.tasks import Computation
from figures.study.verdict import Claim
from landscape import statistics
from landscape.registry import register

if TYPE_CHECKING:
    import torch

    from figures.study.tasks import Machine
    from landscape import Problem


class EdgeRow(NamedTuple):
    """An optimizer: learning rate, steps, what is drawn, its line, the source."""

    rate: float
    steps: int
    curvature: str
    line: str
    published: str


BETA, SGD_BATCH = 0.9, 64
ROWS = {
    "gradient descent": EdgeRow(0.1, 2000, "$\\lambda_{max}(H)$", "$2/\\eta$", "just above 1 (Cohen 2021)"),
    "momentum": EdgeRow(0.16, 2000, "$\\lambda_{max}(H)$", "$(2+2\\beta)/\\eta$", "1 (Cohen 2021)"),
    "Adam": EdgeRow(0.001, 2000, "$\\lambda_{max}(P^{-1}H)$", "$38/\\eta$", "1 (Cohen 2022)"),
    "SGD": EdgeRow(0.2, 8000, "batch sharpness", "$2/\\eta$", "1 (Andreyev 2024)"),
    "sign descent": EdgeRow(3e-4, 2000, "max $d'Hd$, $|d_i|\\leq1$", "$2||g||_1/\\eta$", "1 and above (Islamov 2026)"),
}
POINTS = 50
NOISE = 0.2
REGION = (0.8, 1.25)
NOTES = (
    "A tanh network with two hidden layers, 500 digits, a fifth of the labels wrong, squared error 1/2 ||f - "
    "onehot||^2, float64; momentum and beta1 are 0.9, Adam's beta2 is 0.99. Learning rates, steps and the batch "
    "were chosen on seed 0 (some twenty tries, most of them with SGD), the region before the other seeds were run. "
    "Wrong labels keep the curvature rising: with right ones momentum stayed 16% below its line at the largest rate "
    "that did not diverge. SGD draws a new batch at every step; batch sharpness is the mean over a random "
    "partition into batches of that size. It rises slowly and lies further below the line for smaller batches: with "
    "32 it was 0.8 of it after 16,000 steps, with 16 and the same rate the training diverged. The generalized "
    "sharpness of sign descent is the largest that searches found, from the last maximum, along the gradient and "
    "from a random point: a lower bound. Its line moves with the gradient."
)


def train_at_edge(
    *,
    data: str,
    samples: int,
    hidden: int,
    label_noise: float,
    optimizer: str,
    lr: float,
    steps: int,
    points: int,
    batch: int,
    tolerance: float,
    seed: int,
    machine: Machine,
) -> dict[str, Any]:
    """Train with one of the optimizers; its curvature and its line at `points` equal distances.

    Returns arrays over the points: step, curvature, line, loss.
    """
    import torch

    problem = tanh_problem(
        data=data,
        loss="squared error",
        label_noise=label_noise,
        samples=samples,
        hidden=hidden,
        seed=seed,
        machine=machine,
    )
    network, (whole,), loss = problem.model, problem.batches, problem.objective.loss
    assert loss is not None
    parameters = list(network.parameters())
    chosen = _optimizer(optimizer, parameters, lr)
    draws = torch.Generator().manual_seed(seed)
    size, every = min(batch, samples) if optimizer == "SGD" else samples, max(1, steps // points)
    rows, start = [], None
    for step in range(1, steps + 1):
        index = torch.randperm(samples, generator=draws)[:size].to(problem.weights.device)
        rows_of = whole.select(index) if size < samples else whole
        chosen.zero_grad()
        loss(network(*rows_of.args), rows_of.target).mean().backward()
        if optimizer == "sign descent":
            for p in parameters:
                p.grad.sign_()  # type: ignore[union-attr]
        chosen.step()
        if step % every == 0:
            now = problem.updated()
            curvature, line, start = _measured(now, optimizer, chosen, start, size, tolerance, step)
            rows.append((step, curvature, line, float(now.loss())))
    return dict(zip(("step", "curvature", "line", "loss"), np.array(rows).T, strict=True))


def _optimizer(name: str, parameters: list[Any], lr: float) -> torch.optim.Optimizer:
    import torch

    if name == "Adam":
        return torch.optim.Adam(parameters, lr=lr, betas=(BETA, 0.99))
    return torch.optim.SGD(parameters, lr=lr, momentum=BETA if name == "momentum" else 0.0)


def _measured(
    problem: Problem, name: str, optimizer: torch.optim.Optimizer, start: Any, size: int, tol: float, step: int
) -> tuple[float, float, Any]:
    """Curvature, line, and what the next measurement starts from."""
    import landscape

    lr = float(optimizer.param_groups[0]["lr"])
    if name == "SGD":
        batches = landscape.batch_sharpness(problem, batch_size=size, shuffle=True, seed=step)
        return batches.value, 2 / lr, None
    if name == "sign descent":
        box = landscape.generalized_sharpness(problem, start, norm="linf", restarts=2, tol=tol)
        return box.value, 2 * box.dual_norm / lr, box.neighboring_start
    edge = landscape.preconditioned_sharpness(problem, optimizer, start, tol=tol)
    return edge.value, edge.edge, edge.neighboring_start


@register("optimizer-edges", source="ours; Cohen et al. 2021 and 2022, Andreyev et al. 2024, Islamov et al. 2026")
class OptimizerEdges(Figure):
    """Gradient descent, momentum, Adam, SGD and sign descent, each at its own edge of stability."""

    title = "Every optimizer at its own edge"

    def _runs(self, study: Study) -> dict[tuple[str, int], Computation]:
        common = {"data": "digits", "samples": study.samples(500), "hidden": 64, "label_noise": NOISE}
        common |= {"batch": SGD_BATCH, "tolerance": 0.01, "points": POINTS}
        return {
            (name, seed): Computation(
                f"{__name__}:train_at_edge",
                (),
                {**common, "optimizer": name, "lr": row.rate, "steps": self._steps(study, row), "seed": seed},
            )
            for name, row in ROWS.items()
            for seed in study.seeds(3, 5)
        }

    def _steps(self, study: Study, row: EdgeRow) -> int:
        return POINTS if study.preset.epochs is not None else row.steps

    def plan(self, study: Study) -> list[Computation]:
        """One training an optimizer and seed."""
        return list(self._runs(study).values())

    def collect(self, study: Study) -> FigureData:
        """Curvature, line and training loss over the steps of every optimizer."""
        runs, seeds = self._runs(study), study.seeds(3, 5)
        arguments = dict(next(iter(runs.values())).arguments)
        facts = {k: arguments[k] for k in ("data", "samples", "hidden", "label_noise", "batch", "tolerance")}
        numbers = FigureData(facts={**facts, "seeds": len(seeds), "dtype": "float64", "notes": NOTES})
        numbers.axis("optimizer", list(ROWS))
        numbers.axis("seed", seeds)
        numbers.axis("point", range(1, POINTS + 1))
        numbers.add("rate", ("optimizer",), [row.rate for row in ROWS.values()])
        results = {key: study.result(run) for key, run in runs.items()}
        numbers.add("step", ("optimizer", "point"), [results[name, seeds[0]]["step"] for name in ROWS])
        for array in ("curvature", "line", "loss"):
            values = [[results[name, seed][array] for seed in seeds] for name in ROWS]
            numbers.add(array, ("optimizer", "seed", "point"), values)
        return numbers

    def draw(self, numbers: FigureData) -> Any:
        """A panel per optimizer: a line per seed, dashed its edge; the last one: all of them over their edges."""
        import matplotlib.pyplot as plt

        figure, panels = plt.subplots(2, 3, figsize=(style.PAGE, 3.7), layout="constrained")
        *single, together = panels.flat
        ends, inks = {}, {}
        for i, (name, axes) in enumerate(zip(ROWS, single, strict=True)):
            row, ink, steps = ROWS[name], style.color(i), numbers["step"][i]
            power = 3 * int(np.log10(numbers["line"][i].max()) // 3)
            scale = 10**power
            for curvature, line in zip(numbers["curvature"][i], numbers["line"][i], strict=True):
                axes.plot(steps, curvature / scale, color=ink, linewidth=0.8)
                axes.plot(steps, line / scale, color="black", linestyle="--", linewidth=0.7)
            axes.set_title(f"{name}, $\\eta$ = {row.rate:g}")
            unit = f" ($10^{power}$)" if power else ""
            axes.set(xlabel="step", ylabel=f"{row.curvature}{unit}", xlim=(0, steps[-1]))
            axes.set_ylim(0, 1.35 * float(numbers["line"][i].max()) / scale)
            axes.text(0.03, 0.96, f"dashed: {row.line}", transform=axes.transAxes, va="top", fontsize=6.5)
            share = steps / steps[-1]
            ends[name] = bands.band(together, share, self._ratio(numbers)[i], ink)
            inks[name] = ink
        together.axhline(1, color="black", linestyle="--", linewidth=0.7)
        together.set(xlabel="part of the training", ylabel="curvature / line", xlim=(0, 1), ylim=(0, 1.5))
        together.set_title("each over its own line")
        bands.name_lines(together, ends, inks)
        return figure

    def judge(self, numbers: FigureData) -> list[Claim]:
        """In the second half of the training every curvature is at its line."""
        ratios = self._ratio(numbers)[:, :, POINTS // 2 :].mean(axis=2)
        return [
            Claim(
                text=f"{name[:1].upper() + name[1:]} keeps its curvature at its own line",
                quantity="mean of curvature / line over the second half of the training",
                published=row.published,
                ours=statistics.mean(ratios[i]),
                above=REGION[0],
                below=REGION[1],
                note=NOTES,
            )
            for i, (name, row) in enumerate(ROWS.items())
        ]

    def _ratio(self, numbers: FigureData) -> np.ndarray:
        """(optimizer, seed, point)."""
        return numbers["curvature"] / numbers["line"]
