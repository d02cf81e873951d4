"""How well the gradient of the K largest losses stands for the gradient of the batch."""

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
    import torch
    from torch import Tensor, nn

    from figures.study.tasks import Machine

BATCH = 256
SIZES = (4, 8, 16, 32, 64, 128, 256)
DATA = {"10 classes": "digits", "200 classes": "many-classes"}


def alignment(
    run: Path, *, epochs: list[int], sizes: list[int], batch: int, batches: int, seed: int, machine: Machine
) -> dict[str, Any]:
    """Cosine with the batch's gradient of the K largest losses' and of K random examples': (epoch, K)."""
    from landscape.random import stream

    top, random = [], []
    for epoch in epochs:
        every = 1_000_000
        subject = machine.subject(run / f"epoch-{epoch}.pt", samples=every, batch_size=every)
        whole = next(iter(subject.problem.batches))
        generator = stream(seed, f"alignment {epoch}")
        examples = whole.args[0], whole.target
        pairs = [cosines(subject.model, *examples, sizes, batch, generator) for _ in range(batches)]
        means = np.mean(pairs, axis=0)
        top.append(means[0])
        random.append(means[1])
    return {"top": top, "random": random}


def cosines(
    model: nn.Module, inputs: Tensor, targets: Tensor, sizes: list[int], batch: int, generator: torch.Generator
) -> list[list[float]]:
    """Of one random batch, for every K: the K largest losses' gradient, and that of K random examples."""
    import torch
    import torch.nn.functional as F

    tensors = [p for p in model.parameters() if p.requires_grad]

    def gradient(index: Tensor) -> Tensor:
        loss = F.cross_entropy(model(inputs[index]), targets[index])
        return torch.cat([g.ravel() for g in torch.autograd.grad(loss, tensors)]).double()

    chosen = torch.randperm(len(targets), generator=generator)[:batch].to(targets.device)
    with torch.no_grad():
        losses = F.cross_entropy(model(inputs[chosen]), targets[chosen], reduction="none")
    full = gradient(chosen)
    largest = losses.argsort(descending=True)
    mixed = torch.randperm(len(chosen), generator=generator).to(largest.device)
    parts = [[gradient(chosen[order[:k]]) for k in sizes] for order in (largest, mixed)]
    return [[float(g @ full / (g.norm() * full.norm())) for g in row] for row in parts]


@register("ksam-alignment", source="K-SAM paper, the alignment of the top-K gradient")
class GradientAlignment(Figure):
    """Cosine of the top-K and of a random-K gradient with the batch's, over K and training, for 10 and 200 classes."""

    title = "Does the top-K gradient stand for the batch?"

    def _epochs(self, study: Study) -> list[int]:
        return [1, 2] if study.preset.epochs is not None else study.choose([1, 5, 20], [1, 20, 60])

    def _runs(self, study: Study) -> dict[tuple[str, int], Training]:
        last = self._epochs(study)[-1]
        return {
            (name, s): recipes.features(study, "sgd", s, data=data, model="mlp:hidden=64x64", epochs=last, keep_every=1)
            for name, data in DATA.items()
            for s in study.seeds(recipes.SEEDS)
        }

    def _cosines(self, study: Study) -> dict[tuple[str, int], Computation]:
        shared = {"epochs": self._epochs(study), "sizes": list(SIZES), "batch": BATCH, "batches": study.choose(5, 20)}
        return {
            (name, s): Computation(f"{__name__}:alignment", (t,), {**shared, "seed": s})
            for (name, s), t in self._runs(study).items()
        }

    def plan(self, study: Study) -> list[Computation]:
        """SGD runs on few and on many classes, and the cosines at three epochs."""
        return list(self._cosines(study).values())

    def collect(self, study: Study) -> FigureData:
        """Cosines by data, epoch, K."""
        results = {key: study.result(c) for key, c in self._cosines(study).items()}
        seeds = study.seeds(recipes.SEEDS)
        facts = {**recipes.describe(*self._runs(study).values()), "seeds": len(seeds), "batch": BATCH, "data": DATA}
        numbers = FigureData(facts={**facts, "batches": next(iter(self._cosines(study).values())).arguments["batches"]})
        numbers.axis("data", DATA)
        numbers.axis("seed", seeds)
        numbers.axis("epoch", self._epochs(study))
        numbers.axis("k", SIZES, "examples")
        for name in ("top", "random"):
            numbers.add(name, ("data", "seed", "epoch", "k"), [[results[d, s][name] for s in seeds] for d in DATA])
        return numbers

    def draw(self, numbers: FigureData) -> Any:
        """One panel per data set, one color per epoch; dashed: random K."""
        import matplotlib.pyplot as plt

        figure, panels = plt.subplots(1, 2, figsize=(style.PAGE, 2.6), sharey=True, layout="constrained")
        for axes, data in zip(panels, numbers["data"], strict=True):
            for i, epoch in enumerate(numbers["epoch"]):
                for name, dash in (("top", "-"), ("random", "--")):
                    values = numbers.at(name, data=data, epoch=epoch)
                    text = f"{'top' if name == 'top' else 'random'} K, epoch {epoch}"
                    bands.band(axes, numbers["k"], values, style.color(i), linestyle=dash, label=text)
            axes.set(xscale="log", xlabel=f"K (of a batch of {BATCH} examples)", ylim=(-0.1, 1.05))
            axes.set_xticks(SIZES, [str(k) for k in SIZES])
            axes.minorticks_off()
            axes.set_title(f"{data} ({DATA[str(data)]})")
        panels[0].set_ylabel("cosine with the batch's gradient")
        panels[1].legend(loc="lower right", ncols=2)
        return figure

    def judge(self, numbers: FigureData) -> list[Claim]:
        """Aligned on few classes, not on many; better than random."""
        k = SIZES.index(BATCH // 4)
        top, random = (numbers[n][..., k].mean(axis=-1) for n in ("top", "random"))
        few, many = range(2)
        at = f"K = {BATCH // 4} of {BATCH}, mean over the epochs"
        return [
            Claim(
                text="Few examples with the largest losses give a gradient well aligned with the batch's",
                quantity=f"cosine on 10 classes, {at}",
                published="well aligned",
                ours=statistics.mean(top[few]),
                above=0.8,
                note="The paper gives no number: a cosine above 0.8 is taken for 'well aligned'.",
            ),
            Claim(
                text="The largest losses are better aligned than random examples",
                quantity=f"difference of cosines on 10 classes, {at}",
                published="above 0",
                ours=statistics.paired(top[few], random[few]),
                above=0.0,
            ),
            Claim(
                text="On many classes the largest losses stand for the batch less well",
                quantity=f"cosine on 200 classes minus on 10 classes, {at}",
                published="below 0 (ImageNet)",
                ours=statistics.paired(top[many], top[few]),
                below=0.0,
            ),
        ]
