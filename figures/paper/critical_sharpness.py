"""Critical sharpness over the training of a small network: what forward passes alone see of its curvature."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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

RUNS = {"gradient descent": 0.1, "AdamW": 0.001}
"""Optimizer -> the largest learning rate."""
LINES = {"gradient descent": ("$2/\\eta$",), "AdamW": ("$38/\\eta$", "$2/\\eta$")}
WARMUP, DECAY, LOWEST = 0.2, 0.25, 0.1
"""Of AdamW's schedule: parts of the training, and the last rate over the largest."""
POINTS, HALF = 50, 25
NOTES = (
    "A tanh network with two hidden layers, 500 digits, a fifth of the labels wrong, squared error, full batches, "
    "float64. Gradient descent has a constant rate; AdamW (beta 0.9 and 0.95, weight decay 0.01) warms up over a "
    "fifth of its steps and decays linearly to a tenth over the last quarter, as in Kalra et al. Critical and "
    "directional sharpness are taken along the update that the optimizer would make next: 2 / critical sharpness is "
    "the learning rate from which on it raises the loss. Points at which that update rises from the start (d'g <= "
    "0: momentum at the edge overshoots) have no critical sharpness and are left out; the figure says how many. "
    "With batches of 128 the preconditioned sharpness of AdamW stayed at a quarter of its edge, and critical "
    "sharpness scattered around 2 / eta."
)


