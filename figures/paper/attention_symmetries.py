"""Symmetries of attention: what invertible maps of the heads do to outputs, and to every measure of sharpness."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from figures.drawing import style
from figures.study import recipes
from figures.study.figure import Figure
from figures.study.figure_data import FigureData
from figures.study.rescaled import spread
from figures.study.study import Study
from figures.study.tasks import Computation, Training
from figures.study.verdict import Claim
from landscape import statistics
from landscape.registry import register

if TYPE_CHECKING:
    from figures.study.tasks import Machine

LOW, HIGH = 0.5, 1.5
"""Singular values of the maps."""
WANTED: dict[str, dict[str, Any]] = {
    "sam_sharpness": {"rho": 0.05},
    "adaptive_sharpness": {"rho": 0.5, "one_step_only": True},
    "hessian_top_eigenvalues": {"k": 1, "tol": 1e-4},
    "hessian_trace": {"method": "hutchinson", "probes": 20},
    "average_sharpness": {"rho": 0.05, "draws": 20},
    "fisher_rao_norm": {},
    "geodesic_sharpness": {"rho": 0.1, "steps": 4, "restarts": 1},
}
METRICS = ("inv", "mix")
"""Of geodesic sharpness."""
SAM, ADAPTIVE, EIGENVALUE, TRACE, AVERAGE = "SAM", "adaptive", "$\\lambda_{max}$", "trace", "average"
VARIES = 1e-6
"""Relative spread that no rounding of float64 explains."""
STAYING = ("Fisher-Rao", "geodesic, inv", "geodesic, mix")
MEASURES = (SAM, ADAPTIVE, EIGENVALUE, TRACE, AVERAGE, *STAYING)
"""Names in the picture, in the order of `WANTED`, geodesic sharpness once per metric."""
NOTES = (
    "A small vision transformer, trained on the digits and measured in float64. Every map draws an invertible matrix "
    "for each head, singular values uniform in [0.5, 1.5), between queries and keys, and one between values and the "
    "output layer; biases are mapped too. Few ascent steps, probes and draws, the same at every map, show whether a "
    "measure varies. Gains of norms that move into the layers of a head are not among these maps: geodesic sharpness "
    "varies under them."
)


def map_heads(
    run: Path,
    *,
    wanted: dict[str, dict[str, Any]],
    metrics: list[str],
    maps: int,
    samples: int,
    seed: int,
    machine: Machine,
) -> dict[str, Any]:
    """Measures at `maps` networks whose heads are mapped, (map,) each; logits of the first image, changes of all."""
    import copy

    import torch

    from landscape import MEASURES as REGISTERED
    from landscape import Problem
    from landscape.invariance.rescaling import find
    from landscape.random import stream

    trained = machine.subject(run / "ckpt.pt", samples=samples).problem
    batches = [(batch.args[0].double(), batch.target) for batch in trained.batches]
    problem = Problem(copy.deepcopy(trained.model).double(), torch.nn.CrossEntropyLoss(), batches)
    symmetries = find(problem.model, problem.few_examples(8), parameters=problem.parameters)
    ones, before = torch.ones(symmetries.dimension, dtype=torch.float64), problem.outputs()
    rows: list[list[float]] = []
    logits, changes = [], []
    for i in range(maps):
        matrices = symmetries.sample_maps(stream(seed, f"maps {i}"), LOW, HIGH)
        moved = problem.relocated(symmetries.apply(problem.weights, ones, maps=matrices).weights)
        outputs = moved.outputs()
        logits.append(outputs[0].cpu().numpy())
        changes.append(float((outputs - before).abs().max() / before.abs().max()))
        asked = {name: [arguments] for name, arguments in wanted.items()}
        asked["geodesic_sharpness"] = [{**wanted["geodesic_sharpness"], "metric": metric} for metric in metrics]
        results: list[Any] = [REGISTERED[name](moved, **a) for name, each in asked.items() for a in each]
        rows.append([float(r.values[0] if hasattr(r, "values") else r.value) for r in results])
    at = problem.evaluate()
    return {
        "values": np.array(rows).T,
        "logits": np.array(logits),
        "changes": np.array(changes),
        "heads": len(symmetries.heads),
        "loss": float(at.loss),
        "accuracy": float(at.accuracy),
    }


@register("attention-symmetries", source="da Silva, Dangel and Oore, ICML 2025, arXiv 2505.05409; ours")
class AttentionSymmetries(Figure):
    """Logits and measures of sharpness of transformers whose heads are mapped by invertible matrices."""

    title = "Symmetries of attention"

    def _runs(self, study: Study) -> dict[int, Training]:
        settings = {"data": "digits", "model": "vit-tiny:depth=2,dim=32,heads=4", "epochs": study.choose(15, 60)}
        settings |= {"lr": 0.002, "batch_size": 64}
        return {s: study.training("adamw", s, **settings) for s in study.seeds(3, 5)}

    def _mapped(self, study: Study) -> dict[int, Computation]:
        arguments: dict[str, Any] = {"wanted": WANTED, "metrics": list(METRICS), "samples": study.samples(256)}
        arguments["maps"] = study.choose(8, 50) if study.preset.epochs is None else 2
        task = f"{__name__}:map_heads"
        return {s: Computation(task, (run,), {**arguments, "seed": s}) for s, run in self._runs(study).items()}

    def plan(self, study: Study) -> list[Computation]:
        """The maps of every trained network."""
        return list(self._mapped(study).values())

    def collect(self, study: Study) -> FigureData:
        """Logits of an image and every measure over the maps."""
        runs, tests = self._runs(study), self._mapped(study)
        results = [study.result(test) for test in tests.values()]
        arguments = next(iter(tests.values())).arguments
        facts = {**recipes.describe(*runs.values()), "maps": arguments["maps"], "low": LOW, "high": HIGH}
        facts |= {"samples": arguments["samples"], "seeds": len(runs), "dtype": "float64", "notes": NOTES}
        numbers = FigureData(facts=facts)
        numbers.axis("seed", list(runs))
        numbers.axis("measure", list(MEASURES))
        numbers.axis("map", range(int(arguments["maps"])))
        numbers.axis("class", range(results[0]["logits"].shape[1]))
        numbers.add("value", ("seed", "measure", "map"), [r["values"] for r in results])
        numbers.add("logits", ("seed", "map", "class"), [r["logits"] for r in results])
        numbers.add("output_change", ("seed", "map"), [r["changes"] for r in results])
        for name in ("heads", "loss", "accuracy"):
            numbers.add(name, ("seed",), [float(r[name]) for r in results])
        return numbers

    def draw(self, numbers: FigureData) -> Any:
        """Logits of one image; each measure over its median; spreads, a dot per network."""
        import matplotlib.pyplot as plt

        figure, (left, middle, right) = plt.subplots(
            1, 3, figsize=(style.PAGE, 2.6), layout="constrained", width_ratios=(0.8, 1.1, 1.1)
        )
        x = numbers["map"] + 1
        for c in range(len(numbers["class"])):
            left.plot(x, numbers["logits"][0, :, c], color=style.color(c), linewidth=0.9)
        left.set(xlabel="map of all heads", ylabel="logits of one image", xlim=(x[0], x[-1]))
        left.set_title(f"change {numbers['output_change'].max():.0e}")
        inks = {
            name: "#009E73" if name in STAYING else style.color((0, 1, 3, 4, 5)[i]) for i, name in enumerate(MEASURES)
        }
        for i, name in enumerate(MEASURES):
            values = numbers["value"][0, i]
            dash = (i, (2, 4)) if name in STAYING else "-"
            middle.plot(x, values / np.median(values), color=inks[name], linewidth=1, linestyle=dash)
        middle.set(xlabel="map of all heads", ylabel="measure / its median", xlim=(x[0], x[-1]))
        middle.set_title("one network (green: stays)")
        spreads = np.maximum(spread(numbers["value"]), 1e-16)
        for i, name in enumerate(MEASURES):
            right.plot(spreads[:, i], np.full(len(spreads), i), "o", color=inks[name], markersize=3.5, alpha=0.8)
        right.axvline(1e-9, color="#bbbbbb", linewidth=0.7, zorder=0)
        right.set_yticks(range(len(MEASURES)), list(MEASURES))
        right.set(
            xscale="log",
            xlabel="(max - min) / median",
            ylabel="measure",
            xlim=(1e-17, 10),
            ylim=(len(MEASURES) - 0.5, -0.5),
        )
        right.set_title(f"{len(spreads)} networks, {len(x)} maps each")
        return figure

    def judge(self, numbers: FigureData) -> list[Claim]:
        """What stays is exact; what varies does so by its geometric mean over networks."""
        spreads = dict(zip(MEASURES, spread(numbers["value"]).T, strict=True))

        def claim(text: str, name: str, published: str) -> Claim:
            stays = name in STAYING
            ours = statistics.exact(float(spreads[name].max())) if stays else statistics.geometric_mean(spreads[name])
            over = "largest" if stays else "geometric mean"
            above, below = (None, 1e-9) if stays else (VARIES, None)
            quantity = f"relative spread over the maps, {over} over networks"
            return Claim(
                text=text, quantity=quantity, published=published, ours=ours, note=NOTES, above=above, below=below
            )

        kept = statistics.exact(float(numbers["output_change"].max()))
        return [
            Claim(
                text="Invertible maps of queries against keys and of values against outputs leave the function",
                quantity="largest relative change of the outputs",
                published="0",
                ours=kept,
                below=1e-9,
                note=NOTES,
            ),
            claim("Geodesic sharpness with the metric inv stays", "geodesic, inv", "invariant"),
            claim("Geodesic sharpness with the metric mix stays", "geodesic, mix", "invariant"),
            claim("The Fisher-Rao norm stays", "Fisher-Rao", "-"),
            claim("SAM sharpness varies", SAM, "not invariant"),
            claim("Adaptive sharpness varies", ADAPTIVE, "not invariant"),
            claim("The largest eigenvalue of the Hessian varies", EIGENVALUE, "-"),
            claim("The trace of the Hessian varies", TRACE, "-"),
            claim("Average sharpness varies", AVERAGE, "-"),
        ]
