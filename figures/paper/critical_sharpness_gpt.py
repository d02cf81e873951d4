"""Critical sharpness over the training of a small GPT on text: warm-up, plateau and decay of the learning rate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from figures.drawing import bands, style
from figures.paper.critical_sharpness import DECAY, WARMUP, along_the_update, by_seed, scheduled
from figures.study.figure import Figure
from figures.study.figure_data import FigureData
from figures.study.study import Study
from figures.study.tasks import Computation
from figures.study.verdict import Claim
from landscape import statistics
from landscape.registry import register

if TYPE_CHECKING:
    from figures.study.tasks import Machine

RATE = 0.01
"""The largest learning rate."""
NOTES = (
    "A causal language model (gpt-small) on 32 docstrings of the pinned packages, 32 tokens and their next ones each, "
    "full batches, AdamW (beta 0.9 and 0.95, weight decay 0.01), rate 0.01 after a linear warm-up over a fifth of the "
    "steps, linear decay to a tenth over the last quarter, as in Kalra et al. Critical and directional sharpness are "
    "taken along the update that the optimizer would make next. Updates that rise from the start have none and are "
    "left out; the figure says how many. With batches of 16 of 2,000 texts critical sharpness stayed at a tenth of "
    "2 / eta over as many steps."
)


def follow_gpt(
    *,
    length: int,
    texts: int,
    dim: int,
    depth: int,
    lr: float,
    steps: int,
    points: int,
    seed: int,
    machine: Machine,
) -> dict[str, Any]:
    """Train a GPT on text with AdamW; critical and directional sharpness along its updates at `points` equal distances.

    Returns arrays over the points: step, rate (of the next update), critical, directional, forwards, loss; nan where
    the update rises from the start.
    """
    import torch

    import landscape
    from trainers.datasets import load_data
    from trainers.models import build_model

    data = load_data("docstrings-lm", data_dir=machine.data_dir, length=length, train=texts, test=2)
    data = data.to(machine.device)
    network = build_model("gpt-small", classes=data.classes, input_shape=(length,), seed=seed, dim=dim, depth=depth)
    network.to(machine.device)
    inputs, targets, loss = data.inputs(slice(0, texts)), data.targets(slice(0, texts)), torch.nn.CrossEntropyLoss()
    problem = landscape.Problem(network, loss, [(inputs, targets)])
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.01)
    rows: list[tuple[float, ...]] = []
    known = None
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * scheduled(step / steps)
        optimizer.zero_grad()
        loss(network(inputs), targets).backward()
        optimizer.step()
        if (step + 1) % max(1, steps // points) == 0:
            rate = lr * scheduled(min((step + 1) / steps, 1.0))
            now = problem.updated()
            critical, directional, forwards, known = along_the_update(now, optimizer, known)
            rows.append((step + 1, rate, critical, directional, forwards, float(now.loss())))
    names = ("step", "rate", "critical", "directional", "forwards", "loss")
    return dict(zip(names, np.array(rows).T, strict=True))


@register("critical-sharpness-gpt", source="ours; Kalra et al. 2026, arXiv 2601.16979")
class CriticalSharpnessOfGPT(Figure):
    """Critical sharpness along AdamW's updates over the training of a small causal language model."""

    title = "Critical sharpness over the training of a small GPT"

    def _runs(self, study: Study) -> dict[int, Computation]:
        arguments = {"length": 32, "texts": 32, "dim": 32, "depth": 2, "lr": RATE}
        arguments |= {"steps": study.choose(300, 4000), "points": 30}
        if study.preset.epochs is not None:
            arguments |= {"length": 8, "texts": 4, "dim": 8, "steps": 10, "points": 10}
        task = f"{__name__}:follow_gpt"
        return {seed: Computation(task, (), {**arguments, "seed": seed}) for seed in study.seeds(3, 5)}

    def plan(self, study: Study) -> list[Computation]:
        """A training for each seed."""
        return list(self._runs(study).values())

    def collect(self, study: Study) -> FigureData:
        """Sharpness of two kinds, learning rate and loss over the steps."""
        runs = self._runs(study)
        arguments = {k: v for k, v in next(iter(runs.values())).arguments.items() if k != "seed"}
        numbers = FigureData(facts={**arguments, "seeds": len(runs), "dtype": "float32", "notes": NOTES})
        results = [study.result(run) for run in runs.values()]
        numbers.axis("seed", list(runs))
        numbers.axis("step", results[0]["step"])
        numbers.add("rate", ("step",), results[0]["rate"])
        for name in ("critical", "directional", "forwards", "loss"):
            numbers.add(name, ("seed", "step"), [r[name] for r in results])
        return numbers

    def draw(self, numbers: FigureData) -> Any:
        """Sharpness and 2 / eta on the left, the loss on the right; a line per seed."""
        import matplotlib.pyplot as plt

        figure, (left, right) = plt.subplots(1, 2, figsize=(style.PAGE, 2.6), layout="constrained")
        steps, threshold = numbers["step"], 2 / numbers["rate"]
        for critical, directional in zip(numbers["critical"], numbers["directional"], strict=True):
            left.plot(steps, critical, color=style.color(1), linewidth=0.8)
            left.plot(steps, directional, color="black", linestyle=":", linewidth=0.7)
        left.plot(steps, threshold, color=style.color(0), linestyle="--", linewidth=1)
        last = np.nanmean(numbers["critical"][:, -3:]) if np.isfinite(numbers["critical"][:, -3:]).any() else 1.0
        ends = {"critical": (float(steps[-1]), float(last)), "$2/\\eta$": (float(steps[-1]), float(threshold[-1]))}
        bands.name_lines(left, ends, {"critical": style.color(1), "$2/\\eta$": style.color(0)})
        left.set(xlabel="step", ylabel="sharpness", yscale="log", xlim=(0, steps[-1]))
        risen = int(np.isnan(numbers["critical"]).sum())
        note = f"dotted: directional{f'; {risen} updates that rise left out' if risen else ''}"
        left.set_title(f"AdamW, $\\eta$ up to {numbers.facts['lr']:g}")
        left.text(0.97, 0.96, note, transform=left.transAxes, ha="right", va="top", fontsize=6.5)
        for loss in numbers["loss"]:
            right.plot(steps, loss, color=style.color(2), linewidth=0.9)
        right.set(xlabel="step", ylabel="loss (nats per token)", xlim=(0, steps[-1]))
        for end in (WARMUP, 1 - DECAY):
            for axes in (left, right):
                axes.axvline(end * steps[-1], color="#bbbbbb", linewidth=0.7, zorder=0)
        right.set_title("gray: end of warm-up, start of decay")
        return figure

    def judge(self, numbers: FigureData) -> list[Claim]:
        """What it stands for, how it follows the schedule, and what it costs."""
        share = numbers["critical"] * numbers["rate"] / 2
        agreement = numbers["critical"] / numbers["directional"]
        points = len(numbers["step"])
        warm_up, plateau, half, end = (
            slice(round(first * points), round(last * points))
            for first, last in ((0, WARMUP), (0.5, 1 - DECAY), (0.5, 1), (0.9, 1))
        )
        rows = (
            ("In the warm-up critical sharpness lies below 2/eta", share[:, warm_up], "below 1", None, 1.0),
            ("At the full rate it settles at 2/eta", share[:, plateau], "around 1", 0.8, 1.25),
            ("There it is the directional sharpness of the update", agreement[:, half], "close to 1", 0.9, 1.1),
            ("It takes at most 7 forward passes from the last step", numbers["forwards"][:, half], "5 to 6", None, 7.0),
        )
        quantities = (
            "mean of critical sharpness eta / 2 in the warm-up",
            "mean of critical sharpness eta / 2 over the later half of the plateau",
            "mean of critical / directional sharpness over the second half",
            "mean number of evaluations of the loss over the second half",
        )
        claims = [
            Claim(
                text=text,
                quantity=quantity,
                published=published,
                ours=statistics.mean(by_seed(values)),
                above=above,
                below=below,
                note=NOTES,
            )
            for (text, values, published, above, below), quantity in zip(rows, quantities, strict=True)
        ]
        decay = by_seed(numbers["critical"][:, end]) / by_seed(numbers["critical"][:, plateau])
        risen = statistics.mean(decay)
        text, quantity = "As the rate decays critical sharpness rises", "its mean at the end over that on the plateau"
        return [*claims, Claim(text=text, quantity=quantity, published="rises", ours=risen, above=1.0, note=NOTES)]