def follow(
    *,
    data: str,
    samples: int,
    hidden: int,
    label_noise: float,
    optimizer: str,
    lr: float,
    steps: int,
    points: int,
    tolerance: float,
    seed: int,
    machine: Machine,
) -> dict[str, Any]:
    """Train with full batches; sharpness of three kinds at `points` equal distances.

    Returns arrays over the points: step, rate (of the next update), eigenvalue (lambda_max of P^-1 H), edge, critical,
    directional, forwards, loss; nan where the update rises from the start.
    """
    import torch

    import landscape

    problem = tanh_problem(
        data=data,
        loss="squared error",
        label_noise=label_noise,
        samples=samples,
        hidden=hidden,
        seed=seed,
        machine=machine,
    )
    network, (batch,), loss = problem.model, problem.batches, problem.objective.loss
    assert loss is not None
    weights = list(network.parameters())
    adam = optimizer == "AdamW"
    chosen: torch.optim.Optimizer = torch.optim.SGD(weights, lr=lr)
    if adam:
        chosen = torch.optim.AdamW(weights, lr=lr, betas=(0.9, 0.95), weight_decay=0.01)
    every, rows, vectors, known = max(1, steps // points), [], None, None
    for step in range(steps):
        for group in chosen.param_groups:
            group["lr"] = lr * (scheduled(step / steps) if adam else 1.0)
        chosen.zero_grad()
        loss(network(*batch.args), batch.target).mean().backward()
        chosen.step()
        if (step + 1) % every == 0:
            now = problem.updated()
            edge = landscape.preconditioned_sharpness(now, chosen, vectors, tol=tolerance)
            vectors = edge.vectors
            critical, directional, forwards, known = along_the_update(now, chosen, known)
            rate = float(chosen.param_groups[0]["lr"])
            numbers = (edge.value, edge.edge, critical, directional, forwards, float(now.loss()))
            rows.append((step + 1, rate, *numbers))
    names = ("step", "rate", "eigenvalue", "edge", "critical", "directional", "forwards", "loss")
    return dict(zip(names, np.array(rows).T, strict=True))


def scheduled(progress: float) -> float:
    """AdamW's learning rate over the largest: linear warm-up, constant, linear decay."""
    if progress < WARMUP:
        return max(progress / WARMUP, 0.01)
    return max(LOWEST, 1 - (1 - LOWEST) * max(0.0, progress - (1 - DECAY)) / DECAY)


def along_the_update(problem: Any, optimizer: torch.optim.Optimizer, known: float | None) -> tuple[Any, ...]:
    """Critical sharpness, directional sharpness, forward passes, and the step from which the next search starts."""
    import landscape
    from landscape.errors import InputError

    try:
        critical = landscape.critical_sharpness(problem, known, direction=optimizer)
        directional = landscape.directional_sharpness(problem, direction=optimizer)
    except InputError:
        return np.nan, np.nan, np.nan, known
    return critical.value, directional.value, critical.forwards, critical.neighboring_start


@register("critical-sharpness", source="ours; Kalra et al. 2026, arXiv 2601.16979, figures 2 and 3")
class CriticalSharpnessOverTraining(Figure):
    """Critical sharpness beside the largest eigenvalues that it stands for, over two trainings of a small network."""

    title = "Critical sharpness over a training"

    def _runs(self, study: Study) -> dict[tuple[str, int], Computation]:
        common = {"data": "digits", "samples": study.samples(500), "hidden": 64, "label_noise": 0.2}
        common |= {"tolerance": 0.02, "points": POINTS}
        common |= {"steps": POINTS if study.preset.epochs is not None else study.choose(2000, 8000)}
        return {
            (name, seed): Computation(f"{__name__}:follow", (), {**common, "optimizer": name, "lr": lr, "seed": seed})
            for name, lr in RUNS.items()
            for seed in study.seeds(3, 5)
        }

    def plan(self, study: Study) -> list[Computation]:
        """A training with each optimizer and seed."""
        return list(self._runs(study).values())

    def collect(self, study: Study) -> FigureData:
        """Sharpness of three kinds, learning rate and edge over the steps."""
        runs, seeds = self._runs(study), study.seeds(3, 5)
        arguments = dict(next(iter(runs.values())).arguments)
        facts = {k: arguments[k] for k in ("data", "samples", "hidden", "label_noise", "steps", "tolerance")}
        numbers = FigureData(facts={**facts, "seeds": len(seeds), "dtype": "float64", "notes": NOTES})
        results = {key: study.result(run) for key, run in runs.items()}
        numbers.axis("optimizer", list(RUNS))
        numbers.axis("seed", seeds)
        numbers.axis("step", results["AdamW", seeds[0]]["step"])
        numbers.add("rate", ("optimizer", "step"), [results[name, seeds[0]]["rate"] for name in RUNS])
        for array in ("eigenvalue", "edge", "critical", "directional", "forwards", "loss"):
            values = [[results[name, seed][array] for seed in seeds] for name in RUNS]
            numbers.add(array, ("optimizer", "seed", "step"), values)
        return numbers

    def draw(self, numbers: FigureData) -> Any:
        """A panel per optimizer, a line per seed: the eigenvalue and its edge, critical sharpness and 2 / eta."""
        import matplotlib.pyplot as plt

        figure, panels = plt.subplots(1, 2, figsize=(style.PAGE, 2.8), layout="constrained")
        for i, (axes, name) in enumerate(zip(panels, RUNS, strict=True)):
            top = "$\\lambda_{max}(P^{-1}H)$" if name == "AdamW" else "$\\lambda_{max}(H)$"
            lines = {top: ("eigenvalue", style.color(0)), "critical": ("critical", style.color(1))}
            ends, inks = {}, {}
            for text, (array, ink) in lines.items():
                for values in numbers[array][i]:
                    axes.plot(numbers["step"], values, color=ink, linewidth=0.8)
                shown = numbers[array][i]
                last = float(np.nanmean(shown[:, -HALF // 5 :])) if np.isfinite(shown[:, -HALF // 5 :]).any() else 1.0
                ends[text], inks[text] = (float(numbers["step"][-1]), last), ink
            for values in numbers["directional"][i]:
                axes.plot(numbers["step"], values, color="black", linestyle=":", linewidth=0.7)
            axes.plot(numbers["step"], 2 / numbers["rate"][i], color=style.color(1), linestyle="--", linewidth=0.9)
            if name == "AdamW":
                edge = numbers["edge"][i].mean(axis=0)
                axes.plot(numbers["step"], edge, color=style.color(0), linestyle="--", linewidth=0.9)
            left_out = int(np.isnan(numbers["critical"][i]).sum())
            note = f"dashed: {' and '.join(LINES[name])}\ndotted: directional"
            note += f"\n{left_out} updates that rise left out" if left_out else ""
            axes.set_title(f"{name}, $\\eta$ {'up to' if name == 'AdamW' else '='} {RUNS[name]:g}")
            axes.set(xlabel="step", ylabel="sharpness", yscale="log", xlim=(0, numbers["step"][-1]))
            axes.text(0.97, 0.04, note, transform=axes.transAxes, ha="right", va="bottom", fontsize=6.5)
            bands.name_lines(axes, ends, inks)
        return figure

    def judge(self, numbers: FigureData) -> list[Claim]:
        """Where it lies before the edge and at it, beside what it stands for, and what it costs."""
        share = numbers["critical"] * numbers["rate"][:, None] / 2
        beside = numbers["critical"] / numbers["eigenvalue"]
        agreement = numbers["critical"] / numbers["directional"]
        edge = numbers["eigenvalue"] / numbers["edge"]
        first, second = slice(0, POINTS // 5), slice(HALF, None)
        rows = [
            ("Under gradient descent critical sharpness ends at 2/eta", share[0], second, "around 1", 0.8, 1.25),
            ("Before the edge it lies far below lambda_max", beside[0], first, "below 1", None, 0.5),
            ("At the edge it is the directional sharpness", agreement[0], second, "close to 1", 0.9, 1.1),
            ("The preconditioned sharpness of AdamW follows its edge", edge[1], second, "1", 0.8, 1.25),
            ("Critical sharpness of AdamW's update follows 2/eta", share[1], second, "around or below 1", 0.5, 1.25),
            ("It takes at most 7 forward passes from the last step", numbers["forwards"], second, "5 to 6", None, 7.0),
        ]
        quantities = (
            "mean of critical sharpness eta / 2 over the second half",
            "mean of critical sharpness / lambda_max over the first fifth",
            "mean of critical / directional sharpness over the second half",
            "mean of lambda_max(P^-1 H) / edge over the second half",
            "mean of critical sharpness eta / 2 over the second half",
            "mean number of evaluations of the loss, both trainings, over the second half",
        )
        return [
            Claim(
                text=text,
                quantity=quantity,
                published=published,
                ours=statistics.mean(by_seed(values[..., points])),
                above=above,
                below=below,
                note=NOTES,
            )
            for (text, values, points, published, above, below), quantity in zip(rows, quantities, strict=True)
        ]


def by_seed(values: np.ndarray) -> np.ndarray:
    """Mean over the points (and over the optimizers where there are several), without those that have no number."""
    over = tuple(a for a in range(values.ndim) if a != values.ndim - 2)
    counted = np.isfinite(values)
    total = np.where(counted, values, 0.0).sum(axis=over)
    return np.divide(total, counted.sum(axis=over), out=np.full(total.shape, np.nan), where=counted.any(axis=over))
